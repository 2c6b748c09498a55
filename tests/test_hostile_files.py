"""Hostile files: each is refused with the right error, in little memory, in little time, and runs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import hostile
from tests.hostile import (
    HUGE,
    array,
    entry,
    header,
    indexed,
    linked,
    number,
    repacked,
    reported,
    resealed,
    text,
    unpickled,
)

INPUT, FILE = "InputError", "FileError"
MANY = b'{"a": [' + b"0," * 20_000_000 + b"0]}"

# name: (what opens it, how it is built, the error, a part of its text)
CASES: dict[str, tuple[str, hostile.Build, str, str]] = {
    # safetensors files
    "header of an exabyte": (
        "load",
        header(b"", length=1 << 60),
        FILE,
        "its header would have 1152921504606846976",
    ),
    "header longer than the file": ("load", header(b"{}", length=90_000_000), FILE, "cut short"),
    "header nested deeply": ("load", header(b"[" * 1_000_000), FILE, "it is nested too deeply"),
    "header of many values": ("quantize", header(MANY), FILE, "values in it, where at most 10000000 make sense"),
    "name twice": ("quantize", header(b'{"a": {}, "a": {}}'), FILE, "'a' appears twice"),
    "shape beyond numbers": (
        "quantize",
        header({"a": entry(0, 0, [1 << 62, 1 << 62, 0])}),
        FILE,
        "which no tensor can have",
    ),
    "negative shape": ("quantize_file", header({"a": entry(0, 4, [-1])}, b"1234"), FILE, "has shape [-1]"),
    "overlapping tensors": (
        "open_model",
        header({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, b"1234"),
        FILE,
        "'b' overlaps the one before it",
    ),
    "gap between tensors": (
        "open_model",
        header({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"1" * 12),
        FILE,
        "'b' leaves a gap before it",
    ),
    "sparse file of a terabyte": (
        "quantize",
        header({"a": entry(0, 4 * HUGE // 4, [HUGE // 4])}, size=HUGE),
        FILE,
        "tensor 'a' has 1000000000000 bytes, for which there is no memory",
    ),
    "number that is none": ("quantize", header(b'{"a": NaN}'), FILE, "NaN is no number"),
    "name that takes over the terminal": ("quantize", header({"a\x1b[2J": {}}), FILE, "cannot be printed"),
    "name of half a letter": ("quantize", header(b'{"a\\ud800": {}}'), FILE, "cannot be printed"),
    # quantized models
    "flipped bit in a tensor": ("load", hostile.flipped(-1), FILE, "tensors differ from their hashes: 0.packed_weight"),
    "flipped bit in the report": ("load", hostile.flipped(1000), FILE, "the metadata differs from its hash"),
    "flipped bit, only listed": ("open_model", hostile.flipped(1000), FILE, "the metadata differs from its hash"),
    "report that says a thing twice": (
        "load_report",
        reported('{"version":1', '{"version":1,"version":1'),
        FILE,
        "'version' appears twice",
    ),
    "layer beyond numbers": (
        "load",
        reported('"shape":[24,40]', f'"shape":[{10**30},40]'),
        FILE,
        "which no weight can have",
    ),
    "layer of a terabyte": ("load", reported('"shape":[24,40]', f'"shape":[{HUGE},40]'), FILE, "does not fit"),
    "layer of whole numbers": (
        "dequantize",
        reported('"shape":[24,40]', '"dtype":"int8","shape":[24,40]'),
        FILE,
        "give a floating-point dtype",
    ),
    "NaN as a scale": (
        "load",
        resealed(lambda tensors, _: tensors["0.packed_weight.scale"].fill_(float("nan"))),
        FILE,
        "scales with NaN or Inf: 0.packed_weight.scale",
    ),
    "tensors without their layer": (
        "dequantize",
        resealed(lambda tensors, _: tensors.pop("0.packed_weight.scale")),
        FILE,
        "its tensors are not those of its layers: layer '0'",
    ),
    # reports
    "report nested deeply": ("load_report", text('{"a":' * 1_000_000), FILE, "it is nested too deeply"),
    "report of ten gigabytes": ("load_report", text("{", size=10**10), FILE, "where at most 100000000 make sense"),
    "pipe": ("load_report", hostile.pipe, FILE, "is a pipe; give a file"),
    "pipe as a model": ("load", hostile.pipe, FILE, "is a pipe; give a file"),
    "pipe as weights": ("quantize_file", hostile.pipe, FILE, "is a pipe; give a file"),
    "device": ("open_model", hostile.path_of("/dev/zero"), FILE, "is a device; give a file"),
    "folder as a file": ("load", hostile.path_of("/"), FILE, "is a folder; give a file"),
    # folders
    "shard above the folder": ("quantize_file", indexed("../secret/weights.safetensors"), FILE, "files must lie in it"),
    "shard anywhere": ("open_model", indexed("/etc/passwd"), FILE, "files must lie in it"),
    "link out of the folder": (
        "open_model",
        indexed("2.safetensors", "1.safetensors", then=linked("2.safetensors", "../secret/weights.safetensors")),
        FILE,
        "2.safetensors: leads out of its folder",
    ),
    "link out of the folder, streamed": (
        "quantize_file",
        indexed("2.safetensors", "1.safetensors", then=linked("2.safetensors", "../secret/weights.safetensors")),
        FILE,
        "2.safetensors: leads out of its folder",
    ),
    "link to itself": ("quantize", indexed("x", then=linked("x", "x")), FILE, "1 of 1 files are missing: x"),
    "index that leads out": (
        "open_model",
        indexed("1.safetensors", then=linked("model.safetensors.index.json", "/etc/passwd")),
        FILE,
        "leads out of its folder, to /etc/passwd",
    ),
    "config that leads out": (
        "open_model",
        indexed("1.safetensors", then=linked("config.json", "/etc/passwd")),
        FILE,
        "config.json: leads out of its folder, to /etc/passwd",
    ),
    "shards that are missing": (
        "open_model",
        indexed("1.safetensors", "2.safetensors", "3.safetensors"),
        FILE,
        "2 of 3 files are missing: 2.safetensors, 3.safetensors",
    ),
    "shard that never ends": (
        "quantize",
        indexed("p", then=lambda folder: os.mkfifo(folder / "p")),
        FILE,
        "p: is a pipe; give a file",
    ),
    "classes that are none": (
        "open_model",
        indexed(
            "x",
            "1.safetensors",
            then=lambda folder: (folder / "x").symlink_to("1.safetensors"),
            architectures=["os.abort"],
        ),
        FILE,
        "its architectures are ['os.abort']",
    ),
    # what torch.save writes
    "zip bomb": (
        "quantize",
        repacked(method=8, more={"model/data/1": bytes(200_000_000)}),
        FILE,
        "its records are compressed or encrypted",
    ),
    "records that share bytes": ("open_state", hostile.overlapping, FILE, "its records claim"),
    "encrypted records": ("quantize", hostile.encrypted, FILE, "its records are compressed or encrypted"),
    "directories that differ": ("quantize", hostile.two_directories, FILE, "its two directories differ"),
    "terabyte of one number": (
        "quantize",
        repacked({b"K\x03K\x04\x86": number(HUGE) + b"K\x04\x86", b"K\x04K\x01\x86": b"K\x00K\x00\x86"}),
        FILE,
        "its tensors would take 16000000000000 bytes",
    ),
    "storage of a terabyte": ("quantize", repacked({b"K\x0c": number(HUGE)}), FILE, "cannot be read as weights only"),
    "old storage of a terabyte": ("open_state", hostile.legacy, FILE, "cannot be read as weights only"),
    "code": ("quantize", unpickled(os.system, "touch executed"), FILE, "cannot be read as weights only"),
    "code, opened": ("open_state", unpickled(eval, "open('executed', 'w')"), FILE, "cannot be read as weights only"),
    "terabyte of zeros": ("quantize", unpickled(bytearray, HUGE), FILE, "cannot be read as weights only"),
    # what is named, and data
    "code that is not trusted": ("open_model", lambda _: "os:abort", INPUT, "--trust-code"),  # type: ignore[return-value, dict-item]
    "data by untrusted code": ("open_data", lambda _: "os:abort", INPUT, "--trust-code"),  # type: ignore[return-value, dict-item]
    "array of objects": (
        "open_data",
        array("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\x80\x04N."),
        FILE,
        "holds values of kind '|O'",
    ),
    "array whose header is code": (
        "open_data",
        array("__import__('os').abort()"),
        FILE,
        "not a .npy file of one array",
    ),
    "array beyond its file": (
        "open_data",
        array("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", b"1234"),
        FILE,
        "has 4000000000000 bytes and the file 4;",
    ),
    "array with a header of gigabytes": (
        "open_data",
        array("{", length=0xFFFFFFFF),
        FILE,
        "its header has 4294967295 bytes",
    ),
}

RUNNER = """
import json, os, resource, signal, sys, time
from pathlib import Path
import torch
from torch import nn
import monoquant as mq
from monoquant.opening import open_data, open_model

