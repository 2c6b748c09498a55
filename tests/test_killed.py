"""Killed at any moment, a run leaves the old file as it was or the new one complete, and the next run clears up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from monoquant.disk import replacing

KILLED = """
import json, os, random, shutil, signal, sys
from pathlib import Path
import torch
from torch import nn
import monoquant as mq
from monoquant import container
from monoquant.disk import replacing
from monoquant.streaming.source import TensorSource
from monoquant.streaming.target import TensorTarget

torch.set_num_threads(1)
torch.manual_seed(0)
folder, way = Path(sys.argv[1]), sys.argv[2]
source, events = folder / "float.safetensors", 0
container.write_container(source, {f"{name}.weight": torch.randn(100, 200) for name in "abcd"}, {})
options = {"accuracy_warning": "ignore", "plugins": False}
result = mq.quantize(nn.Sequential(*(nn.Linear(200, 100) for _ in range(4))), **options)

class Folder(mq.Exporter):
    name = "folder"

    def write(self, result, path):
        path.mkdir()
        for name in "abcdef":
            self.put(path / name)

    def put(self, path):
        path.write_text(path.name * 1000)

def counted(owner, name, last):
    work = getattr(owner, name)
    def step(*args, **kwargs):
        global events
        for when in ("before", "after"):
            if events == last:
                os.kill(os.getpid(), signal.SIGKILL)
            events += 1
            if when == "before":
                found = work(*args, **kwargs)
        return found
    setattr(owner, name, step)

WAYS = {
    "stream": (folder / "packed.safetensors", lambda path: mq.quantize_file(source, path, **options)),
    "save": (folder / "packed.safetensors", lambda path: mq.save(result, path, plugins=False)),
    "folder": (folder / "packed", lambda path: mq.save(result, path, Folder(), plugins=False)),
}
target, write = WAYS[way]

def content():
    files = sorted(target.rglob("*")) if target.is_dir() else [target]
    return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in files if path.is_file()]

def put_old():
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    if way == "folder":
        target.mkdir()
    (target / "old" if way == "folder" else target).write_bytes(b"old")

def run(last):
    for owner, name in ((TensorSource, "read"), (TensorTarget, "_write"), (TensorTarget, "put_header"),
                        (container, "byte_view"), (replacing, "_flush"), (replacing, "_flush_folder"),
                        (replacing, "exchanged"), (Folder, "put"), (Path, "replace"), (shutil, "rmtree")):
        counted(owner, name, last)
    write(target)

def forked(last):
    process = os.fork()
    if not process:
        run(last)
        (folder / "events").write_text(str(events))
        os._exit(0)
    return os.waitpid(process, 0)[1]

put_old()
old = content()
assert forked(-1) == 0
new = content()
total = int((folder / "events").read_text())
(folder / "events").unlink()
found = []
for last in sorted({0, total - 1, *random.Random(0).sample(range(total), 20)}):
    put_old()
    status = forked(last)
    litter = [path.name for path in folder.iterdir() if path not in (source, target)]
    now = content()
    found.append({"killed": os.WIFSIGNALED(status), "state": "old" if now == old else now == new and "new",
                  "litter": len(litter)})
write(target)
assert content() == new
print(json.dumps({"found": found, "left": sorted(path.name for path in folder.iterdir())}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts many processes from one")
@pytest.mark.parametrize("way", ["stream", "save", "folder"])
def test_a_killed_run_harms_nothing(tmp_path: Path, way: str) -> None:
    """At twenty moments from the first block to the last clearing up, by a signal that nobody can catch."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), way], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["found"]) >= 20
    assert all(one["killed"] and one["state"] in ("old", "new") for one in told["found"])
    assert {one["state"] for one in told["found"]} == {"old", "new"}
    assert any(one["litter"] for one in told["found"])
    assert all(one["litter"] <= 1 for one in told["found"]), "the next run removes what the last one left"
    assert told["left"] == ["float.safetensors", "packed" if way == "folder" else "packed.safetensors"]


MOVED_AWAY = """
import os, sys
from pathlib import Path
from monoquant.disk import replacing

replacing.exchanged = lambda *_: False
replace = Path.replace

def killed(one, other):
    replace(one, other)
    os._exit(9)

Path.replace = killed
with replacing.staged(Path(sys.argv[1])) as place:
    place.mkdir()
"""


@pytest.mark.skipif(os.name == "nt", reason="no harmless way to ask whether a process lives")
def test_what_a_killed_run_moved_away_is_put_back(tmp_path: Path) -> None:
    """Where folders cannot change places in one step: before the next run begins to write."""
    target = tmp_path / "packed"
    target.mkdir()
    (target / "old").write_text("old")
    assert subprocess.run([sys.executable, "-c", MOVED_AWAY, str(target)], check=False).returncode == 9
    assert not target.exists()
    with pytest.raises(KeyboardInterrupt), replacing.staged(target):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    assert (target / "old").read_text() == "old"
