"""Moments of the inputs of many weights at once; weights that meet the very same inputs share one."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Mapping

import attrs
import torch
from torch import Tensor

from monoquant.statistics.moments import Moments
from monoquant.statistics.watch import Block, WatchedWeight

_RECENT = 4
"""So many input tensors are kept alive to recognize them when the next weight meets them."""


@attrs.frozen(eq=False)
class RowStatistics:
    """What is known of the inputs of some rows of a weight.

    Args:
        start: First row of the weight as a matrix.
        stop: One past the last row.
        moments: Of their inputs; the same object for all rows, of whatever weights, that meet the same inputs.
    """

    start: int
    stop: int
    moments: Moments


@attrs.define(eq=False)
class _Inputs:
    """The inputs that some blocks have in common, as far as has been seen."""

    moments: Moments
    members: set[Block] = attrs.field(factory=set)
    pending: Tensor | None = None
    version: int | None = None
    held_out: bool = False
    counted: Tensor | None = None
    weighed: bool = False
    waiting: list[tuple[Tensor, Tensor | None]] = attrs.field(factory=list)
    confirmed: set[Block] = attrs.field(factory=set)
    first: bool = True

    def is_pending(self, inputs: Tensor) -> bool:
        """Whether the tensor is the one that came last: the same elements of a memory that was not written to since."""
        known = self.pending
        return (
            known is not None
            and self.version is not None
            and _same_memory(known, inputs)
            and (known.storage_offset(), known.stride(), known.shape)
            == (inputs.storage_offset(), inputs.stride(), inputs.shape)
            and _version(inputs) == self.version
        )

    def take(self, block: Block, inputs: Tensor, held_out: bool, counted: Tensor | None, weighed: bool) -> None:
        self.pending, self.version, self.held_out, self.confirmed = inputs, _version(inputs), held_out, {block}
        self.counted, self.weighed = counted, weighed

    def settle(self) -> None:
        """Count the pending tensor in."""
        if self.pending is None:
            return
        fits = self.counted is not None and self.counted.numel() == len(self.pending)
        mask = self.counted.flatten().to(self.pending.device) if fits and self.counted is not None else None
        if self.weighed and not self.held_out:
            self.waiting.append((self.pending, mask))
        else:
            (self.moments.hold_out if self.held_out else self.moments.add)(_masked(self.pending, mask))
        self.pending, self.first = None, False

    def weigh(self, squares: Tensor | None) -> None:
        """Count the rows in that waited for their weights.

        Args:
            squares: Squared gradients of all rows that wait; None, or of another number, if they are not known.
        """
        lengths = [len(rows) for rows, _ in self.waiting]
        known = squares is not None and len(squares) == sum(lengths)
        parts = squares.split(lengths) if known and squares is not None else [None] * len(lengths)  # type: ignore[no-untyped-call]  # of torch
        for (rows, mask), part in zip(self.waiting, parts, strict=True):
            weights = None if part is None else row_weights(_masked(part.to(rows.device), mask))
            self.moments.add(_masked(rows, mask), weights)
        self.waiting.clear()


class MomentCollector:
    """Receives products from a ProductWatch.

    Args:
        full: Whether all of H is wanted, by layer and name of the weight.

    Attributes:
        held_out: Whether what comes now is kept apart from the sums; set by who runs the model.
        counted: bool ``[samples, positions]``, which positions hold data rather than padding; None if all do. Inputs of
            as many rows are taken for those positions. Set by who runs the model.
        weighed: Whether rows wait for :meth:`weigh`; set by who runs the model.
    """

    def __init__(self, full: Mapping[tuple[str, str], bool]) -> None:
        self._full = full
        self._inputs: dict[Block, _Inputs] = {}
        self._recent: deque[_Inputs] = deque()
        self.held_out = False
        self.counted: Tensor | None = None
        self.weighed = False

    def receive(self, block: Block, inputs: Tensor, shared: bool) -> None:
        """Count the inputs of a product in.

        Args:
            block: Which rows of which weight are multiplied.
            inputs: ``[n, columns]``.
            shared: Whether other weights may be given the very same tensor; False for one that was computed for this
                block alone.
        """
        common = self._inputs.get(block)
        if common is None:
            common = self._join(block, inputs)
        elif block in common.confirmed or common.pending is None:
            self._settle(common)
        elif not common.is_pending(inputs) or common.held_out != self.held_out:
            common = self._part(block, common)
        if block in common.members and common.pending is not None and common.is_pending(inputs):
            common.confirmed.add(block)
            return
        common.take(block, inputs, self.held_out, self.counted, self.weighed)
        self._remember(common, keep=shared)

    def forget(self) -> None:
        """Leave out the rows that wait for weights, because their run has failed."""
        for common in dict.fromkeys(self._inputs.values()):
            common.waiting.clear()
            common.pending = None

    def weigh(self, squares: Mapping[str, Tensor]) -> None:
        """Count rows in that waited, each by how much it matters to the model's output.

        Args:
            squares: By layer, ``[rows]``, squared gradients at its output; layers that are missing count rows alike.
        """
        for common in dict.fromkeys(self._inputs.values()):
            self._settle(common)
        for common in dict.fromkeys(self._inputs.values()):
            known = [squares[name] for name in sorted({block.layer for block in common.members}) if name in squares]
            alike = bool(known) and all(len(one) == len(known[0]) for one in known)
            common.weigh(torch.stack(known).sum(0) if alike else None)

    def about_to_change(self, tensor: Tensor) -> None:
        """Count inputs in before they are written to.

        Args:
            tensor: What will be written to.
        """
        for common in dict.fromkeys(self._inputs.values()):
            if common.pending is not None and _same_memory(common.pending, tensor):
                self._settle(common)
            common.waiting = [
                (rows.clone() if _same_memory(rows, tensor) else rows, mask) for rows, mask in common.waiting
            ]

    def _join(self, block: Block, inputs: Tensor) -> _Inputs:
        full = self._full[block.layer, block.weight]
        for common in self._recent:
            same_kind = common.moments.full == full and common.held_out == self.held_out
            if common.first and same_kind and common.is_pending(inputs):
                break
        else:
            common = _Inputs(Moments(inputs.shape[1], full=full))
        common.members.add(block)
        self._inputs[block] = common
        return common

    def _part(self, block: Block, common: _Inputs) -> _Inputs:
        """Let a block go its own way from now on: it was given other inputs than those it has shared so far."""
        own = _Inputs(common.moments.copied(), {block}, first=False, waiting=list(common.waiting))
        common.members.discard(block)
        self._inputs[block] = own
        return own

    def _settle(self, common: _Inputs) -> None:
        """Count pending inputs in; blocks that have not met them part before."""
        if common.pending is not None:
            for block in common.members - common.confirmed:
                self._part(block, common)
        common.settle()

    def _remember(self, common: _Inputs, *, keep: bool) -> None:
        if common in self._recent:
            self._recent.remove(common)
        if not keep:
            self._settle(common)
            return
        self._recent.append(common)
        if len(self._recent) > _RECENT:
            self._settle(self._recent.popleft())

    def finish(self, weights: Iterable[WatchedWeight]) -> dict[tuple[str, str], list[RowStatistics]]:
        """What was seen, once the data is at its end.

        Args:
            weights: The weights that were watched.

        Returns:
            By layer and name of the weight: disjoint ranges of rows in order, those whose inputs were seen.
        """
        for common in list(self._inputs.values()):
            self._settle(common)
        self._recent.clear()
        found: dict[tuple[str, str], list[RowStatistics]] = {}
        for one in weights:
            blocks = {block: common.moments for block, common in self._inputs.items() if _is_of(block, one)}
            found[one.layer, one.name] = _disjoint(blocks)
        return found


def _is_of(block: Block, weight: WatchedWeight) -> bool:
    return (block.layer, block.weight) == (weight.layer, weight.name)


def _disjoint(blocks: Mapping[Block, Moments]) -> list[RowStatistics]:
    """Cut ranges of rows at each other's ends; where several cover a row, it has met the inputs of all of them."""
    cuts = sorted({end for block in blocks for end in (block.start, block.stop)})
    parts = []
    for start, stop in itertools.pairwise(cuts):
        covering = [moments for block, moments in blocks.items() if block.start <= start and stop <= block.stop]
        if covering:
            total = covering[0]
            for other in covering[1:]:
                total = total.merged(other)
            parts.append(RowStatistics(start, stop, total))
    return parts


def row_weights(squares: Tensor) -> Tensor:
    """How much rows count, from their squared gradients: by the norm of the gradient, 1 on average.

    The square of the norm would be the Gauss-Newton weight; its root overfits less. In decoders it finds the attention
    sink, which all other positions read.

    Args:
        squares: ``[rows]``.

    Returns:
        float32 ``[rows]``; ones where no gradient arrives.
    """
    norms = squares.float().sqrt()
    mean = norms.mean()
    return norms / mean if bool(torch.isfinite(mean)) and bool(mean > 0) else torch.ones_like(norms)


def _masked(rows: Tensor, mask: Tensor | None) -> Tensor:
    return rows if mask is None else rows[mask]


def _same_memory(one: Tensor, other: Tensor) -> bool:
    strided = one.layout == other.layout == torch.strided and not one.is_nested and not other.is_nested
    return strided and one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
