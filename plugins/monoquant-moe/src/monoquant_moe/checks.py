"""Experts that calibration hardly reached: their codes are fitted to too few tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import attrs
from monoquant import AccuracyGate, ConfigError, Finding, LayerReport, QuantizationInfo, Severity, WarningCheck

_EXPERT: Final = re.compile(r"(?<!shared_)expert(?!_gate)", re.IGNORECASE)
"""In a name or class; a shared expert sees every token."""

_NAMED: Final = 3


def _check_ratio(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigError(f"tokens_per_input={value!r}: give a number above 0, such as 1.0")


@attrs.frozen
class ExpertTokensCheck(WarningCheck):
    """Warn of experts whose codes were fitted to few tokens, as those of a router that sends them elsewhere.

    With fewer tokens than input features a Hessian is singular, and what is fitted is partly chance.

    Args:
        tokens_per_input: Tokens that an expert must have seen per input feature of its widest matrix; default 1.
    """

    tokens_per_input: float = attrs.field(default=1.0, validator=_check_ratio)

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        starved = sorted(
            (record.input_rows, record.layer)
            for record in info.layers
            if record.input_rows is not None and _is_expert(record) and record.input_rows < self._wanted(record)
        )
        if not starved:
            return []
        named = ", ".join(f"{layer!r} ({rows})" for rows, layer in starved[:_NAMED])
        more = f" and {len(starved) - _NAMED} more" if len(starved) > _NAMED else ""
        message = f"Warning: {_counted(len(starved))} of experts saw few calibration tokens: {named}{more}."
        remedy = (
            "Calibrate with more data, or with data that the router sends to them; or reduce them to INT8 only, which "
            "needs no data, with skip_layer_names and skip_to='int8'."
        )
        return [Finding("experts-saw-few-tokens", Severity.WARNING, message, starved[0][1], remedy)]

    def _wanted(self, record: LayerReport) -> float:
        return self.tokens_per_input * max(columns for _, columns in record.matrices)


def _is_expert(record: LayerReport) -> bool:
    return bool(record.matrices) and any(map(_EXPERT.search, (record.layer, record.kind)))


def _counted(layers: int) -> str:
    return "1 layer" if layers == 1 else f"{layers} layers"
