"""Two models' weights side by side: how far each tensor of the second is from that of the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from monoquant.errors import InputError
from monoquant.numerics.metrics import Energy, measure
from monoquant.progress import Progress, untold
from monoquant.report.plain import to_plain
from monoquant.report.table import aligned, format_bytes, format_db

WEIGHT_DIFFERENCE_VERSION = 1
_CHUNK = 1 << 22  # elements; measuring copies them as float64

WeightStatus = Literal["equal", "differs", "added", "removed", "shape-changed"]
_HEADINGS = ("tensor", "SQNR dB", "before", "after", "what")
_WORDS = {"added": "only in the second", "removed": "only in the first", "equal": "", "differs": ""}


@attrs.frozen
class Held:
    """What a model holds under a name.

    Args:
        shape: The tensor's shape.
        dtype: Its dtype.
        bytes: Bytes of its elements.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape)) or 'number'} {str(self.dtype).removeprefix('torch.')}"


@attrs.frozen
class TensorDifference:
    """A tensor in both models, or in one of them.

    Args:
        name: Its full name.
        before: What the first model holds; None where it has no such tensor.
        after: What the second model holds; None where it has no such tensor.
        energy: Energies of the first tensor and of the difference; None unless both are float and of one shape.
        equal: Whether the values are the same, nan being equal to nan.
    """

    name: str
    before: Held | None
    after: Held | None
    energy: Energy | None = None
    equal: bool = False

    @property
    def status(self) -> WeightStatus:
        """``"equal"``, ``"differs"``, ``"added"``, ``"removed"`` or ``"shape-changed"``."""
        if self.before is None or self.after is None:
            return "added" if self.before is None else "removed"
        if self.before.shape != self.after.shape:
            return "shape-changed"
        return "equal" if self.equal else "differs"

    @property
    def sqnr_db(self) -> float | None:
        """SQNR of the second tensor, the first being the signal; dB, inf where they are equal, None if not measured."""
        return None if self.energy is None else self.energy.sqnr_db

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        held = {"before": to_plain(self.before), "after": to_plain(self.after)}
        return {"name": self.name, "status": self.status, "sqnr_db": to_plain(self.sqnr_db), **held}


