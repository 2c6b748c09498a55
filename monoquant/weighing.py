"""Weigh the representations that layers could take: their bytes against the noise they make, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import attrs
from torch import Tensor

from monoquant.budget import Cost, efficient, steps
from monoquant.context import QuantContext
from monoquant.modules.packed_layer import Represented
from monoquant.modules.storage import content_bytes
from monoquant.numerics.metrics import Energy, energy_of
from monoquant.report.tradeoff import Criterion, CurvePoint, Evaluation, LayerTradeoff, SchemeCost, Tradeoff
from monoquant.statistics.moments import Moments
from monoquant.values import AnyScheme


@attrs.frozen(eq=False)
class Option:
    """One representation of layers that must be represented alike.

    Args:
        scheme: The representation.
        size: Bytes of their packed weights.
        energies: By layer, signal and noise of the products per input row; None where no inputs were seen.
    """

    scheme: AnyScheme
    size: int
    energies: Mapping[str, Energy | None]

    @property
    def worst_sqnr_db(self) -> float | None:
        """The smallest SQNR of the layers; None where nothing was measured."""
        found = [energy.sqnr_db for energy in self.energies.values() if energy is not None]
        return min(found) if found else None


@attrs.frozen(eq=False)
class Unit:
    """Layers that share weights, and so one representation; most units are one layer.

    Args:
        layers: Their names.
        weights: Number of packed weights.
        options: Representations, the smallest first.
        planned: Index of the one that was planned.
    """

    layers: tuple[str, ...]
    weights: int
    options: tuple[Option, ...]
    planned: int


def option(
    layers: Sequence[str], scheme: AnyScheme, packed: Mapping[str, Mapping[str, Represented]], context: QuantContext
) -> Option:
    """Weigh one representation.

    Args:
        layers: Layers that share weights.
        scheme: The representation.
        packed: By layer, what each of its weights becomes.
        context: Of the run; statistics must have been collected.
    """
    forms = {
        context.leading(layer, name): context.packable(layer).forms[name]
        for layer in layers
        for name in context.weight_names(layer)
    }
    energies = {layer: _energy(layer, packed[layer], context) for layer in layers}
    return Option(scheme, sum(content_bytes(form, scheme) for form in forms.values()), energies)


def _energy(layer: str, packed: Mapping[str, Represented], context: QuantContext) -> Energy | None:
    """Signal and noise of a layer's products per input row, its weights taken together."""
    found = [_of_weight(layer, name, one, context) for name, one in packed.items()]
    known = [energy for energy in found if energy is not None]
    return sum(known, Energy()) if known else None


def _of_weight(layer: str, name: str, packed: Represented, context: QuantContext) -> Energy | None:
    parts = context.input_statistics(layer, name)
    matrix = context.packable(layer).forms[name].to_matrix(context.original_weight(layer, name))
    correction = context.bias_change(layer, name, packed.biases)
    total, rows = Energy(), 0
    for part in parts:
        span = slice(part.start, part.stop)
        float_rows = matrix[span].float()
        error = float_rows - packed.weight.dequantized_rows(span).float()
        energy = _per_row(float_rows, error, part.moments, None if correction is None else correction[span])
        if energy is not None:
            total += Energy(energy.signal * part.moments.rows, energy.noise * part.moments.rows)
            rows = max(rows, part.moments.rows)
    return Energy(total.signal / rows, total.noise / rows) if rows else None


def _per_row(matrix: Tensor, error: Tensor, moments: Moments, correction: Tensor | None) -> Energy | None:
    """On held-out inputs where there are some: on those that codes were fitted to, noise is several times too low."""
    if not moments.rows:
        return None
    inputs = moments.held_out
    if inputs is None:
        importance = moments.importance.to(matrix)
        return Energy(*(float((values.square() @ importance).sum()) for values in (matrix, error)))
    rows = inputs.to(matrix)
    noise = rows @ error.T
    if correction is not None:
        noise -= correction.to(noise)
    energy = energy_of(rows @ matrix.T, noise)
    return Energy(energy.signal / len(rows), energy.noise / len(rows))


class Scales:
    """Turns noise of layers into damage of the model, in a unit that adds up.

    Args:
        units: What is weighed.
        context: Of the run, with gradients where the model has some.

    Attributes:
        criterion: The unit.
    """

    def __init__(self, units: Sequence[Unit], context: QuantContext) -> None:
        self._context = context
        known = (_factor(layer, context) for unit in units for layer in unit.layers)
        factors = [factor for factor in known if factor is not None]
        # A layer whose output has no gradient is taken for an average one, rather than for one that does not matter.
        self._average = fmean(factors) if factors else 1.0
        self.criterion: Criterion = "layer"
        if factors and context.gradients is not None:
            self.criterion = "kl" if context.gradients.is_kl else "output"

    def damage(self, chosen: Option) -> float | None:
        """Estimated damage of an option; None where it is not known.

        Args:
            chosen: An option of one of the units.
        """
        found = [self._of_layer(layer, energy) for layer, energy in chosen.energies.items() if energy is not None]
        return sum(found) if found else None

    def _of_layer(self, layer: str, energy: Energy) -> float:
        relative = energy.noise / energy.signal if energy.signal else 0.0
        if self.criterion == "layer":
            return relative
        factor = _factor(layer, self._context)
        return relative * (self._average if factor is None else factor * _share(layer, energy, self._context))


