"""The README's Python runs as it stands and prints what the README says."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from monoquant.container import write_container

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
VERSIONS = re.compile(r"(with monoquant|torch) \d[\w.+]*")


def blocks() -> list[tuple[str, str]]:
    """Fenced blocks of the README as language and text."""
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def outputs() -> list[tuple[str, str]]:
    """Run the Python blocks one after the other; pairs of what the README says and what was printed."""
    namespace: dict[str, Any] = {}
    pairs, printed = [], ""
    for language, text in blocks():
        if language == "python":
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown):
                exec(compile(text, "README.md", "exec"), namespace)  # noqa: S102 - running the README is the point
            printed = shown.getvalue()
        elif language == "text":
            pairs.append((text, printed))
    return pairs


def assert_same_text(said: str, printed: str) -> None:
    """Equal words; numbers within 2 %, as rounding differs between machines; versions are free."""
    said, printed = (VERSIONS.sub(r"\1", text) for text in (said, printed))
    assert NUMBER.sub("#", said) == NUMBER.sub("#", printed)
    for one, other in zip(NUMBER.findall(said), NUMBER.findall(printed), strict=True):
        assert float(one) == pytest.approx(float(other), rel=0.02), (one, other)


def test_python_blocks_print_what_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each output in the README is that of the block before it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("monoquant.hooks.loading.installed", list)  # the README's reader has no plugins yet
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    write_container(Path("big.safetensors"), {"up.weight": weight, "embed.weight": torch.ones(128, 1024)}, {})
    with torch.random.fork_rng():
        pairs = outputs()
    assert len(pairs) == 11
    for said, printed in pairs:
        assert_same_text(said, printed)


def test_ci_runs_the_readmes_test_command() -> None:
    """The command that the README gives for the tests is the one in .ci/run."""
    commands = [text.strip() for language, text in blocks() if language == "sh"]
    demo, tests, _model_to_try = commands
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert shlex.split(demo)[-2:] == [".venv/bin/monoquant", "demo"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"monoquant": "monoquant.cli:main"}


def test_the_map_names_every_part_of_the_package() -> None:
    """What lives where: nothing is missing from the README's map."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## What lives where")[1].split("## ")[0]
    parts = {path.name + ("/" if path.is_dir() else "") for path in (ROOT / "monoquant").iterdir()}
    hidden = {"__init__.py", "__main__.py", "__pycache__/", "py.typed"}
    minor = {
        "class_patterns.py",
        "demo.py",
        "measurement.py",
        "name_patterns.py",
        "rule_answers.py",
        "summary.py",
        "verdict.py",
    }
    assert {part for part in parts - hidden - minor if f"`{part}`" not in text} == set()
