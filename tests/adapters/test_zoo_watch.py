"""Calibration sees the inputs of every weight that a specimen of the zoo multiplies."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

import monoquant as mq
from monoquant.algorithms.base import Needs, Solution, WeightAlgorithm, WeightProblem
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.testing.zoo import Specimen

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

NOT_BY_MATRICES = ("Bilinear",)
"""Kinds whose weights torch multiplies in operations that are no products of matrices."""
LOOKED_UP = ("Embedding", "EmbeddingBag of means", "EmbeddingBag of weighted sums")


class Curious(WeightAlgorithm):
    """Wants to know all inputs, and makes nothing of them."""

    name = "curious"
    needs = Needs.HESSIAN

    def solve(self, problem: WeightProblem) -> Solution:
        return RoundToNearest().solve(problem)


@attrs.frozen(eq=False)
class Peek(mq.Pass):
    """Notes which rows of which weights have met inputs."""

    rows: dict[tuple[str, str], int] = attrs.field(factory=dict)
    seen: dict[tuple[str, str], list[tuple[int, int]]] = attrs.field(factory=dict)
    finite: list[bool] = attrs.field(factory=list)

    def run(self, context: mq.QuantContext) -> None:
        for one in context.watched_weights():
            parts = context.input_statistics(one.layer, one.name)
            self.rows[one.layer, one.name] = one.form.rows
            self.seen[one.layer, one.name] = [(part.start, part.stop) for part in parts]
            for part in parts:
                assert part.moments.rows > 0
                assert part.moments.hessian.shape == (one.form.columns,) * 2
                self.finite.append(bool(torch.isfinite(part.moments.hessian).all()))
                started = one.name == "weight_hh" and "Cell" in type(context.module(one.layer)).__name__  # at zero
                assert started or float(part.moments.importance.sum()) > 0


def peeked(specimen: Specimen, calls: list[tuple[Any, ...]], by_forward: bool) -> Peek:
    """Run the calls of a specimen in a pipeline."""
    peek = Peek()
    forward = (lambda model, call: model(*call)) if by_forward else None
    passes = [mq.SkipSelectionPass(), mq.CalibrationPass(calls, forward=forward)]
    mq.Quantizer([*passes, mq.Int4PackPass(group_size=32, algorithm=Curious()), peek]).run(specimen.build())
    return peek


@pytest.mark.parametrize("by_forward", [False, True])
def test_every_row_of_every_weight_has_met_inputs(specimen: Specimen, by_forward: bool) -> None:
    """Ranges follow each other without a gap, from the first row to the last, and all that was seen is finite."""
    peek = peeked(specimen, [specimen.inputs(1), specimen.inputs(2)], by_forward)
    expected = {(layer, name) for layer, names in specimen.packed.items() for name in names}
    if specimen.name == "tied head":
        expected.remove(("head", "weight"))  # one weight with the embedding's
    assert peek.rows.keys() == (set() if specimen.name in LOOKED_UP else expected)
    for key, rows in peek.rows.items():
        ends = [0, *(stop for _, stop in peek.seen[key])]
        assert [start for start, _ in peek.seen[key]] == ends[:-1], key
        assert ends[-1] == (0 if specimen.name in NOT_BY_MATRICES else rows), key
    assert all(peek.finite)


def test_what_is_not_seen_is_told(specimen: Specimen) -> None:
    """A weight that falls back, for whatever reason, is named in a finding, and the result is good all the same."""
    report = mq.quantize(
        specimen.build(),
        group_size=32,
        calibration_data=[specimen.inputs(1)],
        accuracy_warning="ignore",
        plugins=False,
        modules_to_not_convert=[],
        skip_layer_types=[],
        skip_param_threshold=0,
    ).report
    told = {finding.layer for finding in report.findings if finding.code == "algorithm-fell-back"}
    for record in report.by_action(mq.Action.QUANTIZE):
        multiplied = specimen.name not in LOOKED_UP
        if multiplied and "round_to_nearest" in record.algorithm:
            assert record.layer in told
        assert record.sqnr_db > 15
