"""The inventory of a model: layers, names, ties, ancestors, and what is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import monoquant as mq
from monoquant.source import (
    inventory,
    model_tensors,
    names_of_modules,
    own_parameters,
    persistent_tensors,
    tensor_identity,
)


def linear(features: int = 4, bias: bool = True) -> nn.Linear:
    return nn.Linear(features, features, bias=bias)


def names(model: nn.Module) -> list[str]:
    return [layer.name for layer in inventory(model)]


def by_name(model: nn.Module) -> dict[str, mq.Layer]:
    return {layer.name: layer for layer in inventory(model)}


LEAVES: dict[str, Callable[[], nn.Module]] = {
    "linear": linear,
    "embedding": lambda: nn.Embedding(5, 4),
    "norm": lambda: nn.LayerNorm(4),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "relu": nn.ReLU,
    "rnn": lambda: nn.LSTM(4, 3, num_layers=2),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "weight norm": lambda: parametrizations.weight_norm(linear()),
    "weight norm alone": lambda: parametrizations.weight_norm(linear(bias=False)),
    "spectral norm": lambda: parametrizations.spectral_norm(linear()),
}


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """Nested stacks of layers, some of which are used twice."""
    leaves = [LEAVES[kind]() for kind in draw(st.lists(st.sampled_from(tuple(LEAVES)), min_size=1, max_size=5))]
    twice = draw(st.lists(st.sampled_from(leaves), max_size=2))
    return nn.Sequential(nn.Sequential(*leaves), nn.ModuleDict({f"again{i}": leaf for i, leaf in enumerate(twice)}))


@settings(deadline=None, max_examples=40)
@given(models())
def test_every_parameter_is_covered_once(model: nn.Module) -> None:
    """The layers' own parameters are the model's, each exactly once, shared and parametrized modules included."""
    layers = inventory(model)
    own = [value for layer in layers for value in own_parameters(model.get_submodule(layer.name)).values()]
    assert len(own) == len({id(parameter) for parameter in own})
    assert {id(parameter) for parameter in own} == {id(parameter) for parameter in model.parameters()}
    assert sum(layer.parameters for layer in layers) == sum(parameter.numel() for parameter in model.parameters())


def owns_parameters(name: str, module: nn.Module) -> bool:
    """What parametrizations keep belongs to the module around them."""
    hidden = parametrize.is_parametrized(module)
    return "parametrizations" not in name and bool(hidden or list(module.parameters(recurse=False)))


@settings(deadline=None, max_examples=40)
@given(models())
def test_layers_stand_in_model_order_under_all_their_names(model: nn.Module) -> None:
    """First names follow ``named_modules``; together with the aliases they are all names there are."""
    layers = inventory(model)
    order = [name for name, module in model.named_modules() if owns_parameters(name, module)]
    assert [layer.name for layer in layers] == order
    every = dict(model.named_modules(remove_duplicate=False))
    found = {name: every[name] for layer in layers for name in layer.names}
    assert len(found) == sum(len(layer.names) for layer in layers)
    assert set(found) == {name for name, module in every.items() if owns_parameters(name, module)}
    assert all(found[alias] is found[layer.name] for layer in layers for alias in layer.aliases)


@settings(deadline=None, max_examples=20)
@given(models())
def test_taking_the_inventory_changes_nothing(model: nn.Module) -> None:
    """Two inventories of a model are equal, and equal to the one of its copy."""
    first = inventory(model)
    assert inventory(model) == first
    assert inventory(copy.deepcopy(model)) == first


def test_a_layer_tells_type_shape_count_and_dtype() -> None:
    """Rules see the weight's shape and dtype, and a count that includes the bias."""
    [layer] = inventory(nn.Sequential(nn.Linear(3, 5, dtype=torch.bfloat16)))
    assert (layer.type, layer.shape, layer.parameters, layer.dtype) == (nn.Linear, (5, 3), 20, torch.bfloat16)