def _factor(layer: str, context: QuantContext) -> float | None:
    """What noise as large as a layer's output would do to the model's output."""
    probe = context.gradients
    found = None if probe is None else probe.found.get(context.heard_at(layer))
    if probe is None or found is None or not found.elements or not probe.output_energy:
        return None
    return found.gradient * found.energy / found.elements / probe.output_energy


def _share(layer: str, energy: Energy, context: QuantContext) -> float:
    """How much of an output's energy is the product's; the rest is the bias's, and makes no noise."""
    probe, packable = context.gradients, context.packable(layer)
    if probe is None or not packable.adapter.takes_rows or context.heard_at(layer) != layer:
        return 1.0
    found = probe.found[layer]
    (form,) = packable.forms.values()
    return energy.signal * found.elements / form.rows / found.energy if found.energy else 1.0


def _known(sqnr_db: float | None) -> float:
    return -math.inf if sqnr_db is None else sqnr_db


class Weighed:
    """Units with what their options cost.

    Args:
        units: What is weighed.
        context: Of the run.
    """

    def __init__(self, units: Sequence[Unit], context: QuantContext) -> None:
        self.units = units
        self._scales = Scales(units, context)
        self.costs = [self._costs(unit) for unit in units]

    def _costs(self, unit: Unit) -> list[Cost]:
        """Of a unit whose noise is not known, only the smallest option counts."""
        damages = [self._scales.damage(one) for one in unit.options]
        if any(damage is None for damage in damages):
            return [Cost(unit.options[0].size, 0.0)]
        return [Cost(one.size, damage or 0.0) for one, damage in zip(unit.options, damages, strict=True)]

    def bits(self, chosen: Sequence[int]) -> float:
        """Bits per weight of a choice.

        Args:
            chosen: Index of an option per unit.
        """
        size = sum(unit.options[index].size for unit, index in zip(self.units, chosen, strict=True))
        return 8 * size / sum(unit.weights for unit in self.units)

    def schemes(self, chosen: Sequence[int]) -> dict[str, AnyScheme]:
        """The representation of each layer in a choice.

        Args:
            chosen: Index of an option per unit.
        """
        pairs = zip(self.units, chosen, strict=True)
        return {layer: unit.options[index].scheme for unit, index in pairs for layer in unit.layers}

    def as_planned(self) -> list[int]:
        """The choice that changes nothing."""
        return [unit.planned for unit in self.units]

    def path(self) -> list[list[int]]:
        """Choices from the cheapest on, each one step better than the one before; of little worth come last."""
        chosen = [efficient(options)[0] for options in self.costs]
        found = [list(chosen)]
        for step in steps(self.costs):
            chosen[step.layer] = step.after
            found.append(list(chosen))
        return found

    def reaching(self, sqnr_db: float) -> list[int]:
        """The smallest option of each unit whose layers all reach a quality, or its best one.

        Args:
            sqnr_db: In dB; a unit that was not measured takes its smallest option.
        """
        return [self._reaching(unit, sqnr_db) for unit in self.units]

    @staticmethod
    def _reaching(unit: Unit, sqnr_db: float) -> int:
        found = [one.worst_sqnr_db for one in unit.options]
        if any(value is None for value in found):
            return 0
        enough = [index for index, value in enumerate(found) if value is not None and value >= sqnr_db]
        return enough[0] if enough else max(range(len(found)), key=lambda index: _known(found[index]))

    def tradeoff(self, chosen: Sequence[int], evaluations: Sequence[Evaluation]) -> Tradeoff:
        """All of it, for the report.

        Args:
            chosen: Index of an option per unit.
            evaluations: What the caller's function said of models.
        """
        curve = [CurvePoint(self.bits(choice), self._noise(choice)) for choice in self.path()]
        layers = [one for unit, index in zip(self.units, chosen, strict=True) for one in self._layers(unit, index)]
        return Tradeoff(self._scales.criterion, tuple(layers), tuple(curve), self.bits(chosen), tuple(evaluations))

    def _noise(self, chosen: Sequence[int]) -> float:
        return math.fsum(options[index].noise for options, index in zip(self.costs, chosen, strict=True))

    def _layers(self, unit: Unit, chosen: int) -> list[LayerTradeoff]:
        weighed = self._costs(unit)
        hull = efficient(weighed)
        worth = None
        if len(hull) > 1:
            low, high = weighed[hull[0]], weighed[hull[1]]
            worth = 1024 * (low.noise - high.noise) / (high.size - low.size)
        return [
            LayerTradeoff(layer, unit.weights, tuple(self._scheme_costs(unit, layer)), chosen, worth)
            for layer in unit.layers
        ]

    def _scheme_costs(self, unit: Unit, layer: str) -> Iterator[SchemeCost]:
        for one in unit.options:
            energy = one.energies[layer]
            sqnr_db = None if energy is None else energy.sqnr_db
            yield SchemeCost(one.scheme, one.size, sqnr_db, self._scales.damage(one))
