"""docs/cli.md is followed from top to bottom: every command runs, and prints what stands below it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.console import assert_as_said, examples, run

DOCUMENT = Path(__file__).parents[1] / "docs" / "cli.md"
_FILE = re.compile(r"```(?:python|toml)\n# (\S+)\n(.*?)```", re.DOTALL)


def test_every_command_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the files that the page shows."""
    monkeypatch.setenv("MONOQUANT_PLUGINS", "off")  # the reader has none yet
    for name, text in _FILE.findall(DOCUMENT.read_text(encoding="utf-8")):
        (tmp_path / name).write_text(text)
    found = list(examples(DOCUMENT))
    assert len(found) >= 15
    for example in found:
        assert_as_said(example, run(example, tmp_path))


def test_every_command_and_exit_code_is_on_the_page() -> None:
    """So that a new one is not forgotten."""
    from monoquant.cli.app import commands

    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in commands.commands if f"monoquant {name}" not in text] == []
    assert [code for code in (0, 1, 2, 3, 4, 130) if f"| {code} |" not in text] == []
