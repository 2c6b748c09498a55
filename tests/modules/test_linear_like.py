"""Which modules can be packed, and how a Linear turns into an Int4Linear while staying itself."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations, parametrize, prune

from monoquant.modules.int4_linear import Int4Linear
from monoquant.modules.linear_like import PACKABLE_DTYPES, become_int4, obstacle_to_packing
from monoquant.modules.packed_int4 import PackedInt4
from monoquant.testing.strategies import schemes, weights
from monoquant.values import Scheme


class Renamed(nn.Linear):
    """Differs from nn.Linear in how it starts and how it is printed."""

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, projection"


class WithMethod(nn.Linear):
    """Other code calls its method."""

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self(x).chunk(3, -1)


class WithConstant(nn.Linear):
    """Other code reads its attribute."""

    temperature = 2.0


class WithSlots(nn.Linear):
    """An object of another layout, whose class cannot be exchanged."""

    __slots__ = ("extra",)


def with_bias_buffer() -> nn.Linear:
    layer = nn.Linear(8, 4)
    bias = layer.bias.detach()
    del layer.bias
    layer.register_buffer("bias", bias)
    return layer


class Scaled(nn.Linear):
    """Computes something else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class ScaledDeeper(Scaled):
    """Inherits a forward that computes something else."""


class Called(nn.Linear):
    """Computes something else around forward."""

    def __call__(self, *args: Any) -> Any:
        return 2 * super().__call__(*args)


class Computed(nn.Linear):
    """Has no weight of its own to pack."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = 8, 4, None
        self._parameters["weight"] = nn.Parameter(torch.zeros(4, 8))

    @property
    def weight(self) -> torch.Tensor:
        return self._parameters["weight"].exp()


class ComputedDeeper(Computed):
    """Inherits a weight that is computed."""


class Adapted(nn.Linear):
    """Keeps an adapter inside, as LoRA layers do."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.adapter = nn.Linear(8, 2)


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).T


def linear(**options: Any) -> nn.Linear:
    return nn.Linear(8, 4, **options)


def with_instance_forward() -> nn.Linear:
    layer = linear()
    layer.forward = lambda x: x
    return layer


def parametrized() -> nn.Module:
    return parametrize.register_parametrization(nn.Linear(8, 8), "weight", Symmetric())


def with_extra_parameter() -> nn.Linear:
    layer = linear()
    layer.gain = nn.Parameter(torch.ones(4))
    return layer


def with_extra_buffer() -> nn.Linear:
    layer = linear()
    layer.register_buffer("mask", torch.ones(4, 8))
    return layer


def with_wrong_features() -> nn.Linear:
    layer = linear()
    layer.in_features = 9
    return layer


def with_dtype(dtype: torch.dtype) -> nn.Linear:
    layer = linear()
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    return layer


def empty() -> nn.Linear:
    layer = linear()
    layer.in_features, layer.weight = 0, nn.Parameter(torch.zeros(4, 0))
    return layer


def without_weight() -> nn.Linear:
    layer = linear()
    layer.register_parameter("weight", None)
    return layer


