"""Commands that documents show, run as a reader would, and held against the output that stands below them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

_BLOCK = re.compile(r"^```console\n(\$ .*?)^```", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_VERSIONS = re.compile(r"(monoquant|torch|transformers) \d[\w.+]*")
_PROGRESS = re.compile(r"^monoquant: .* after (?:\d+ min )?\d+ s.*\n", re.MULTILINE)
GAP = "..."


@attrs.frozen
class Example:
    """A command and what a document says that it prints.

    Args:
        command: For a shell.
        output: Lines; one that is ``...`` stands for any number of lines.
        line: Where it stands in the document.
    """

    command: str
    output: tuple[str, ...]
    line: int


def examples(document: Path) -> Iterator[Example]:
    """All commands of the blocks that begin with ``$``, in order.

    Args:
        document: Markdown.
    """
    text = document.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n") + 1
        parts = re.split(r"^\$ ", block[1], flags=re.MULTILINE)[1:]
        for part in parts:
            lines = part.rstrip("\n").split("\n")
            until = next((index for index, one in enumerate(lines) if not one.endswith("\\")), 0) + 1
            yield Example("\n".join(lines[:until]), tuple(lines[until:]), line)
            line += part.count("\n")


def run(example: Example, folder: Path) -> str:
    """What a command prints, on both streams; how far it was meanwhile depends on the machine, and is left out.

    Args:
        example: The command.
        folder: Where it is run.
    """
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "NO_COLOR": "1",
        "PYTHONWARNINGS": "ignore:Failed to initialize NumPy",  # torch says so where NumPy is not installed
    }
    done = subprocess.run(
        ["bash", "-c", example.command],  # noqa: S607 - the document's reader has a shell as well
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return _PROGRESS.sub("", done.stdout)


def assert_as_said(example: Example, printed: str) -> None:
    """Equal words; numbers within 2 %, as rounding differs between machines; versions are free.

    Args:
        example: What the document says.
        printed: What the command printed.
    """
    found, rest = printed.rstrip("\n").split("\n") if printed.strip() else [], list(example.output)
    position = 0
    while rest:
        wanted = rest.pop(0)
        if wanted.strip() == GAP:
            if not rest:
                return
            position = next((at for at in range(position, len(found)) if _words(found[at]) == _words(rest[0])), -1)
            assert position >= 0, f"line {example.line}: {rest[0]!r} is not in\n{printed}"
            continue
        assert position < len(found), f"line {example.line}: {wanted!r} was not printed, but\n{printed}"
        _assert_same(wanted, found[position], f"line {example.line}, {example.command}:\n{printed}")
        position += 1
    assert found[position:] == [], f"line {example.line}: more was printed:\n{printed}"


def _words(line: str) -> str:
    return re.sub(r"[ -]+", " ", _NUMBER.sub("#", _VERSIONS.sub(r"\1", line))).strip()


def _assert_same(wanted: str, found: str, where: str) -> None:
    assert _words(wanted) == _words(found), f"{wanted!r} is not {found!r}: {where}"
    wanted, found = (_VERSIONS.sub(r"\1", text) for text in (wanted, found))
    for one, other in zip(_NUMBER.findall(wanted), _NUMBER.findall(found), strict=True):
        said, printed = (float(number.replace(",", "")) for number in (one, other))
        assert said == pytest.approx(printed, rel=0.02, abs=0.011), f"{one} is not {other}: {where}"