@attrs.frozen
class WeightDifference:
    """How far the weights of two models are apart; ``print`` it for a table, the worst first.

    Args:
        tensors: One per name, in the order of the first model; then those that only the second has.
        energy: Energies of all float tensors of both together.
    """

    tensors: tuple[TensorDifference, ...] = attrs.field(repr=False)
    energy: Energy

    @property
    def pooled_db(self) -> float | None:
        """SQNR of all float tensors together; dB, None where there are none."""
        return self.energy.sqnr_db if any(one.energy is not None for one in self.tensors) else None

    def worst_first(self) -> tuple[TensorDifference, ...]:
        """Tensors that are in one model only or of another shape, those that differ by rising SQNR, then equal ones."""
        return tuple(sorted(self.tensors, key=_rank))

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON-ready values.

        Returns:
            A dict with a ``version`` key; every field is there, inf and nan are strings.
        """
        pooled = {"pooled_db": to_plain(self.pooled_db)}
        return {"version": WEIGHT_DIFFERENCE_VERSION, **pooled, "tensors": [one.to_dict() for one in self.tensors]}

    def __str__(self) -> str:
        shown = [one for one in self.worst_first() if one.status != "equal" or one.before != one.after]
        lines = [f"weights, pooled: {format_db(self.pooled_db)} dB", *_sizes(self.tensors)]
        if shown:
            lines += ["", *aligned([_HEADINGS, *(_row(one) for one in shown)], {1, 2, 3})]
        if equal := len(self.tensors) - len(shown):
            lines.append(f"{equal} {'other ' if shown else ''}tensors: equal")
        return "\n".join(lines)


def _rank(one: TensorDifference) -> tuple[int, float]:
    if one.status in ("added", "removed", "shape-changed"):
        return 0, 0.0
    if one.status == "equal":
        return 3, 0.0
    if one.sqnr_db is None or one.sqnr_db != one.sqnr_db:  # nan would make the order depend on where it stands
        return 1, 0.0
    return 2, one.sqnr_db


def _sizes(tensors: tuple[TensorDifference, ...]) -> Iterator[str]:
    before, after = (sum(held.bytes for held in side if held) for side in zip(*_held(tensors), strict=True))
    yield f"tensors: {format_bytes(before)} -> {format_bytes(after)}"


def _held(tensors: tuple[TensorDifference, ...]) -> list[tuple[Held | None, Held | None]]:
    return [(one.before, one.after) for one in tensors] or [(None, None)]


def _row(one: TensorDifference) -> tuple[str, ...]:
    sizes = (format_bytes(held.bytes) if held else "-" for held in (one.before, one.after))
    return (one.name, format_db(one.sqnr_db), *sizes, _what(one))


def _what(one: TensorDifference) -> str:
    if word := _WORDS.get(one.status):
        return word
    words = [] if str(one.before) == str(one.after) else [f"{one.before} -> {one.after}"]
    if one.status == "shape-changed":
        words.append("not compared")
    elif one.energy is None and not one.equal:
        words.append("other values")
    return ": ".join(words)


def compare_weights(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], progress: Progress = untold
) -> WeightDifference:
    """Hold the weights of a model against those of another one, tensor by tensor.

    Args:
        before: Tensors by full name, dequantized.
        after: The same of the other model. Tensors of other floating dtypes are compared as numbers.
        progress: Told the numbers that are compared; default: nobody is told.

    Returns:
        Energies of the differences, the first model's tensors being the signal. Tensors of integers and flags are
        compared for equality.

    Raises:
        InputError: For a tensor without values (meta), or a value that is no tensor.
    """
    held = {name: (_hold(name, before.get(name)), _hold(name, after.get(name))) for name in {**before, **after}}
    numbers = {name: max(math.prod(one.shape) for one in sides if one is not None) for name, sides in held.items()}
    found, pooled, done, total = [], Energy(), 0, sum(numbers.values())
    for name, sides in held.items():
        one = _compare(name, sides, before.get(name), after.get(name))
        pooled += one.energy or Energy()
        found.append(one)
        done += numbers[name]
        progress(done, total)
    return WeightDifference(tuple(found), pooled)


def _compare(
    name: str, held: tuple[Held | None, Held | None], before: Tensor | None, after: Tensor | None
) -> TensorDifference:
    if before is None or after is None or before.shape != after.shape:
        return TensorDifference(name, *held)
    if not (before.is_floating_point() or after.is_floating_point()) or before.is_complex() or after.is_complex():
        return TensorDifference(name, *held, equal=bool((before.cpu() == after.cpu()).all()))
    return TensorDifference(name, *held, *_measure(before.detach().reshape(-1), after.detach().reshape(-1)))


def _measure(before: Tensor, after: Tensor) -> tuple[Energy, bool]:
    energy, equal = Energy(), True
    for start in range(0, before.numel(), _CHUNK):
        one, other = (side[start : start + _CHUNK].cpu().to(torch.float64, copy=True) for side in (before, after))
        same = torch.isclose(one, other, rtol=0, atol=0, equal_nan=True)
        # What is infinite or nan in both, as in the masks of attention, is neither signal nor noise.
        alike = same & ~torch.isfinite(one)
        energy += measure(one.masked_fill_(alike, 0), other.masked_fill_(alike, 0))
        equal = equal and bool(same.all())
    return energy, equal


def _hold(name: str, tensor: Tensor | None) -> Held | None:
    if tensor is None:
        return None
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name!r} is a {type(tensor).__name__}: give tensors by name, such as state_dict() returns")
    if tensor.is_meta:
        raise InputError(f"{name!r} is on the meta device and has no values: load the model's weights first")
    return Held(tuple(tensor.shape), tensor.dtype, tensor.numel() * tensor.element_size())
