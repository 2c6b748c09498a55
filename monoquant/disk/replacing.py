"""New files and folders that take the place of old ones when they are complete, or leave no trace."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from monoquant.disk.exchange import exchanged
from monoquant.errors import FileError, MonoquantError
from monoquant.numerics.memory import format_bytes

_TEMPORARY_SUFFIX = ".monoquant-tmp"


@contextmanager
def replacement(path: Path, size: int = 0) -> Iterator[BinaryIO]:
    """A file, to be written and read, that takes another's place when all is in it, and leaves no trace otherwise.

    Args:
        path: Target; replaced if it exists, kept as it was if anything fails.
        size: Bytes that it will have at least, for which there must be room; default: not known.

    Raises:
        FileError: When the target's folder does not exist, cannot be written or has no room.
    """
    folder = path.parent
    problem = _problem_of(path)
    if problem:
        raise FileError(f"{path}: {problem}")
    temporary = _temporary(path)
    try:
        _remove_litter(path)
        require_space(path, size)
        with temporary.open("x+b") as file:
            yield file
            _flush(file)
        temporary.replace(path)
        _flush_folder(folder)
    except MonoquantError:
        raise
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be written ({error}); the file is as it was before") from error
    finally:
        with suppress(OSError, ValueError):
            temporary.unlink()


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A place to write a file or a folder to, of the same name, whose neighbours come along when all is written.

    Args:
        path: Target; replaced if it exists, kept as it was if anything fails while it is written.

    Raises:
        FileError: When the target's folder does not exist or cannot be written.
    """
    problem = _problem_of_folder(path)
    if problem:
        raise FileError(f"{path}: {problem}")
    try:
        _remove_litter(path)
        stage = _temporary(path)
        stage.mkdir()
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be written ({error}); it is as it was before") from error
    try:
        yield stage / path.name
        _put_into_place(stage, path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def written_so_far(path: Path) -> int:
    """Bytes that this process has written of a file or folder which is not in its place yet.

    Args:
        path: Target of :func:`replacement` or :func:`staged`.
    """
    written = 0
    for temporary in path.parent.glob(f".{glob.escape(_stem(path))}.{os.getpid()}.*{_TEMPORARY_SUFFIX}"):
        for file in (temporary, *temporary.rglob("*")):
            with suppress(OSError):  # gone since
                written += file.stat().st_size * file.is_file()
    return written


def require_space(path: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold beside what is there.

    Args:
        path: Where the file or folder will be; its parent exists.
        size: Bytes that it will have at least.

    Raises:
        FileError: When fewer are free.
    """
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise FileError(
            f"{path}: no space left, the file needs {format_bytes(size)} and its folder has {format_bytes(free)} free; "
            "make room, or give another folder"
        )


def _put_into_place(stage: Path, path: Path) -> None:
    # The target comes last, so that what it refers to is there.
    written = sorted(stage.iterdir(), key=lambda one: one.name == path.name)
    old = stage / f"{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
    old.mkdir()
    try:
        _flush_all(stage)
        for one in written:
            _take_place(one, path.parent / one.name, old / one.name)
        _flush_folder(path.parent)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error})") from error


def _take_place(new: Path, target: Path, kept: Path) -> None:
    is_in_the_way = target.is_dir() or (target.exists() and new.is_dir())  # files replace files only
    if not is_in_the_way:
        new.replace(target)
        return
    if exchanged(new, target):
        return
    target.replace(kept)  # killed after this, a run leaves nothing in place, and the next run puts it back
    try:
        new.replace(target)
    except OSError:
        kept.replace(target)
        raise


def _temporary(path: Path) -> Path:
    return path.parent / f".{_stem(path)}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"


def _problem_of(path: Path) -> str:
    try:
        return _problem_of_folder(path) or ("is a folder; give a file name" if path.is_dir() else "")
    except (OSError, ValueError) as error:
        return f"cannot be written ({error}); give another name"


def _problem_of_folder(path: Path) -> str:
    exists = path.parent.is_dir()
    return "" if exists else f"the folder {path.parent} does not exist; create it first"


def _stem(path: Path) -> str:
    return path.name[:50]  # the temporary name is longer than the target's, and file systems limit both


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_all(folder: Path) -> None:
    """Wait until files that somebody else wrote are on the disk, so that no crash empties them once they have names."""
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(PermissionError), (Path(place) / name).open("rb") as file:
                os.fsync(file.fileno())
        _flush_folder(Path(place))


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open folders; its renames are journalled.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_litter(path: Path) -> None:
    """Remove what killed writers of the same target left behind."""
    if os.name == "nt":
        return  # No harmless way to ask whether a process lives.
    for temporary in path.parent.glob(f".{glob.escape(_stem(path))}.*{_TEMPORARY_SUFFIX}"):
        owner = temporary.name.removeprefix(f".{_stem(path)}.").partition(".")[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            _put_back(temporary, path.parent)
            shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def _put_back(stage: Path, folder: Path) -> None:
    """Put back what a killed writer had moved out of the way of what it wrote."""
    for kept in stage.glob(f"*{_TEMPORARY_SUFFIX}/*"):
        if not os.path.lexists(folder / kept.name):
            kept.replace(folder / kept.name)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
