"""Moments of the inputs of many weights at once; weights that meet the very same inputs share one."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from monoquant.statistics.moments import Moments
from monoquant.statistics.watch import Block, RowOrder, WatchedWeight

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


@attrs.frozen(eq=False)
class _Rows:
    """Inputs of a product, and what was known when they came."""

    inputs: Tensor
    version: int | None
    held_out: bool
    weighed: bool
    counted: Tensor | None
    order: RowOrder | None

    def is_same(self, inputs: Tensor) -> bool:
        """Whether a tensor is the same elements of a memory that was not written to since."""
        known = self.inputs
        return (
            self.version is not None
            and _same_memory(known, inputs)
            and (known.storage_offset(), known.stride(), known.shape)
            == (inputs.storage_offset(), inputs.stride(), inputs.shape)
            and _version(inputs) == self.version
        )

    @property
    def mask(self) -> Tensor | None:
        """Bool ``[n]``, which rows hold data rather than padding; None if all do, or if that is not known."""
        if self.counted is None or self.order is None or self.order.shape != self.counted.shape:
            return None
        return self.order.arrange(self.counted).to(self.inputs.device)

    def may_be_padded(self, *, one_sample: bool) -> bool:
        """Whether there may be padding among the rows, and nobody knows where.

        Args:
            one_sample: Whether these are the rows of one sample; False for those of all.
        """
        if self.counted is None or self.mask is not None:
            return False
        return len(self.inputs) == (self.counted.shape[1] if one_sample else self.counted.numel())

    def real(self) -> Tensor:
        """The rows that hold data."""
        return _masked(self.inputs, self.mask)

    def weights(self, squares: Sequence[Tensor]) -> Tensor | None:
        """How much those rows count; None if the squared gradients are not those of their vectors."""
        fitting = [one for one in squares if self.order is not None and one.shape == self.order.shape]
        if self.order is None or not fitting or len(fitting) < len(squares):
            return None
        total = self.order.arrange(torch.stack(fitting).sum(0)).to(self.inputs.device)
        return row_weights(_masked(total, self.mask))


@attrs.define(eq=False)
class _Inputs:
    """The inputs that some blocks have in common, as far as has been seen."""

    moments: Moments
    members: set[Block] = attrs.field(factory=set)
    pending: _Rows | None = None
    waiting: list[_Rows] = attrs.field(factory=list)
    confirmed: set[Block] = attrs.field(factory=set)
    first: bool = True
    collected: bool = True

    def settle(self) -> None:
        """Count the pending rows in, or let them wait for weights."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        self.first = False
        if pending.weighed and not pending.held_out:
            self.waiting.append(pending)
        elif self.collected:
            (self.moments.hold_out if pending.held_out else self.moments.add)(pending.real())

    def weigh(self, squares: Sequence[Sequence[Tensor]]) -> None:
        """Count the rows in that waited for their weights.

        Args:
            squares: For each layer that tells, squared gradients of the vectors of its output, call by call.
        """
        telling = [calls for calls in squares if len(calls) == len(self.waiting)]
        for number, rows in enumerate(self.waiting):
            if self.collected:
                real, weights = rows.real(), rows.weights([calls[number] for calls in telling])
                # What mattered may not be finite, and be left out; then the rest counts alike.
                counts = weights is not None and bool(weights[torch.isfinite(real).all(-1)].any())
                self.moments.add(real, weights if counts else None)
        self.waiting.clear()


