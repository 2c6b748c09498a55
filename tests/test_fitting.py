"""Fitted codes in hard cases: each ends in a finding or in better outputs, and never in a broken result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import monoquant as mq
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.algorithms.clip_search import ClipSearch
from monoquant.algorithms.gptq import Gptq
from monoquant.batches import HELD_OUT_OF
from monoquant.fitting import FEWEST_ROWS

FEATURES = 64
UNWEIGHTED = Gptq(weigh_rows=False)
each = pytest.mark.parametrize("algorithm", [ClipSearch(), Gptq(), UNWEIGHTED], ids=["clip_search", "gptq", "alike"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Whatever weights torch draws, they are the same ones in every run."""
    torch.manual_seed(0)


def rows(count: int, seed: int = 0, features: int = FEATURES, mixing: int = 99) -> Tensor:
    """Rows that mostly lie in a few directions, which ``mixing`` decides, and have a mean."""
    generator = torch.Generator().manual_seed(mixing)
    directions, mean = torch.randn(10, features, generator=generator), torch.randn(features, generator=generator)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, features, generator=generator)
    return torch.randn(count, 10, generator=generator) @ directions + 0.3 * noise + mean


def linear(features: int = FEATURES, outputs: int = 48, bias: bool = True) -> nn.Sequential:
    """One Linear with Gaussian weights."""
    model = nn.Sequential(nn.Linear(features, outputs, bias=bias))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return model.eval()


def fit(model: nn.Module, batches: Any, algorithm: WeightAlgorithm | str = "auto", **options: Any) -> mq.QuantResult:
    """Quantize with groups of 32, quietly, all layers; what is measured is what codes and biases do, and no kernel."""
    correct_bias = options.pop("correct_bias", True)
    pack = mq.Int4PackPass(32, algorithm=algorithm, correct_bias=correct_bias, exact=True)
    calibration = mq.CalibrationPass(batches, num_samples=10**6, **options)
    return mq.Quantizer([mq.SkipSelectionPass(), calibration, pack, mq.ValidationPass()]).run(model)


def by_forward(model: nn.Module, batch: Any) -> Any:
    """Runs a whole batch: nothing of it is held out unless it is the second one."""
    return model(batch)


def fallbacks(result: mq.QuantResult) -> list[mq.Finding]:
    return [finding for finding in result.report.findings if finding.code == "algorithm-fell-back"]


def algorithms(result: mq.QuantResult) -> dict[str, str]:
    return {record.layer: record.algorithm for record in result.report.by_action(mq.Action.QUANTIZE)}


def codes(model: nn.Module, layer: str = "0", name: str = "weight") -> tuple[Tensor, Tensor, Tensor]:
    packed = model.get_submodule(layer).packed_weights()[name]
    found = packed.read_rows(slice(0, packed.rows))
    return found.codes, found.scale, found.zero_point


def assert_rounded(result: mq.QuantResult, model: nn.Module, layer: str = "0", name: str = "weight") -> None:
    """The weight's codes are those of rounding to nearest."""
    nearest = mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass(32)]).run(model).model
    for one, other in zip(codes(result.model, layer, name), codes(nearest, layer, name), strict=True):
        assert torch.equal(one, other)


def assert_finite(model: nn.Module) -> None:
    assert all(bool(torch.isfinite(tensor).all()) for tensor in mq.dequantize(model).state_dict().values())


def noise(model: nn.Module, quantized: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float((model(inputs) - quantized(inputs)).double().square().mean())


def nearest(model: nn.Module) -> nn.Module:
    return mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass(32, exact=True)]).run(model).model


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


