"""Bytes and noise of what layers could become: against real buffers, real products and real outputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.batches import Batches
from monoquant.modules.packed_weight import PackedWeight
from monoquant.report.tradeoff import CurvePoint, LayerTradeoff, SchemeCost, Tradeoff

SCHEMES = [mq.Scheme(4, 128), mq.Scheme(4, 64), mq.Scheme(4, 32), mq.Int8PackPass().scheme, mq.HalfCastPass().scheme]


class Net(nn.Module):
    """Three Linears of different size and weight, with Gaussian weights."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a, self.b, self.c = nn.Linear(160, 96), nn.Linear(96, 160), nn.Linear(160, 24)
        self.wrap = wrap
        with torch.no_grad():
            for scale, layer in ((1.5, self.a), (0.5, self.b), (0.7, self.c)):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * scale * 0.1)
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.3)

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.c(torch.tanh(self.b(torch.tanh(self.a(x))))))


def with_logits(y: Tensor) -> Any:
    return SimpleNamespace(logits=y)


def batches(*shape: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator) + 0.2 for _ in range(count)]


DATA = batches(48, 160)


def held_out(data: list[Tensor]) -> Tensor:
    return torch.cat([part.content for part in Batches(data, 1 << 30).parts(hold_out=True) if part.held_out])


def quantizer(data: list[Tensor], algorithm: str = "round_to_nearest", **goal: Any) -> mq.Quantizer:
    return mq.Quantizer(
        [
            mq.SkipSelectionPass.from_options(),
            mq.CalibrationPass(data),
            mq.BudgetPass(**goal),
            mq.Int4PackPass(algorithm=algorithm),
            mq.Int8PackPass(),
            mq.HalfCastPass(),
        ]
    )


def packed_alone(model: nn.Module, scheme: Any, only: str | None = None) -> nn.Module:
    """Pack a model, or one of its layers, by one scheme and without data."""
    packs = {"int4": mq.Int4PackPass(scheme.group_size)} if scheme.target == "int4" else {}
    packs |= {"int8": mq.Int8PackPass(), "float16": mq.HalfCastPass()}
    rules = [] if only is None else [mq.NotRule(mq.NameRule(only))]
    return mq.Quantizer([mq.SkipSelectionPass(rules), packs[scheme.target]]).run(model).model


def content(model: nn.Module) -> int:
    """Bytes of all packed weights, those that say what they mean left out."""
    weights = [module for module in model.modules() if isinstance(module, PackedWeight)]
    buffers = [buffer for one in weights for name, buffer in one.named_buffers() if name != "layout"]
    return sum(buffer.numel() * buffer.element_size() for buffer in buffers)


def decibels(reference: Tensor, noise: Tensor) -> float:
    return 10 * math.log10(float(reference.double().square().sum()) / float(noise.double().square().sum()))


@pytest.fixture(scope="module")
def tradeoff() -> Tradeoff:
    """Net, weighed without a goal and with codes that are not fitted."""
    return quantizer(DATA).weigh(Net())


def layer_of(tradeoff: Tradeoff, name: str) -> LayerTradeoff:
    return next(one for one in tradeoff.layers if one.layer == name)


def test_every_layer_is_weighed_in_every_representation(tradeoff: Tradeoff) -> None:
    """In model order; groups that are no smaller than a row are not offered twice."""
    assert [one.layer for one in tradeoff.layers] == ["a", "b", "c"]
    assert [one.weights for one in tradeoff.layers] == [160 * 96, 96 * 160, 160 * 24]
    for one in tradeoff.layers:
        assert [option.scheme for option in one.options] == SCHEMES
        assert one.scheme == SCHEMES[0]
        sizes = [option.size for option in one.options]
        assert sizes == sorted(sizes)


def test_sizes_are_those_of_real_buffers(tradeoff: Tradeoff) -> None:
    """Scales and zero_points included, layout left out."""
    for layer, place in itertools.product("abc", range(len(SCHEMES))):
        packed = packed_alone(Net(), SCHEMES[place], only=layer)
        assert layer_of(tradeoff, layer).options[place].size == content(packed)