class MomentCollector:
    """Receives products from a ProductWatch.

    Args:
        full: Whether all of H is wanted, by layer and name of the weight; of all weights that are watched.
        collected: Layers and names of those whose moments are kept, one wave of them say; default None: all. The others
            tell only who meets the same inputs, and how much those matter.
        heard_at: By layer, the name under which :meth:`weigh` is told of its output; layers without one are not.

    Attributes:
        held_out: Whether what comes now is kept apart from the sums; set by who runs the model.
        counted: bool ``[samples, positions]``, which positions hold data rather than padding; None if all do. Set by
            who runs the model.
        weighed: Whether rows wait for :meth:`weigh`; set by who runs the model.
        maybe_padded: Names of layers that may have been given padding among their rows, where nobody knows.
    """

    def __init__(
        self,
        full: Mapping[tuple[str, str], bool],
        collected: Collection[tuple[str, str]] | None = None,
        heard_at: Mapping[str, str] | None = None,
    ) -> None:
        self._full = full
        self._collected = collected
        self._heard_at = heard_at or {}
        self.maybe_padded: set[str] = set()
        self._stepped: dict[Block, Tensor] = {}
        self._inputs: dict[Block, _Inputs] = {}
        self._recent: deque[_Inputs] = deque()
        self.held_out = False
        self.counted: Tensor | None = None
        self.weighed = False

    def receive(self, block: Block, inputs: Tensor, shared: bool, order: RowOrder | None = None) -> None:
        """Count the inputs of a product in.

        Args:
            block: Which rows of which weight are multiplied.
            inputs: ``[n, columns]``.
            shared: Whether other weights may be given the very same tensor; False for one that was computed for this
                block alone.
            order: Which vectors they are; None if that is not known.
        """
        rows = _Rows(inputs, _version(inputs), self.held_out, self.weighed, self.counted, order)
        one_sample = not shared  # patches of convolutions come sample by sample
        if rows.may_be_padded(one_sample=one_sample) or self._is_next_step(block, rows):
            self.maybe_padded.add(block.layer)
        common = self._inputs.get(block)
        if common is None:
            common = self._join(block, rows)
        elif block in common.confirmed or common.pending is None:
            self._settle(common)
        elif not _alike(common.pending, rows):
            common = self._part(block, common)
        if common.pending is not None and _alike(common.pending, rows):
            common.confirmed.add(block)
            return
        common.pending, common.confirmed = rows, {block}
        self._remember(common, keep=shared)

    def _is_next_step(self, block: Block, rows: _Rows) -> bool:
        """Whether a block meets one row per padded sample once more, as hidden states do that go step by step."""
        counted = rows.counted
        if counted is None or rows.mask is not None or len(rows.inputs) != len(counted):
            return False
        again = self._stepped.get(block) is counted
        self._stepped[block] = counted
        return again

    def forget(self) -> None:
        """Leave out the rows that wait for weights, because their run has failed."""
        self._stepped.clear()
        for common in dict.fromkeys(self._inputs.values()):
            common.waiting.clear()
            common.pending = None
            common.confirmed = set()

    def weigh(self, squares: Mapping[str, Sequence[Tensor]]) -> None:
        """Count rows in that waited, each by how much it matters to the model's output.

        Args:
            squares: By name of the module, squared gradients of the vectors of its output, call by call. Rows of which
                nothing is told count alike.
        """
        for common in dict.fromkeys(self._inputs.values()):
            self._settle(common)
        for common in dict.fromkeys(self._inputs.values()):
            names = sorted({self._heard_at.get(block.layer, "") for block in common.members})
            common.weigh([squares[name] for name in names if name in squares])

    def about_to_change(self, tensor: Tensor) -> None:
        """Count inputs in before they are written to.

        Args:
            tensor: What will be written to.
        """
        for common in dict.fromkeys(self._inputs.values()):
            if common.pending is not None and _same_memory(common.pending.inputs, tensor):
                self._settle(common)
        for common in dict.fromkeys(self._inputs.values()):  # blocks that have parted just now among them
            common.waiting = [
                attrs.evolve(rows, inputs=rows.inputs.clone()) if _same_memory(rows.inputs, tensor) else rows
                for rows in common.waiting
            ]

    def _join(self, block: Block, rows: _Rows) -> _Inputs:
        full = self._full[block.layer, block.weight]
        for common in self._recent:
            pending = common.pending
            if common.first and common.moments.full == full and pending is not None and _alike(pending, rows):
                break
        else:
            common = _Inputs(Moments(rows.inputs.shape[1], full=full), collected=False)
        common.members.add(block)
        common.collected |= self._is_collected(block)
        self._inputs[block] = common
        return common

    def _is_collected(self, block: Block) -> bool:
        return self._collected is None or (block.layer, block.weight) in self._collected

    def _part(self, block: Block, common: _Inputs) -> _Inputs:
        """Let a block go its own way from now on: it was given other inputs than those it has shared so far."""
        collected = self._is_collected(block)
        moments = common.moments.copied() if collected else Moments(common.moments.columns, full=common.moments.full)
        own = _Inputs(moments, {block}, first=False, waiting=list(common.waiting), collected=collected)
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


def _alike(one: _Rows, other: _Rows) -> bool:
    """Whether two products are given the very same rows, to be treated alike."""
    same_kind = (one.held_out, one.weighed, one.order) == (other.held_out, other.weighed, other.order)
    return same_kind and one.counted is other.counted and one.is_same(other.inputs)


def _masked(rows: Tensor, mask: Tensor | None) -> Tensor:
    return rows if mask is None else rows[mask]


def _same_memory(one: Tensor, other: Tensor) -> bool:
    strided = one.layout == other.layout == torch.strided and not one.is_nested and not other.is_nested
    return strided and one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
