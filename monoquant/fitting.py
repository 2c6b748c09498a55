"""Choose the codes of a layer's weights by an algorithm, with what calibration learned of their inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import attrs
import torch
from torch import Tensor, nn

from monoquant.algorithms.base import Needs, WeightAlgorithm
from monoquant.algorithms.clean import InputStatistics, solve
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.context import QuantContext
from monoquant.errors import quoted
from monoquant.kernels.choice import best_rounding
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_weight import Intended
from monoquant.numerics.affine import GroupCodes, dequantize
from monoquant.numerics.metrics import Energy, energy_of
from monoquant.statistics.collector import RowStatistics
from monoquant.statistics.moments import Moments
from monoquant.statistics.watch import MOST_CHANNEL_GROUPS
from monoquant.values import Finding, Scheme, Severity

FEWEST_ROWS = 16
"""With fewer input rows than this there is nothing to fit to."""
_NEAREST = RoundToNearest()


@attrs.frozen(eq=False)
class Fit:
    """Codes of one weight, packed.

    Args:
        weight: The packed weight.
        intended: What it must hold.
        algorithm: What chose them, for the report.
        shift: float32 ``[rows]``, what the error of the weight adds to the product on average; a bias without it makes
            the mean of the output exact. None if inputs are not known.
        input_rows: Input rows that it was fitted to, the fewest of all its rows; None where nothing was to be known.
        findings: What a person should know.
    """

    weight: PackedMatrix
    intended: Intended
    algorithm: str
    shift: Tensor | None = None
    input_rows: int | None = None
    findings: tuple[Finding, ...] = ()


@attrs.frozen
class _Fallback:
    """Why codes are round_to_nearest's instead; INFO where that is the better choice."""

    reason: str
    remedy: str
    severity: Severity = Severity.WARNING


_UNSEEN = _Fallback("calibration never multiplied it with anything", "Use data that reaches it.")


@attrs.frozen(eq=False)
class _Rows:
    """Codes of some rows, and what became of them."""

    codes: GroupCodes
    shift: Tensor
    fallback: _Fallback | None = None

    def __len__(self) -> int:
        return len(self.codes.codes)

    def cut(self, start: int, stop: int) -> _Rows:
        return _Rows(_rows_of(self.codes, slice(start, stop)), self.shift[start:stop], self.fallback)


