"""Layers then and now: like is compared with like, and everything else is a finding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import attrs
from monoquant import Finding, LayerReport, Severity

NEW_BASELINE = "If that is wanted, write a new baseline."


@attrs.frozen
class Loss:
    """What one layer lost since the baseline, measured in the same way both times.

    Args:
        past: The layer's record in the baseline.
        present: Its record now.
        measured_on: ``"output"`` or ``"weight"``.
    """

    past: LayerReport
    present: LayerReport
    measured_on: str

    @property
    def then(self) -> float:
        """SQNR in the baseline, in dB; never nan."""
        return _measure(self.past)[1]

    @property
    def now(self) -> float:
        """SQNR now, in dB."""
        return _measure(self.present)[1]

    @property
    def db(self) -> Decimal:
        """What was lost in dB, exact in the decimals of its figures; negative for a gain, inf where SQNR is nan now."""
        if self.then == self.now:
            return Decimal(0)
        return Decimal("inf") if math.isnan(self.now) else decimal(self.then) - decimal(self.now)


def decimal(value: float) -> Decimal:
    """The number that is written for a float: 20.3 - 20.0 is then 0.3, neither more nor less.

    Args:
        value: Any float.
    """
    return Decimal(repr(float(value)))


def judge_layers(
    past: Sequence[LayerReport], present: Sequence[LayerReport], tolerance_db: float, source: str
) -> list[Finding]:
    """Hold each layer against the one of the same name in the baseline.

    Args:
        past: The baseline's records.
        present: The run's records.
        tolerance_db: What a layer may lose; dB.
        source: What the baseline is called.

    Returns:
        A CRITICAL finding per layer that lost more, the worst first; a finding per quantized layer that could not be
        compared; and one that tells how many were.
    """
    partners = _partners(past, present)
    judged = [_judge(one, other, source) for one, other in partners]
    losses = sorted((item for item in judged if isinstance(item, Loss)), key=lambda loss: -loss.db)
    beyond = [loss for loss in losses if loss.db > decimal(tolerance_db)]
    return [
        *(_regression(loss, tolerance_db, source) for loss in beyond),
        *(item for item in judged if isinstance(item, Finding)),
        *_gone(partners, source),
        _summary(losses, len(beyond), tolerance_db, source),
    ]


Partners = list[tuple[LayerReport | None, LayerReport | None]]


def _partners(past: Sequence[LayerReport], present: Sequence[LayerReport]) -> Partners:
    # A module that is used under several names may be listed under another of them now.
    then, now = _by_name(past), _by_name(present)
    found: Partners = [(_first(then, record), record) for record in present]
    met = [one.layer for one, _ in found if one is not None]
    return [*found, *((record, _first(now, record)) for record in past if record.layer not in met)]


def _by_name(records: Sequence[LayerReport]) -> dict[str, LayerReport]:
    aliases = {alias: record for record in records for alias in record.aliases}
    return aliases | {record.layer: record for record in records}


def _first(known: dict[str, LayerReport], record: LayerReport) -> LayerReport | None:
    return next((known[name] for name in (record.layer, *record.aliases) if name in known), None)


def _measure(record: LayerReport) -> tuple[str, float]:
    if record.output_sqnr_db is not None:
        return "output", record.output_sqnr_db
    return ("", math.nan) if record.weight_sqnr_db is None else ("weight", record.weight_sqnr_db)


def _judge(past: LayerReport | None, present: LayerReport | None, source: str) -> Loss | Finding | None:
    """What two records of one layer say together; None where it is float in both, or gone."""
    if present is None or (present.scheme is None and (past is None or past.scheme is None)):
        return None
    if past is None:
        message = f"Layer {present.name!r} is new: {source} has no figures to compare it with."
        return _finding("layer-new", Severity.INFO, message, present, "Write a new baseline after the release.")
    if past.scheme != present.scheme:
        return _other_scheme(past, present, source)
    if (past.shape, past.weights) != (present.shape, present.weights):
        message = (
            f"Layer {present.name!r} is not the one of {source}: {_matrix(past)} then, {_matrix(present)} now; "
            "SQNR was not compared."
        )
        return _finding("layer-changed", Severity.WARNING, message, present, NEW_BASELINE)
    return _measured_alike(past, present, source)


def _other_scheme(past: LayerReport, present: LayerReport, source: str) -> Finding:
    severity = Severity.INFO if present.scheme is None else Severity.WARNING
    message = (
        f"Layer {present.name!r} has another scheme than in {source}: {_scheme(past)} then, {_scheme(present)} now; "
        "SQNR was not compared."
    )
    return _finding("scheme-changed", severity, message, present, NEW_BASELINE)


def _measured_alike(past: LayerReport, present: LayerReport, source: str) -> Loss | Finding:
    (then, before), (now, _) = _measure(past), _measure(present)
    if then == now != "" and not math.isnan(before):
        return Loss(past, present, now)
    if then and now and then != now:
        message = (
            f"Layer {present.name!r} was measured on its {then} in {source}, and on its {now} now; the two were not "
            "compared."
        )
        remedy = "Give calibration data in both runs, or in neither."
        return _finding("measured-otherwise", Severity.WARNING, message, present, remedy)
    if not now:
        message, remedy = f"Layer {present.name!r} was not measured; {source} says nothing.", "Run with validation."
    else:
        figure = "nan for it" if then else "no SQNR of it"
        message, remedy = f"Layer {present.name!r} was not compared: {source} has {figure}.", "Write a new baseline."
    return _finding("not-measured", Severity.WARNING, message, present, remedy)


def _gone(partners: Partners, source: str) -> list[Finding]:
    added = [now for then, now in partners if then is None and now is not None and now.scheme is not None]
    lost = [then for then, now in partners if now is None and then is not None and then.scheme is not None]
    return [_missing(record, lost, added, source) for record in lost]


def _missing(record: LayerReport, lost: Sequence[LayerReport], added: Sequence[LayerReport], source: str) -> Finding:
    message = f"Layer {record.name!r} of {source} is gone, and was not compared."
    guess = _new_name(record, lost, added)
    if guess is not None:
        message += f" Perhaps it is called {guess.name!r} now, which has its kind and shape."
    # It is no layer of this model, so that the finding concerns the whole.
    return _finding("layer-gone", Severity.WARNING, message, None, NEW_BASELINE)


def _new_name(record: LayerReport, lost: Sequence[LayerReport], added: Sequence[LayerReport]) -> LayerReport | None:
    """The new layer that it may have become: the one whose name has more or less in front, or the only one alike."""
    alike = [other for other in added if _kind(other) == _kind(record)]
    close = [other for other in alike if f".{other.layer}".endswith(f".{record.layer}")]
    close += [other for other in alike if f".{record.layer}".endswith(f".{other.layer}")]
    if len(close) == 1:
        return close[0]
    only = len(alike) == 1 and [_kind(other) for other in lost].count(_kind(record)) == 1
    return alike[0] if only else None


def _kind(record: LayerReport) -> tuple[Any, ...]:
    return record.kind, record.shape


def _regression(loss: Loss, tolerance_db: float, source: str) -> Finding:
    how = f"{loss.db:.3f} dB less than" if loss.db.is_finite() else "and was"
    message = (
        f"CRITICAL: SQNR of the {loss.measured_on} of layer {loss.present.name!r} is {loss.now:.2f} dB, {how} "
        f"{loss.then:.2f} dB in {source}{_circumstances(loss)}; {tolerance_db:g} dB are tolerated."
    )
    remedy = f"Look for what has changed in the model, the data, the options or the versions. {NEW_BASELINE}"
    return _finding("regression", Severity.CRITICAL, message, loss.present, remedy)


def _circumstances(loss: Loss) -> str:
    """What else is not as it was, and may be the cause."""
    past, present = loss.past, loss.present
    told = []
    if past.algorithm != present.algorithm:
        told.append(f"{past.algorithm or 'no algorithm'} then, {present.algorithm or 'no algorithm'} now")
    if loss.measured_on == "output" and past.sample_rows != present.sample_rows:
        told.append(f"{past.sample_rows} rows then, {present.sample_rows} now")
    return f" ({'; '.join(told)})" if told else ""


def _summary(losses: Sequence[Loss], beyond: int, tolerance_db: float, source: str) -> Finding:
    if not losses:
        message = f"Not one layer could be compared with {source}."
        remedy = "Give the report of the same model, quantized in the same way."
        return _finding("compared-nothing", Severity.WARNING, message, None, remedy)
    worst = losses[0]
    most = (
        f"the largest loss is {float(worst.db):.3f} dB, in {worst.present.name!r}"
        if worst.db > 0
        else "none lost anything"
    )
    message = (
        f"Layers compared with {source}: {len(losses)}, of which {beyond} lost more than {tolerance_db:g} dB; {most}."
    )
    return _finding("compared", Severity.INFO, message, None, "")


def _finding(code: str, severity: Severity, message: str, record: LayerReport | None, remedy: str) -> Finding:
    return Finding(f"baseline-{code}", severity, message, None if record is None else record.layer, remedy)


def _matrix(record: LayerReport) -> str:
    return " ".join((", ".join(record.weights), "x".join(map(str, record.shape))))


def _scheme(record: LayerReport) -> str:
    kind, value = _measure(record)
    figure = f" ({kind} {value:.2f} dB)" if kind else ""
    return f"{'float' if record.scheme is None else record.scheme}{figure}"
