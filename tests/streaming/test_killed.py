"""Killed at any moment, a run leaves the old file as it was, and the next run clears up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLED = """
import json, os, random, signal, sys
from pathlib import Path
import torch
import monoquant as mq
from monoquant import container
from monoquant.streaming.source import TensorSource
from monoquant.streaming.target import TensorTarget

torch.set_num_threads(1)
folder = Path(sys.argv[1])
source, target = folder / "float.safetensors", folder / "packed.safetensors"
container.write_container(source, {f"{name}.weight": torch.randn(100, 200) for name in "abcd"}, {})
events = 0

def counted(owner, name, last):
    work = getattr(owner, name)
    def step(*args):
        global events
        for when in ("before", "after"):
            if events == last:
                os.kill(os.getpid(), signal.SIGKILL)
            events += 1
            if when == "before":
                found = work(*args)
        return found
    setattr(owner, name, step)

def run(last):
    for owner, name in ((TensorSource, "read"), (TensorTarget, "_write"), (TensorTarget, "put_header"),
                        (container, "_flush"), (container, "_flush_folder"), (Path, "replace")):
        counted(owner, name, last)
    mq.quantize_file(source, target, accuracy_warning="ignore", plugins=False)

def forked(last):
    process = os.fork()
    if not process:
        run(last)
        (folder / "events").write_text(str(events))
        os._exit(0)
    return os.waitpid(process, 0)[1]

assert forked(-1) == 0
new = target.read_bytes()
total = int((folder / "events").read_text())
(folder / "events").unlink()
found = []
for last in sorted({0, total - 1, *random.Random(0).sample(range(total), 10)}):
    target.write_bytes(b"old")
    status = forked(last)
    litter = [path.name for path in folder.iterdir() if path not in (source, target)]
    content = target.read_bytes()
    found.append({"killed": os.WIFSIGNALED(status), "state": "old" if content == b"old" else content == new and "new",
                  "litter": len(litter)})
mq.quantize_file(source, target, accuracy_warning="ignore", plugins=False)
print(json.dumps({"found": found, "left": sorted(path.name for path in folder.iterdir())}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts many processes from one")
def test_a_killed_run_harms_nothing(tmp_path: Path) -> None:
    """At a dozen moments from the first block to the rename, by a signal that nobody can catch."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["found"]) >= 10
    assert all(one["killed"] and one["state"] in ("old", "new") for one in told["found"])
    assert any(one["litter"] for one in told["found"])
    assert all(one["litter"] <= 1 for one in told["found"]), "the next run removes what the last one left"
    assert told["left"] == ["float.safetensors", "packed.safetensors"]