class Fitter:
    """Fits weights one by one; those that meet the same inputs are solved together, and the others' codes kept.

    Args:
        algorithm: How codes are chosen.
        context: Of the run; statistics must have been collected.
        peers: Names of the layers that will be asked for, all with the same schemes.
        corrects_bias: Whether biases will make up for the mean of the error.
    """

    def __init__(
        self, algorithm: WeightAlgorithm, context: QuantContext, peers: Collection[str], *, corrects_bias: bool
    ) -> None:
        self._algorithm, self._context, self._peers = algorithm, context, peers
        self._corrects_bias = corrects_bias
        self._solved: dict[tuple[str, str, int, Scheme], _Rows] = {}

    def fit(self, layer: str, name: str, scheme: Scheme) -> Fit:
        """Choose the codes of a weight.

        Args:
            layer: Name of a layer the plan quantizes.
            name: Which of its weights.
            scheme: The representation.
        """
        context, form = self._context, self._context.packable(layer).forms[name]
        known = context.input_statistics(layer, name) if self._algorithm.needs else ()
        dtype = context.weight(layer, name).dtype
        if type(self._algorithm) is RoundToNearest or (self._algorithm.needs and not known):
            given = context.weight(layer, name)
            rounding = best_rounding(context.registry.rounding_kernels, given.dtype, given.device, scheme)
            weight, intended = PackedMatrix.pack(given, scheme, form, rounding)
            reason = _unseen(context.module(layer))
            found = [_fell_back(layer, name, self._algorithm.name, reason)] if self._was_asked_for(layer, name) else []
            return Fit(weight, intended, _NEAREST.name, input_rows=0 if found else None, findings=tuple(found))
        parts = list(self._parts(layer, name, known, scheme))
        weight, intended = PackedMatrix.from_codes(_joined([part.codes for part in parts]), scheme, form, dtype)
        shift = torch.cat([part.shift for part in parts]) if known else None
        findings = tuple(self._findings(layer, name, parts, known))
        return Fit(weight, intended, self._used(parts), shift, _fewest(known, weight.rows), findings)

    def _was_asked_for(self, layer: str, name: str) -> bool:
        wanted = self._context.leading(layer, name) in self._context.wanted_moments
        return bool(self._algorithm.needs) and wanted

    def _parts(self, layer: str, name: str, known: Sequence[RowStatistics], scheme: Scheme) -> Iterator[_Rows]:
        """All rows of a weight in order; those without statistics are rounded to nearest."""
        matrix = self._context.packable(layer).forms[name].to_matrix(self._context.weight(layer, name))
        if not self._algorithm.needs:
            yield _Rows(solve(self._algorithm, matrix, scheme).codes, torch.zeros(len(matrix), device=matrix.device))
            return
        end = 0
        for part in known:
            if end < part.start:
                yield _rounded(matrix[end : part.start], scheme, fallback=_UNSEEN)
            yield self._solve_together(self._context.leading(layer, name), part, scheme)
            end = part.stop
        if end < len(matrix):
            yield _rounded(matrix[end:], scheme, fallback=_UNSEEN)

    def _solve_together(self, key: tuple[str, str], part: RowStatistics, scheme: Scheme) -> _Rows:
        """Rows that meet the same inputs have one Hessian, to be factored once."""
        found = self._solved.pop((*key, part.start, scheme), None)
        if found is not None:
            return found
        sharing = [] if self._context.statistics is None else list(self._context.statistics.sharing(part))
        factors = self._context.rescaling.columns.get(key)
        members = [(key, part)]
        members += [(other, rows) for other, rows in sharing if rows is not part and self._joins(other, key)]
        matrices = [self._matrix(other)[rows.start : rows.stop] for other, rows in members]
        moments = part.moments if factors is None else part.moments.divided(factors)
        solved = self._solve(torch.cat(matrices), moments, scheme, self._corrects(key))
        start = 0
        for (other, rows), matrix in zip(members, matrices, strict=True):
            chosen = solved.cut(start, start + len(matrix))
            self._solved[(*other, rows.start, scheme)] = self._judged(other, matrix, chosen, moments, scheme)
            start += len(matrix)
        return self._solved.pop((*key, part.start, scheme))

    def _joins(self, other: tuple[str, str], key: tuple[str, str]) -> bool:
        columns = self._context.rescaling.columns
        asked_for = other[0] in self._peers and other[0] not in self._context.packed
        return asked_for and columns.get(other) is columns.get(key) and self._corrects(other) == self._corrects(key)

    def _corrects(self, key: tuple[str, str]) -> bool:
        return self._corrects_bias and self._context.correctable_bias(*key) is not None

    def _matrix(self, key: tuple[str, str]) -> Tensor:
        layer, name = key
        return self._context.packable(layer).forms[name].to_matrix(self._context.weight(layer, name))

    def _solve(self, matrix: Tensor, moments: Moments, scheme: Scheme, corrected: bool) -> _Rows:
        obstacle = obstacle_to_fitting(moments)
        if obstacle is not None:
            return _rounded(matrix, scheme, moments, obstacle)
        known = known_of(moments, full=self._algorithm.needs is Needs.HESSIAN, centred=corrected)
        solution = solve(self._algorithm, matrix, scheme, known)
        if solution.fallback:
            return _rounded(matrix, scheme, moments, _Fallback(solution.fallback, "Give other or more data."))
        return _Rows(solution.codes, _shift(matrix, solution.codes, moments, scheme))

    def _judged(self, key: tuple[str, str], matrix: Tensor, chosen: _Rows, moments: Moments, scheme: Scheme) -> _Rows:
        """What was chosen, unless rounding to nearest is better on inputs that neither was fitted to."""
        inputs = moments.held_out
        if inputs is None or chosen.fallback is not None:
            return chosen
        nearest = _rounded(matrix, scheme, moments)
        corrected = self._corrects(key)
        fitted, plain = (_output_energy(matrix, rows, inputs, scheme, corrected) for rows in (chosen, nearest))
        if fitted.noise <= plain.noise:
            return chosen
        reason = f"on held-out inputs it is worse ({fitted.sqnr_db:.1f} dB against {plain.sqnr_db:.1f} dB)"
        return attrs.evolve(nearest, fallback=_Fallback(reason, "Give more calibration samples.", Severity.INFO))

    def _used(self, parts: Sequence[_Rows]) -> str:
        rounded = sum(len(part) for part in parts if part.fallback is not None)
        total = sum(map(len, parts))
        if not rounded:
            return self._algorithm.name
        return _NEAREST.name if rounded == total else f"{self._algorithm.name}, {_NEAREST.name} for {rounded} rows"

    def _findings(
        self, layer: str, name: str, parts: Sequence[_Rows], known: Sequence[RowStatistics]
    ) -> Iterator[Finding]:
        total = sum(map(len, parts))
        for fallback in dict.fromkeys(part.fallback for part in parts if part.fallback is not None):
            rows = sum(len(part) for part in parts if part.fallback == fallback)
            yield _fell_back(layer, name, self._algorithm.name, fallback, "" if rows == total else f"{rows} rows of ")
        broken = sum(part.moments.broken_rows for part in known)
        if broken:
            message = f"Warning: calibration gave layer {quoted([layer])} {broken} input rows with NaN or Inf."
            remedy = "They were left out of its statistics; repair the data or the model."
            yield Finding("non-finite-inputs", Severity.WARNING, message, layer, remedy)


