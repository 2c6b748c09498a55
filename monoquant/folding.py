"""Move factors of inputs into what computes them, where that changes nothing and makes weights easier to code."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from monoquant.algorithms.base import Needs, WeightAlgorithm
from monoquant.algorithms.clean import InputStatistics, input_scale, solve
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.context import QuantContext
from monoquant.errors import quoted
from monoquant.fitting import known_of, obstacle_to_fitting
from monoquant.numerics.affine import dequantize
from monoquant.numerics.metrics import Energy, energy_of
from monoquant.statistics.moments import Moments
from monoquant.statistics.origins import FoldSite
from monoquant.statistics.store import Key
from monoquant.values import Finding, Scheme, Severity

_ROWS = 1024
_NO_GAIN = "no factors make their noise less"


class Folder:
    """Chooses factors for all weights, before any of them is packed.

    Args:
        algorithm: What chooses them.
        scheme: The representation of the weights.
        context: Of the run; calibration is over, and nothing is packed yet.
        layers: Those that the algorithm is for.
        corrects_bias: Whether biases will make up for the mean of the error.
    """

    def __init__(
        self,
        algorithm: WeightAlgorithm,
        scheme: Scheme,
        context: QuantContext,
        layers: Collection[str],
        *,
        corrects_bias: bool,
    ) -> None:
        self._algorithm, self._scheme, self._context, self._layers = algorithm, scheme, context, layers
        self._corrects_bias = corrects_bias

    def fold(self) -> list[Finding]:
        """Write factors into the context's rescaling.

        Returns:
            What a person should know: which layers have none, and why.
        """
        found = self._context.fold_sites
        reasons = {key: reason for key, reason in found.obstacles.items() if key[0] in self._layers}
        for site in found.sites:
            reason = self._obstacle(site) or self._try(site)
            reasons.update({key: reason for key in site.weights if reason and key[0] in self._layers})
        return list(_findings(reasons))

    def _obstacle(self, site: FoldSite) -> str:
        if any(layer not in self._layers for layer, _ in site.weights):
            return "their inputs are also multiplied with weights that are represented otherwise"
        if not self._is_linear(site) and not all(self._is_vector(key) for key in site.parameters):
            return "what computes their inputs is scripted, or packed in a way that takes no factors"
        return ""

    def _is_vector(self, key: Key) -> bool:
        module = self._context.module(key[0])
        if isinstance(module, torch.jit.ScriptModule):  # its parameters cannot be exchanged
            return False
        held = module._parameters.get(key[1])
        return held is not None and held.dim() == 1 and key[1] not in self._context.weight_names(key[0])

    def _is_linear(self, site: FoldSite) -> bool:
        """Whether inputs are the output of a Linear that is packed as well."""
        layer, name = site.parameters[0]
        if layer not in self._layers or self._context.weight_names(layer) != (name,):
            return False
        adapter, biases = self._context.packable(layer).adapter, site.parameters[1:]
        bias = self._context.correctable_bias(layer, name)
        own = all(key == (layer, bias) for key in biases) and len(biases) == (bias is not None)
        return adapter.takes_rows and self._context.heard_at(layer) == layer and own

    def _try(self, site: FoldSite) -> str:
        """Give a site factors, or say why not."""
        context = self._context
        parts = context.input_statistics(*site.weights[0])
        rows = context.packable(site.weights[0][0]).forms[site.weights[0][1]].rows
        if len(parts) != 1 or (parts[0].start, parts[0].stop) != (0, rows):
            return "calibration saw no inputs of them"
        moments = parts[0].moments
        if obstacle_to_fitting(moments) is not None:
            return "calibration gave too little to fit to"
        matrix = torch.cat([self._sample(key, len(site.weights)) for key in site.weights])
        corrected = torch.cat([self._corrected(key, len(site.weights)) for key in site.weights])
        factors = input_scale(self._algorithm, matrix, self._scheme, self._known(moments, corrected))
        if factors is None:
            return _NO_GAIN
        factors = self._representable(site, factors)
        obstacle = self._out_of_range(site, factors) or self._worse(matrix, moments, factors, corrected)
        return obstacle or self._write(site, factors)

    def _out_of_range(self, site: FoldSite, factors: Tensor) -> str:
        """Whether a weight or a parameter would leave the range of its dtype or of its scales."""
        fits = True
        for key in (*site.weights, *site.parameters):
            if key[1] not in self._context.weight_names(key[0]):
                fits &= bool(torch.isfinite(self._divided(key, factors)).all())
                continue
            before = self._matrix(key).double()
            by = factors.to(before)
            after = before * by if key in site.weights else before / by.unsqueeze(1)
            fits &= self._is_codable(before, after, self._context.original_weight(*key).dtype)
        return "" if fits else "factors leave the range of what they are moved to, or of its scales"

    def _is_codable(self, before: Tensor, after: Tensor, dtype: torch.dtype) -> bool:
        """Whether scales of groups are neither too large nor, unless they were so before, too small."""
        limits, most = torch.finfo(self._scheme.scale_dtype), self._scheme.max_code
        width = self._scheme.width(after.shape[1])
        old, new = (_ranges(matrix, width) / most for matrix in (before, after))
        small = (new < limits.smallest_normal) & (old >= limits.smallest_normal)
        return bool((new < min(limits.max, torch.finfo(dtype).max / most)).all()) and not bool(small.any())

    def _matrix(self, key: Key) -> Tensor:
        return self._context.packable(key[0]).forms[key[1]].to_matrix(self._context.weight(*key))

    def _sample(self, key: Key, members: int) -> Tensor:
        """Some rows of a weight, evenly spread: they tell what its columns need as well as all do."""
        matrix = self._matrix(key)
        return matrix[:: max(1, len(matrix) * members // _ROWS)]

    def _known(self, moments: Moments, corrected: Tensor) -> InputStatistics:
        full = self._algorithm.needs is Needs.HESSIAN
        return known_of(moments, full=full, centred=bool(corrected.all()))

    def _representable(self, site: FoldSite, factors: Tensor) -> Tensor:
        """Factors that the first parameter, divided by them in its dtype, makes up for exactly."""
        layer, name = site.parameters[0]
        if name in self._context.weight_names(layer):
            return factors
        before = self._parameter((layer, name)).double()
        after = self._divided((layer, name), factors).double()
        usable = (before != 0) & (after != 0) & torch.isfinite(after)
        exact = torch.where(usable, before / torch.where(usable, after, 1), 1)
        return torch.where(before == 0, factors.double(), exact).to(factors.dtype)

    def _worse(self, matrix: Tensor, moments: Moments, factors: Tensor, corrected: Tensor) -> str:
        """On inputs that nothing was fitted to: whether weights do better without factors, or rounded to nearest."""
        inputs = moments.held_out
        if inputs is None:
            return ""
        ones = torch.ones_like(factors)
        with_factors, *others = (
            self._energy(algorithm, matrix, moments, one, corrected)
            for algorithm, one in ((self._algorithm, factors), (self._algorithm, ones), (RoundToNearest(), ones))
        )
        best = min(others, key=lambda energy: energy.noise)
        return "" if with_factors.noise < best.noise else "on held-out inputs factors make them worse"

    def _corrected(self, key: Key, members: int) -> Tensor:
        """Which of these rows have a bias that will make up for their mean error."""
        has = self._corrects_bias and self._context.correctable_bias(*key) is not None
        return torch.full((len(self._sample(key, members)),), has)

    def _energy(
        self, algorithm: WeightAlgorithm, matrix: Tensor, moments: Moments, factors: Tensor, corrected: Tensor
    ) -> Energy:
        scaled = matrix * factors.to(matrix.device)
        codes = solve(algorithm, scaled, self._scheme, self._known(moments.divided(factors), corrected)).codes
        width = self._scheme.width(matrix.shape[1])
        error = dequantize(codes.codes, codes.scale, codes.zero_point, width).to(scaled) - scaled
        error /= factors.to(error)
        inputs = moments.held_out
        assert inputs is not None  # noqa: S101 - its caller has looked
        rows = inputs.to(error)
        shift = (error @ moments.mean.to(error)) * corrected.to(error)
        return energy_of(rows @ matrix.to(error).T, rows @ error.T - shift)

    def _write(self, site: FoldSite, factors: Tensor) -> str:
        rescaling = self._context.rescaling
        for key in site.weights:
            rescaling.columns[key] = factors
        for key in site.parameters:
            if key[1] in self._context.weight_names(key[0]):
                rescaling.rows[key] = factors
            else:
                rescaling.parameters[key] = self._divided(key, factors)
        return ""

    def _parameter(self, key: Key) -> Tensor:
        held = self._context.module(key[0])._parameters[key[1]]
        assert held is not None  # noqa: S101 - it was seen in use
        return self._context.rescaling.parameters.get(key, held.detach())

    def _divided(self, key: Key, factors: Tensor) -> Tensor:
        held = self._parameter(key)
        return (held.double() / factors.to(held.device, torch.float64)).to(held.dtype)


def _ranges(matrix: Tensor, width: int) -> Tensor:
    """What the codes of each group must span; ``[rows, groups]``."""
    padded = functional.pad(matrix, (0, -matrix.shape[1] % width)).view(len(matrix), -1, width)
    return padded.amax(-1).clamp_min(0) - padded.amin(-1).clamp_max(0)


def _findings(reasons: dict[Key, str]) -> Iterator[Finding]:
    """One for each reason; of no layer in particular, so that reports do not put different reasons together."""
    for reason in dict.fromkeys(reasons.values()):
        layers: Sequence[str] = list(dict.fromkeys(key[0] for key, why in reasons.items() if why == reason))
        many = "one layer" if len(layers) == 1 else f"{len(layers)} layers"
        message = f"The inputs of {many} are not scaled, because {reason}: {quoted(layers)}."
        yield Finding("scales-not-folded", Severity.INFO, message)
