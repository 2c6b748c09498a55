"""One layer in two reports: what is not as it was, and what it lost; like is compared with like."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Literal

import attrs

from monoquant.errors import InputError
from monoquant.report.plain import to_plain
from monoquant.report.records import LayerReport
from monoquant.values import Action

MeasuredOn = Literal["output", "weight"]
Status = Literal[
    "compared", "float", "added", "removed", "scheme-changed", "layer-changed", "measured-otherwise", "not-measured"
]


def decimal(value: float) -> Decimal:
    """The number that is written for a float: 20.3 - 20.0 is then 0.3, neither more nor less.

    Args:
        value: Any float.
    """
    return Decimal(repr(float(value)))


def lost_db(before: float, after: float) -> Decimal | None:
    """What was lost from one SQNR to another, exact in the decimals of the two figures.

    Args:
        before: dB; may be inf.
        after: dB; may be inf.

    Returns:
        dB, negative for a gain, inf where ``after`` is nan; None where ``before`` is nan, which tells nothing.
    """
    if math.isnan(before):
        return None
    if before == after:
        return Decimal(0)
    return Decimal("inf") if math.isnan(after) else decimal(before) - decimal(after)


def measured(record: LayerReport | None) -> tuple[MeasuredOn | None, float]:
    """What the SQNR that counts was measured on: the output where it was, else the weight.

    Args:
        record: A layer's record; None for a layer that is not there.

    Returns:
        ``"output"``, ``"weight"`` or None, and dB, nan for None.
    """
    if record is None:
        return None, math.nan
    if record.output_sqnr_db is not None:
        return "output", record.output_sqnr_db
    return (None, math.nan) if record.weight_sqnr_db is None else ("weight", record.weight_sqnr_db)


@attrs.frozen
class Change:
    """A fact that is not as it was.

    Args:
        what: Its name, such as ``"algorithm"``, or that of a package.
        before: As text; None where it was not there.
        after: As text; None where it is not there any more.
    """

    what: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        return f"{self.what} {self.before or '-'} -> {self.after or '-'}"


@attrs.frozen
class LayerDifference:
    """A layer in both reports, or in one of them.

    Args:
        before: Its record in the first report; None where it is new.
        after: Its record in the second report; None where it is gone.
        new_name: For a layer that is gone, the new layer that it has perhaps become: the one of its kind and shape
            whose name has more or less in front, or the only one alike. None where there is no such layer.
    """

    before: LayerReport | None
    after: LayerReport | None
    new_name: str | None = None

    @property
    def layer(self) -> str:
        """Its dotted name in the second report, or in the first where it is gone."""
        return self._any.layer

    @property
    def name(self) -> str:
        """The name as people read it: the root is ``(root)``."""
        return self._any.name

    @property
    def _any(self) -> LayerReport:
        found = self.before if self.after is None else self.after
        if found is None:
            raise InputError("a LayerDifference needs a record: give before=, after= or both")
        return found

    @property
    def status(self) -> Status:
        """What the two records say together.

        ``"compared"``: same scheme, same weights, measured in the same way. ``"float"``: in both reports. ``"added"``,
        ``"removed"``: in one only. ``"scheme-changed"``: another representation, or float in one of them.
        ``"layer-changed"``: another shape, or other weights. ``"measured-otherwise"``: outputs in one, weights in the
        other. ``"not-measured"``: no figure in one of them, or nan in the first.
        """
        before, after = self.before, self.after
        if before is None or after is None:
            return "added" if before is None else "removed"
        if before.scheme != after.scheme:
            return "scheme-changed"
        if after.scheme is None:
            return "float"
        if not self._same_weights:
            return "layer-changed"
        (then, figure), (now, _) = measured(before), measured(after)
        if then and now and then != now:
            return "measured-otherwise"
        return "not-measured" if not (then and now) or math.isnan(figure) else "compared"

    @property
    def _same_weights(self) -> bool:
        before, after = self.before, self.after
        return bool(before and after and (before.shape, before.weights) == (after.shape, after.weights))

    @property
    def measured_on(self) -> MeasuredOn | None:
        """What both SQNRs were measured on; None where it was not the same, or the weights are not."""
        (then, _), (now, _) = measured(self.before), measured(self.after)
        return now if then == now and self._same_weights else None

    @property
    def before_db(self) -> float | None:
        """SQNR in the first report in dB; None unless it can be compared."""
        return measured(self.before)[1] if self.measured_on else None

    @property
    def after_db(self) -> float | None:
        """SQNR in the second report in dB; None unless it can be compared."""
        return measured(self.after)[1] if self.measured_on else None

    @property
    def loss_db(self) -> Decimal | None:
        """What was lost in dB; as :func:`lost_db`, and None where the two cannot be compared.

        A layer of another scheme has one: it is the same weight, measured in the same way.
        """
        return lost_db(measured(self.before)[1], measured(self.after)[1]) if self.measured_on else None

    @property
    def changes(self) -> tuple[Change, ...]:
        """What else is not as it was: decision, scheme, algorithm, rows measured on, why it stayed float, others."""
        if self.before is None or self.after is None:
            return ()
        then, now = _facts(self.before), _facts(self.after)
        if self.measured_on != "output":
            then["rows"] = now["rows"] = None
        return tuple(Change(what, then[what], now[what]) for what in now if then[what] != now[what])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; names, figures and changes, without the two records."""
        loss = self.loss_db
        return {
            "layer": self.layer,
            "status": self.status,
            "new_name": self.new_name,
            "measured_on": self.measured_on,
            "before_db": to_plain(self.before_db),
            "after_db": to_plain(self.after_db),
            "loss_db": None if loss is None else to_plain(float(loss)),
            "bytes_before": None if self.before is None else self.before.bytes_after,
            "bytes_after": None if self.after is None else self.after.bytes_after,
            "changes": [attrs.asdict(change) for change in self.changes],
        }


def _facts(record: LayerReport) -> dict[str, str | None]:
    kept = record.action is not Action.QUANTIZE
    return {
        "name": record.name,
        "decision": record.action.value,
        "reason": record.reason if kept else None,
        "kind": record.kind,
        "shape": "x".join(map(str, record.shape)),
        "weights": ", ".join(record.weights) or None,
        "dtype": str(record.dtype).removeprefix("torch."),
        "scheme": None if record.scheme is None else str(record.scheme),
        "algorithm": record.algorithm or None,
        "compute": record.compute or None,
        "rows": str(record.sample_rows) if record.sample_rows else None,
    }