def known_of(moments: Moments, *, full: bool, centred: bool) -> InputStatistics:
    """Statistics to fit to.

    Args:
        moments: Of the inputs, of some rows at least.
        full: Whether the Hessian is among them.
        centred: Whether of inputs less their mean, as where a bias makes up for what the mean does.
    """
    mean = moments.mean
    importance = moments.importance - mean.square() if centred else moments.importance
    hessian = moments.hessian if full else None
    if hessian is not None and centred:
        hessian = hessian.addr(mean, mean, alpha=-1)
    return InputStatistics(moments.rows, importance.clamp_min(0), hessian, moments.weighted)


def _unseen(module: nn.Module) -> _Fallback:
    groups = getattr(module, "groups", 1)
    if isinstance(groups, int) and groups > MOST_CHANNEL_GROUPS:
        reason = f"its {groups} groups of channels are too many to fit one by one"
        return _Fallback(reason, "Keep it in float or INT8 if its quality matters.", Severity.INFO)
    return _UNSEEN


def obstacle_to_fitting(moments: Moments) -> _Fallback | None:
    """What keeps codes from being fitted to inputs.

    Args:
        moments: Of the inputs.

    Returns:
        A reason with a remedy; None for nothing.
    """
    if not moments.rows and moments.broken_rows:
        return _Fallback("all its calibration inputs hold NaN or Inf", "Repair the data or the model.")
    if moments.rows < FEWEST_ROWS:
        seen = f"calibration gave it {moments.rows} input rows, and fewer than {FEWEST_ROWS} are nothing to fit to"
        return _Fallback(seen, "Give more calibration samples.")
    if not bool(moments.importance.any()):
        return _Fallback("all its calibration inputs are zero", "Use data that reaches it.")
    return None


def _fewest(known: Sequence[RowStatistics], rows: int) -> int | None:
    """Input rows of those rows of a weight that met the fewest."""
    if not known:
        return None
    return min(part.moments.rows for part in known) if sum(part.stop - part.start for part in known) == rows else 0


def _output_energy(matrix: Tensor, rows: _Rows, inputs: Tensor, scheme: Scheme, corrected: bool) -> Energy:
    weight = matrix.to(inputs)
    noise = inputs @ (_dequantized(rows.codes, scheme).to(inputs) - weight).T
    return energy_of(inputs @ weight.T, noise - rows.shift.to(noise) if corrected else noise)


def _rounded(
    matrix: Tensor, scheme: Scheme, moments: Moments | None = None, fallback: _Fallback | None = None
) -> _Rows:
    codes = solve(_NEAREST, matrix, scheme).codes
    return _Rows(codes, _shift(matrix, codes, moments, scheme), fallback)


def _shift(matrix: Tensor, codes: GroupCodes, moments: Moments | None, scheme: Scheme) -> Tensor:
    if moments is None or moments.rows < FEWEST_ROWS:
        return torch.zeros(len(matrix), device=matrix.device)
    error = _dequantized(codes, scheme) - matrix.float()
    return error @ moments.mean.to(error)


def _dequantized(codes: GroupCodes, scheme: Scheme) -> Tensor:
    return dequantize(codes.codes, codes.scale, codes.zero_point, scheme.width(codes.codes.shape[1]))


def _rows_of(codes: GroupCodes, rows: slice) -> GroupCodes:
    return GroupCodes(codes.codes[rows], codes.scale[rows], codes.zero_point[rows])


def _joined(parts: Sequence[GroupCodes]) -> GroupCodes:
    fields = ("codes", "scale", "zero_point")
    return parts[0] if len(parts) == 1 else GroupCodes(*(torch.cat([getattr(p, f) for p in parts]) for f in fields))


def _fell_back(layer: str, name: str, algorithm: str, fallback: _Fallback, part: str = "") -> Finding:
    warns = "Warning: " if fallback.severity is Severity.WARNING else ""
    what = f"{part}the {name} of layer {quoted([layer])}"
    message = f"{warns}Codes of {what} are {_NEAREST.name}'s instead of {algorithm}'s: {fallback.reason}."
    return Finding("algorithm-fell-back", fallback.severity, message, layer, fallback.remedy)
