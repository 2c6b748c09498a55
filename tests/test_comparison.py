"""Comparing whole models: KL and cosine against their definitions, and what is made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import monoquant as mq
from tests.comparison_cases import DATA, Answer, Net, answers, batches, compared, cosine

CRITICAL, WARNING, INFO = mq.Severity.CRITICAL, mq.Severity.WARNING, mq.Severity.INFO


def verdicts(result: mq.QuantResult) -> list[mq.Finding]:
    return [finding for finding in result.report.findings if finding.code.startswith("model-output")]


def divergence(reference: Tensor, other: Tensor) -> float:
    """KL written a second time, row by row, with torch's own loss."""
    rows = zip(reference.double().flatten(0, -2), other.double().flatten(0, -2), strict=True)
    found = [
        nn.functional.kl_div(q.log_softmax(0), p.log_softmax(0), log_target=True, reduction="sum") for p, q in rows
    ]
    return math.fsum(float(value) for value in found) / len(found)


@pytest.mark.parametrize("shape", [(8, 96), (4, 7, 96), (3, 2, 5, 96)], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_cosine_is_that_of_the_answers(shape: tuple[int, ...], bits: int) -> None:
    """Averaged over all vectors of all batches."""
    data = batches(*shape)
    result = compared(Net(), data, bits=bits)
    pairs = [torch.cat([answers(model, x) for x in data]) for model in (Net(), result.model)]
    found = result.report.comparison
    assert (found.measure, found.rows, found.samples) == ("cosine", len(pairs[0].flatten(0, -2)), 3 * shape[0])
    assert found.value == pytest.approx(cosine(*pairs), abs=1e-9)
    assert found.value < 0.99999


@pytest.mark.parametrize("shape", [(8, 96), (4, 7, 96)], ids=str)
def test_kl_is_that_of_the_logits(shape: tuple[int, ...]) -> None:
    """Of the quantized model's distribution from the float model's, in nats, averaged over rows."""
    data = batches(*shape)
    result = compared(Net(Answer), data)
    pairs = [torch.cat([answers(model, x) for x in data]) for model in (Net(Answer), result.model)]
    found = result.report.comparison
    assert (found.measure, found.rows, found.samples) == ("kl", len(pairs[0].flatten(0, -2)), 3 * shape[0])
    assert found.value == pytest.approx(divergence(*pairs), rel=1e-6)
    assert found.value != pytest.approx(divergence(*reversed(pairs)), rel=1e-5)


def test_many_rows_are_taken_some_at_a_time() -> None:
    """With the same mean."""
    (data,) = batches(1, 2500, 96, count=1)
    result = compared(Net(Answer), [data])
    expected = divergence(answers(Net(Answer), data), answers(result.model, data))
    assert result.report.comparison.rows == 2500
    assert result.report.comparison.value == pytest.approx(expected, rel=1e-6)


WRAPPED = [
    (Answer, "kl"),
    (lambda y, _: SimpleNamespace(logits=y), "kl"),
    (lambda y, _: y, "cosine"),
    (lambda y, hidden: (y, hidden), "cosine"),
    (lambda y, hidden: {"embeddings": y, "hidden": hidden}, "cosine"),
    (lambda y, _: {"ids": y.argmax(-1), "logits": y}, "cosine"),
    (lambda y, _: (None, [y.argmax(-1), y]), "cosine"),
]


@pytest.mark.parametrize(("wrap", "measure"), WRAPPED)
def test_auto_takes_logits_for_logits_and_all_else_for_vectors(wrap: Any, measure: str) -> None:
    """An attribute ``logits``; or else the first tensor of floats, wherever it is."""
    result = compared(Net(wrap))
    plain = torch.cat([answers(Net(), x) for x in DATA])
    changed = torch.cat([result.model.b(torch.relu(result.model.a(x))) for x in DATA]).detach()
    expected = divergence(plain, changed) if measure == "kl" else cosine(plain, changed)
    assert result.report.comparison.measure == measure
    assert result.report.comparison.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("wrap", [Answer, lambda y, _: y], ids=["logits", "tensor"])
@pytest.mark.parametrize("measure", ["kl", "cosine"])
def test_a_measure_that_is_asked_for_is_taken(wrap: Any, measure: str) -> None:
    """Of whatever the model answers: a plain tensor may well be logits."""
    result = compared(Net(wrap), mq.Comparison(DATA, measure))
    pairs = [torch.cat([answers(model, x) for x in DATA]) for model in (Net(wrap), result.model)]
    found = result.report.comparison
    assert found.measure == measure
    assert found.value == pytest.approx((divergence if measure == "kl" else cosine)(*pairs), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize("wrap", [Answer, lambda y, _: y], ids=["logits", "tensor"])
def test_padding_is_left_out(wrap: Any, dtype: torch.dtype) -> None:
    """Positions whose attention_mask is zero count in neither mean nor rows."""
    mask = torch.ones(4, 6, dtype=dtype)
    mask[0, 3:], mask[2, 1:] = 0, 0
    (x,) = batches(4, 6, 96, count=1)
    result = compared(Net(wrap), [{"x": x, "attention_mask": mask}])
    kept = mask.bool()
    pairs = [answers(model, x)[kept].unsqueeze(0) for model in (Net(wrap), result.model)]
    found = result.report.comparison
    measure = divergence if wrap is Answer else cosine
    assert (found.rows, found.samples) == (16, 4)
    assert found.value == pytest.approx(measure(*pairs), rel=1e-6)
    everything = compared(Net(wrap), [{"x": x, "attention_mask": torch.ones_like(mask)}]).report.comparison
    assert everything.rows == 24
    assert everything.value != pytest.approx(found.value, rel=1e-6)


def test_a_mask_of_other_positions_is_no_mask_of_the_answer() -> None:
    """A sentence's one vector is compared whatever tokens are padding."""
    model = Net(lambda y, _: y.mean(1))
    (x,) = batches(4, 6, 96, count=1)
    mask = torch.zeros(4, 6, dtype=torch.int64)
    mask[:, 0] = 1
    assert compared(model, [{"x": x, "attention_mask": mask}]).report.comparison.rows == 4


def logits_with(value: float) -> Callable[[Tensor, Tensor], Answer]:
    return lambda y, hidden: Answer(y.masked_fill(torch.arange(48) % 5 == 0, value), hidden)


def test_classes_that_cannot_be_add_nothing() -> None:
    """Logits of -inf in both models, as masked vocabularies have them."""
    result = compared(Net(logits_with(-math.inf)))
    keep = torch.arange(48) % 5 != 0
    pairs = [torch.cat([answers(model, x)[:, keep] for x in DATA]) for model in (Net(Answer), result.model)]
    assert result.report.comparison.value == pytest.approx(divergence(*pairs), rel=1e-6)


class Threshold(nn.Module):
    """A wrap that rules a class out as soon as its weight is not exact."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.exact = self.net.b.weight.detach().clone()

    def forward(self, x: Tensor) -> Answer:
        y = self.net(x)
        changed = not torch.equal(self.net.b.weight, self.exact)
        return Answer(y.masked_fill(torch.arange(48) == 3, -math.inf) if changed else y, y)


def test_a_class_that_became_impossible_is_critical() -> None:
    """KL is infinite, and stays so in the stored report."""
    result = compared(Threshold())
    assert result.report.comparison.value == math.inf
    assert [(one.code, one.severity) for one in verdicts(result)] == [("model-output-critical", CRITICAL)]
    assert mq.QuantReport.from_dict(json.loads(json.dumps(result.report.to_dict(), allow_nan=False))) == result.report


@pytest.mark.parametrize("measure", ["kl", "cosine"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answers_that_are_no_numbers_are_critical(measure: Any, value: float) -> None:
    """Whatever the thresholds are, NaN is no quality; the gate raises."""
    comparison = mq.Comparison(DATA, measure, 1e9 if measure == "kl" else -2.0, 1e9 if measure == "kl" else -2.0)
    result = compared(Net(logits_with(value)), comparison)
    assert math.isnan(result.report.comparison.value)
    assert [one.severity for one in verdicts(result)] == [CRITICAL]
    with pytest.raises(mq.AccuracyError, match="is nan"):
        compared(Net(logits_with(value)), comparison, accuracy_warning="error")


def findings_for(measure: str, value: float, **thresholds: float) -> mq.Finding:
    comparison = mq.Comparison(DATA, "auto", **thresholds)
    return comparison.finding(mq.ComparisonResult(measure, value, 24, 8))


VERDICTS = [
    ("kl", 0.0, "model-output", INFO),
    ("kl", 0.25, "model-output", INFO),
    ("kl", 0.2501, "model-output-low", WARNING),
    ("kl", 0.5, "model-output-low", WARNING),
    ("kl", 0.5001, "model-output-critical", CRITICAL),
    ("kl", math.inf, "model-output-critical", CRITICAL),
    ("kl", math.nan, "model-output-critical", CRITICAL),
    ("cosine", 1.0, "model-output", INFO),
    ("cosine", 0.99, "model-output", INFO),
    ("cosine", 0.9899, "model-output-low", WARNING),
    ("cosine", 0.95, "model-output-low", WARNING),
    ("cosine", 0.9499, "model-output-critical", CRITICAL),
    ("cosine", -1.0, "model-output-critical", CRITICAL),
    ("cosine", math.nan, "model-output-critical", CRITICAL),
]


@pytest.mark.parametrize(("measure", "value", "code", "severity"), VERDICTS)
def test_default_thresholds(measure: str, value: float, code: str, severity: mq.Severity) -> None:
    """As the docstring says them: .25 and .5 nats, .99 and .95 of a cosine."""
    found = findings_for(measure, value)
    assert (found.code, found.severity, found.layer) == (code, severity, None)
    assert f"{value:.4f}" in found.message
    assert "24 rows of 8 samples" in found.message
    assert found.message.startswith({INFO: "", WARNING: "Warning: ", CRITICAL: "CRITICAL: "}[severity])
    assert bool(found.remedy) == (severity is not INFO)


@given(st.sampled_from(["kl", "cosine"]), st.floats(-1, 2), st.floats(-1, 2), st.floats(-1, 2))
def test_thresholds_of_ones_own(measure: str, value: float, warning: float, error: float) -> None:
    """Beyond a threshold means more KL, or less cosine; the error threshold is asked first."""
    worse = (lambda one, other: one > other) if measure == "kl" else (lambda one, other: one < other)
    severity = findings_for(measure, value, warning_threshold=warning, error_threshold=error).severity
    assert severity == (CRITICAL if worse(value, error) else WARNING if worse(value, warning) else INFO)


GATES = [(0.0, 0.0, CRITICAL), (0.0, 9.0, WARNING), (9.0, 9.0, INFO)]


@pytest.mark.parametrize(("warning", "error", "severity"), GATES)
def test_the_gate_reacts_to_the_comparison(warning: float, error: float, severity: mq.Severity) -> None:
    """CRITICAL fails the build, a warning is warned of, good news is told in the report only."""
    comparison = mq.Comparison(DATA, "kl", warning, error)
    result = compared(Net(), comparison, sqnr_warning_threshold=1, sqnr_error_threshold=0)
    (found,) = verdicts(result)
    assert found.severity is severity
    assert (found.message in " ".join(result.info.warnings)) == (severity is not INFO)
    strict = {"sqnr_warning_threshold": 1, "sqnr_error_threshold": 0, "accuracy_warning": "error"}
    if severity is CRITICAL:
        with pytest.raises(mq.AccuracyError, match="KL of the quantized model's logits"):
            compared(Net(), comparison, **strict)
    else:
        compared(Net(), comparison, **strict)
    with pytest.warns(mq.AccuracyWarning) as caught:
        compared(Net(), comparison, sqnr_warning_threshold=1, sqnr_error_threshold=0, accuracy_warning="warn")
    assert ("KL of the quantized" in str(caught[0].message)) == (severity is not INFO)