def fitted_part(batch: Tensor) -> Tensor:
    """The samples of a batch that codes are fitted to."""
    return batch[: len(batch) - (len(batch) + HELD_OUT_OF - 2) // HELD_OUT_OF]


KINDS: dict[str, tuple[Callable[[], nn.Module], Tensor, Callable[[Tensor], Tensor]]] = {
    "Linear": (lambda: linear()[0], rows(300), lambda y: y),
    "Conv1d": (
        lambda: nn.Conv1d(16, 24, 3, padding=1, groups=2),
        rows(60).view(60, 16, 4) + 0.5,
        lambda y: y.mT.reshape(-1, 24),
    ),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(16, 12, 2, stride=2),
        rows(60).view(60, 16, 2, 2) + 0.5,
        lambda y: y.flatten(2).mT.reshape(-1, 12),
    ),
}


@pytest.mark.parametrize("algorithm", [ClipSearch(), UNWEIGHTED], ids=["clip_search", "gptq"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_the_output_is_exact(kind: str, algorithm: WeightAlgorithm) -> None:
    """On what was fitted to, a corrected bias makes up for all that the weight's error does on average."""
    make, batch, channels_last = KINDS[kind]
    model = make().eval()
    result = fit(model, [batch], algorithm)
    bias = next(name for name, _ in model.named_parameters() if "bias" in name)
    assert not torch.equal(result.model.get_parameter(bias), model.get_parameter(bias))
    known = fitted_part(batch)
    with torch.no_grad():
        error = channels_last(result.model(known) - model(known)).double()
    deviation = error.std(0)
    assert float(deviation.min()) > 0
    assert bool((error.mean(0).abs() < 1e-3 * deviation).all())
    without = fit(model, [batch], algorithm, correct_bias=False).model
    assert torch.equal(without.get_parameter(bias), model.get_parameter(bias))
    with torch.no_grad():
        assert float(channels_last(without(known) - model(known)).mean(0).abs().mean()) > 1e-2 * float(deviation.mean())


def test_weighted_rows_leave_the_mean_nearly_exact() -> None:
    """Where rows count differently, so do they in the mean; it is closer than without a correction all the same."""
    model, batch = linear(), rows(300)
    known = fitted_part(batch)

    def shift(correct_bias: bool) -> float:
        with torch.no_grad():
            result = fit(model, [batch], Gptq(), correct_bias=correct_bias).model
            return float((result(known) - model(known)).double().mean(0).square().mean())

    assert shift(correct_bias=True) < 0.2 * shift(correct_bias=False)


def test_biases_of_recurrent_layers_and_attention() -> None:
    """Each matrix has the bias that is added to its product; an output projection has its own."""
    lstm = nn.LSTM(FEATURES, 32).eval()
    result = fit(lstm, [rows(240).view(40, 6, FEATURES)], UNWEIGHTED).model
    for name in ("bias_ih_l0", "bias_hh_l0"):
        assert not torch.equal(result.get_parameter(name), lstm.get_parameter(name))
    attention = nn.MultiheadAttention(FEATURES, 4, batch_first=True).eval()
    batch = rows(320).view(40, 8, FEATURES)
    result = fit(attention, [(batch, batch, batch)], UNWEIGHTED).model
    for name in ("in_proj_bias", "out_proj.bias"):
        assert not torch.equal(result.get_parameter(name), attention.get_parameter(name))


@each
def test_a_shared_bias_is_left_alone(algorithm: WeightAlgorithm) -> None:
    """It belongs to several layers, whose errors differ."""
    model = nn.Sequential(linear()[0], nn.ReLU(), nn.Linear(48, 48))
    model[2].bias = model[0].bias
    before = model[0].bias.detach().clone()
    result = fit(model, [rows(300)], algorithm).model
    assert torch.equal(result[0].bias, before)
    assert result[0].bias is result[2].bias


def test_a_bias_that_shares_memory_stays_tied() -> None:
    """Two Parameters over one memory are one number each to whoever trains them."""
    model = nn.Sequential(linear()[0], nn.ReLU(), nn.Linear(48, 48))
    model[2].bias = nn.Parameter(model[0].bias.data)
    result = fit(model, [rows(300)], UNWEIGHTED).model
    assert result[0].bias.data_ptr() == result[2].bias.data_ptr()


def test_layers_without_bias_get_none() -> None:
    """There is nothing to correct, and nothing is added."""
    result = fit(linear(bias=False), [rows(300)]).model
    assert result[0].bias is None
    assert [name for name, _ in result.named_parameters()] == []


def test_rounding_by_choice_corrects_nothing() -> None:
    """Who asks for round_to_nearest gets the weights rounded, and nothing else changed."""
    model = linear()
    result = fit(model, [rows(300)], "round_to_nearest")
    assert torch.equal(result.model[0].bias, model[0].bias)
    assert_rounded(result, model)


class Tied(nn.Module):
    """Two Linears with one weight and a bias each, whose inputs differ."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(-3 * x.flip(1))


def tied() -> Tied:
    model = Tied().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@pytest.mark.parametrize("algorithm", [Gptq(), UNWEIGHTED], ids=["gptq", "alike"])
def test_tied_weights_stay_tied(algorithm: WeightAlgorithm) -> None:
    """They have one set of codes, fitted to the inputs of both."""
    result = fit(tied(), [rows(300)], algorithm)
    assert result.model.first.packed_weight is result.model.second.packed_weight
    assert algorithms(result)["first"] == algorithm.name


def test_tied_layers_have_one_algorithm() -> None:
    """Each layer of the report tells what chose its codes."""
    assert algorithms(fit(tied(), [rows(300)], UNWEIGHTED)) == {"first": "gptq", "second": "gptq"}


def test_biases_of_tied_weights_do_no_harm() -> None:
    """A bias that belongs to one layer makes up for what happens in that layer, or stays as it is."""
    model, batch = tied(), rows(300)
    known = fitted_part(batch)
    results = [fit(model, [batch], UNWEIGHTED, correct_bias=flag).model for flag in (True, False)]
    with torch.no_grad():
        for index in (0, 1):
            corrected, plain = (
                (result(known)[index] - model(known)[index]).mean(0).square().mean() for result in results
            )
            assert float(corrected) <= float(plain) * 1.01


def test_a_forward_of_ones_own_may_use_its_bias_in_another_way() -> None:
    """The correction must fit what the module makes of its bias, or must not be made."""

    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 10 * functional.linear(input, self.weight) + self.bias

    model = nn.Sequential(Scaled(FEATURES, 48)).eval()
    batch = rows(300)
    known = fitted_part(batch)
    corrected, plain = (fit(model, [batch], UNWEIGHTED, correct_bias=flag).model for flag in (True, False))
    with torch.no_grad():
        shift, before = (float((one(known) - model(known)).mean(0).square().mean()) for one in (corrected, plain))
    assert shift < 0.1 * before or torch.equal(corrected[0].bias, model[0].bias)


class Padded(nn.Module):
    """A model of sequences with padding, and an attention that moves the axes of positions and samples."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(FEATURES, FEATURES)
        self.attention = nn.MultiheadAttention(FEATURES, 4, batch_first=True)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.up(x)
        return self.attention(hidden, hidden, hidden, key_padding_mask=attention_mask == 0)[0]


def padded_batch() -> dict[str, Tensor]:
    """Sequences of different lengths; what stands in padded positions is large."""
    x, mask = rows(600).view(60, 10, FEATURES).clone(), torch.ones(60, 10, dtype=torch.int64)
    for sample in range(60):
        mask[sample, 4 + sample % 7 :] = 0
    x[mask == 0] = 1000.0
    return {"x": x, "attention_mask": mask}


def importances(model: nn.Module, batch: Any) -> dict[tuple[str, str], Tensor]:
    """Mean squares of what weights were fitted to."""
    found: dict[tuple[str, str], Tensor] = {}

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            for one in context.watched_weights():
                [part] = context.input_statistics(one.layer, one.name)
                found[one.layer, one.name] = part.moments.importance

    pack = mq.Int4PackPass(32, algorithm=UNWEIGHTED)
    mq.Quantizer([mq.SkipSelectionPass(), mq.CalibrationPass([batch]), pack, Peek()]).run(model)
    return found


def test_padding_is_not_fitted_to() -> None:
    """Positions that an attention mask leaves out do not count, in layers that keep the order of positions."""
    batch = padded_batch()
    samples = fitted_part(batch["x"])
    expected = samples[fitted_part(batch["attention_mask"]) != 0].square().mean(0)
    torch.testing.assert_close(importances(Padded().eval(), batch)["up", "weight"], expected, rtol=1e-3, atol=1e-3)


def test_padding_is_not_fitted_to_in_attention() -> None:
    """nn.MultiheadAttention puts positions before samples, whatever order it was given."""
    model, batch = Padded().eval(), padded_batch()
    with torch.no_grad():
        hidden = model.up(fitted_part(batch["x"]))
    expected = hidden[fitted_part(batch["attention_mask"]) != 0].square().mean(0)
    found = importances(model, batch)["attention", "in_proj_weight"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


class OnlyFirst(nn.Module):
    """A model whose answer depends on the first position of what a layer computes, and on no other."""

    def __init__(self, layer: nn.Module, take: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.take = layer, take

    def forward(self, x: Tensor) -> Tensor:
        return self.take(self.layer, x)


def attend(attention: nn.Module, x: Tensor) -> Tensor:
    return attention(x, x, x, need_weights=False)[0]


def positions(count: int, batch_first: bool = True) -> Tensor:
    """Sequences whose first position is ten times as large as the others."""
    x = rows(24 * count).view(24, count, FEATURES).clone()
    x[:, 0] *= 10
    return x if batch_first else x.transpose(0, 1)


MATTERING = {
    "Linear": (nn.Linear(FEATURES, 32), lambda layer, x: layer(x)[:, 0], positions(8)),
    "Linear of rows": (nn.Linear(FEATURES, 32), lambda layer, x: layer(x.flatten(0, 1))[::8], positions(8)),
    "Conv1d": (nn.Conv1d(FEATURES, 32, 1), lambda layer, x: layer(x.mT)[..., 0], positions(8)),
    "attention, positions first": (
        nn.MultiheadAttention(FEATURES, 4),
        lambda layer, x: attend(layer, x)[0],
        positions(8, batch_first=False),
    ),
    "Conv1d of as many channels as positions": (
        nn.Conv1d(FEATURES, 32, 1),
        lambda layer, x: layer(x.mT)[..., 0],
        positions(32),
    ),
    "attention, samples first": (
        nn.MultiheadAttention(FEATURES, 4, batch_first=True),
        lambda layer, x: attend(layer, x)[:, 0],
        positions(8),
    ),
}


@pytest.mark.parametrize("kind", MATTERING)
def test_rows_that_matter_count_more_or_all_alike(kind: str) -> None:
    """What is fitted to is either weighed by what moves the answer, or not at all; never by the gradients of others."""
    layer, take, x = MATTERING[kind]
    model = OnlyFirst(layer, take).eval()
    found: list[tuple[bool, float]] = []

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            one = context.watched_weights()[0]
            [part] = context.input_statistics(one.layer, one.name)
            found.append((part.moments.weighted, float(part.moments.importance.mean())))

    calibration = mq.CalibrationPass([x], forward=by_forward)
    mq.Quantizer([mq.SkipSelectionPass(), calibration, mq.Int4PackPass(32, algorithm=Gptq()), Peek()]).run(model)
    [(weighted, importance)] = found
    alike = float(x.square().mean())
    axis = 1 if len(x) == 24 else 0
    first = float(x.select(axis, 0).square().mean())
    assert importance == pytest.approx(first if weighted else alike, rel=0.15)


def test_rows_without_inputs_that_matter_break_nothing() -> None:
    """Where all that moves the answer is NaN, what is left counts nothing, and cannot be fitted to."""
    model = OnlyFirst(nn.Linear(FEATURES, 32), lambda layer, x: layer(x)[:, 0]).eval()
    x = positions(8)
    x[:, 0] = float("nan")
    assert_finite(fit(model, [x]).model)
