"""Factors of inputs are moved only where the model then computes what it did before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import monoquant as mq
from monoquant.algorithms.base import WeightProblem
from monoquant.folding import Folder
from tests.passes.folded import (
    WIDTH,
    AnyFactors,
    Peek,
    assert_same_function,
    context_of,
    data,
    moved,
    reasons,
    rescaled,
)  # fmt: skip


class Rms(nn.Module):
    """As transformers writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class AffineByHand(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5) * self.gain + self.offset


class Gated(nn.Module):
    """Pre-norm gated MLP, as in Llama."""

    def __init__(self, norm: nn.Module | None = None, bias: bool = False) -> None:
        super().__init__()
        self.norm = Rms(WIDTH) if norm is None else norm
        self.gate, self.up = nn.Linear(WIDTH, 80, bias=bias), nn.Linear(WIDTH, 80, bias=bias)
        self.down = nn.Linear(80, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class PostNorm(nn.Module):
    """The norm's output goes on as the residual as well, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 80)
        self.outer = nn.Linear(80, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return y + self.outer(functional.gelu(self.inner(y)))


@pytest.fixture(autouse=True)
def no_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors are taken although they make the codes worse, so that moving them is seen."""
    monkeypatch.setattr(Folder, "_worse", lambda *_: "")


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors are taken only where they are worth it, as they are in use."""
    monkeypatch.undo()


def test_pre_norm_transformer_layer_of_torch() -> None:
    """Both norms feed projections only, and ReLU lets factors of linear1's rows pass."""
    model = nn.TransformerEncoderLayer(WIDTH, 4, 80, norm_first=True, batch_first=True)
    context = context_of(model, data(7, WIDTH))
    assert moved(context) == {"self_attn", "linear1", "linear2"}
    assert set(context.rescaling.parameters) == {
        ("norm1", "weight"), ("norm1", "bias"), ("norm2", "weight"), ("norm2", "bias"), ("linear1", "bias"),
    }  # fmt: skip
    assert "no norm and no Linear" in reasons(context)[0]
    assert "'self_attn.out_proj'" in reasons(context)[0]
    for inputs in data(7, WIDTH, seed=5):
        assert_same_function(model, context, inputs)


def test_post_norm_transformer_layer_of_torch() -> None:
    """The outputs of its norms are residuals as well."""
    model = nn.TransformerEncoderLayer(WIDTH, 4, 80, norm_first=False, batch_first=True, activation="gelu")
    context = context_of(model, data(7, WIDTH))
    assert not moved(context)
    assert any("aten.add reads their inputs as well: 'linear1'" in reason for reason in reasons(context))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "rms by hand": lambda: Rms(WIDTH),
    "nn.RMSNorm": lambda: nn.RMSNorm(WIDTH),
    "nn.LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "without bias": lambda: nn.LayerNorm(WIDTH, bias=False),
    "affine by hand": lambda: AffineByHand(WIDTH),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_gated_mlp(norm: str, bias: bool) -> None:
    """gate and up share one set of factors in the norm; those of down are in the rows of up, packed as they are."""
    model = Gated(NORMS[norm](), bias)
    context = context_of(model, data(7, WIDTH))
    assert moved(context) == {"gate", "up", "down"}
    assert context.rescaling.columns["gate", "weight"] is context.rescaling.columns["up", "weight"]
    assert set(context.rescaling.rows) == {("up", "weight")}
    assert_same_function(model, context, data(7, WIDTH, seed=5)[0])


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), spread=st.floats(0, 4))
def test_any_positive_factors_leave_the_function_as_it_is(seed: int, spread: float) -> None:
    """To 1e-5 of the outputs, whatever the factors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "_worse", lambda *_: "")
        torch.manual_seed(seed)
        model = Gated(bias=True)
        context = context_of(model, data(7, WIDTH, seed=seed), algorithm=AnyFactors(spread, seed))
        assert moved(context) == {"gate", "up", "down"}
        assert_same_function(model, context, data(7, WIDTH, seed=seed + 1)[0])


@pytest.mark.parametrize("factor", [1e8, 1e-8])
def test_factors_that_scales_cannot_hold_are_not_used(factor: float) -> None:
    """Scales of float16 end at 65504 and 6e-5; those of float32 take more."""

    class Extreme(AnyFactors):
        def input_scale(self, problem: WeightProblem) -> Tensor | None:
            return torch.full((problem.weight.shape[1],), factor)

    context = context_of(Gated(), data(7, WIDTH), algorithm=Extreme(), scale_dtype=torch.float16)
    assert not moved(context)
    assert any("leave the range of what they are moved to" in reason for reason in reasons(context))
    assert moved(context_of(Gated(), data(7, WIDTH), algorithm=Extreme())) == {"gate", "up", "down"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_are_what_the_norm_can_hold(dtype: torch.dtype) -> None:
    """In half precision the norm's weight is rounded, and weights take the factors that it was really divided by."""
    model = Gated(nn.LayerNorm(WIDTH, bias=False)).to(dtype)
    with torch.no_grad():
        model.norm.weight.copy_(torch.rand(WIDTH) + 0.5)
        model.norm.weight[3] = 0
    context = context_of(model, [batch.to(dtype) for batch in data(7, WIDTH)], algorithm=AnyFactors(0.5))
    factors, new = context.rescaling.columns["gate", "weight"], context.rescaling.parameters["norm", "weight"]
    assert new.dtype == dtype
    assert torch.allclose(new.double() * factors, model.norm.weight.double(), rtol=1e-6, atol=0)


