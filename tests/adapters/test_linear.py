"""Which Linears can be packed, what each becomes, and what is in the way of the others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations, parametrize, prune

from monoquant.adapters.attention import AttentionAdapter
from monoquant.adapters.base import ModuleAdapter, Obstacle
from monoquant.adapters.choice import BUILT_IN_ADAPTERS, Packable, examine
from monoquant.adapters.convolution import ConvolutionAdapter
from monoquant.adapters.embedding import EmbeddingAdapter
from monoquant.adapters.linear import LinearAdapter
from monoquant.adapters.parameters import AttributeAdapter
from monoquant.adapters.recurrent import RecurrentAdapter
from monoquant.modules.linear import HalfLinear, Int4Linear, Int8DynamicLinear, Int8Linear, Int8StaticLinear
from monoquant.modules.packed_layer import PackedLayer
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PackedModule
from monoquant.numerics.integer_product import MAX_FEATURES
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import INT8_SCHEME, PACKABLE_DTYPES, AnyScheme, HalfScheme, Scheme

DYNAMIC = attrs.evolve(INT8_SCHEME, activations="dynamic")
STATIC = attrs.evolve(INT8_SCHEME, activations="static")
EVERY_SCHEME: tuple[AnyScheme, ...] = (Scheme(), INT8_SCHEME, DYNAMIC, STATIC, HalfScheme(torch.float16))


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


class InheritsSlots(WithSlots):
    """As its base."""


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


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def linear(**options: Any) -> nn.Linear:
    return nn.Linear(8, 4, **options)


def parametrized(name: str = "weight") -> nn.Module:
    return parametrize.register_parametrization(linear(), name, Doubled())


def with_instance_forward() -> nn.Linear:
    layer = linear()
    layer.forward = lambda x: x
    return layer


def with_bias_buffer() -> nn.Linear:
    layer = linear()
    bias = layer.bias.detach()
    del layer.bias
    layer.register_buffer("bias", bias)
    return layer


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


def with_weight(weight: torch.Tensor) -> nn.Linear:
    layer = linear()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def without_weight() -> nn.Linear:
    layer = linear()
    layer.register_parameter("weight", None)
    return layer


def packable(module: nn.Module) -> Packable:
    found = examine(module, BUILT_IN_ADAPTERS)
    assert isinstance(found, Packable)
    return found


def obstacle(module: nn.Module) -> Obstacle:
    found = examine(module, BUILT_IN_ADAPTERS)
    assert isinstance(found, Obstacle)
    return found


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "Linear": linear,
    "without bias": lambda: linear(bias=False),
    "NonDynamicallyQuantizableLinear": lambda: NonDynamicallyQuantizableLinear(8, 4),
    **{str(dtype): lambda dtype=dtype: linear(dtype=dtype) for dtype in PACKABLE_DTYPES},
    "meta": lambda: linear(device="meta"),
    "a bias in a buffer": with_bias_buffer,
    "another start and text": lambda: Renamed(8, 4),
    "a method": lambda: WithMethod(8, 4),
    "a constant": lambda: WithConstant(8, 4),
    "modules inside": Adapted,
    "a further parameter": with_extra_parameter,
    "a further buffer": with_extra_buffer,
    "wrong in_features": with_wrong_features,
    "a parametrization": parametrized,
    "weight_norm": lambda: parametrizations.weight_norm(linear()),
    "spectral_norm": lambda: parametrizations.spectral_norm(linear()),
    "old spectral_norm": lambda: nn.utils.spectral_norm(linear()),
    "a pruned weight": lambda: prune.l1_unstructured(linear(), "weight", 0.5),
    "a pruned bias": lambda: prune.l1_unstructured(linear(), "bias", 0.5),
}


@pytest.mark.parametrize("build", PLAIN.values(), ids=PLAIN)
def test_what_computes_like_a_linear_is_packed_as_one(build: Callable[[], nn.Module]) -> None:
    """Plain Linears, and whatever else hangs on a Linear's weight, have no obstacle and take the fast forward."""
    layer = build()
    found = packable(layer)
    assert isinstance(found.adapter, LinearAdapter)
    assert found.forms == {"weight": MatrixForm.rows_first((4, 8))}
    kinds = (Int4Linear, Int8Linear, Int8DynamicLinear, Int8StaticLinear, HalfLinear)
    assert tuple(found.adapter.mixin(layer, scheme) for scheme in EVERY_SCHEME) == kinds