def test_a_layers_sqnr_is_that_of_its_product_with_held_out_inputs(tradeoff: Tradeoff) -> None:
    """Of every representation, without the bias."""
    model = Net().requires_grad_(False)
    x = held_out(DATA)
    inputs = {"a": x, "b": torch.tanh(model.a(x))}
    for layer, place in itertools.product("ab", range(len(SCHEMES))):
        weight = model.get_submodule(layer).weight
        other = packed_alone(model, SCHEMES[place]).get_submodule(layer).weight
        expected = decibels(inputs[layer] @ weight.T, inputs[layer] @ (other - weight).T)
        assert layer_of(tradeoff, layer).options[place].output_sqnr_db == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("algorithm", ["clip_search", "gptq"])
def test_fitted_codes_and_biases_are_what_is_weighed(algorithm: str) -> None:
    """What a bias makes up for is no noise."""
    model, x = Net().requires_grad_(False), held_out(DATA)
    passes = [mq.SkipSelectionPass.from_options(), mq.CalibrationPass(DATA), mq.Int4PackPass(algorithm=algorithm)]
    packed = mq.Quantizer(passes).run(model).model
    noise = x @ (packed.a.weight - model.a.weight).T + (packed.a.bias - model.a.bias)
    found = layer_of(quantizer(DATA, algorithm).weigh(model), "a").options[0]
    assert not torch.equal(packed.a.bias, model.a.bias)
    assert found.output_sqnr_db == pytest.approx(decibels(x @ model.a.weight.T, noise), abs=1e-3)


def test_noise_is_what_the_layer_alone_does_to_the_output(tradeoff: Tradeoff) -> None:
    """Relative to the output's energy, within a third; layers that matter more are told from those that do less."""
    model, x = Net().requires_grad_(False), torch.cat(batches(400, 160))
    y = model(x)
    assert tradeoff.criterion == "output"
    for layer, place in itertools.product("abc", range(4)):
        packed = packed_alone(model, SCHEMES[place], only=layer)
        real = float((packed(x) - y).square().sum() / y.square().sum())
        assert layer_of(tradeoff, layer).options[place].noise == pytest.approx(real, rel=0.34)


def test_noise_of_logits_is_divergence() -> None:
    """In nats per row, within a third of what the packed layer alone does."""
    model, x = Net(with_logits).requires_grad_(False), torch.cat(batches(400, 160))
    tradeoff = quantizer(DATA).weigh(model)
    log_p = model(x).logits.double().log_softmax(-1)
    assert tradeoff.criterion == "kl"
    for layer in "abc":
        log_q = packed_alone(model, SCHEMES[0], only=layer)(x).logits.double().log_softmax(-1)
        real = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        assert layer_of(tradeoff, layer).options[0].noise == pytest.approx(real, rel=0.34)


def test_noise_of_layers_adds_up(tradeoff: Tradeoff) -> None:
    """Of all layers packed, within a third of what is real."""
    model, x = Net().requires_grad_(False), torch.cat(batches(400, 160))
    y = model(x)
    real = float((packed_alone(model, SCHEMES[0])(x) - y).square().sum() / y.square().sum())
    assert tradeoff.curve[0].noise == pytest.approx(real, rel=0.34)
    assert tradeoff.curve[0].noise == pytest.approx(sum(one.options[0].noise for one in tradeoff.layers))


def test_the_curve_goes_from_the_smallest_to_the_largest(tradeoff: Tradeoff) -> None:
    """Ever less noise for ever more bits, each bit worth less than the one before."""
    weights = sum(one.weights for one in tradeoff.layers)
    ends = [8 * sum(one.options[place].size for one in tradeoff.layers) / weights for place in (0, -1)]
    assert [tradeoff.curve[0].bits_per_weight, tradeoff.curve[-1].bits_per_weight] == pytest.approx(ends)
    assert tradeoff.curve[-1].bits_per_weight == 16
    slopes = []
    for low, high in itertools.pairwise(tradeoff.curve):
        assert low.bits_per_weight < high.bits_per_weight
        assert low.noise > high.noise
        slopes.append((low.noise - high.noise) / (high.bits_per_weight - low.bits_per_weight))
    assert all(one >= other * (1 - 1e-6) for one, other in itertools.pairwise(slopes))
    assert tradeoff.bits_per_weight == tradeoff.curve[0].bits_per_weight


