"""Fitted codes in hard cases: each ends in a finding or in better outputs, and never in a broken result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import monoquant as mq
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.algorithms.gptq import Gptq
from monoquant.fitting import FEWEST_ROWS
from tests.fitting_cases import (
    FEATURES,
    UNWEIGHTED,
    algorithms,
    assert_finite,
    assert_rounded,
    by_forward,
    codes,
    each,
    fit,
    linear,
    nearest,
    noise,
    rows,
)


def fallbacks(result: mq.QuantResult) -> list[mq.Finding]:
    return [finding for finding in result.report.findings if finding.code == "algorithm-fell-back"]


def test_what_is_fitted_is_better_where_it_will_be_used() -> None:
    """On rows that nobody has seen, of the kind that was fitted to; and no finding says anything."""
    model, fresh = linear(), rows(1000, seed=5)
    result = fit(model, [rows(300)])
    assert fallbacks(result) == []
    assert algorithms(result) == {"0": "gptq"}
    assert noise(model, result.model, fresh) < 0.5 * noise(model, nearest(model), fresh)
    [record] = result.report.layers
    with torch.no_grad():
        exact = functional.linear(fresh, model[0].weight).square().mean()
    measured = float(10 * torch.log10(exact / noise(model, result.model, fresh)))
    assert record.output_sqnr_db == pytest.approx(measured, abs=2)


@each
@pytest.mark.parametrize("count", [1, 2, FEWEST_ROWS - 1])
def test_too_few_rows_are_nothing_to_fit_to(algorithm: WeightAlgorithm, count: int) -> None:
    """Codes are rounded, and the finding tells how many there were; the bias stays as it is."""
    model = linear()
    result = fit(model, [rows(count)], algorithm, forward=by_forward)
    [finding] = fallbacks(result)
    assert finding.layer == "0"
    assert finding.severity is mq.Severity.WARNING
    assert f"calibration gave it {count} input rows, and fewer than {FEWEST_ROWS}" in finding.message
    assert "'0'" in finding.message
    assert algorithms(result) == {"0": "round_to_nearest"}
    assert_rounded(result, model)
    assert torch.equal(result.model[0].bias, model[0].bias)


@each
def test_just_enough_rows_are_fitted_to(algorithm: WeightAlgorithm) -> None:
    """One more makes the difference."""
    result = fit(linear(), [rows(FEWEST_ROWS)], algorithm, forward=by_forward)
    assert fallbacks(result) == []
    assert algorithms(result) == {"0": algorithm.name}


@each
def test_inputs_that_are_all_zero(algorithm: WeightAlgorithm) -> None:
    """There is nothing to learn from them."""
    model = linear()
    result = fit(model, [torch.zeros(100, FEATURES)], algorithm)
    [finding] = fallbacks(result)
    assert "all its calibration inputs are zero" in finding.message
    assert_rounded(result, model)
    assert torch.equal(result.model[0].bias, model[0].bias)


@each
def test_inputs_that_are_all_the_same(algorithm: WeightAlgorithm) -> None:
    """What a bias makes up for entirely leaves nothing to fit; the output is exact, or a finding tells."""
    model, row = linear(), rows(1)
    result = fit(model, [row.repeat(100, 1)], algorithm)
    assert_finite(result.model)
    assert noise(model, result.model, row) < 1e-9 * float(model(row).detach().square().mean())
    plain = fit(linear(bias=False), [row.repeat(100, 1)], algorithm).model
    assert noise(linear(bias=False), plain, row) <= noise(linear(bias=False), nearest(linear(bias=False)), row)


class Branch(nn.Module):
    """Experts of which one is never asked."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(FEATURES, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x) + self.experts[2](x[:0]).sum() + self.experts[1](2 * x)


@each
def test_an_expert_that_is_never_called(algorithm: WeightAlgorithm) -> None:
    """It is rounded and named; the others are fitted. One that is given no rows is as good as never called."""
    model = Branch()
    result = fit(model, [rows(200)], algorithm)
    [finding] = fallbacks(result)
    assert finding.layer == "experts.2"
    assert "calibration never multiplied it" in finding.message
    assert "reaches it" in finding.remedy
    assert algorithms(result) == {
        "experts.0": algorithm.name,
        "experts.1": algorithm.name,
        "experts.2": "round_to_nearest",
    }
    assert_rounded(result, model, "experts.2")
    assert torch.equal(result.model.experts[2].bias, model.experts[2].bias)
    assert [record.input_rows for record in result.report.layers] == [187, 187, 0]


