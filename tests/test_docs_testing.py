"""The page on testing: its files pass as they stand, and its message is the one that is given."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

import monoquant as mq
import monoquant.testing
from monoquant.testing import strategies

PAGE = (Path(__file__).parents[1] / "docs" / "testing.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))


def test_every_block_is_a_file() -> None:
    """A block without a name would not be run."""
    assert len(FILES) == PAGE.count("```python") == 9


def test_the_files_pass_as_they_stand(tmp_path: Path) -> None:
    """A newcomer who copies them sees every test pass, without a warning."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    package = str(Path(mq.__file__).parents[1])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore:Failed to initialize NumPy",
    ]
    environment = {**os.environ, "PYTHONPATH": package}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d{3} passed in", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize("name", monoquant.testing.__all__)
def test_every_suite_is_on_the_page(name: str) -> None:
    """What is offered is described; what is described is offered."""
    assert name in PAGE or name in ("ModelState", "assert_unchanged")


def test_every_strategy_is_on_the_page() -> None:
    """The table has all of them."""
    assert {name for name in strategies.__all__ if f"`{name}(" not in PAGE} == {"statistics_of"}


@attrs.frozen
class Careless(mq.SkipRule):
    """The rule that the page tells of."""

    def reason(self, layer: mq.Layer) -> str | None:
        return ""


def test_the_message_is_the_one_on_the_page() -> None:
    """What a newcomer sees first when something is wrong."""
    suite = type("TestCareless", (monoquant.testing.SkipRuleConformance,), {"rule": Careless()})
    with pytest.raises(AssertionError) as failure:
        suite().test_it_answers_with_a_reason_or_none()
    said = re.search(r"```text\n(.*?)\n```", PAGE, re.DOTALL)
    assert said is not None
    assert str(failure.value).startswith(said.group(1))
