"""The container: all or nothing on disk, no litter, hashes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monoquant import FileError, container
from monoquant.container import hash_of, read_container, write_container
from monoquant.disk import replacing
from monoquant.numerics.memory import byte_view

NAMES = st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int32, torch.bool]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_round_trip(tmp_path: Path, data: st.DataObject) -> None:
    """Tensors of any dtype and shape, also empty and non-contiguous ones, and any text come back equal."""
    shapes = st.lists(st.integers(0, 4), max_size=3)
    names = data.draw(st.lists(NAMES, max_size=4, unique=True))
    tensors = {}
    for name in names:
        if name == "__metadata__":
            continue
        dtype, shape = data.draw(st.sampled_from(DTYPES)), data.draw(shapes)
        tensors[name] = torch.randint(0, 2, shape).to(dtype).T if len(shape) == 2 else torch.ones(shape).to(dtype)
    metadata = data.draw(st.dictionaries(st.sampled_from(["a", "b"]), st.text(st.characters(codec="utf-8"))))
    path = tmp_path / "file.safetensors"
    write_container(path, tensors, metadata)
    found, texts = read_container(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)
    assert {key: text for key, text in texts.items() if "sha256" not in key} == metadata


def test_hash_depends_on_name_bytes_shape_and_dtype() -> None:
    """Equal bytes with another name or meaning have another hash."""
    zeros = torch.zeros(2, 2, dtype=torch.int32)
    others = [zeros.view(torch.float32), zeros.reshape(4), zeros + 1]
    assert len({hash_of("a", zeros), hash_of("b", zeros), *(hash_of("a", other) for other in others)}) == 5


def test_a_failed_write_keeps_the_old_file_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If anything fails before the rename, even Ctrl-C, the folder holds the old file and nothing else."""
    path = tmp_path / "file.safetensors"
    write_container(path, {"a": torch.ones(3)}, {})
    old = path.read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(replacing, "_flush", stop)
    with pytest.raises(KeyboardInterrupt):
        write_container(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import sys, torch
from pathlib import Path
from monoquant import container
from monoquant.disk import replacing
def hang(*_):
    print("hanging", flush=True)
    import time; time.sleep(60)
replacing._flush = hang
container.write_container(Path(sys.argv[1]), {"a": torch.zeros(3)}, {})
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_litter_of_a_killed_writer_goes_with_the_next_write(tmp_path: Path) -> None:
    """kill -9 leaves the old file intact; the next write removes the dead writer's file, not a living one's."""
    path = tmp_path / "file.safetensors"
    write_container(path, {"a": torch.ones(3)}, {})
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "hanging\n"
    assert len(list(tmp_path.iterdir())) == 2
    write_container(path, {"a": torch.full((3,), 2.0)}, {})
    assert len(list(tmp_path.iterdir())) == 2, "the file of a living writer was removed"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    time.sleep(0.01)
    assert float(read_container(path)[0]["a"][0]) == 2
    write_container(path, {"a": torch.full((3,), 3.0)}, {})
    assert list(tmp_path.iterdir()) == [path]
    assert float(read_container(path)[0]["a"][0]) == 3


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    """A missing folder and a folder in place of a file are told."""
    with pytest.raises(FileError, match="does not exist; create it first"):
        write_container(tmp_path / "no" / "file.safetensors", {}, {})
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(FileError, match="is a folder"):
        write_container(tmp_path / "folder.safetensors", {}, {})


def test_disk_errors_become_file_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is a FileError that says the old file is intact."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(replacing, "_flush", full)
    with pytest.raises(FileError, match=r"No space left on device.*the file is as it was before"):
        write_container(tmp_path / "file.safetensors", {"a": torch.ones(1)}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", [0, 1])
def test_room_is_asked_for_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """For all bytes of the file, beside an old one; the error says how many are needed and how many there are."""
    path = tmp_path / "file.safetensors"
    tensors = {"a": torch.ones(3000), "b": torch.ones(3, dtype=torch.uint8)}
    write_container(path, tensors, {"text": "old"})
    old = path.read_bytes()
    usage = shutil._ntuple_diskusage(0, 0, len(old) - missing)  # type: ignore[attr-defined]
    monkeypatch.setattr(replacing.shutil, "disk_usage", lambda _folder: usage)
    monkeypatch.setattr(container, "hash_of", None if missing else hash_of)
    if not missing:
        write_container(path, tensors, {"text": "new"})
        return
    said = r"no space left, the file needs 12\.1 KiB and its folder has 12\.1 KiB free; make room, or give another"
    with pytest.raises(FileError, match=said):
        write_container(path, tensors, {"text": "new"})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_the_format_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other dtypes, a reserved name and another byte order are refused before anything is written."""
    path = tmp_path / "file.safetensors"
    with pytest.raises(FileError, match=r"a \(torch\.complex128, torch\.strided\); convert them first"):
        write_container(path, {"a": torch.ones(1, dtype=torch.complex128)}, {})
    with pytest.raises(FileError, match="no tensor may be called '__metadata__'"):
        write_container(path, {"__metadata__": torch.ones(1)}, {})
    for name in ("a\x1b[31m", "a\ud800", "a\n"):
        with pytest.raises(FileError, match="names of tensors must be printable, and these are not: 'a"):
            write_container(path, {name: torch.ones(1)}, {})
    monkeypatch.setattr(container.sys, "byteorder", "big")
    with pytest.raises(FileError, match="little-endian"):
        write_container(path, {"a": torch.ones(1)}, {})
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_aligned(tmp_path: Path) -> None:
    """Readers that map the file find every tensor at a multiple of its element size."""
    path = tmp_path / "file.safetensors"
    dtypes = {"a": torch.uint8, "b": torch.float64, "c": torch.float16, "d": torch.float32}
    write_container(path, {name: torch.ones(3, dtype=dtype) for name, dtype in dtypes.items()}, {"odd": "x"})
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name, dtype in dtypes.items():
        assert (8 + size + header[name]["data_offsets"][0]) % dtype.itemsize == 0


def write_plain(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file as another program would, without or with wrong hashes."""
    slots = container.arranged(tensors)
    path.write_bytes(container.header_of(slots, metadata) + b"".join(byte_view(tensors[name]) for name in slots))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    """No file, other content, a safetensors file without hashes, and hashes of other tensors."""
    path = tmp_path / "file.safetensors"
    with pytest.raises(FileError, match="no such file"):
        read_container(path)
    path.write_bytes(b"not a file of ours")
    with pytest.raises(FileError, match=r"file\.safetensors: not a safetensors file"):
        read_container(path)
    with pytest.raises(FileError, match="is a folder; give a file"):
        read_container(tmp_path)
    write_plain(path, {"a": torch.ones(1)}, {})
    with pytest.raises(FileError, match="not a monoquant file"):
        read_container(path)
    write_container(path, {"a": torch.ones(1)}, {})
    metadata = read_container(path)[1]
    write_plain(path, {"a": torch.ones(1), "b": torch.ones(1)}, metadata)
    with pytest.raises(FileError, match="holds 2 tensors and 1 hashes"):
        read_container(path)
    write_plain(path, {"a": torch.zeros(1)}, metadata)
    with pytest.raises(FileError, match="tensors differ from their hashes: a;"):
        read_container(path)
    write_plain(path, {"a": torch.ones(1)}, {**metadata, "more": "text"})
    with pytest.raises(FileError, match="metadata differs from its hash"):
        read_container(path)
