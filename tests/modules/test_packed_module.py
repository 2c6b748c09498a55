"""How a module becomes a packed one and a float one again while staying itself."""

from __future__ import annotations

import copy
import functools
import operator
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from monoquant.adapters.choice import BUILT_IN_ADAPTERS, Packable, examine, readable_weights
from monoquant.kernels.portable import dequantized
from monoquant.modules.half_weight import HalfWeight
from monoquant.modules.linear import Int4Linear
from monoquant.modules.packed_layer import PackedLayer
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PackedModule
from monoquant.modules.packed_weight import PackedWeight
from monoquant.modules.storage import pack_weight
from monoquant.testing.strategies import schemes, weights
from monoquant.values import INT8_SCHEME, AnyScheme, HalfScheme, Scheme
from tests.closeness import assert_product

INT4_SCHEME = Scheme(group_size=4)
BUFFERS = ("qweight", "scale", "zero_point", "layout")


class Renamed(nn.Linear):
    """Differs from nn.Linear in how it starts and how it is printed."""

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -1, 1)
        nn.init.ones_(self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, projection"


class WithMethod(nn.Linear):
    """Other code calls its method and reads its attributes."""

    temperature = 2.0

    @property
    def width(self) -> int:
        return self.out_features

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self(x).chunk(2, -1)


class Scaled(nn.Linear):
    """Computes something else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class ScaledDeeper(Scaled):
    """Inherits a forward that computes something else."""


class ByHand(nn.Linear):
    """Reads its weight in ways of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input @ self.weight.relu().T + self.weight.sum()


class Called(nn.Linear):
    """Computes something else around forward."""

    def __call__(self, *args: Any) -> Any:
        return 2 * super().__call__(*args)


class Adapted(nn.Linear):
    """Keeps an adapter inside, as LoRA layers do."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.adapter = nn.Linear(8, 4)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + self.adapter(input)


class Gained(nn.Linear):
    """Has tensors besides weight and bias."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.gain = nn.Parameter(torch.rand(4))
        self.register_buffer("mask", torch.ones(4, 8).triu())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input, self.weight * self.mask, self.bias) * self.gain


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def linear(**options: Any) -> nn.Linear:
    return nn.Linear(8, 4, **options)


def parametrized() -> nn.Module:
    return parametrize.register_parametrization(linear(), "weight", Doubled())


def with_bias_buffer() -> nn.Linear:
    layer = linear()
    bias = layer.bias.detach()
    del layer.bias
    layer.register_buffer("bias", bias)
    return layer


def with_two_computed_tensors() -> nn.Linear:
    return prune.random_unstructured(prune.l1_unstructured(linear(), "weight", 0.5), "bias", 0.5)


def same(layer: nn.Module) -> nn.Module:
    return layer


