"""The tutorial: whoever copies its blocks gets what it shows, from an empty folder to an installed plugin."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import monoquant as mq

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"# (\S+)\n")
VARIES = re.compile(
    r"(?<=in )\d+\.\d+(?=s)|(?<=torch )\S+?(?=,|$)|(?<=monoquant )\d+\.\d+\.\d+|(?<=sha256:)\w+", re.MULTILINE
)


class Reader:
    """Does what the page says in a folder of their own.

    ``pip install -e .`` goes to a folder beside it, without a network: the environment of the tests stays as it is.
    """

    def __init__(self, root: Path) -> None:
        self.folder, self.site = root / "monoquant-ends", root / "site"
        self.folder.mkdir()

    def write(self, block: str) -> None:
        named = FILE.match(block)
        assert named, f"this block does not name its file:\n{block}"
        path = self.folder / named[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block, encoding="utf-8")

    def type(self, line: str) -> str:
        words = shlex.split(line)
        settings = [word for word in words if re.match(r"[A-Z_]+=", word)]
        command, *arguments = words[len(settings) :]
        run = [sys.executable, "-P", "-m"]  # -P: as the scripts, which do not look into the working folder
        programs = {
            "python": [sys.executable],
            "pytest": [*run, "pytest", "-p", "no:cacheprovider"],
            "monoquant": [*run, "monoquant"],
            "pip": [*run, "pip"],
        }
        if command == "pip":
            assert arguments == ["install", "-q", "-e", "."]
            arguments = ["install", "-q", "--no-deps", "--no-build-isolation", "--target", str(self.site), "."]
        others = ("MONOQUANT_", "PIP_", "PYTEST_", "PY_COLORS", "FORCE_COLOR")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        path = os.pathsep.join([str(self.site), str(Path(mq.__file__).parents[1])])
        given = dict(word.split("=", 1) for word in settings)
        environment = {**inherited, "PYTHONPATH": path, "COLUMNS": "80", **given}
        words = [*programs[command], *arguments]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=self.folder, env=environment)
        assert done.stdout or not done.returncode, done.stderr
        return done.stdout


def follow(page: str, reader: Reader) -> list[tuple[str, str, str]]:
    """Every command on the page, what the page says of it, and what it printed."""
    seen = []
    for language, block in BLOCK.findall(page):
        if language != "console":
            reader.write(block)
            continue
        for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, said = entry.partition("\n")
            seen.append((line, said, reader.type(line)))
    return seen


def agree(said: str, printed: str) -> bool:
    """Whether they are equal but for times and versions, and for what the page leaves out."""
    parts = re.split(r"^\.\.\.$", VARIES.sub("*", said), flags=re.MULTILINE)
    pattern = r"(?:.*\n)*?".join(re.escape(part.removeprefix("\n")) for part in parts)
    return re.fullmatch(pattern, VARIES.sub("*", printed)) is not None


@pytest.mark.skipif(bool(entry_points(group="monoquant")), reason="a newcomer has no plugins")
def test_following_the_tutorial_gives_what_it_shows(tmp_path: Path) -> None:
    """All files are written, all commands run, in the order of the page."""
    seen = follow(PAGE, Reader(tmp_path))
    assert len(seen) == PAGE.count("\n$ ") == 10
    for line, said, printed in seen:
        assert agree(said, printed), f"$ {line}\nthe page says:\n{said}\nand it printed:\n{printed}"


def test_what_is_compared() -> None:
    """Times, versions and left-out lines may differ, and nothing else."""
    assert agree("a\n2 passed in 1.25s\n", "a\n2 passed in 0.31s\n")
    assert agree("with monoquant 0.1.0, torch 2.13.0\n", "with monoquant 0.2.0, torch 2.14.1+cpu\n")
    assert agree("a\n...\nc\n", "a\nb\nb\nc\n")
    assert agree("a\n...\n", "a\nb\nb\n")
    assert not agree("a\n2 passed in 1.25s\n", "a\n3 passed in 1.25s\n")
    assert not agree("with monoquant 0.1.0, torch 2.13.0\n", "with monoquant 0.1.0, torch 2.13.0, ends 0.1.0\n")
    assert not agree("a\n...\nc\n", "a\nb\nd\n")
    assert not agree("a\n", "a\nb\n")