class Stack(nn.Module):
    """Experts in one tensor, of which one is never asked and one hardly ever."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 32, FEATURES, generator=torch.Generator().manual_seed(0)) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        few = functional.linear(x[:1], self.up[3])
        return functional.linear(x, self.up[0]) + functional.linear(x.flip(1), self.up[2]) + few


@each
def test_an_item_of_a_stack_that_is_never_asked(algorithm: WeightAlgorithm) -> None:
    """Its rows are rounded, those of the others fitted, and the finding counts them."""
    model = Stack()
    result = fit(model, [rows(200).repeat(1, 1)], algorithm, forward=by_forward)
    messages = sorted(finding.message for finding in fallbacks(result))
    assert len(messages) == 2
    assert "32 rows of the up" in messages[0]
    assert "calibration gave it 1 input rows" in messages[0]
    assert "32 rows of the up" in messages[1]
    assert "never multiplied" in messages[1]
    assert algorithms(result) == {"": f"{algorithm.name}, round_to_nearest for 64 rows"}
    assert result.report.layers[0].input_rows == 0
    fitted, rounded = codes(result.model, "", "up")[0].split(32), codes(nearest(model), "", "up")[0].split(32)
    assert [torch.equal(one, other) for one, other in zip(fitted, rounded, strict=True)] == [False, True, False, True]


@each
def test_some_rows_with_nan(algorithm: WeightAlgorithm) -> None:
    """They are left out and counted, once for each layer that they reach; the rest is fitted to."""
    batch = rows(300)
    batch[3, 5], batch[150, 0], batch[151] = float("nan"), float("inf"), float("-inf")
    model = nn.Sequential(linear()[0], nn.ReLU(), nn.Linear(48, 32)).eval()
    result = fit(model, [batch], algorithm)
    found = [finding for finding in result.report.findings if finding.code == "non-finite-inputs"]
    assert [finding.layer for finding in found] == ["0", "2"]
    assert all("3 input rows with NaN or Inf" in finding.message for finding in found)
    assert all(finding.severity is mq.Severity.WARNING for finding in found)
    assert algorithms(result)["0"] == algorithm.name
    assert_finite(result.model)
    fresh = rows(500, seed=5)
    assert noise(model, result.model, fresh) < noise(model, nearest(model), fresh)


@each
def test_only_rows_with_nan(algorithm: WeightAlgorithm) -> None:
    """Nothing can be fitted to them, and both is told."""
    model = linear()
    result = fit(model, [rows(100) * float("nan")], algorithm)
    [finding] = fallbacks(result)
    assert "all its calibration inputs hold NaN or Inf" in finding.message
    assert [f.layer for f in result.report.findings if f.code == "non-finite-inputs"] == ["0"]
    assert_rounded(result, model)
    assert torch.equal(result.model[0].bias, model[0].bias)
    assert_finite(result.model)


@each
@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e15, 1e25, 1e38])
def test_inputs_of_extreme_size(algorithm: WeightAlgorithm, size: float) -> None:
    """Squares that overflow or vanish break nothing: the result is finite, and never worse than rounded ones."""
    batch = rows(200)
    batch = batch / batch.abs().max() * size
    model = linear(bias=False)
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    result = fit(model, [batch], algorithm)
    assert_finite(result.model)
    with torch.no_grad():
        exact, plain, fitted = (one(batch).double() for one in (model, nearest(model), result.model))
    assert float((exact - fitted).square().mean()) <= 1.05 * float((exact - plain).square().mean())


@each
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fewer_rows_than_columns(algorithm: WeightAlgorithm, seed: int) -> None:
    """64 rows for 384 features leave most directions unknown: on fresh rows it is better all the same, or is told."""
    model = linear(features=384)
    result = fit(model, [rows(64, seed, features=384)], algorithm)
    fresh = rows(500, seed=50 + seed, features=384)
    assert_finite(result.model)
    assert fallbacks(result) or noise(model, result.model, fresh) < noise(model, nearest(model), fresh)


@pytest.mark.parametrize("algorithm", [Gptq(), UNWEIGHTED], ids=["gptq", "alike"])
@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_from_elsewhere_among_those_that_are_fitted_to(
    algorithm: WeightAlgorithm, share: float, seed: int
) -> None:
    """Mixed with rows of another kind, those of the kind that matters lose less than when rounded, or it is told."""
    foreign = int(400 * share)
    mixed = torch.cat([rows(400 - foreign, seed), rows(foreign, seed, mixing=7)])
    mixed = mixed[torch.randperm(400, generator=torch.Generator().manual_seed(seed))]
    model, fresh = linear(), rows(1000, seed=50)
    result = fit(model, [mixed], algorithm)
    assert fallbacks(result) or noise(model, result.model, fresh) < 0.8 * noise(model, nearest(model), fresh)


def with_first_column(count: int, seed: int, size: float) -> Tensor:
    """Rows whose first column is of another size."""
    batch = rows(count, seed)
    batch[:, 0] = size * torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return batch


def with_outlier(layer: nn.Linear) -> nn.Linear:
    """A layer that multiplies the first column by weights so large that clipping them is tempting."""
    with torch.no_grad():
        layer.weight[:, 0] = 1.0
    return layer


@each
def test_held_out_rows_of_another_kind_take_the_fitted_codes_back(algorithm: WeightAlgorithm) -> None:
    """What makes known inputs better at the price of others is not taken, and told as the better choice it is."""
    model = linear(bias=False)
    with_outlier(model[0])
    batches = [with_first_column(200, 0, 1e-3), with_first_column(200, 1, 30.0), with_first_column(200, 2, 1e-3)]
    result = fit(model, batches, algorithm, forward=by_forward)
    [finding] = fallbacks(result)
    assert finding.layer == "0"
    assert finding.severity is mq.Severity.INFO
    assert "on held-out inputs it is worse (" in finding.message
    assert algorithms(result) == {"0": "round_to_nearest"}
    assert_rounded(result, model)
    assert result.report.calibration.held_out == 200


def test_each_weight_is_judged_on_its_own() -> None:
    """Of two that share inputs, one may keep its fitted codes and the other not."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good, self.bad = linear(bias=False)[0], with_outlier(linear(bias=False)[0])

        def forward(self, x: Tensor) -> Tensor:
            return self.good(x) + self.bad(x)

    model = Two()
    with torch.no_grad():
        model.good.weight[:, 0] = 0.0
    batches = [with_first_column(300, 0, 1e-3), with_first_column(200, 1, 30.0)]
    result = fit(model, batches, UNWEIGHTED, forward=by_forward)
    assert algorithms(result) == {"good": "gptq", "bad": "round_to_nearest"}
    assert [finding.layer for finding in fallbacks(result)] == ["bad"]


