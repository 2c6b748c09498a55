"""Memory does not grow with the file, nor with a tensor in it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monoquant.numerics.memory import byte_view

MIB = 1 << 20
MEASURED = """
import sys
from pathlib import Path
import torch
import monoquant as mq

def kib(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

Path("/proc/self/clear_refs").write_text("5")  # the peak begins now
before = kib("VmRSS")
mq.quantize_file(sys.argv[1], sys.argv[2], accuracy_warning="ignore", plugins=False)
print(kib("VmHWM") - before)
"""


def write_big(path: Path, size: int) -> None:
    """One matrix of so many bytes, written piece by piece."""
    rows, piece = size // 16384, torch.randn(256, 4096, generator=torch.Generator().manual_seed(0))
    header = {"a.weight": {"dtype": "F32", "shape": [rows, 4096], "data_offsets": [0, rows * 16384]}}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(rows // 256):
            file.write(byte_view(piece))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads what Linux tells of a process")
def test_memory_stays_small(tmp_path: Path) -> None:
    """256 MiB in one tensor, at most 64 MiB more than the idle process."""
    source, target = tmp_path / "float.safetensors", tmp_path / "packed.safetensors"
    write_big(source, 256 * MIB)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED, str(source), str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 64 * MIB
    assert 33 * MIB < target.stat().st_size < 35 * MIB
