"""Where a result goes: checked before any work is done for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from monoquant.errors import ConfigError, FileError
from monoquant.formats.base import Exporter
from monoquant.registry import Registered

FOLDER_FORMAT = "huggingface"


@attrs.frozen
class Target:
    """A file or folder to be written.

    Args:
        path: Where.
        exporter: What writes it.
    """

    path: Path
    exporter: Exporter

    @property
    def format(self) -> str:
        """Name of its format."""
        return self.exporter.name


def target_of(
    path: Path,
    format: str | None,
    exporters: tuple[Registered[Exporter], ...],
    *,
    model: Path | None,
    is_huggingface: bool,
    overwrite: bool,
) -> Target:
    """What a command line means by its output.

    Args:
        path: As given.
        format: As given; default: by the end of the path; a path without one is a folder for transformers.
        exporters: All there are.
        model: The file or folder that is read; None where it is none.
        is_huggingface: Whether the model comes from a folder that transformers reads.
        overwrite: Whether what is there may be replaced.

    Raises:
        ConfigError: For a format that nobody writes, and for what must not be replaced.
        FileError: When the folder to write to does not exist.
    """
    found = format or _by_end(path, exporters) or (FOLDER_FORMAT if is_huggingface and not path.suffix else None)
    named = {entry.value.name: entry.value for entry in exporters}
    if found not in named:
        ends = ", ".join(f"{end} ({entry.value.name})" for entry in exporters for end in entry.value.suffixes)
        given = f"--format {format}" if format else f"--output {path}"
        raise ConfigError(f"{given}: give --format with one of {', '.join(named)}, or an output that ends in {ends}")
    if not path.absolute().parent.is_dir():
        raise FileError(f"{path}: the folder {path.absolute().parent} does not exist; create it first")
    _refuse_loss(path, model, overwrite=overwrite)
    exporter = named[found]
    obstacle = exporter.obstacle_at(path)
    if obstacle:
        raise FileError(f"{path}: {obstacle}")
    return Target(path, exporter)


def _by_end(path: Path, exporters: tuple[Registered[Exporter], ...]) -> str | None:
    fitting = [entry.value.name for entry in exporters if path.name.endswith(tuple(entry.value.suffixes) or ("\0",))]
    return fitting[0] if fitting else None


def _refuse_loss(path: Path, model: Path | None, *, overwrite: bool) -> None:
    target = path.resolve()
    held = {"the model": model, "the current folder": Path()}
    for what, place in held.items():
        if place is not None and (target == place.resolve() or target in place.resolve().parents):
            raise ConfigError(f"--output {path}: it is, or holds, {what}, and would be replaced; give another name")
    if _is_part_of(path, model):
        raise ConfigError(f"--output {path}: it is a part of the model, and would be replaced; give another name")
    if path.exists() and not overwrite:
        raise ConfigError(f"--output {path}: it exists; give another name, or --overwrite to replace it")


def require_apart(option: str, paths: Sequence[Path], kept: Mapping[str, Path | None]) -> None:
    """Refuse files that would take the place of what is read, or written, in the same run.

    Args:
        option: What named the files.
        paths: The files.
        kept: What they must not replace, by what it is called; None where there is no such thing.

    Raises:
        ConfigError: For a file that would.
    """
    for path in paths:
        for what, place in kept.items():
            if place is not None and (path.resolve() == place.resolve() or _is_part_of(path, place)):
                raise ConfigError(f"{option} {path}: it is, or is a part of, {what}; give another name")


def _is_part_of(path: Path, folder: Path | None) -> bool:
    return folder is not None and folder.is_dir() and path.exists() and path.resolve().is_relative_to(folder.resolve())


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder.

    Args:
        path: The file or folder.
    """
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    return sum(one.stat().st_size for one in files)
