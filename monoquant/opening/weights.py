"""Float weights: a file, the index of several, or a folder of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from monoquant.disk.kinds import kind_of
from monoquant.disk.open_file import OpenFile
from monoquant.disk.shards import Shards, shards_of
from monoquant.formats import torch_file
from monoquant.formats.weights_file import TORCH_KINDS, family_in, read_weights
from monoquant.modules.tensor_holder import hold, require_state
from monoquant.opening.opened import OpenedKind, OpenedModel
from monoquant.progress import Progress
from monoquant.report.table import format_bytes
from monoquant.streaming.source import TensorSource


def open_weights(given: str, path: Path) -> OpenedModel:
    """Open float weights.

    Args:
        given: As it was written.
        path: A file, an index or a folder.

    Raises:
        FileError: When files are missing, damaged or quantized already, or disagree with an index.
    """
    shards = weight_files(path)
    torn = are_pickled(shards)
    what = "folder" if path.is_dir() else "file" if len(shards) == 1 else "index"
    return OpenedModel(
        given=given,
        kind=OpenedKind.WEIGHTS,
        path=path,
        described=f"{what} of weights, {contents_told(path, shards)}",
        streamable=None if torn else path,
        skeleton=None if torn else lambda: _sketched(path),
        state=lambda progress: state_of(path, progress),
    )


def _sketched(path: Path) -> nn.Module:
    with TensorSource(path) as source:
        return hold(source.state())


def weight_files(path: Path) -> Shards:
    """The files that hold the weights.

    Args:
        path: A file, an index or a folder.

    Raises:
        FileError: When there are none, some are missing, or lead out of the folder.
    """
    return shards_of(path, family_in(path)) if path.is_dir() else shards_of(path)


def are_pickled(shards: Shards) -> bool:
    """Whether ``torch.save`` wrote some of the files.

    Args:
        shards: The files.
    """
    return any(kind_of(file) in TORCH_KINDS for file in shards)


def require_no_code(shards: Shards) -> None:
    """Refuse files that name more than weights, before anything that they hold is read.

    Args:
        shards: The files.

    Raises:
        FileError: For the first that does.
    """
    for path in shards:
        if kind_of(path) in TORCH_KINDS:
            with OpenFile(path) as file:
                torch_file.require_no_code(file)


def contents_told(path: Path, shards: Shards) -> str:
    """What some files hold, as far as that is known without reading it all.

    Args:
        path: The file, index or folder that they are of.
        shards: The files.

    Raises:
        FileError: When a header is damaged, or the files and an index disagree.
    """
    files = f"{len(shards)} shard{'s' if len(shards) > 1 else ''}"
    if are_pickled(shards):
        size = sum(_size(file) for file in shards)
        return f"{format_bytes(size)} in {files} that torch.save wrote"
    with TensorSource(path) as source:
        size = sum(stored.size for stored in source.tensors.values())
        return f"{len(source.tensors)} tensors, {format_bytes(size)} in {files}"


def state_of(path: Path, progress: Progress) -> Mapping[str, Tensor]:
    """Tensors by name, and nothing else.

    Args:
        path: A file, an index or a folder.
        progress: Told how much is read.

    Raises:
        FileError: When files are missing or damaged.
        InputError: When they hold no state dict.
    """
    state = read_weights(path, progress)
    require_state(state)
    return state


def _size(path: Path) -> int:
    with OpenFile(path) as file:
        return file.size