def test_the_smallest_linear_can_be_packed() -> None:
    """One weight is a matrix, too."""
    assert packable(nn.Linear(1, 1)).forms == {"weight": MatrixForm.rows_first((1, 1))}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_old_weight_norm_is_no_obstacle() -> None:
    """The hook that recomputes the weight before each call is known."""
    layer = nn.utils.weight_norm(linear())
    assert packable(layer).forms == {"weight": MatrixForm.rows_first((4, 8))}


@pytest.mark.parametrize(
    "build",
    [lambda: Scaled(8, 4), lambda: ScaledDeeper(8, 4), with_instance_forward, lambda: Called(8, 4)],
    ids=["Scaled", "ScaledDeeper", "of the object", "Called"],
)
def test_code_of_its_own_is_kept(build: Callable[[], nn.Module]) -> None:
    """What computes something else is packed as well, goes on doing so, and never multiplies integers."""
    layer = build()
    found = packable(layer)
    assert {found.adapter.mixin(layer, scheme) for scheme in EVERY_SCHEME} == {PackedModule}
    assert found.adapter.integer_obstacle(layer, found.forms) == f"{type(layer).__name__} has a forward of its own"


OBSTACLES: list[tuple[Callable[[], nn.Module], str]] = [
    (without_weight, "Linear has no 2-D weight of its own"),
    (lambda: with_weight(torch.zeros(4)), "Linear has no 2-D weight of its own"),
    (lambda: with_weight(torch.zeros(4, 0)), "its weight is empty"),
    (lambda: with_weight(torch.zeros(4, 8, dtype=torch.int8)), "its weight has dtype torch.int8"),
    (lambda: with_weight(torch.zeros(4, 8).to(torch.float8_e4m3fn)), "its weight has dtype torch.float8_e4m3fn"),
    (lambda: with_weight(torch.zeros(4, 8, dtype=torch.complex64)), "its weight has dtype torch.complex64"),
    (lambda: with_weight(torch.eye(8).to_sparse()), "its weight is stored as torch.sparse_coo"),
    (Computed, "Computed computes its weight in a property"),
    (ComputedDeeper, "ComputedDeeper computes its weight in a property"),
    (lambda: WithSlots(8, 4), "WithSlots defines __slots__, so its class cannot be exchanged"),
    (lambda: InheritsSlots(8, 4), "InheritsSlots defines __slots__, so its class cannot be exchanged"),
    (lambda: parametrized("bias"), "a parametrization computes its bias, which would stay in float"),
    (lambda: nn.LayerNorm(3), "LayerNorm has no weight matrix"),
]


@pytest.mark.parametrize(("build", "reason"), OBSTACLES, ids=[reason for _, reason in OBSTACLES])
def test_obstacles_are_named(build: Callable[[], nn.Module], reason: str) -> None:
    """What cannot be packed is refused with the reason for this very module, and nothing else is told."""
    assert obstacle(build()).reason == reason


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_linears_are_refused() -> None:
    """A TorchScript module has no class that could be exchanged."""
    assert obstacle(torch.jit.script(linear())).reason.startswith("it is a TorchScript module")


def store_the_weight(layer: nn.Module) -> nn.Module:
    plain = linear()
    plain.weight = nn.Parameter(layer.weight.detach())
    return plain


