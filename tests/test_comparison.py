"""Comparing whole models: KL and cosine against their definitions, and what is made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import monoquant as mq

CRITICAL, WARNING, INFO = mq.Severity.CRITICAL, mq.Severity.WARNING, mq.Severity.INFO


@attrs.frozen(eq=False)
class Answer:
    """What models of other libraries return."""

    logits: Tensor
    hidden: Tensor


class Net(nn.Module):
    """Two Gaussian Linears around a wide middle; the answer is wrapped."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any] = lambda y, _: y, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b, self.wrap = nn.Linear(96, 64), nn.Linear(64, 48), wrap
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Any:
        hidden = torch.relu(self.a(x))
        return self.wrap(self.b(hidden), hidden)


def batches(*shape: int, count: int = 3, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


DATA = batches(8, 96)


def compared(model: nn.Module, compare: Any = DATA, **options: Any) -> mq.QuantResult:
    quiet = {"accuracy_warning": "ignore", "plugins": False}
    return mq.quantize(model, compare=compare, **{**quiet, **options})


def verdicts(result: mq.QuantResult) -> list[mq.Finding]:
    return [finding for finding in result.report.findings if finding.code.startswith("model-output")]


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model.eval()(x)
    return getattr(found, "logits", found)


def divergence(reference: Tensor, other: Tensor) -> float:
    """KL written a second time, row by row, with torch's own loss."""
    rows = zip(reference.double().flatten(0, -2), other.double().flatten(0, -2), strict=True)
    found = [
        nn.functional.kl_div(q.log_softmax(0), p.log_softmax(0), log_target=True, reduction="sum") for p, q in rows
    ]
    return math.fsum(float(value) for value in found) / len(found)


def cosine(reference: Tensor, other: Tensor) -> float:
    """Cosine written a second time."""
    rows = list(zip(reference.double().flatten(0, -2), other.double().flatten(0, -2), strict=True))
    return math.fsum(float(p @ q / (p.norm() * q.norm())) for p, q in rows) / len(rows)


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


def generator() -> Iterator[Tensor]:
    yield from DATA


KINDS: list[tuple[str, Callable[[], Any]]] = [
    ("list", lambda: DATA),
    ("generator", generator),
    ("loader", lambda: DataLoader(TensorDataset(torch.cat(DATA)), batch_size=8)),
    ("tuples", lambda: [(x,) for x in DATA]),
    ("mappings", lambda: [{"x": x} for x in DATA]),
    ("comparison", lambda: mq.Comparison(generator())),
]


@pytest.mark.parametrize(("_name", "build"), KINDS, ids=[name for name, _ in KINDS])
def test_data_of_any_kind(_name: str, build: Callable[[], Any]) -> None:
    """Both models see the same batches, also those of a generator."""
    expected = compared(Net()).report.comparison
    found = compared(Net(), build()).report.comparison
    assert attrs.astuple(found) == pytest.approx(attrs.astuple(expected)) or found == expected


@pytest.mark.parametrize("count", [1, 8, 11, 24, 100])
def test_a_number_of_samples_is_enough(count: int) -> None:
    """The last batch is cut; the mean is of those samples."""
    result = compared(Net(), mq.Comparison(DATA, num_samples=count), exact=True)  # approximate ones see batches
    found, model = result.report.comparison, result.model
    x = torch.cat(DATA)[:count]
    assert found.samples == found.rows == min(count, 24)
    assert found.value == pytest.approx(cosine(answers(Net(), x), answers(model, x)), abs=1e-7)


class Graph(nn.Module):
    """No part of its batch will do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(96, 64), nn.Linear(64, 48)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        return self.down(adjacency @ torch.relu(self.up(nodes)))


@pytest.mark.parametrize(("count", "samples", "told"), [(24, 24, 0), (3, 8, 1), (12, 16, 1)])
def test_graphs_are_compared_whole(count: int, samples: int, told: int) -> None:
    """As calibration leaves them; a finding says that there are more samples than were asked for."""
    graphs = [(nodes, torch.ones(8, 8)) for nodes in DATA]
    model = Graph()
    report = compared(model, mq.Comparison(graphs, num_samples=count)).report
    assert report.comparison == compared(model, mq.Comparison(graphs[: samples // 8])).report.comparison
    assert [finding.code for finding in report.findings].count("comparison-not-cut") == told


def test_model_that_fails_on_the_whole_batch_too_is_told_what_it_said() -> None:
    """Using it whole helps nobody here."""
    with pytest.raises(mq.InputError, match=r"failed on comparison batch 0 .*mat1 and mat2 shapes"):
        compared(Graph(), mq.Comparison([(DATA[0][:, :40], torch.ones(8, 8))], num_samples=3))


def test_no_more_data_is_taken_than_needed() -> None:
    """A generator without end will do."""

    def endless() -> Iterator[Tensor]:
        while True:
            yield DATA[0]

    assert compared(Net(), mq.Comparison(endless(), num_samples=20)).report.comparison.samples == 20


@pytest.mark.parametrize(
    ("select", "batch"), [(0, (DATA[0], torch.zeros(8))), ("pixels", {"pixels": DATA[0], "label": torch.zeros(8)})]
)
def test_the_input_is_selected(select: Any, batch: Any) -> None:
    """By position or key."""
    found = compared(Net(), mq.Comparison([batch], select=select)).report.comparison
    assert found == compared(Net(), DATA[:1]).report.comparison


def test_plain_batches_are_given_to_the_model_as_calibration_data_is() -> None:
    """With its select."""
    labelled = [(x, torch.zeros(8)) for x in DATA]
    found = compared(Net(), labelled, calibration_data=labelled, select=0).report.comparison
    assert found == compared(Net(), DATA, calibration_data=DATA).report.comparison


@pytest.mark.parametrize(
    "options", [{"select": 0}, {"forward": lambda model, batch: model(batch[0])}], ids=["select", "forward"]
)
def test_plain_batches_are_selected_without_calibration_too(options: dict[str, Any]) -> None:
    """The options say how data is given to the model; here there is some."""
    assert compared(Net(), [(x, torch.zeros(8)) for x in DATA], **options).report.comparison.samples == 24


def test_a_forward_of_ones_own_chooses_what_is_compared() -> None:
    """On batches of anything; what it returns is compared."""
    calls: list[nn.Module] = []

    def forward(model: nn.Module, texts: list[str]) -> Tensor:
        calls.append(model)
        return model(DATA[0][: len(texts)]).hidden

    original = Net(Answer)
    result = compared(original, mq.Comparison([["some", "texts"], ["more"]], forward=forward))
    found = result.report.comparison
    assert (found.measure, found.rows, found.samples) == ("cosine", 3, 3)
    assert len(calls) == 4
    assert sum(model is original for model in calls) == 2


REFUSED_DATA = [
    (torch.zeros(2, 96), "comparison data is one Tensor"),
    ({"x": torch.zeros(2, 96)}, "comparison data is one dict"),
    ("text", "comparison data is one str"),
    (TensorDataset(torch.zeros(2, 96)), "comparison data is a Dataset"),
    (3, "comparison data is 3"),
]


@pytest.mark.parametrize(("data", "text"), REFUSED_DATA, ids=[text for _, text in REFUSED_DATA])
def test_data_that_is_none_is_refused(data: Any, text: str) -> None:
    """By the comparison, by quantize, by the pass."""
    for build in (mq.Comparison, lambda one: mq.ValidationPass(compare=one), lambda one: compared(Net(), one)):
        with pytest.raises(mq.ConfigError, match=text):
            build(data)


REFUSED: list[tuple[dict[str, Any], str]] = [
    *[({"measure": value}, "give 'kl'") for value in ("mse", None, 3, [])],
    *[
        ({name: value}, f"{name}=.*: give a finite number, or None")
        for name in ("warning_threshold", "error_threshold")
        for value in (math.nan, math.inf, "low", True, [0.5])
    ],
    *[({"num_samples": value}, "num_samples=.*: give a whole number") for value in (0, -1, 1.5, True, "all")],
]


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_wrong_values_are_refused(options: dict[str, Any], text: str) -> None:
    """When the comparison is built, not when the model has been packed."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.Comparison(DATA, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"forward": 3}, r"forward=3: give a function forward\(model, batch\)"),
        ({"select": True}, "select=True: give the position or the key"),
        ({"select": 1.5}, r"select=1\.5: give the position or the key"),
        ({"select": 0, "forward": lambda m, b: m(b)}, "select and forward are both given"),
    ],
    ids=["forward", "flag", "float", "both"],
)
def test_wrong_ways_to_run_are_refused(options: dict[str, Any], text: str) -> None:
    """As CalibrationPass refuses them."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.Comparison(DATA, **options)


def test_comparing_is_a_part_of_validation() -> None:
    """Without it, there is nothing to put it into."""
    with pytest.raises(mq.ConfigError, match="compare is a part of validation"):
        compared(Net(), run_validation=False)


UNANSWERED = [
    lambda *_: None,
    lambda *_: "text",
    lambda y, _: y.argmax(-1),
    lambda y, _: y.sum(),
    lambda y, _: SimpleNamespace(loss=y),
]


@pytest.mark.parametrize("wrap", UNANSWERED)
def test_answers_without_vectors_are_refused(wrap: Any) -> None:
    """With what helps."""
    with pytest.raises(mq.InputError, match=r"answer to comparison batch 0 has no vectors to compare: give a forward"):
        compared(Net(wrap))


def test_a_batch_that_the_model_cannot_take_is_named() -> None:
    """With its number and shape."""
    with pytest.raises(mq.InputError, match=r"failed on comparison batch 1 \(Tensor float32 \[2, 5\]\)"):
        compared(Net(), [DATA[0], torch.zeros(2, 5)])


def test_data_without_samples_is_refused() -> None:
    """Nothing compared is no good result."""
    with pytest.raises(mq.InputError, match="comparison data holds no samples"):
        compared(Net(), [])


@pytest.mark.parametrize("fault", ["uncountable", "raises"])
def test_errors_tell_comparison_data_from_calibration_data(fault: str) -> None:
    """Whoever gave both looks in the right place."""

    def broken() -> Iterator[Any]:
        if fault == "raises":
            raise RuntimeError("planted")
        yield "text"

    with pytest.raises((mq.InputError, RuntimeError)) as caught:
        compared(Net(), broken())
    told = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "calibration" not in told
    assert ("comparison batch 0" if fault == "uncountable" else "raised by the comparison data itself") in told


@pytest.mark.parametrize(("measure", "name"), [("auto", "a cosine"), ("cosine", "a cosine"), ("kl", "KL")])
@pytest.mark.parametrize("features", [0, 1])
def test_vectors_of_one_number_are_not_compared(features: int, measure: str, name: str) -> None:
    """A regression's cosine is 1 and its KL is 0, whatever quantization did; the error says what helps."""
    model = Net(lambda y, _: y[:, :features].abs() + 1)
    text = rf"comparison batch 0 has vectors of fewer than two features, of which {name} says nothing: give a forward\("
    with pytest.raises(mq.InputError, match=text):
        compared(model, mq.Comparison(DATA, measure))
    hidden = mq.Comparison(DATA, measure, forward=lambda model, x: model.a(x))
    assert compared(model, hidden).report.comparison.rows == 24


