"""The tensors of one file, or of a folder of files, read in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from monoquant.disk.header import Stored, read_header
from monoquant.disk.open_file import OpenFile
from monoquant.disk.shards import agreed, shards_of
from monoquant.errors import FileError


class TensorSource:
    """Tensors by name, in files that are held open; a context manager.

    Args:
        path: A ``.safetensors`` file; the index of several; or a folder that holds one or the other under the usual
            name, ``model.safetensors`` or ``model.safetensors.index.json``, or else any ``.safetensors`` files.

    Raises:
        FileError: When files are missing, damaged or quantized already, or the index and they disagree.

    Attributes:
        tensors: Where each is, in the order of names.
        paths: All files that were looked into.
    """

    def __init__(self, path: Path) -> None:
        shards = shards_of(path)
        self._open = ExitStack()
        self._files: dict[Path, OpenFile] = {}
        self.paths = (path, *shards)
        try:
            named = agreed(path, shards, {shard: self._opened(shard) for shard in shards})
        except BaseException:
            self._open.close()
            raise
        self.tensors = {name: named[name] for name in sorted(named)}

    def _opened(self, path: Path) -> dict[str, Stored]:
        file = self._files[path] = self._open.enter_context(OpenFile(path))
        tensors, texts = read_header(file)
        if texts.get("format") == "monoquant":
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
        self._files[stored.path].fill(stored.start + skip, into)

    def require_unchanged(self) -> None:
        """Refuse what was read from files that something else wrote to.

        Raises:
            FileError: When size, time or place of a file are others than when it was opened.
        """
        changed = [str(path) for path, file in self._files.items() if not file.is_unchanged()]
        if changed:
            raise FileError(f"changed while it was read: {', '.join(changed)}; start again when nobody writes to it")