@pytest.mark.parametrize(
    ("build", "remedy", "cure"),
    [
        (lambda: parametrized("bias"), "remove_parametrizations", lambda one: _removed(one, "bias")),
        (lambda: with_weight(torch.eye(8).to_sparse()), "to_dense", lambda one: with_weight(one.weight.to_dense())),
        (
            lambda: with_weight(torch.zeros(4, 8, dtype=torch.complex64)),
            "convert it to one of float32",
            lambda one: with_weight(one.weight.real),
        ),
        (
            lambda: with_weight(torch.zeros(4, 8).to(torch.float8_e4m3fn)),
            "convert it to one of float32",
            lambda one: one.float(),
        ),
        (Computed, "store it as a Parameter", store_the_weight),
        (without_weight, "store the weight as a Parameter", lambda _: linear()),
    ],
)
def test_the_remedy_helps(build: Callable[[], nn.Module], remedy: str, cure: Callable[[nn.Module], nn.Module]) -> None:
    """Doing what the obstacle's remedy says makes the layer packable."""
    layer = build()
    assert remedy in obstacle(layer).remedy
    assert packable(cure(layer)).forms


def _removed(layer: nn.Module, name: str) -> nn.Module:
    return parametrize.remove_parametrizations(layer, name)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_asking_changes_nothing(norm: Callable[[nn.Module], nn.Module], training: bool) -> None:
    """The question neither iterates a norm nor draws random numbers, and keeps all training flags."""
    layer = norm(linear()).train(training)
    before, random_state = copy.deepcopy(layer.state_dict()), torch.random.get_rng_state()
    flags = [module.training for module in layer.modules()]
    assert packable(layer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert [module.training for module in layer.modules()] == flags


@pytest.mark.parametrize("build", [linear, lambda: Renamed(8, 4), lambda: Scaled(8, 4), Adapted])
def test_a_packed_layer_is_none_to_pack_again(build: Callable[[], nn.Module]) -> None:
    """Asked about a packed layer, the answer is not that it can be packed."""
    layer = build()
    mixin = packable(layer).adapter.mixin(layer, Scheme())
    PackedLayer({"weight": PackedMatrix.pack(layer.weight, Scheme())[0]}, mixin).put_into(layer)
    assert obstacle(layer).reason.endswith("has no 2-D weight of its own")


@pytest.mark.parametrize(
    ("build", "adapter"),
    [
        (lambda: nn.Bilinear(3, 4, 5), AttributeAdapter),
        (lambda: nn.Conv1d(3, 4, 5), ConvolutionAdapter),
        (lambda: nn.Embedding(3, 4), EmbeddingAdapter),
        (lambda: nn.LSTM(3, 4), RecurrentAdapter),
        (lambda: nn.MultiheadAttention(8, 2), AttentionAdapter),
    ],
)
def test_what_is_no_linear_has_an_adapter_of_its_own(
    build: Callable[[], nn.Module], adapter: type[ModuleAdapter]
) -> None:
    """LinearAdapter claims Linears only."""
    assert not LinearAdapter().claims(build())
    assert type(packable(build()).adapter) is adapter


def test_obstacles_to_integer_products_are_named() -> None:
    """Linears that are read without being called, or that are too wide for 32-bit sums, keep float products."""

    def to_integers(layer: nn.Module) -> str | None:
        found = packable(layer)
        return found.adapter.integer_obstacle(layer, found.forms)

    read = NonDynamicallyQuantizableLinear(8, 4)
    assert to_integers(linear()) is None
    assert LinearAdapter().read_by_owner(read)
    assert to_integers(read) == "attention reads its weight without calling it"
    assert to_integers(nn.Linear(MAX_FEATURES, 1, device="meta")) is None
    too_wide = to_integers(nn.Linear(MAX_FEATURES + 1, 1, device="meta"))
    assert too_wide is not None
    assert f"those over {MAX_FEATURES} do" in too_wide