def test_layers_are_ranked_by_what_a_byte_brings(tradeoff: Tradeoff) -> None:
    """The worth of a KiB is the steepest way up from the smallest option."""
    for one in tradeoff.layers:
        low, *rest = one.options
        slopes = [1024 * (low.noise - option.noise) / (option.size - low.size) for option in rest]
        assert one.worth == pytest.approx(max(slopes))
    worths = [one.worth for one in tradeoff.ranked()]
    assert worths == sorted(worths, reverse=True)
    assert len(set(worths)) == 3


class Tied(nn.Module):
    """Two Linears with one weight, and biases of their own."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.first, self.second = nn.Linear(96, 96, bias=bias), nn.Linear(96, 96, bias=bias)
        self.last = nn.Linear(96, 32)
        self.second.weight = self.first.weight
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


def test_a_weight_of_two_layers_is_counted_once() -> None:
    """In bits per weight; both layers get the same choice."""
    model = Tied(bias=False)
    result = quantizer(batches(32, 96), target_bits_per_weight=6.0).run(model)
    first, second, last = result.report.tradeoff.layers
    assert (first.layer, second.layer, last.layer) == ("first", "second", "last")
    assert first.scheme == second.scheme
    assert first.weights == second.weights == 96 * 96
    expected = 8 * content(result.model) / (96 * 96 + 96 * 32)
    assert result.report.tradeoff.bits_per_weight == pytest.approx(expected, rel=1e-12)
    assert result.model.first.packed_weight is result.model.second.packed_weight


def test_tied_layers_are_weighed_by_the_products_of_both() -> None:
    """The weight is one, and met the inputs of both layers; no bias makes up for what is not its layer's own."""
    model, data = Tied(bias=True).requires_grad_(False), batches(48, 96)
    passes = [mq.SkipSelectionPass.from_options(), mq.CalibrationPass(data), mq.Int4PackPass(algorithm="gptq")]
    packed = mq.Quantizer(passes).run(model).model
    inputs = torch.cat([held_out(data), torch.relu(model.first(held_out(data)))])
    weight, noise = model.second.weight, inputs @ (packed.second.weight - model.second.weight).T
    tradeoff = quantizer(data, "gptq").weigh(model)
    for name in ("first", "second"):
        assert torch.equal(packed.get_submodule(name).bias, model.get_submodule(name).bias)
        found = layer_of(tradeoff, name).options[0]
        assert found.output_sqnr_db == pytest.approx(decibels(inputs @ weight.T, noise), abs=1e-3)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent, self.head = kind(64, 48, batch_first=True), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_weights_of_one_layer_are_taken_together(kind: type[nn.RNNBase]) -> None:
    """Signal and noise of both products of a recurrent layer, each with its own inputs."""
    torch.manual_seed(4)
    model, data = Recurrent(kind).requires_grad_(False), batches(32, 6, 64)
    found = layer_of(quantizer(data).weigh(model), "recurrent")
    packed = packed_alone(model, SCHEMES[0])
    x = held_out(data)
    hidden = model.recurrent(x)[0]
    before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)
    signal, noise = 0.0, 0.0
    for name, inputs in (("weight_ih_l0", x), ("weight_hh_l0", before)):
        weight, other = getattr(model.recurrent, name), getattr(packed.recurrent, name)
        signal += float((inputs @ weight.T).square().sum())
        noise += float((inputs @ (other - weight).T).square().sum())
    assert found.weights == sum(weight.numel() for weight in model.recurrent.parameters() if weight.dim() > 1)
    assert found.options[0].size == content(packed) - content(packed.head)
    assert found.options[0].output_sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=0.2)


