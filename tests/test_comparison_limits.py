"""Comparing whole models: answers that cannot be compared, and what a comparison leaves alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from tests.comparison_cases import DATA, Answer, Net, compared

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
