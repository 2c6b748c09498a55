"""The new file: tensors written piece by piece to places known beforehand, hashed on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from monoquant.container import Slot, begun_hash
from monoquant.errors import FileError
from monoquant.numerics.memory import byte_view

_BLOCK = 1 << 22
Piece = tuple[str, Tensor]


class TensorTarget:
    """Writes tensors to a file behind room for a header; a context manager, which waits for what is being written.

    Writing and hashing happen in a thread of their own, one batch of pieces at a time.

    Args:
        file: Empty, to be written and read.
        slots: Places of all tensors.
        room: Bytes that are left for the header.
    """

    def __init__(self, file: BinaryIO, slots: Mapping[str, Slot], room: int) -> None:
        self._file, self._slots, self._room = file, slots, room
        self._written = dict.fromkeys(slots, 0)
        self._states = {name: begun_hash(name, slot.dtype, slot.shape) for name, slot in slots.items()}
        self._worker = ThreadPoolExecutor(1, "monoquant-writer")
        self._pending: Future[None] | None = None
        self._seen = torch.empty(0, dtype=torch.uint8, device="cpu")

    def __enter__(self) -> TensorTarget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown()

    def write(self, pieces: Sequence[Piece]) -> None:
        """Write the next bytes of some tensors, after those that were given before.

        Args:
            pieces: Names, each with a contiguous CPU tensor, to be left alone until the next call returns.

        Raises:
            OSError: When earlier pieces could not be written.
        """
        self.finish()
        self._pending = self._worker.submit(self._write, pieces)

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: When it cannot be written.
            FileError: When the file does not hold what was written to it.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def hashes(self) -> dict[str, str]:
        """Of all tensors by name, as in :func:`monoquant.container.hash_of`; all must be written."""
        self.finish()
        return {name: state.hexdigest() for name, state in self._states.items()}

    def put_header(self, header: bytes) -> None:
        """Write the header, moving the tensors if it needs more room than was left.

        Args:
            header: Not shorter than the room.
        """
        self.finish()
        if len(header) > self._room:
            self._move(len(header))
        self._file.seek(0)
        self._file.write(header)

    def _write(self, pieces: Sequence[Piece]) -> None:
        for name, tensor in pieces:
            view, slot = byte_view(tensor), self._slots[name]
            place = self._room + slot.start + self._written[name]
            self._states[name].update(view)
            self._file.seek(place)
            self._file.write(view)
            self._require_held(name, place, tensor)
            self._written[name] += len(view)

    def _require_held(self, name: str, place: int, tensor: Tensor) -> None:
        given = tensor.reshape(-1).view(torch.uint8)
        if len(self._seen) < len(given):
            self._seen = torch.empty(len(given), dtype=torch.uint8, device="cpu")
        seen = self._seen[: len(given)]
        self._file.seek(place)
        if self._file.readinto(byte_view(seen)) != len(given) or not torch.equal(seen, given):  # type: ignore[attr-defined]
            raise FileError(f"the new file does not hold what was written to it for {name!r}; look after the disk")

    def _move(self, room: int) -> None:
        """Move all tensors back, the last bytes first."""
        end = max((slot.end for slot in self._slots.values()), default=0)
        while end > 0:
            start = max(0, end - _BLOCK)
            self._file.seek(self._room + start)
            block = self._file.read(end - start)
            self._file.seek(room + start)
            self._file.write(block)
            end = start
        self._room = room