def test_two_classes_are_enough_for_a_divergence() -> None:
    """Of which one says all about the other."""
    found = compared(Net(lambda y, _: y[:, :2]), mq.Comparison(DATA, "kl")).report.comparison
    assert (found.measure, found.rows) == ("kl", 24)
    assert found.value > 0


def zero_in_odd_rows(y: Tensor, _: Tensor) -> Tensor:
    return y * (torch.arange(len(y)) % 2 == 0)[:, None]


def test_vectors_that_stay_zero_are_as_they_were() -> None:
    """Answers that both models leave at zero, such as dead features, are no damage; the others count as ever."""
    mixed = compared(Net(zero_in_odd_rows)).report.comparison
    alone = compared(Net(lambda y, _: y[::2])).report.comparison
    assert (mixed.rows, alone.rows) == (24, 12)
    assert alone.value < 1 - 1e-4
    assert mixed.value == pytest.approx((1 + alone.value) / 2, abs=1e-9)


def test_vectors_of_which_one_is_zero_have_nothing_in_common() -> None:
    """Neither are they the same, nor is their cosine a number."""
    original = Net()

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model(x) if model is original else 0 * model(x)

    assert compared(original, mq.Comparison(DATA, forward=forward)).report.comparison.value == 0


@pytest.mark.parametrize("wrap", [lambda y, _: y, Answer], ids=["cosine", "kl"])
def test_nothing_but_padding_is_refused(wrap: Any) -> None:
    """Or a cosine of 0 over 0 rows is CRITICAL, and a KL of 0 is perfect; one row of data is enough."""
    batch = {"x": torch.ones(2, 3, 96), "attention_mask": torch.zeros(2, 3, dtype=torch.int64)}
    with pytest.raises(mq.InputError, match="comparison data is nothing but padding: give some that its attention"):
        compared(Net(wrap), [batch, batch])
    batch["attention_mask"][1, 1] = 1
    assert compared(Net(wrap), [batch]).report.comparison.rows == 1