def test_a_hessian_that_cannot_be_factored_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever went wrong in the sums, the layer is rounded and named."""
    from monoquant.statistics.moments import Moments

    broken = torch.eye(FEATURES).index_fill_(0, torch.tensor([3]), float("nan"))
    monkeypatch.setattr(Moments, "hessian", property(lambda _self: broken.clone()))
    model = linear()
    result = fit(model, [rows(200)])
    [finding] = fallbacks(result)
    assert "its Hessian cannot be factored" in finding.message
    assert_rounded(result, model)


def test_convolutions_of_many_groups_fall_back() -> None:
    """They are not watched, and the finding says why."""
    model = nn.Sequential(nn.Conv1d(40, 40, 32, groups=40), nn.Conv1d(40, 16, 1)).eval()
    result = fit(model, [torch.randn(40, 40, 48, generator=torch.Generator().manual_seed(0))])
    told = {finding.layer: finding for finding in fallbacks(result)}
    assert "40 groups of channels are too many" in told["0"].message
    assert algorithms(result)["0"] == "round_to_nearest"
    assert_rounded(result, model)


def test_products_that_are_none_of_matrices_fall_back() -> None:
    """nn.Bilinear multiplies its weight in an operation of its own, which is not followed."""
    model = nn.Bilinear(32, 64, 24)
    result = fit(model, [(rows(100, features=32), rows(100))])
    [finding] = fallbacks(result)
    assert finding.layer == ""
    assert algorithms(result) == {"": "round_to_nearest"}


def test_embeddings_are_rounded_and_nothing_is_told() -> None:
    """They multiply nothing, so that nobody expected them to be fitted."""
    model = nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 48))
    result = fit(model, [torch.randint(0, 50, (100, 5), generator=torch.Generator().manual_seed(0))])
    assert algorithms(result)["0"] == "round_to_nearest"
    assert [finding for finding in fallbacks(result) if finding.layer == "0"] == []