def test_without_a_weight_the_largest_parameter_counts() -> None:
    """An LSTM has no parameter called weight; its shape is that of the largest one."""
    [layer] = inventory(nn.LSTM(4, 3))
    assert layer.shape == (12, 4)
    assert layer.parameters == 12 * 4 + 12 * 3 + 12 + 12


def test_modules_without_parameters_are_no_layers() -> None:
    """Containers, activations and buffer-only modules are nobody's decision."""
    assert names(nn.Sequential(nn.ReLU(), linear(), nn.BatchNorm1d(4, affine=False))) == ["1"]
    assert inventory(nn.ReLU()) == ()


def test_a_container_with_a_parameter_of_its_own_is_a_layer() -> None:
    """MultiheadAttention keeps in_proj_weight itself and out_proj in a module: two layers."""
    found = by_name(nn.Sequential(nn.MultiheadAttention(4, 2)))
    assert found["0"].shape == (12, 4)
    assert found["0"].parameters == 12 * 4 + 12
    assert found["0.out_proj"].parameters == 20


def test_the_root_can_be_a_layer() -> None:
    """A Linear alone is one layer with an empty name and no ancestors."""
    [layer] = inventory(linear())
    assert (layer.name, layer.names, layer.ancestors, layer.ties) == ("", ("",), (), ())


def test_ancestors_lead_from_the_root() -> None:
    """Every module around a layer is listed with its class, the root first."""
    model = nn.Sequential(nn.ModuleList([nn.ModuleDict({"q": linear()})]))
    [layer] = inventory(model)
    assert layer.ancestors == (
        mq.Ancestor("", nn.Sequential),
        mq.Ancestor("0", nn.ModuleList),
        mq.Ancestor("0.0", nn.ModuleDict),
    )


def test_a_shared_module_is_one_layer_with_aliases() -> None:
    """A module used twice has one decision, two names and the ancestors of both; it is not tied to itself."""
    shared = linear()
    [layer] = inventory(nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.ModuleList([shared])}))
    assert layer.names == ("a.0", "b.0")
    assert {(ancestor.name, ancestor.type) for ancestor in layer.ancestors} == {
        ("", nn.ModuleDict),
        ("a", nn.Sequential),
        ("b", nn.ModuleList),
    }
    assert layer.ties == ()


def test_a_shared_container_gives_its_layers_both_names() -> None:
    """Layers inside a container that is used twice are listed once, under both paths."""
    block = nn.Sequential(linear(), nn.LayerNorm(4))
    assert [layer.names for layer in inventory(nn.ModuleDict({"a": block, "b": block}))] == [
        ("a.0", "b.0"),
        ("a.1", "b.1"),
    ]


def tied_by_parameter() -> nn.Module:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "other": linear(), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    return model


def tied_by_storage() -> nn.Module:
    model = tied_by_parameter()
    model["head"].weight = nn.Parameter(model["embed"].weight.detach(), requires_grad=False)
    return model


@pytest.mark.parametrize("build", [tied_by_parameter, tied_by_storage])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_ties_are_seen_from_both_sides(build: Callable[[], nn.Module], device: str) -> None:
    """The same Parameter, or two Parameters over the same memory, tie their layers; also on the meta device."""
    with torch.device(device):
        found = by_name(build())
    assert found["embed"].ties == ("head",)
    assert found["head"].ties == ("embed",)
    assert found["other"].ties == ()


def test_a_tied_bias_is_a_tie() -> None:
    """Sharing any parameter counts, and three layers that share one name each other."""
    model = nn.Sequential(linear(), linear(), linear())
    model[1].bias = model[2].bias = model[0].bias
    assert [layer.ties for layer in inventory(model)] == [("1", "2"), ("0", "2"), ("0", "1")]


def test_neighbours_in_one_buffer_are_not_tied() -> None:
    """Two halves of one storage are two weights, and so is another shape over the same memory."""
    model, block = nn.Sequential(linear(), linear(), nn.Linear(8, 2)), torch.zeros(8, 4)
    model[0].weight, model[1].weight = nn.Parameter(block[:4]), nn.Parameter(block[4:])
    model[2].weight = nn.Parameter(block[:4].view(2, 8))
    assert [layer.ties for layer in inventory(model)] == [(), (), ()]


