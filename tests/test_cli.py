"""The command line: exit codes, and which stream says what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import monoquant as mq
from monoquant import cli


def test_demo_runs_as_a_command(tmp_path: Path) -> None:
    """A process of its own exits with 0, writes to stdout only, and keeps the files where it was told."""
    command = [sys.executable, "-m", "monoquant", "demo", "--steps", "1", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "AccuracyWarning" not in done.stderr
    assert done.stdout.startswith("1. Text")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["float.safetensors", "int4.safetensors"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is that of the package."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"monoquant {mq.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "usage: monoquant"),
        (["train"], "invalid choice: 'train'"),
        (["demo", "--steps", "0"], "'0' is not a whole number >= 1"),
        (["demo", "--steps", "-3"], "'-3' is not a whole number >= 1"),
        (["demo", "--steps", "many"], "'many' is not a whole number >= 1"),
        (["demo", "--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, the reason on stderr, nothing on stdout."""
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert text in shown.err


def test_failures_have_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed gate is exit code 1 and one clean message."""

    def fail(*_: Any, **__: Any) -> None:
        raise mq.InputError("nothing to do")

    monkeypatch.setattr(cli, "run_demo", fail)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == "monoquant: nothing to do\n"


def test_ctrl_c_has_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupted command says so and exits with 130."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_demo", interrupt)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "monoquant: interrupted\n"


def test_a_reader_that_leaves_is_no_traceback() -> None:
    """``monoquant demo | head -1`` ends quietly."""
    command = [sys.executable, "-m", "monoquant", "demo", "--steps", "1"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    assert demo.stderr is not None
    assert demo.stdout.readline().startswith("1. Text")
    demo.stdout.close()
    told = demo.stderr.read()
    demo.stderr.close()
    assert demo.wait() == 1
    assert "Traceback" not in told
