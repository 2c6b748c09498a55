"""The tensors of one file, or of a folder of files, read in pieces."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from monoquant.errors import FileError
from monoquant.numerics.memory import byte_view
from monoquant.streaming.header import Stored, read_header

_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"
_Identity = tuple[int, ...]


class TensorSource:
    """Tensors by name, in files that are held open; a context manager.

    Args:
        path: A ``.safetensors`` file; the index of several, or a folder that holds one or the other under the usual
            name, ``model.safetensors`` or ``model.safetensors.index.json``.

    Raises:
        FileError: When files are missing, damaged or quantized already, or the index and they disagree.

    Attributes:
        tensors: Where each is, in the order of names.
        paths: All files that were looked into.
    """

    def __init__(self, path: Path) -> None:
        shards = _shards(path)
        self._open = ExitStack()
        self._files: dict[Path, BinaryIO] = {}
        self._identities: dict[Path, _Identity] = {}
        self.paths = (path, *shards)
        try:
            found = {shard: self._opened(shard) for shard in shards}
            named = _agreed(path, shards, found)
        except BaseException:
            self._open.close()
            raise
        self.tensors = {name: named[name] for name in sorted(named)}

    def _opened(self, path: Path) -> dict[str, Stored]:
        try:
            file = self._open.enter_context(path.open("rb", buffering=0))
            self._files[path], self._identities[path] = file, _identity(os.fstat(file.fileno()))
            tensors, texts = read_header(path, file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror or error})") from error
        if isinstance(texts, dict) and texts.get("format") == "monoquant":
            raise FileError(f"{path}: written by monoquant, so it is quantized already; give it to load()")
        return tensors

    def __enter__(self) -> TensorSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def state(self) -> dict[str, Tensor]:
        """All tensors on the meta device, by name."""
        return {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in self.tensors.items()}

    def in_order(self) -> Iterator[tuple[str, Stored]]:
        """Tensors as they lie in the files, one file after the other."""
        order = {path: index for index, path in enumerate(self.paths)}
        yield from sorted(self.tensors.items(), key=lambda item: (order[item[1].path], item[1].start))

    def read(self, stored: Stored, skip: int, into: Tensor) -> None:
        """Read some bytes of a tensor.

        Args:
            stored: Which.
            skip: How many of its bytes come before.
            into: Contiguous CPU tensor to fill.

        Raises:
            FileError: When they cannot be read, or are not there any more.
        """
        file, view = self._files[stored.path], byte_view(into)
        done = 0
        try:
            file.seek(stored.start + skip)
            while done < len(view):
                count = file.readinto(view[done:])  # type: ignore[attr-defined]  # raw files have it
                if not count:
                    raise FileError(f"{stored.path}: was cut short while it was read; get it again")
                done += count
        except OSError as error:
            raise FileError(f"{stored.path}: cannot be read ({error.strerror or error})") from error

    def require_unchanged(self) -> None:
        """Refuse what was read from files that something else wrote to.

        Raises:
            FileError: When size, time or place of a file are others than when it was opened.
        """
        changed = [str(path) for path, before in self._identities.items() if not self._is_unchanged(path, before)]
        if changed:
            raise FileError(f"changed while it was read: {', '.join(changed)}; start again when nobody writes to it")

    def _is_unchanged(self, path: Path, before: _Identity) -> bool:
        try:
            return _identity(os.fstat(self._files[path].fileno())) == before == _identity(path.stat())
        except OSError:
            return False


def _identity(found: os.stat_result) -> _Identity:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _shards(path: Path) -> Mapping[Path, frozenset[str]]:
    """Files, each with the names of the tensors that an index looks for in it; none where there is no index."""
    if path.is_dir():
        index, single = path / _INDEX, path / _SINGLE
        if not index.exists() and not single.exists():
            raise FileError(f"{path}: holds neither {_INDEX} nor {_SINGLE}; give a file, or another folder")
        return _indexed(index) if index.exists() else {single: frozenset()}
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    if path.name.endswith(".index.json"):
        return _indexed(path)
    if path.suffix != ".safetensors":
        raise FileError(f"{path}: give a .safetensors file, a folder of them with {_INDEX}, or that index")
    return {path: frozenset()}


def _indexed(index: Path) -> Mapping[Path, frozenset[str]]:
    try:
        found: Any = json.loads(index.read_text(encoding="utf-8"))
        places = found["weight_map"]
        if not isinstance(places, dict) or not places or not all(isinstance(one, str) for one in places.values()):
            raise ValueError("weight_map maps no names to files")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"{index}: cannot be read as an index ({error}); get it again") from error
    files = sorted(set(places.values()))
    outside = [name for name in files if name in ("", ".", "..") or not set(name).isdisjoint("/\\\0:")]
    if outside:
        raise FileError(f"{index}: files must lie beside it, and these do not: {', '.join(map(repr, outside))}")
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise FileError(f"{index.parent}: files of the index that are not there: {', '.join(missing)}; get them")
    return {
        index.parent / name: frozenset(tensor for tensor, place in places.items() if place == name) for name in files
    }


def _agreed(
    path: Path, shards: Mapping[Path, frozenset[str]], found: Mapping[Path, Mapping[str, Stored]]
) -> dict[str, Stored]:
    """All tensors, each of them once, and where the index says."""
    wrong = []
    for shard, wanted in shards.items():
        held = frozenset(found[shard])
        wrong += [f"{name} is not in {shard.name}" for name in sorted(wanted - held)]
        wrong += [f"{name} in {shard.name} is not in the index" for name in sorted(held - wanted) if wanted]
    if wrong:
        raise FileError(f"{path}: the index and the files disagree: {'; '.join(wrong)}; get them again")
    return {name: stored for tensors in found.values() for name, stored in tensors.items()}