def test_identity_is_memory_and_how_it_is_seen() -> None:
    """Views of all of a tensor are it; copies, parts and transposes are not."""
    tensor = torch.zeros(4, 4)
    assert tensor_identity(tensor) == tensor_identity(tensor.detach()) == tensor_identity(tensor.view(4, 4))
    for other in (tensor.clone(), tensor[1:], tensor.t(), tensor.view(2, 8), torch.empty(4, 4, device="meta")):
        assert tensor_identity(other) != tensor_identity(tensor)
    sparse = torch.eye(4).to_sparse()
    assert tensor_identity(sparse) == tensor_identity(sparse) != tensor_identity(torch.eye(4).to_sparse())


def test_meta_models_have_the_same_inventory() -> None:
    """A model without memory, for a plan in seconds, lists the same layers."""
    with torch.device("meta"):
        empty = nn.Sequential(nn.Embedding(6, 4), nn.Sequential(linear(), nn.LayerNorm(4)))
    real = nn.Sequential(nn.Embedding(6, 4), nn.Sequential(linear(), nn.LayerNorm(4)))
    assert inventory(empty) == inventory(real)


def test_a_parametrized_module_is_one_layer() -> None:
    """What a weight is computed from belongs to the module whose weight it is."""
    [layer] = inventory(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6))))
    assert (layer.name, layer.shape, layer.parameters) == ("0", (6, 4), 6 * 4 + 6 + 6)
    assert issubclass(layer.type, nn.Linear)
    assert layer.ancestors == (mq.Ancestor("", nn.Sequential),)


def test_parametrized_modules_that_share_a_source_are_tied() -> None:
    """Sharing what a weight is computed from is sharing the weight."""
    model = nn.Sequential(*(parametrizations.weight_norm(linear()) for _ in range(3)))
    model[1].parametrizations.weight.original1 = model[0].parametrizations.weight.original1
    assert [layer.ties for layer in inventory(model)] == [("1",), ("0",), ()]


def data_parallel(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model)