@pytest.mark.parametrize("inplace", [False, True])
def test_the_model_is_left_as_it_was(unchanged: Any, inplace: bool) -> None:
    """In a failure too, and what it would do in training mode does not matter."""

    class Caching(Net):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.calls = nn.Dropout(0.9), 0
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen += 1
            return self.drop(super().forward(x))

    model = Caching().train()
    model.a.eval()
    check = unchanged(model)
    expected = compared(Net()).report.comparison
    assert compared(model).report.comparison == expected
    check()
    assert model.calls == 0
    with pytest.raises(mq.InputError, match="failed on comparison batch"):
        compared(model, [DATA[0], torch.zeros(2, 5)], inplace=inplace)
    check()


def test_the_result_is_left_as_it_is_without_comparing() -> None:
    """Running the packed layers leaves no traces in them: equal states, equal answers."""
    result, plain = compared(Net()), mq.quantize(Net(), accuracy_warning="ignore", plugins=False)
    one, other = result.model.state_dict(), plain.model.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not any(module._forward_hooks for module in result.model.modules())
    assert plain.report.comparison is None


def test_in_place_is_compared_with_the_float_model() -> None:
    """Although the same object is quantized in the end."""
    assert compared(Net(), inplace=True).report.comparison == compared(Net()).report.comparison