class Unreached(nn.Module):
    """Its second layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.idle = nn.Linear(96, 96), nn.Linear(96, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.called(x)


def test_what_was_not_reached_has_a_size_and_nothing_else() -> None:
    """It stays at the smallest everywhere on the curve, and is ranked last."""
    found = quantizer(batches(32, 96)).weigh(Unreached())
    idle = layer_of(found, "idle")
    assert all(option.output_sqnr_db is None and option.noise is None for option in idle.options)
    assert idle.worth is None
    assert [one.layer for one in found.ranked()] == ["called", "idle"]
    called = layer_of(found, "called")
    most = 8 * (called.options[-1].size + idle.options[0].size) / (2 * 96 * 96)
    assert found.curve[-1].bits_per_weight == pytest.approx(most)


class WithoutGradient(nn.Module):
    """A part of the model that no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        self.dark, self.light, self.last = nn.Linear(96, 96), nn.Linear(96, 96), nn.Linear(96, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.dark(x)).detach() + torch.relu(self.light(x)))


def test_a_layer_without_gradient_is_taken_for_an_average_one() -> None:
    """Not for one that does not matter: its noise is between the others' and of their kind."""
    torch.manual_seed(0)
    found = quantizer(batches(48, 96)).weigh(WithoutGradient())
    relative = {one.layer: one.options[0].noise * 10 ** (one.options[0].output_sqnr_db / 10) for one in found.layers}
    low, high = sorted([relative["light"], relative["last"]])
    assert found.criterion == "output"
    assert low / 2 < relative["dark"] < high * 2


def test_a_model_without_gradients_adds_relative_noise_of_layers() -> None:
    """All that is known then: the inverse of each layer's SQNR."""
    model = Net()
    model.forward = torch.no_grad()(model.forward)
    found = quantizer(DATA).weigh(model)
    assert found.criterion == "layer"
    for option in (option for layer in found.layers for option in layer.options):
        assert option.noise == pytest.approx(10 ** (-option.output_sqnr_db / 10), rel=1e-6)


def costs(*pairs: tuple[int, float]) -> tuple[SchemeCost, ...]:
    return tuple(SchemeCost(SCHEMES[0], size, 20.0, noise) for size, noise in pairs)


def test_a_tradeoff_in_print_shows_the_curve_and_where_the_choice_lies() -> None:
    """One line a point, one a layer, the root by a name."""
    layers = (
        LayerTradeoff("", 100, costs((50, 4.0), (100, 1.0)), 1, 0.25),
        LayerTradeoff("deep.er", 100, costs((50, 2.0)), 0, None),
    )
    points = (CurvePoint(4.0, 6.0), CurvePoint(6.0, 3.0))
    lines = str(Tradeoff("kl", layers, points, 6.0)).splitlines()
    assert lines[0] == "bits per weight  estimated KL of the model's logits, nats"
    assert lines[1] == f"          4.000           6 {'#' * 40}"
    assert lines[2] == f"          6.000           3 {'#' * 20} <- chosen"
    assert lines[4:] == [
        "layer, worth of one KiB more, chosen",
        "(root)  0.25  int4 g128 asymmetric float16",
        "deep.er  -  int4 g128 asymmetric float16",
    ]


LONG = tuple(CurvePoint(4.0 + step / 8, 100.0 - step) for step in range(97))


def test_a_long_curve_is_shown_in_part_and_with_its_end() -> None:
    """A screen's worth."""
    lines = str(Tradeoff("output", (), LONG, 4.0)).splitlines()
    assert 10 < len(lines) < 24
    assert lines[1].endswith("<- chosen")
    assert any(line.strip().startswith("16.000") for line in lines)


@pytest.mark.parametrize(
    "chosen",
    [
        LONG[1].bits_per_weight,
        LONG[50].bits_per_weight,
        7.03,
    ],
)
def test_the_choice_is_shown_wherever_it_lies(chosen: float) -> None:
    """On a long curve, and beside it, where a step was passed over."""
    assert str(Tradeoff("output", (), LONG, chosen)).count("<- chosen") == 1