torch.set_num_threads(1)
options = {"accuracy_warning": "ignore", "plugins": False}
OPENERS = {
    "load": lambda path: mq.load(path, nn.Sequential(nn.Linear(40, 24)), plugins=False),
    "load_report": mq.load_report,
    "quantize": lambda path: mq.quantize(path, **options),
    "quantize_file": lambda path: mq.quantize_file(path, "out.safetensors", **options),
    "open_model": open_model,
    "open_state": lambda path: open_model(path).state(),
    "dequantize": lambda path: open_model(path).dequantized_state(),
    "open_data": open_data,
}
MORE = 300 << 20
SECONDS = 20

def address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

def attempt(opener, path, pipe):
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + MORE,) * 2)
    signal.alarm(SECONDS)
    begun = time.monotonic()
    try:
        OPENERS[opener](path)
        said = ["nothing", ""]
    except BaseException as error:
        said = [type(error).__name__, str(error)]
    os.write(pipe, json.dumps([*said, time.monotonic() - begun]).encode()[:60_000])
    os._exit(0)

outcomes = {}
for name, (opener, path) in json.load(sys.stdin).items():
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        attempt(opener, path, writing)
    os.close(writing)
    status = os.waitpid(process, 0)[1]
    told = os.read(reading, 60_000)
    os.close(reading)
    outcomes[name] = json.loads(told) if told else [f"killed with {status}", "", 0.0]
json.dump(outcomes, sys.stdout)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited as on Linux")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all files lie, and what a file may execute would leave its trace."""
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def outcomes(place: Path) -> Mapping[str, Any]:
    """Error, text and seconds of each case, each in a process with little memory to spare."""
    built = {}
    for index, (name, (opener, build, _, _)) in enumerate(CASES.items()):
        folder = place / str(index)
        folder.mkdir()
        built[name] = (opener, str(build(folder)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNER],
        input=json.dumps(built),
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused(outcomes: Mapping[str, Any], place: Path, name: str) -> None:
    """By the expected error, soon, without the memory that it asks for, and without running anything."""
    _, _, kind, said = CASES[name]
    error, told, seconds = outcomes[name]
    assert (error, said in told) == (kind, True), f"{error}: {told}"
    assert seconds < 15
    assert len(told) < 2000, "an error is to be read"
    assert not list(place.rglob("executed"))