@pytest.mark.parametrize("compare", [DATA, mq.Comparison(DATA)], ids=["batches", "comparison"])
def test_the_pass_compares_too(compare: Any) -> None:
    """In a pipeline of passes."""
    steps = [mq.SkipSelectionPass.from_options(), mq.Int4PackPass(), mq.ValidationPass(compare=compare)]
    report = mq.Quantizer(steps).run(Net()).report
    assert report.comparison == compared(Net()).report.comparison
    assert "model-output" in {
        finding.code.removesuffix("-low").removesuffix("-critical") for finding in report.findings
    }


def test_reports_of_comparisons_survive_json(tmp_path: Any) -> None:
    """And files."""
    result = compared(Net(Answer))
    assert result.report.comparison is not None
    again = mq.QuantReport.from_dict(json.loads(json.dumps(result.report.to_dict(), allow_nan=False)))
    assert again == result.report
    mq.save(result, tmp_path / "model.safetensors")
    assert mq.load_report(tmp_path / "model.safetensors").comparison == result.report.comparison


def test_a_better_precision_is_nearer() -> None:
    """In both measures, in the order of bits."""
    found = {
        measure: [
            compared(Net(), mq.Comparison(DATA, measure), bits=bits).report.comparison.value for bits in (4, 8, 16)
        ]
        for measure in ("kl", "cosine")
    }
    assert found["kl"] == sorted(found["kl"], reverse=True)
    assert found["cosine"] == sorted(found["cosine"])
    assert found["kl"][0] > 100 * found["kl"][1] > 0


def test_a_comparison_shows_what_it_is_without_its_data() -> None:
    """Errors and reports stay readable."""
    assert "tensor" not in repr(mq.Comparison(DATA)).lower()
