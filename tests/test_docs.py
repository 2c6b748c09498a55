"""The Python in docs/ runs as it stands and prints what the page says."""

from __future__ import annotations
import __future__ as future

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
TESTED_APART = {"cli.md", "testing.md", "tutorial.md", "interop.md"}
"""Their blocks are files, which other tests write and run, or need transformers, as in tests_interop."""
PAGES = sorted({path.name for path in DOCS.glob("*.md")} - TESTED_APART)


def run_page(name: str) -> list[tuple[str, str]]:
    """Run a page's Python, block by block; pairs of what it says and what was printed."""
    namespace: dict[str, Any] = {"__name__": name}
    pairs, printed = [], ""
    for language, text in BLOCK.findall((DOCS / name).read_text(encoding="utf-8")):
        if language == "python":
            shown = io.StringIO()
            code = compile(text, name, "exec", flags=future.annotations.compiler_flag)  # signatures name types freely
            with contextlib.redirect_stdout(shown):
                exec(code, namespace)  # noqa: S102 - running the page is the point
            printed = shown.getvalue()
        elif language == "text":
            pairs.append((text, printed))
    return pairs


@pytest.mark.parametrize("name", PAGES)
def test_python_blocks_print_what_the_page_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each output on the page is that of the block before it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("monoquant.hooks.loading.installed", list)  # the reader has no plugins yet
    with torch.random.fork_rng():
        pairs = run_page(name)
    assert pairs
    for said, printed in pairs:
        assert printed == said
