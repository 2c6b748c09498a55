"""What precision costs and brings, layer by layer: the ranking and the curve that a budget was chosen from."""

from __future__ import annotations

from typing import Literal

import attrs

from monoquant.errors import ConfigError
from monoquant.values import AnyScheme

Criterion = Literal["output", "kl", "layer"]


@attrs.frozen
class SchemeCost:
    """One representation of a layer.

    Args:
        scheme: The representation.
        size: Bytes of the layer's packed weights.
        output_sqnr_db: SQNR of the products with calibration inputs, those of all layers that share the weight; None if
            none were seen.
        noise: Estimated damage to the model's output; None if not known. Relative to the output's energy, or in nats
            of KL for logits; where gradients are not known, relative noise of the layer's own output.
    """

    scheme: AnyScheme
    size: int
    output_sqnr_db: float | None = None
    noise: float | None = None


@attrs.frozen
class LayerTradeoff:
    """What was weighed for one layer.

    Args:
        layer: Its name.
        weights: Number of its packed weights; layers that share weights all have them, and their sizes.
        options: Representations, the smallest first.
        chosen: Index of the one that was chosen.
        worth: Estimated noise that one more KiB would save, by the best step from the smallest option; None if not
            known.

    Raises:
        ConfigError: When none of the options was chosen.
    """

    layer: str
    weights: int
    options: tuple[SchemeCost, ...]
    chosen: int = attrs.field()
    worth: float | None = None

    @chosen.validator
    def _require_option(self, _: object, given: int) -> None:
        if not 0 <= given < len(self.options):
            raise ConfigError(f"layer {self.layer!r}: chosen={given} is none of {len(self.options)} options; give one")

    @property
    def scheme(self) -> AnyScheme:
        """The representation that was chosen."""
        return self.options[self.chosen].scheme


@attrs.frozen
class CurvePoint:
    """A budget, and what it would bring.

    Args:
        bits_per_weight: All bytes of packed weights, times 8, divided by the number of weights.
        noise: Estimated damage, added up over layers.
    """

    bits_per_weight: float
    noise: float


@attrs.frozen
class Evaluation:
    """A model that the caller's function judged.

    Args:
        bits_per_weight: Of the model; 32 or 16 for the float one.
        value: What the function returned.
        accepted: Whether its drop is tolerated.
    """

    bits_per_weight: float
    value: float
    accepted: bool


@attrs.frozen
class Tradeoff:
    """How precision was shared out.

    Args:
        criterion: What the noise is an estimate of: of the model's ``"output"`` (relative energy), ``"kl"`` of its
            logits, or only of each ``"layer"``'s own output.
        layers: What was weighed, in model order.
        curve: From everything in the smallest representation to everything in the largest.
        bits_per_weight: What was chosen.
        evaluations: Models that the caller's function judged, in order.
    """

    criterion: Criterion
    layers: tuple[LayerTradeoff, ...]
    curve: tuple[CurvePoint, ...]
    bits_per_weight: float
    evaluations: tuple[Evaluation, ...] = ()

    def ranked(self) -> list[LayerTradeoff]:
        """Layers by the noise that a byte more would save, the most worthwhile first; unknown ones last."""
        return sorted(self.layers, key=lambda one: -1.0 if one.worth is None else one.worth, reverse=True)

    def __str__(self) -> str:
        return "\n".join([*_curve_lines(self), *_evaluation_lines(self), "", *_ranking_lines(self)])


NOISE_WORDS = {
    "output": "noise of the model's output, relative",
    "kl": "KL of the model's logits, nats",
    "layer": "relative noise of layer outputs, added up",
}


def _curve_lines(tradeoff: Tradeoff) -> list[str]:
    lines = [f"bits per weight  estimated {NOISE_WORDS[tradeoff.criterion]}"]
    points = sorted({*tradeoff.curve}, key=lambda point: point.bits_per_weight)
    step = max(1, len(points) // 16)
    shown = [
        point
        for index, point in enumerate(points)
        if index % step == 0 or abs(point.bits_per_weight - tradeoff.bits_per_weight) < 1e-9
    ]
    largest = max((point.noise for point in points), default=0.0)
    for point in dict.fromkeys([*shown, *points[-1:]]):
        bar = "#" * (round(40 * point.noise / largest) if largest else 0)
        here = " <- chosen" if abs(point.bits_per_weight - tradeoff.bits_per_weight) < 1e-9 else ""
        lines.append(f"{point.bits_per_weight:15.3f}  {point.noise:10.4g} {bar}{here}")
    if not any("<- chosen" in line for line in lines):  # a step that did not fit was passed over
        lines.append(f"{tradeoff.bits_per_weight:15.3f}  beside the curve <- chosen")
    return lines


def _evaluation_lines(tradeoff: Tradeoff) -> list[str]:
    if not tradeoff.evaluations:
        return []
    told = [("accepted" if one.accepted else "refused", one) for one in tradeoff.evaluations]
    lines = [f"{one.bits_per_weight:15.3f}  {one.value:.6g} {word}" for word, one in told]
    return ["", "bits per weight  judged by your function", *lines]


def _ranking_lines(tradeoff: Tradeoff) -> list[str]:
    lines = ["layer, worth of one KiB more, chosen"]
    for one in tradeoff.ranked():
        worth = "-" if one.worth is None else f"{one.worth:.3g}"
        lines.append(f"{one.layer or '(root)'}  {worth}  {one.scheme}")
    return lines
