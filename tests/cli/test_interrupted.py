"""Ctrl-C, and readers that leave: the exit code says so, nothing new is there, and nothing is left beside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import monoquant as mq
from monoquant.container import write_container

SLOW = """
import time
from pathlib import Path

import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))

def batches():
    for index in range(150):
        Path("started").touch()
        time.sleep(0.05)
        yield torch.randn(1, 64)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command in a process of its own, which Ctrl-C reaches even where the tests' runner ignores it."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "sys.path.insert(0, '.'); from monoquant.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, pattern: str, running: subprocess.Popen[str]) -> None:
    """Until a file of that name is there."""
    for _ in range(6000):
        if any(path.glob(pattern)):
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.005)
    raise AssertionError(f"no {pattern} after half a minute")


def test_ctrl_c_while_data_is_run(tmp_path: Path) -> None:
    """What was there stays."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "out.safetensors").write_text("precious")
    running = start(
        tmp_path, "quantize", "slow:build", "--data", "slow:batches", "-o", "out.safetensors", "--overwrite",
        "--trust-code", "--no-plugins",
    )  # fmt: skip
    wait_for(tmp_path, "started", running)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert out == ""
    assert (tmp_path / "out.safetensors").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "out.safetensors",
        "slow.py",
        "started",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_ctrl_c_while_a_file_is_written(tmp_path: Path) -> None:
    """The temporary file is gone."""
    weight = torch.zeros(8192, 8192)
    write_container(tmp_path / "big.safetensors", {"up.weight": weight, "down.weight": weight.clone()}, {})
    running = start(tmp_path, "quantize", "big.safetensors", "-o", "out.safetensors", "--no-plugins")
    wait_for(tmp_path, ".out.safetensors.*", running)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert [path.name for path in tmp_path.iterdir()] == ["big.safetensors"]


GATE = ("--min-layer-sqnr", "99")
COMMANDS = [
    (("quantize", "float.safetensors", "-o", "out.safetensors"), 0),
    (("quantize", "float.safetensors", "-o", "out.safetensors", *GATE), 1),
    (("validate", "small.safetensors"), 0),
    (("validate", "small.safetensors", *GATE), 1),
    (("demo", "--steps", "1"), 0),
]


def buffered() -> dict[str, str]:
    """Streams that keep what could not be written, and fail at exit once more; some machines turn that off."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def left_by_reader(folder: Path, arguments: tuple[str, ...], redirection: str) -> subprocess.CompletedProcess[str]:
    """A command whose reader has gone before anything is written."""
    code = "import time, sys, warnings; sys.path.insert(0, '.'); time.sleep(.5); "
    code += "warnings.warn('a library warns before the command starts'); "
    code += "from monoquant.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, *arguments, "--no-plugins"]
    pipe = f'"$@" {redirection} | true; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["/bin/bash", "-c", pipe, "bash", *words],
        cwd=folder,
        env=buffered(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
@pytest.mark.parametrize("redirection", ["", "2>&1", "--json"])
@pytest.mark.parametrize(("arguments", "expected"), COMMANDS)
def test_a_reader_that_leaves_changes_no_exit_code(
    tmp_path: Path, arguments: tuple[str, ...], expected: int, redirection: str
) -> None:
    """A gate that fails does not pass, and what went well does not fail."""
    torch.manual_seed(0)
    write_container(tmp_path / "float.safetensors", {"up.weight": torch.randn(64, 64)}, {})
    paths = (tmp_path / "float.safetensors", tmp_path / "small.safetensors")
    mq.quantize_file(*paths, accuracy_warning="ignore", plugins=False)
    found = left_by_reader(tmp_path, arguments, redirection)
    assert found.returncode == expected, found.stderr
    assert "Traceback" not in found.stderr
    assert (tmp_path / "out.safetensors").exists() == (arguments[0] == "quantize" and not expected)


FULL = [
    (("plan", "float.safetensors"), ">/dev/full", 3),
    (("plan", "float.safetensors", "--json"), ">/dev/full", 3),
    (("plan", "float.safetensors"), ">/dev/full 2>&1", 3),
    (("plan", "--help"), ">/dev/full", 3),
    (("plan", "float.safetensors"), "2>/dev/full", 0),
    (("plan", "--no-such-option"), "2>/dev/full", 2),
    (("validate", "float.safetensors", "--min-layer-sqnr", "x"), "2>/dev/full", 2),
    (("plan", "nothing.safetensors"), "2>/dev/full", 3),
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(("arguments", "redirection", "expected"), FULL)
def test_a_full_disk_under_a_stream(
    tmp_path: Path, arguments: tuple[str, ...], redirection: str, expected: int
) -> None:
    """Results that are lost are an error, in the system's words; messages that are lost are none."""
    write_container(tmp_path / "float.safetensors", {"up.weight": torch.ones(64, 64)}, {})
    words = [sys.executable, "-m", "monoquant", *arguments, "--no-plugins"]
    found = subprocess.run(
        ["/bin/bash", "-c", f'"$@" {redirection}', "bash", *words],
        cwd=tmp_path,
        env=buffered(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == expected, found.stderr
    assert "Traceback" not in found.stderr
    told = found.stderr.endswith("monoquant: [Errno 28] No space left on device\n")  # torch may warn before it
    assert told == (redirection == ">/dev/full")


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", ">&- --json"])
def test_streams_that_are_closed(tmp_path: Path, redirection: str) -> None:
    """As a service has them; nobody hears, and all is done."""
    write_container(tmp_path / "float.safetensors", {"up.weight": torch.ones(64, 64)}, {})
    found = left_by_reader(tmp_path, ("quantize", "float.safetensors", "-o", "out.safetensors"), redirection)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out.safetensors").exists()


def test_names_that_an_encoding_does_not_have(tmp_path: Path) -> None:
    """They are told all the same."""
    write_container(tmp_path / "float.safetensors", {"größe.weight": torch.ones(64, 64)}, {})
    code = "import sys; from monoquant.cli import main; sys.exit(main(sys.argv[1:]))"
    found = subprocess.run(
        [sys.executable, "-c", code, "inspect", "float.safetensors", "--no-plugins"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "gr\\xf6\\xdfe" in found.stdout


CHATTY = """
import sys

import torch
from torch import nn

def build():
    for index in range(20000):
        print("loading", index)
        sys.stdout.buffer.write(b"shard\\n")
    sys.stdout.writelines(["loaded\\n"] * 20000)
    sys.stdout.flush()
    sys.stdout.buffer.flush()
    return nn.Linear(64, 64)
"""
PLAN_CHATTY = ("plan", "chatty:build", "--trust-code")


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
@pytest.mark.parametrize("redirection", ["", "2>&1", ">&- 2>&-", "2>/dev/full"])
def test_code_that_prints_does_not_depend_on_who_listens(tmp_path: Path, redirection: str) -> None:
    """Text, lines or bytes."""
    (tmp_path / "chatty.py").write_text(CHATTY)
    found = left_by_reader(tmp_path, PLAN_CHATTY, redirection)
    assert found.returncode == 0, found.stderr


def test_what_code_prints_is_no_result(tmp_path: Path) -> None:
    """It goes to stderr, and stdout is one JSON document."""
    (tmp_path / "chatty.py").write_text(CHATTY)
    running = start(tmp_path, *PLAN_CHATTY, "--json", "--no-plugins")
    out, err = running.communicate(timeout=60)
    assert json.loads(out)["exit_code"] == 0
    assert "loading 0\n" in err
    assert "shard\n" in err


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_wrong_usage_that_an_encoding_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Click writes to the bytes below such a stream."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # whoever writes first finds that nobody reads
    assert left_by_reader(tmp_path, ("plan", "--größe"), "2>&1").returncode == 2