def test_post_norm_block_has_none() -> None:
    """Dividing the norm's output would change the residual."""
    context = context_of(PostNorm(), data(7, WIDTH))
    assert not moved(context)
    assert not context.rescaling.parameters
    assert any("aten.add reads their inputs as well: 'inner'" in reason for reason in reasons(context))


class Twice(nn.Module):
    """One norm for two inputs; ``same`` says whether they meet the same weight."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.norm, self.one = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.other = self.one if same else nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.other(self.norm(self.one(self.norm(x)))))


def test_norm_used_twice() -> None:
    """For the same weights all is well; for different ones it is left alone."""
    model = Twice(same=True)
    context = context_of(model, data(7, WIDTH))
    assert moved(context) == {"one"}
    assert_same_function(model, context, data(7, WIDTH, seed=5)[0])
    different = context_of(Twice(same=False), data(7, WIDTH))
    assert not moved(different)
    assert "what reads their inputs changes from call to call" in reasons(different)[0]


class Odd(nn.Module):
    """A norm and a Linear, and something in between or beside them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, 0
        self.norm, self.linear, self.second = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.Linear(WIDTH, 64)
        self.scratch = nn.Buffer(torch.zeros(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Any:  # noqa: C901 - one way to go wrong per branch
        y = self.norm(x)
        if self.how == "in place":
            y.add_(1)
        if self.how == "in-place product":
            y.mul_(2)
        if self.how == "activation":
            y = functional.gelu(y)
        if self.how == "transposed":
            return torch.tanh(self.linear(y.transpose(-1, -2)))
        if self.how == "scalar":
            return torch.tanh(self.linear(y) * float(y.sum()))
        if self.how == "square":
            y = y * y
        if self.how == "output":
            return torch.tanh(self.linear(y)), {"hidden": y[:, :2]}
        if self.how == "weight":
            return torch.tanh(self.linear(y)) * self.linear.weight.norm()
        if self.how == "gain":
            return torch.tanh(self.linear(y)) + self.norm.weight.sum()
        if self.how == "copied":
            self.scratch.copy_(y[0])
        if self.how == "changing":
            self.calls += 1
            return torch.tanh(self.linear(y) if self.calls % 2 else self.second(y))
        if self.how == "other inputs":
            return torch.tanh(self.linear(y)) + torch.tanh(self.linear(x))
        return torch.tanh(self.linear(y) + self.second(y))


HOW = ["in place", "in-place product", "activation", "transposed", "scalar", "square", "output", "weight", "gain",
       "copied", "changing", "other inputs"]  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_whatever_else_happens_leaves_all_alone(how: str) -> None:
    """Each with its reason."""
    context = context_of(Odd(how), data(WIDTH, WIDTH))
    assert "linear" not in moved(context)
    assert not {key for key in context.rescaling.parameters if key[0] == "norm"}
    assert any("'linear'" in reason for reason in reasons(context))


def test_layers_kept_in_float_keep_their_inputs() -> None:
    """A product that the pass does not pack reads the norm's output."""
    model = Odd("")
    assert moved(context_of(model, data(7, WIDTH))) == {"linear", "second"}
    context = context_of(model, data(7, WIDTH), mq.NameRule("second"))
    assert not moved(context)
    assert "aten.addmm reads their inputs as well: 'linear'" in reasons(context)[0]
    sent = [mq.SkipSelectionPass(mq.NameRule("second", skip_to="int8")), mq.CalibrationPass(data(7, WIDTH))]
    peek = Peek()
    mq.Quantizer([*sent, mq.Int4PackPass(algorithm=AnyFactors()), mq.Int8PackPass(), peek]).run(model)
    assert not moved(peek.seen[0])


@pytest.mark.usefixtures("judged")
def test_report_names_each_layer_with_its_own_reason() -> None:
    """Different reasons are not told as one."""
    torch.manual_seed(0)
    model = nn.Sequential(Gated(), PostNorm())
    result = mq.quantize(model, calibration_data=data(7, WIDTH), algorithm=AnyFactors(3.0), accuracy_warning="ignore")
    lines = [line for line in str(result.report).splitlines() if "scales-not-folded" in line]
    assert [line for line in lines if "'0.gate'" in line] == [line for line in lines if "held-out" in line]
    assert [line for line in lines if "'1.outer'" in line] == [line for line in lines if "no norm" in line]
    (added,) = [line for line in lines if "aten.add" in line]
    assert "The inputs of one layer are not scaled" in added
    assert added.endswith("reads their inputs as well: '1.inner'.")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_norm_is_left_alone() -> None:
    """Its parameters are kept where nothing can be exchanged; the other factors are moved."""
    context = context_of(Gated(torch.jit.trace(nn.LayerNorm(WIDTH), torch.randn(2, WIDTH))), data(7, WIDTH))
    assert moved(context) == {"down"}
    assert any("is scripted" in reason and "'gate', 'up'" in reason for reason in reasons(context))


def test_tied_norms_are_left_alone() -> None:
    """Their one weight computes more than these inputs."""
    model = nn.ModuleDict({"a": Gated(nn.LayerNorm(WIDTH)), "b": Gated(nn.LayerNorm(WIDTH))})
    model["b"].norm.weight = model["a"].norm.weight
    model = nn.Sequential(model["a"], model["b"])
    context = context_of(model, data(7, WIDTH))
    assert moved(context) == {"0.down", "1.down"}
    assert any("the parameters that compute their inputs are shared" in reason for reason in reasons(context))


def test_what_a_module_gives_out_stays() -> None:
    """A part of the model that ends with a norm answers as before, also when it is called alone."""
    body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
    model = nn.Sequential(body, nn.Linear(WIDTH, WIDTH), nn.Tanh())
    context = context_of(model, data(7, WIDTH))
    assert not moved(context)
    assert any(
        "a module that contains them gives out their inputs as well: '1'" in reason for reason in reasons(context)
    )
    given_out = context_of(Odd(""), data(7, WIDTH), forward=lambda m, x: (m(x), m.norm(x)))
    assert not moved(given_out)


def test_model_and_its_inputs_are_left_alone(unchanged: Any) -> None:
    """The copy has other norms, the model its own; so it has after an exception in place."""
    model = Gated(bias=True)
    model.norm.weight.requires_grad_(False)
    check = unchanged(model)
    passes = [mq.SkipSelectionPass(), mq.CalibrationPass(data(7, WIDTH)), mq.Int4PackPass(algorithm=AnyFactors())]
    result = mq.Quantizer(passes).run(model)
    check()
    assert not torch.equal(result.model.norm.weight, model.norm.weight)
    assert not result.model.norm.weight.requires_grad
    assert isinstance(result.model.norm.weight, nn.Parameter)

    @attrs.frozen
    class Failing(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            raise RuntimeError("late")

    with pytest.raises(RuntimeError, match="late"):
        mq.Quantizer([*passes, Failing()]).run(model, inplace=True)
    check()
    kept = copy.deepcopy(model)
    assert mq.Quantizer(passes).run(model, inplace=True).model is model
    assert not torch.equal(model.norm.weight, kept.norm.weight)


def test_exception_while_converting_puts_norms_back(unchanged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms are changed before layers are packed."""
    model = Gated()
    check = unchanged(model)

    def fail(*_: Any) -> Iterator[None]:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("monoquant.conversion.layers_to_keep_off", fail)
    passes = [mq.SkipSelectionPass(), mq.CalibrationPass(data(7, WIDTH)), mq.Int4PackPass(algorithm=AnyFactors())]
    with pytest.raises(RuntimeError, match="in the middle"):
        mq.Quantizer(passes).run(model, inplace=True)
    check()


@pytest.mark.usefixtures("judged")
def test_saving_copying_and_unpacking(tmp_path: Any) -> None:
    """Norms are ordinary tensors of the result; all copies compute the same."""
    model, batches = outlying(Gated(bias=True)), outliers(7)
    result = mq.quantize(model, calibration_data=batches, algorithm="awq", accuracy_warning="ignore")
    assert not torch.equal(result.model.norm.weight, model.norm.weight)
    mq.save(result, tmp_path / "model.safetensors")
    loaded = mq.load(tmp_path / "model.safetensors", Gated(bias=True))
    inputs = batches[0]
    with torch.no_grad():
        wanted = result.model.eval()(inputs)
        assert torch.equal(loaded.eval()(inputs), wanted)
        assert torch.equal(copy.deepcopy(result.model)(inputs), wanted)
        assert torch.allclose(mq.dequantize(result.model)(inputs), wanted, atol=1e-5)


def outlying(model: nn.Module) -> nn.Module:
    """Weights that inputs of some channels meet matter more."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.norm.weight.copy_((torch.randn(WIDTH, generator=generator) * 1.5).exp())
    return model


def outliers(length: int) -> list[Tensor]:
    return data(length, WIDTH, batches=6)


@pytest.mark.usefixtures("judged")
def test_outputs_are_measured_as_the_same_function() -> None:
    """Each layer's SQNR is that of its product with factors on both sides; the whole model's confirms it."""
    model, batches = outlying(Gated(bias=True)), outliers(7)
    results = {
        name: mq.quantize(model, calibration_data=batches, algorithm=name, accuracy_warning="ignore")
        for name in ("awq", "round_to_nearest")
    }
    found = {name: {one.layer: one.output_sqnr_db for one in result.report.layers} for name, result in results.items()}
    for layer in ("gate", "up"):
        assert found["awq"][layer] > found["round_to_nearest"][layer] + 1
    with torch.no_grad():
        wanted = model.eval()(batches[0])
        errors = {name: float((one.model.eval()(batches[0]) - wanted).norm()) for name, one in results.items()}
    assert errors["awq"] < 0.9 * errors["round_to_nearest"]


def test_calls_are_measured_as_the_same_function() -> None:
    """An attention module is called with inputs that are not divided yet."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(WIDTH, 4, 80, norm_first=True, batch_first=True)
    passes = [mq.SkipSelectionPass(), mq.CalibrationPass(data(7, WIDTH))]
    quality = []
    for spread in (0.0, 0.2):
        packing = mq.Int4PackPass(algorithm=AnyFactors(spread), group_size=16)
        report = mq.Quantizer([*passes, packing, mq.ValidationPass()]).run(model).report
        quality.append(next(one.output_sqnr_db for one in report.layers if one.layer == "self_attn"))
    assert quality[1] == pytest.approx(quality[0], abs=2)


@pytest.mark.usefixtures("judged")
def test_factors_that_make_it_worse_are_not_used() -> None:
    """Held-out inputs say so; a finding tells."""
    context = context_of(Gated(), data(7, WIDTH), algorithm=AnyFactors(3.0))
    assert not context.rescaling.columns
    assert not context.rescaling.parameters
    assert any("on held-out inputs factors make them worse: 'gate', 'up'" in reason for reason in reasons(context))


@pytest.mark.parametrize("limit", [6 * WIDTH * 4, 1 << 20])
def test_waves(limit: int) -> None:
    """Statistics that do not fit at once change nothing."""
    model = Gated()
    context = context_of(model, data(7, WIDTH), statistics_bytes=limit)
    assert moved(context) == {"gate", "up", "down"}
    assert_same_function(model, context, data(7, WIDTH)[0])


def test_budgets_are_refused() -> None:
    """They weigh one layer at a time."""
    passes = [
        mq.SkipSelectionPass(),
        mq.CalibrationPass(data(7, WIDTH)),
        mq.BudgetPass(),
        mq.Int4PackPass(algorithm="awq"),
    ]
    with pytest.raises(mq.ConfigError, match="algorithm 'awq' changes several layers at once: choose 'gptq'"):
        mq.Quantizer(passes).run(Gated())


def test_wrong_factors_are_refused() -> None:
    """Negative ones, say, with the algorithm's name."""

    class Negative(AnyFactors):
        def input_scale(self, problem: WeightProblem) -> Tensor | None:
            return -torch.ones(problem.weight.shape[1])

    with pytest.raises(mq.PassError, match="algorithm 'any' returned factors of shape"):
        context_of(Gated(), data(7, WIDTH), algorithm=Negative())


def test_llama() -> None:
    """Norms and up projections of the real thing."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = [torch.randint(0, 64, (8, 12)) for _ in range(3)]
    context = context_of(model, tokens, mq.TypeRule(nn.Embedding) | mq.NameRule("lm_head"))
    kinds = {layer.rpartition(".")[2] for layer in moved(context)}
    assert kinds == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
    with torch.no_grad():
        wanted, found = model(tokens[0]).logits, rescaled(model, context)(tokens[0]).logits
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