@pytest.mark.parametrize(
    "build",
    [linear, lambda: linear(bias=False), lambda: NonDynamicallyQuantizableLinear(8, 4), lambda: Renamed(8, 4)]
    + [lambda dtype=dtype: linear(dtype=dtype) for dtype in PACKABLE_DTYPES]
    + [lambda: linear(device="meta"), lambda: nn.Linear(1, 1)],
)
def test_what_computes_like_a_linear_can_be_packed(build: Callable[[], nn.Module]) -> None:
    """Plain Linears and subclasses without code of their own have no obstacle, in all dtypes and without memory."""
    assert obstacle_to_packing(build()) is None


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Scaled(8, 4), "Scaled has a forward of its own"),
        (lambda: ScaledDeeper(8, 4), "ScaledDeeper has a forward of its own"),
        (with_instance_forward, "Linear has a forward of its own"),
        (lambda: Called(8, 4), "Called has a __call__ of its own"),
        (Adapted, "Adapted contains modules: adapter"),
        (parametrized, "its weight is computed by a parametrization"),
        (lambda: parametrizations.weight_norm(linear()), "its weight is computed by a parametrization"),
        (lambda: parametrizations.spectral_norm(linear()), "its weight is computed by a parametrization"),
        (lambda: nn.utils.spectral_norm(linear()), "its tensors are bias, weight_orig, weight_u, weight_v"),
        (lambda: prune.l1_unstructured(linear(), "weight", 0.5), "its tensors are bias, weight_mask, weight_orig"),
        (lambda: prune.l1_unstructured(linear(), "bias", 0.5), "its tensors are bias_mask, bias_orig, weight"),
        (with_extra_parameter, "its tensors are bias, gain, weight instead of weight and bias"),
        (with_extra_buffer, "its tensors are bias, mask, weight instead of weight and bias"),
        (without_weight, "its tensors are bias instead of weight and bias"),
        (with_wrong_features, "its weight has shape (4, 8), not (4, 9)"),
        (empty, "its weight is empty"),
        (lambda: with_dtype(torch.int8), "its weight has dtype torch.int8"),
        (lambda: with_dtype(torch.float8_e4m3fn), "its weight has dtype torch.float8_e4m3fn"),
        (lambda: with_dtype(torch.complex64), "its weight has dtype torch.complex64"),
        (lambda: nn.Bilinear(3, 4, 5), "Bilinear is not an nn.Linear, and INT4 packs only those"),
        (lambda: nn.Conv1d(3, 4, 5), "Conv1d is not an nn.Linear, and INT4 packs only those"),
        (lambda: nn.LSTM(3, 4), "LSTM is not an nn.Linear, and INT4 packs only those"),
        (lambda: nn.LayerNorm(3), "LayerNorm has no weight matrix"),
    ],
)
def test_obstacles_are_named(build: Callable[[], nn.Module], reason: str) -> None:
    """What Int4Linear would compute differently is refused, with the reason for this very module."""
    obstacle = obstacle_to_packing(build())
    assert obstacle is not None
    assert obstacle.reason.startswith(reason)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_old_weight_norm_is_an_obstacle() -> None:
    """The hook that recomputes the weight before each call is seen by the tensors it leaves."""
    layer = nn.utils.weight_norm(linear())
    obstacle = obstacle_to_packing(layer)
    assert obstacle is not None
    assert "weight_g, weight_v" in obstacle.reason
    assert "weight_norm" in obstacle.remedy
    nn.utils.remove_weight_norm(layer)
    assert obstacle_to_packing(layer) is None


@pytest.mark.parametrize(
    ("build", "cure"),
    [
        (parametrized, lambda layer: parametrize.remove_parametrizations(layer, "weight")),
        (lambda: prune.l1_unstructured(linear(), "weight", 0.5), lambda layer: prune.remove(layer, "weight")),
        (lambda: nn.utils.spectral_norm(linear()), nn.utils.remove_spectral_norm),
        (lambda: with_dtype(torch.float8_e4m3fn), lambda layer: layer.float()),
    ],
)
def test_the_remedy_helps(build: Callable[[], nn.Module], cure: Callable[[nn.Module], object]) -> None:
    """Doing what the obstacle's remedy says makes the layer packable."""
    layer = build()
    obstacle = obstacle_to_packing(layer)
    assert obstacle is not None
    assert obstacle.remedy
    cure(layer)
    assert obstacle_to_packing(layer) is None


@pytest.mark.parametrize("kind", [Computed, ComputedDeeper])
def test_a_weight_from_a_property_is_an_obstacle(kind: type[nn.Linear]) -> None:
    """A subclass that computes its weight cannot be packed, wherever in its ancestry the property is."""
    obstacle = obstacle_to_packing(kind())
    assert obstacle is not None
    assert obstacle.reason == f"{kind.__name__} computes its weight in a property"


def test_asking_changes_nothing() -> None:
    """The question does not call hooks, recompute weights or draw random numbers."""
    layer = parametrizations.spectral_norm(linear())
    before, random_state = copy.deepcopy(layer.state_dict()), torch.random.get_rng_state()
    assert obstacle_to_packing(layer) is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random_state)


def packed(layer: nn.Linear, scheme: Scheme | None = None) -> PackedInt4:
    return PackedInt4.pack(layer.weight, scheme or Scheme(group_size=4))[0]


