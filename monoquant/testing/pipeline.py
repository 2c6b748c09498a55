"""The shortest pipeline in which a pass can run, built from what the pass declares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from monoquant.errors import ConfigError
from monoquant.passes.base import Pass
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.int4_pack import Int4PackPass
from monoquant.passes.pack import PackPass

_GROUP_SIZE = 32
"""Models of tests are small: larger groups would all be whole rows."""


def pipeline_for(pass_: Pass, passes: Sequence[Pass] = (), calibration_data: Iterable[Any] | None = None) -> list[Pass]:
    """Put a pass into the shortest pipeline that it declares to need.

    Args:
        pass_: The pass.
        passes: Passes to use instead of what would be built, all of them; default none. What the pass ``follows``, and
            what that follows, is built without settings; packing is ``Int4PackPass(group_size=32)``, and nothing is
            skipped.
        calibration_data: Batches, needed where something follows CalibrationPass.

    Returns:
        The passes in an order that all of them agree with; ``pass_`` is one of them, by identity. Where nothing else is
        declared it stands before the packing pass.

    Raises:
        ConfigError: When a pass that is needed cannot be built, or the declarations go round in a circle.
    """
    placed: list[Pass] = []
    for one in (*passes, pass_):
        _place(one, placed, passes, calibration_data)
    if any(isinstance(one, PackPass) for one in placed):
        return _ordered(placed)
    missing: list[Pass] = []
    _place(Int4PackPass(group_size=_GROUP_SIZE), missing, placed, calibration_data)
    *skipping, packing = missing
    if any(isinstance(packing, one.after) for one in placed):
        return _ordered([*skipping, *placed, packing])
    return [*_ordered([*skipping, *placed]), packing]


def _place(pass_: Pass, placed: list[Pass], given: Sequence[Pass], data: Iterable[Any] | None) -> None:
    for kind in pass_.follows:
        if not any(isinstance(one, kind) for one in (*placed, *given)):
            _place(_built(kind, pass_, data), placed, given, data)
    placed.append(pass_)


def _built(kind: type[Pass], needed_by: Pass, data: Iterable[Any] | None) -> Pass:
    if kind is PackPass:
        return Int4PackPass(group_size=_GROUP_SIZE)
    if kind is CalibrationPass:
        if data is None:
            raise ConfigError(
                f"{type(needed_by).__name__} follows CalibrationPass: give calibration_data=[...], batches"
            )
        return CalibrationPass(data)
    try:
        return kind()
    except TypeError as error:
        raise ConfigError(
            f"{type(needed_by).__name__} follows {kind.__name__}, which cannot be built without settings: "
            f"give passes=[{kind.__name__}(...)]"
        ) from error


def _ordered(passes: Sequence[Pass]) -> list[Pass]:
    """The passes in their order, except where one of them declares another."""
    sorter: TopologicalSorter[int] = TopologicalSorter(dict.fromkeys(range(len(passes)), ()))
    for index, pass_ in enumerate(passes):
        for other_index, other in enumerate(passes):
            if other is not pass_ and isinstance(other, (*pass_.follows, *pass_.after)):
                sorter.add(index, other_index)
            if other is not pass_ and isinstance(other, pass_.before):
                sorter.add(other_index, index)
    try:
        return [passes[index] for index in _stable(sorter)]
    except CycleError as error:
        names = ", ".join(type(pass_).__name__ for pass_ in passes)
        raise ConfigError(f"{names} each want to stand before another: correct follows, after and before") from error


def _stable(sorter: TopologicalSorter[int]) -> list[int]:
    sorter.prepare()
    ready, order = list(sorter.get_ready()), []
    while ready:
        ready.sort()
        order.append(ready.pop(0))
        sorter.done(order[-1])
        ready += sorter.get_ready()
    return order