without_parametrization = functools.partial(parametrize.remove_parametrizations, tensor_name="weight")
unpruned = functools.partial(prune.remove, name="weight")
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module]]] = {
    "Linear": (linear, same),
    "without bias": (lambda: linear(bias=False), same),
    "a bias in a buffer": (with_bias_buffer, same),
    "Renamed": (lambda: Renamed(8, 4), same),
    "WithMethod": (lambda: WithMethod(8, 4), same),
    "Scaled": (lambda: Scaled(8, 4), same),
    "ScaledDeeper": (lambda: ScaledDeeper(8, 4), same),
    "ByHand": (lambda: ByHand(8, 4), same),
    "Called": (lambda: Called(8, 4), same),
    "Adapted": (Adapted, same),
    "Gained": (Gained, same),
    "parametrized": (parametrized, without_parametrization),
    "weight_norm": (lambda: parametrizations.weight_norm(linear()), without_parametrization),
    "spectral_norm": (lambda: parametrizations.spectral_norm(linear()), without_parametrization),
    "old spectral_norm": (lambda: nn.utils.spectral_norm(linear()), nn.utils.remove_spectral_norm),
    "pruned": (lambda: prune.l1_unstructured(linear(), "weight", 0.5), unpruned),
    "pruned in both": (with_two_computed_tensors, unpruned),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def built(kind: str) -> nn.Module:
    """A layer in eval mode that has run once, the same one each time; without a graph that no copy could take."""
    torch.manual_seed(0)
    with torch.no_grad():
        layer = KINDS[kind][0]().eval()
        layer(inputs())
    return layer


def plainly(kind: str) -> nn.Module:
    """The same layer with its weight as a plain parameter, as torch itself makes it so."""
    return KINDS[kind][1](built(kind))


def become_packed(layer: nn.Module, scheme: AnyScheme = INT4_SCHEME) -> PackedWeight:
    """Pack a layer in place, with the weight that it computes with."""
    found, weight = examine(layer, BUILT_IN_ADAPTERS), readable_weights(layer)["weight"]
    assert isinstance(found, Packable)
    assert torch.equal(weight, layer.weight)
    packed, _ = pack_weight(weight, scheme, found.forms["weight"])
    PackedLayer({"weight": packed}, found.adapter.mixin(layer, scheme)).put_into(layer)
    assert isinstance(layer, PackedModule)
    return packed


def inputs() -> torch.Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


@settings(deadline=None, max_examples=50)
@given(weight=weights(), scheme=schemes().map(operator.attrgetter("storage")))
def test_becoming_keeps_function_and_identity(weight: torch.Tensor, scheme: Scheme) -> None:
    """The same object, with the same bias, computes with the dequantized weight."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight = nn.Parameter(weight)
    bias, matrix = layer.bias, become_packed(layer, scheme)
    assert layer.bias is bias
    assert layer.packed_weight is matrix
    assert torch.equal(layer.weight, matrix.dequantize())
    x = torch.ones(2, weight.shape[1], dtype=weight.dtype)
    exact = dequantized(matrix.codes) if isinstance(matrix, PackedMatrix) else matrix.dequantize()
    assert_product(layer(x), x, exact, bias)


def test_a_plain_linear_becomes_the_class_one_can_construct() -> None:
    """No class is made at run time where one with a name will do."""
    layer = linear()
    become_packed(layer)
    assert type(layer) is Int4Linear


@every_kind
@pytest.mark.parametrize("scheme", [INT4_SCHEME, INT8_SCHEME, HalfScheme(torch.float16)], ids=str)
def test_every_kind_computes_with_the_packed_weight(kind: str, scheme: AnyScheme) -> None:
    """Whatever a subclass computes, it computes it with the dequantized weight, to the bit."""
    layer, twin = built(kind), plainly(kind)
    packed = become_packed(layer, scheme)
    assert type(packed) is (HalfWeight if isinstance(scheme, HalfScheme) else PackedMatrix)
    assert (packed.dequantize() - twin.weight).abs().max() <= twin.weight.abs().max() / 7
    twin.weight = nn.Parameter(packed.dequantize())
    assert torch.equal(layer(inputs()), twin(inputs()))


@every_kind
def test_every_kind_stays_what_it_was(kind: str) -> None:
    """A packed layer is an instance of PackedModule and of its old class, whose name it ends in."""
    layer, old = built(kind), type(plainly(kind))
    become_packed(layer)
    assert isinstance(layer, PackedModule)
    assert isinstance(layer, old)
    assert type(layer).__name__ in (f"Int4{old.__name__}", f"Packed{old.__name__}")
    if old is not nn.Linear:
        assert (type(layer).__module__, type(layer).__doc__) == (old.__module__, old.__doc__)


def test_methods_attributes_and_text_stay() -> None:
    """What other code calls, reads and prints of a subclass is still there, and means the packed layer."""
    layer = WithMethod(8, 4)
    become_packed(layer)
    assert torch.equal(torch.cat(layer.split(inputs()), -1), layer(inputs()))
    assert (layer.temperature, layer.width) == (2.0, 4)
    assert repr(layer).startswith("Int4WithMethod(\n  in_features=8, out_features=4, bias=True\n")
    renamed = Renamed(8, 4)
    become_packed(renamed)
    assert "in_features=8, out_features=4, bias=True, projection" in repr(renamed)


@every_kind
def test_copies_compute_the_same(kind: str) -> None:
    """A deep copy is of the same class, computes the same bits, and shares no tensor."""
    layer = built(kind)
    become_packed(layer)
    twin = copy.deepcopy(layer)
    assert type(twin) is type(layer)
    assert torch.equal(twin(inputs()), layer(inputs()))
    pointers = {tensor.data_ptr() for tensor in layer.state_dict().values()}
    assert not pointers & {tensor.data_ptr() for tensor in twin.state_dict().values()}


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_compute_the_same(kind: str) -> None:
    """An unpickled layer is of the same class, though no module holds that class by name."""
    layer = built(kind)
    become_packed(layer)
    twin = pickle.loads(pickle.dumps(layer))
    assert type(twin) is type(layer)
    assert torch.equal(twin(inputs()), layer(inputs()))


def test_equal_layers_are_of_one_class() -> None:
    """Two layers of one class are of one class when packed, and layers of two classes of two."""
    first, second, other = Scaled(8, 4), Scaled(2, 3), Renamed(8, 4)
    for layer in (first, second, other):
        become_packed(layer)
    assert type(first) is type(second) is not type(other)
    assert isinstance(second, type(first))


@every_kind
def test_every_kind_becomes_float_again(kind: str) -> None:
    """Back in float it is of its old class, computes what it computed packed, and has a plain trainable weight."""
    layer, twin = built(kind), plainly(kind)
    become_packed(layer)
    before, weight = layer(inputs()), layer.weight
    layer.become_float(lambda packed: nn.Parameter(packed.dequantize()))
    assert type(layer) is type(twin)
    assert torch.equal(layer(inputs()), before)
    assert isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer.weight, weight)
    assert layer.weight.requires_grad
    expected = {name: tensor.shape for name, tensor in twin.state_dict().items()}
    assert {name: tensor.shape for name, tensor in layer.state_dict().items()} == expected
    assert next(iter(layer.state_dict())) == "weight"  # the first place, as in nn.Linear


def test_becoming_keeps_a_missing_bias_missing() -> None:
    """A Linear without bias becomes a layer whose bias is None, as code that reads it expects."""
    layer = linear(bias=False)
    become_packed(layer)
    assert layer.bias is None
    assert "bias" not in layer.state_dict()
    assert "bias=False" in repr(layer)


def test_becoming_frees_the_float_weight() -> None:
    """No reference to the float weight is left behind, or nothing would be saved."""
    layer = linear()
    held = weakref.ref(layer.weight)
    become_packed(layer)
    assert held() is None
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


@pytest.mark.parametrize(
    "build", [parametrized, lambda: prune.l1_unstructured(linear(), "weight", 0.5)], ids=["parametrized", "pruned"]
)
def test_becoming_frees_what_computed_the_weight(build: Callable[[], nn.Module]) -> None:
    """The tensors that a weight was computed from go, too, and what is left is that of a packed Linear."""
    layer = build()
    sources = [weakref.ref(tensor) for name, tensor in layer.named_parameters() if name != "bias"]
    become_packed(layer)
    assert [source() for source in sources] == [None]
    assert set(layer.state_dict()) == {"bias", *(f"packed_weight.{name}" for name in BUFFERS)}
    assert not layer._forward_pre_hooks


def test_becoming_keeps_other_tensors_and_modules() -> None:
    """Parameters, buffers and modules besides the weight are the same objects afterwards."""
    for layer, names in ((Gained(), {"bias", "gain", "mask"}), (Adapted(), {"bias", "adapter.weight", "adapter.bias"})):
        before = {name: tensor for name, tensor in layer.state_dict(keep_vars=True).items() if name != "weight"}
        become_packed(layer)
        after = layer.state_dict(keep_vars=True)
        assert before.keys() == names
        assert all(after[name] is tensor for name, tensor in before.items())
        assert after.keys() == names | {f"packed_weight.{name}" for name in BUFFERS}


@pytest.mark.parametrize("training", [True, False])
def test_becoming_keeps_flags_and_extra_attributes(training: bool) -> None:
    """Training flag, requires_grad and attributes that others have put on the layer are still there."""
    layer = Renamed(8, 4).train(training)
    layer.bias.requires_grad_(False)
    layer._is_hf_initialized = True
    packed = become_packed(layer)
    assert layer.training is packed.training is training
    assert not layer.bias.requires_grad
    assert layer._is_hf_initialized is True
    assert (layer.in_features, layer.out_features) == (8, 4)


@pytest.mark.parametrize("kind", [nn.Linear, Scaled])
def test_becoming_keeps_hooks_and_their_handles(kind: type[nn.Linear]) -> None:
    """Hooks of all kinds go on firing, and the handles given out before still remove them."""
    layer, fired = kind(8, 4), []
    handles = [
        layer.register_forward_pre_hook(lambda *_: fired.append("pre")),
        layer.register_forward_hook(lambda *_: fired.append("post")),
        layer.register_full_backward_hook(lambda *_: fired.append("backward")),
        layer.register_state_dict_post_hook(lambda *_: fired.append("state")),
        layer.register_load_state_dict_post_hook(lambda *_: fired.append("load")),
    ]
    become_packed(layer)

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
    become_packed(layer)
    assert model[0] is elsewhere[0]
    assert isinstance(elsewhere[0], Int4Linear)
    assert set(model.state_dict()) == {"0.bias", *(f"0.packed_weight.{name}" for name in BUFFERS)}


def test_a_packed_layer_is_a_linear_to_isinstance() -> None:
    """Code that asks for nn.Linear takes the same branch as before."""
    assert isinstance(Int4Linear(8, 4), nn.Linear)


@pytest.mark.parametrize("kind", [nn.Linear, ByHand])
def test_a_detached_layer_leaves_the_float_one_alone(kind: type[nn.Linear], unchanged: Any) -> None:
    """The packed twin of a layer, to measure with, computes as the packed layer will; the layer stays as it was."""
    layer = kind(8, 4)
    check = unchanged(layer)
    found = examine(layer, BUILT_IN_ADAPTERS)
    assert isinstance(found, Packable)
    packed, _ = pack_weight(layer.weight.detach(), INT4_SCHEME, found.forms["weight"])
    twin = PackedLayer({"weight": packed}, found.adapter.mixin(layer, INT4_SCHEME)).detached(layer)
    check()
    assert twin.bias is layer.bias
    become_packed(layer)
    assert torch.equal(twin(inputs()), layer(inputs()))
