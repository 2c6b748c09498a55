"""Weights that are spread over the files of a folder: which files, and that all of them are there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import attrs

from monoquant.disk.kinds import FileKind, kind_of
from monoquant.disk.strict_json import read_json
from monoquant.errors import FileError

T = TypeVar("T")
_INDEX_END = ".index.json"
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MOST_SHARDS = 100_000
Shards = Mapping[Path, frozenset[str]]
"""Files, each with the names of the tensors that an index looks for in it; none where there is no index."""


@attrs.frozen
class Family:
    """How the files of one format are called in a folder.

    Args:
        single: The name of the only file.
        loose: Whether files of other names with the same ending count, where there is neither that nor an index.
    """

    single: str
    loose: bool

    @property
    def index(self) -> str:
        """The name of the index, where there are several."""
        return self.single + _INDEX_END

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds such files.

        Args:
            folder: Where to look.
        """
        return any(os.path.lexists(folder / name) for name in (self.single, self.index)) or bool(self.others(folder))

    def others(self, folder: Path) -> list[Path]:
        """Files of other names that count.

        Args:
            folder: Where to look.
        """
        suffix = Path(self.single).suffix
        return sorted(folder.glob(f"[!.]*{suffix}")) if self.loose else []


SAFETENSORS = Family("model.safetensors", loose=True)
PICKLED = Family("pytorch_model.bin", loose=False)


def shards_of(path: Path, family: Family = SAFETENSORS) -> Shards:
    """The files that hold some weights.

    Args:
        path: A file; a folder; or the index of one.
        family: How the files of a folder are called.

    Raises:
        FileError: When there are none, some are missing, or a name or a link leads out of the folder.
    """
    if path.is_dir():
        return _of_folder(path, family)
    return _indexed(path) if kind_of(path) is FileKind.JSON else {path: frozenset()}


def members_of(folder: Path, names: Iterable[str]) -> list[Path]:
    """Files of a folder that somebody else named.

    A link may lead to another file in the folder, or from ``snapshots/<revision>`` to ``blobs/<hash>`` beside
    ``snapshots``, where the caches of HuggingFace keep all files.

    Args:
        folder: Where they must be.
        names: Of the files.

    Raises:
        FileError: When some are missing, all of which are named, or lead out of the folder.
    """
    known = sorted(set(names))
    outside = [name for name in known if not _is_plain(name)]
    if outside:
        raise FileError(f"{folder}: files must lie in it, and these do not: {', '.join(map(repr, outside))}")
    files = [folder / name for name in known]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise FileError(f"{folder}: {len(missing)} of {len(known)} files are missing: {', '.join(missing)}; get them")
    for file in files:
        _require_inside(folder, file)
    return files


def _of_folder(folder: Path, family: Family) -> Shards:
    if os.path.lexists(folder / family.index):
        return _indexed(members_of(folder, [family.index])[0])
    if os.path.lexists(folder / family.single):
        return {members_of(folder, [family.single])[0]: frozenset()}
    others = [file.name for file in family.others(folder)]
    if not others:
        raise FileError(f"{folder}: holds neither {family.index} nor {family.single}; give a file, or another folder")
    return {file: frozenset() for file in members_of(folder, {*others, *_counted(others)})}


def _counted(names: list[str]) -> set[str]:
    """All names that numbered ones, such as ``model-00002-of-00003.safetensors``, tell of."""
    found = [match.groups() for match in map(_NUMBERED.fullmatch, names) if match]
    series = {(stem, total, suffix) for stem, _, total, suffix in found if int(total) <= _MOST_SHARDS}
    return {
        f"{stem}-{number:05}-of-{total}{suffix}"
        for stem, total, suffix in series
        for number in range(1, int(total) + 1)
    }


def _indexed(index: Path) -> Shards:
    found = read_json(index, "an index")
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(one, str) for one in places.values()):
        raise FileError(f"{index}: not an index (its weight_map maps no names to files); get it again")
    wanted: dict[str, set[str]] = {}
    for tensor, place in places.items():
        wanted.setdefault(place, set()).add(tensor)
    return {file: frozenset(wanted[file.name]) for file in members_of(index.parent, wanted)}


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and name.isprintable() and set(name).isdisjoint("/\\:")


def _require_inside(folder: Path, file: Path) -> None:
    home, real = Path(os.path.realpath(folder)), Path(os.path.realpath(file))
    if not real.is_relative_to(home) and not _is_cached(home, real):
        raise FileError(f"{file}: leads out of its folder, to {real}; put a copy in its place")


def _is_cached(home: Path, real: Path) -> bool:
    roots = [revision.parent.parent for revision in (home, *home.parents) if revision.parent.name == "snapshots"]
    return any(real.parent == root / "blobs" for root in roots) and _BLOB.fullmatch(real.name) is not None


def agreed(path: Path, shards: Shards, found: Mapping[Path, Mapping[str, T]]) -> dict[str, T]:
    """All tensors of some files, each of them once, and where the index says.

    Args:
        path: What was given, for errors.
        shards: As :func:`shards_of` gives them.
        found: What each file holds.

    Raises:
        FileError: When the index and the files disagree, or two files hold the same name.
    """
    wrong, places = [], dict[str, Path]()
    for shard, wanted in shards.items():
        held = frozenset(found[shard])
        wrong += [f"{name} is not in {shard.name}" for name in sorted(wanted - held)]
        wrong += [f"{name} in {shard.name} is not in the index" for name in sorted(held - wanted) if wanted]
        wrong += [f"{name} is in {places[name].name} and in {shard.name}" for name in sorted(held) if name in places]
        places |= dict.fromkeys(held, shard)
    if wrong:
        raise FileError(f"{path}: the files do not agree: {'; '.join(wrong)}; get them again")
    return {name: one for tensors in found.values() for name, one in tensors.items()}