@settings(deadline=None, max_examples=50)
@given(weight=weights(), scheme=schemes())
def test_becoming_keeps_function_and_identity(weight: torch.Tensor, scheme: Scheme) -> None:
    """The same object, with the same bias, computes with the dequantized weight."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight = nn.Parameter(weight)
    bias, matrix = layer.bias, packed(layer, scheme)
    become_int4(layer, matrix)
    assert type(layer) is Int4Linear
    assert layer.bias is bias
    assert layer.packed_weight is matrix
    assert torch.equal(layer.weight, matrix.dequantize())
    x = torch.ones(2, weight.shape[1], dtype=weight.dtype)
    assert torch.equal(layer(x), nn.functional.linear(x, matrix.dequantize(), bias))


def test_becoming_keeps_a_missing_bias_missing() -> None:
    """A Linear without bias becomes a layer whose bias is None, as code that reads it expects."""
    layer = linear(bias=False)
    become_int4(layer, packed(layer))
    assert layer.bias is None
    assert "bias" not in layer.state_dict()
    assert "bias=False" in repr(layer)


def test_becoming_frees_the_float_weight() -> None:
    """No reference to the float weight is left behind, or nothing would be saved."""
    layer = linear()
    held, matrix = weakref.ref(layer.weight), packed(layer)
    become_int4(layer, matrix)
    assert held() is None
    assert "weight" not in layer._parameters


@pytest.mark.parametrize("training", [True, False])
def test_becoming_keeps_flags_and_extra_attributes(training: bool) -> None:
    """Training flag, requires_grad and attributes that others have put on the layer are still there."""
    layer = Renamed(8, 4).train(training)
    layer.bias.requires_grad_(False)
    layer._is_hf_initialized = True
    become_int4(layer, packed(layer))
    assert layer.training is training
    assert not layer.bias.requires_grad
    assert layer._is_hf_initialized is True
    assert (layer.in_features, layer.out_features) == (8, 4)


def test_becoming_keeps_hooks_and_their_handles() -> None:
    """Hooks of all kinds go on firing, and the handles given out before still remove them."""
    layer, fired = linear(), []
    handles = [
        layer.register_forward_pre_hook(lambda *_: fired.append("pre")),
        layer.register_forward_hook(lambda *_: fired.append("post")),
        layer.register_full_backward_hook(lambda *_: fired.append("backward")),
        layer.register_state_dict_post_hook(lambda *_: fired.append("state")),
        layer.register_load_state_dict_post_hook(lambda *_: fired.append("load")),
    ]
    become_int4(layer, packed(layer))

    def exercise() -> list[str]:
        fired.clear()
        layer(torch.ones(2, 8, requires_grad=True)).sum().backward()
        layer.load_state_dict(layer.state_dict())
        return list(fired)

    assert exercise() == ["pre", "post", "backward", "state", "load"]
    for handle in handles:
        handle.remove()
    assert exercise() == []


def test_every_reference_sees_the_packed_layer() -> None:
    """A layer that is also held outside the module tree is packed there too."""
    layer = linear()
    model, elsewhere = nn.Sequential(layer), [layer]
    become_int4(layer, packed(layer))
    assert model[0] is elsewhere[0]
    assert isinstance(elsewhere[0], Int4Linear)
    assert set(model.state_dict()) == {
        "0.bias",
        *(f"0.packed_weight.{name}" for name in ("qweight", "scale", "zero_point", "layout")),
    }


def test_a_packed_layer_is_no_linear_to_pack_again() -> None:
    """Asked about a packed layer, the answer is not that it can be packed."""
    layer = linear()
    become_int4(layer, packed(layer))
    assert obstacle_to_packing(layer) is not None


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: WithMethod(8, 4), "WithMethod adds split to nn.Linear, which a packed layer would lack"),
        (lambda: WithConstant(8, 4), "WithConstant adds temperature to nn.Linear, which a packed layer would lack"),
        (lambda: WithSlots(8, 4), "WithSlots adds __slots__, extra to nn.Linear, which a packed layer would lack"),
        (with_bias_buffer, "its bias is a buffer"),
    ],
)
def test_what_a_packed_layer_could_not_keep_is_an_obstacle(build: Callable[[], nn.Module], reason: str) -> None:
    """Methods, class attributes and slots of a subclass, and a bias that is a buffer, would be lost."""
    obstacle = obstacle_to_packing(build())
    assert obstacle is not None
    assert obstacle.reason == reason
    assert obstacle.remedy


def test_a_packed_layer_is_a_linear_to_isinstance() -> None:
    """Code that asks for nn.Linear takes the same branch as before."""
    assert isinstance(Int4Linear(8, 4), nn.Linear)