def compiled(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch.compile deprecates inside torch is not the matter here
        return torch.compile(model, backend="eager")


WRAPPERS = {"DataParallel": data_parallel, "compile": compiled, "both": lambda model: compiled(data_parallel(model))}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_layers_of_wrapped_models_answer_to_their_plain_names(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Prefixes that wrappers add do not change what an entry means, positions from the root included."""
    plain = nn.Sequential(linear(), nn.Sequential(linear()))
    wrapped = inventory(wrap(plain))
    assert [layer.aliases[-1] for layer in wrapped] == ["0", "1.0"]
    assert all(layer.name.endswith("." + layer.aliases[-1]) for layer in wrapped)
    assert [mq.NameRule("0", "re:1.0").reason(layer) is not None for layer in wrapped] == [True, True]
    assert [mq.NameRule("1").reason(layer) is not None for layer in wrapped] == [False, True]


@pytest.mark.parametrize("wrap", [data_parallel, compiled])
def test_wrapped_models_get_the_plan_of_the_plain_one(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """A wrapper changes names, not answers."""
    quantizer = mq.Quantizer([mq.SkipSelectionPass(mq.NameRule("0")), mq.Int4PackPass()])
    plain = nn.Sequential(linear(), linear(), nn.GroupNorm(2, 4))
    expected = [decision.action for decision in quantizer.plan(plain)]
    assert expected == [mq.Action.SKIP, mq.Action.QUANTIZE, mq.Action.UNSUPPORTED]
    assert [decision.action for decision in quantizer.plan(wrap(plain))] == expected


def test_a_wrapped_root_layer_is_covered() -> None:
    """DataParallel around a single Linear is one layer."""
    [layer] = inventory(nn.DataParallel(linear()))
    assert layer.name == "module"


@pytest.mark.parametrize("model", [None, {}, {"weight": torch.zeros(2, 2)}, "model.safetensors", nn.Linear, [linear()]])
def test_what_is_no_module_is_refused(model: object) -> None:
    """State dicts, paths, classes and lists are refused with what to give instead."""
    with pytest.raises(mq.InputError, match=rf"the model is a {type(model).__name__}: give an nn\.Module"):
        inventory(model)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("convert", [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(1, 4))])
def test_scripted_models_are_refused(convert: Callable[[nn.Module], nn.Module]) -> None:
    """TorchScript modules, whose layers cannot be replaced, are refused by that name."""
    with pytest.raises(mq.InputError, match="TorchScript"):
        inventory(convert(nn.Sequential(linear())))


def test_lazy_layers_are_refused_by_name() -> None:
    """Every module without a shape is named, one that has lazy buffers only too, and what gives it one."""
    no_parameters = nn.LazyBatchNorm1d(affine=False)
    model = nn.Sequential(nn.LazyLinear(4), linear(), nn.Sequential(nn.LazyConv1d(4, 1)), no_parameters)
    with pytest.raises(mq.InputError, match=r"'0', '2\.0', '3'; run the model once") as caught:
        inventory(model)
    assert caught.value.layers == ("0", "2.0", "3")


def test_lazy_layers_are_fine_after_a_run() -> None:
    """Once it has a shape, a lazy layer is an ordinary one."""
    model = nn.Sequential(nn.LazyLinear(4))
    model(torch.zeros(1, 3))
    assert by_name(model)["0"].shape == (4, 3)


def test_a_lazy_root_is_called_root() -> None:
    """The root's empty name is not shown as an empty pair of quotes."""
    with pytest.raises(mq.InputError, match="root"):
        inventory(nn.LazyLinear(4))


def test_quantized_models_are_refused_by_layer() -> None:
    """The names in the error are the layers that the first run quantized, not modules inside them."""
    quantizer = mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass()])
    result = quantizer.run(nn.Sequential(linear(), nn.LayerNorm(4), nn.Sequential(linear())))
    with pytest.raises(mq.InputError, match=r"already quantized.*float model") as caught:
        inventory(result.model)
    assert caught.value.layers == ("0", "2.0")


@pytest.mark.filterwarnings("ignore:.*quantize.*deprecated:UserWarning")
def test_models_quantized_by_torch_are_refused_by_layer() -> None:
    """torch's own quantized modules are recognized as well."""
    dynamic = torch.ao.nn.quantized.dynamic.Linear(4, 4)
    with pytest.raises(mq.InputError, match="already quantized") as caught:
        inventory(nn.Sequential(linear(), dynamic))
    assert caught.value.layers == ("1",)


def test_names_of_modules_lists_every_name() -> None:
    """Every module, parameter-free ones included, appears once with all its names."""
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Sequential(shared))
    assert names_of_modules(model) == {model: [""], shared: ["0", "1.0"], model[1]: ["1"]}


def test_model_tensors_yields_parameters_and_buffers_once() -> None:
    """Shared tensors and shared modules do not appear twice."""
    model = tied_by_parameter()
    model["norm"] = model["again"] = nn.BatchNorm1d(4)
    tensors = list(model_tensors(model))
    assert len(tensors) == len({id(tensor) for tensor in tensors})
    assert {id(tensor) for tensor in tensors} == {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}


def test_persistent_tensors_are_those_of_the_state_dict() -> None:
    """Names and tensors agree with ``state_dict``: shared modules under each name, nothing that is not persistent."""
    model = nn.Sequential(linear(), nn.BatchNorm1d(4), parametrizations.weight_norm(linear()))
    model.append(model[0])
    model.register_buffer("cache", torch.zeros(2), persistent=False)
    model.register_buffer("absent", None)
    expected = model.state_dict(keep_vars=True)
    found = persistent_tensors(model)
    assert found.keys() == expected.keys()
    assert all(found[name] is expected[name] for name in found)
