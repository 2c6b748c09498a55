"""Layers that are used, named or built in ways that packing must survive, or refuse with a reason."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import monoquant as mq
from monoquant.numerics.integer_product import exact_method


def quantized(model: nn.Module, **options: Any) -> nn.Module:
    return mq.quantize(model, accuracy_warning="ignore", **{"bits": 8, **options}).model


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("index", [-1, 50, 1.7])
def test_embeddings_refuse_the_indices_that_torch_refuses(bits: int, index: float) -> None:
    """A negative one is not the last row, and a fraction is not cut off."""
    table = quantized(nn.Sequential(nn.Embedding(50, 16)), bits=bits, skip_layer_types=[])
    bag = quantized(nn.Sequential(nn.EmbeddingBag(50, 16)), bits=bits, skip_layer_types=[])
    for model, indices in ((table, torch.tensor([index])), (bag, torch.tensor([[index, 2]]))):
        with pytest.raises((IndexError, RuntimeError)):
            model(indices)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_embeddings_take_both_kinds_of_indices(dtype: torch.dtype) -> None:
    """As torch's do."""
    model = nn.Sequential(nn.EmbeddingBag(50, 16, mode="sum", padding_idx=3))
    indices, offsets = torch.tensor([3, 4, 5, 3, 7], dtype=dtype), torch.tensor([0, 2], dtype=dtype)
    packed = quantized(model)[0]
    assert torch.allclose(packed(indices, offsets), model[0](indices, offsets), atol=0.1)


class Named(nn.Module):
    """Has a submodule with the prefix of packed weights, which is none."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 64))
        self.packed_ffn = nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        return self.packed_ffn(x @ self.w)


def test_submodules_that_are_called_like_packed_weights_stay(tmp_path: Path) -> None:
    """Through saving, loading and dequantizing."""
    result = mq.quantize(Named(), bits=8)
    mq.save(result, tmp_path / "named.safetensors")
    loaded, x = mq.load(tmp_path / "named.safetensors", Named()), torch.randn(2, 64)
    assert torch.equal(loaded(x), result.model(x))
    assert torch.equal(mq.dequantize(loaded)(x), result.model(x))


@pytest.mark.parametrize("kind", ["module", "buffer", "attribute", "input"])
def test_a_name_that_is_taken_is_an_obstacle(kind: str) -> None:
    """Nothing of the user's is overwritten."""
    model = Named()
    name = "packed_input" if kind == "input" else "packed_w"
    if kind == "buffer":
        model.register_buffer(name, torch.zeros(2))
    else:
        setattr(model, name, 3 if kind == "attribute" else nn.Linear(2, 2))
    with pytest.raises(mq.InputError, match=rf"it has a {name} of its own, .*; rename it"):
        mq.quantize(model, bits=8, layer_names=["re:"])


def test_a_packed_weight_cannot_be_assigned_to() -> None:
    """A new weight would never be used."""
    model = quantized(nn.Sequential(nn.Linear(8, 8), nn.Conv1d(8, 8, 3)))
    for layer in model:
        with pytest.raises(mq.InputError, match=r"\.weight is packed and cannot be assigned to"):
            layer.weight = nn.Parameter(torch.zeros(8, 8))
        with pytest.raises(mq.InputError, match="is packed"):
            layer.register_parameter("weight", nn.Parameter(torch.zeros(8, 8)))
        with pytest.raises(mq.InputError, match="is packed"):
            del layer.weight
        layer.bias = nn.Parameter(torch.zeros(8))
        layer.register_parameter("extra", None)


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("how", ["buffer", "pruned"])
def test_a_bias_that_is_no_parameter_is_added(activations: Any, how: str) -> None:
    """By layers that multiply integers, too; and it does not count as signal."""
    layer = nn.Linear(64, 32)
    if how == "pruned":
        prune.l1_unstructured(layer, "bias", 0.3)
    else:
        bias = layer.bias.detach() + 100
        del layer.bias
        layer.register_buffer("bias", bias)
    x = torch.randn(60, 64)
    result = mq.quantize(nn.Sequential(layer), bits=8, activations=activations, calibration_data=[x])
    assert torch.allclose(result.model(x), layer(x), atol=0.1)
    assert result.report.layers[0].output_sqnr_db < 50


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_inputs_near_the_end_of_floats_do_not_overflow(activations: Any) -> None:
    """Where the float layer is finite, so is the one of integers."""
    model, x = nn.Sequential(nn.Linear(64, 8)), torch.randn(60, 64) * 1e36
    found = quantized(model, activations=activations, calibration_data=[x])(x)
    assert torch.isfinite(found).all()
    assert (found - model(x)).abs().max() < 0.05 * model(x).abs().max()


def test_jagged_inputs_keep_their_offsets() -> None:
    """Or a residual connection could not add the output to the input."""
    parts = [torch.randn(2, 16), torch.randn(3, 16)]
    jagged = torch.nested.nested_tensor(parts, layout=torch.jagged)
    model = quantized(nn.Sequential(nn.Linear(16, 16)), activations="dynamic")
    with torch.no_grad():
        total = (model(jagged) + jagged).unbind()
        assert all(torch.allclose(one, model(part) + part) for one, part in zip(total, parts, strict=True))


def test_traced_modules_are_quantized() -> None:
    """They keep lists in attributes that end like tables of hooks."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    x = torch.randn(2, 64)
    traced = torch.fx.symbolic_trace(model)
    assert torch.allclose(quantized(traced)(x), model(x), atol=0.1)


def test_a_slice_of_a_packed_list_of_parameters_is_a_list() -> None:
    """Of the dequantized matrices."""

    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrices = nn.ParameterList([nn.Parameter(torch.randn(8, 8)) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            for matrix in self.matrices[:2]:
                x = x @ matrix
            return x

    model, x = Owner(), torch.randn(2, 8)
    packed = quantized(model)
    assert torch.equal(packed(x), x @ packed.matrices[0] @ packed.matrices[1])


def test_a_static_layer_loads_where_meta_is_the_default_device(tmp_path: Path) -> None:
    """What the file does not need is not made there."""
    model = nn.Sequential(nn.Linear(64, 8))
    result = mq.quantize(model, bits=8, activations="static", calibration_data=[torch.randn(60, 64)])
    mq.save(result, tmp_path / "static.safetensors")
    with torch.device("meta"):
        loaded = mq.load(tmp_path / "static.safetensors", nn.Sequential(nn.Linear(64, 8)))
    x = torch.randn(2, 64)
    assert torch.equal(loaded(x), result.model(x))


def test_frozen_weights_come_back_frozen(tmp_path: Path) -> None:
    """And others trainable, also after loading."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[0].requires_grad_(False)
    result = mq.quantize(model, bits=8)
    mq.save(result, tmp_path / "frozen.safetensors")
    for packed in (result.model, mq.load(tmp_path / "frozen.safetensors", copy.deepcopy(model))):
        flags = {name: parameter.requires_grad for name, parameter in mq.dequantize(packed).named_parameters()}
        assert flags == {"0.weight": False, "0.bias": False, "1.weight": True, "1.bias": True}


def test_a_layer_that_would_not_shrink_is_left_alone() -> None:
    """A scale for each row of one number saves nothing."""
    report = mq.quantize(nn.Sequential(nn.Linear(1, 512), nn.Linear(512, 8)), bits=8).report
    assert report.layers[0].reason == "packed it would be no smaller: 2.0 KiB -> 2.5 KiB"


def test_a_weight_like_that_of_a_convolution_is_packed_by_its_first_axis() -> None:
    """In a module that nobody knows; groups of three numbers would cost more than they save."""

    class OwnConvolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(16, 16, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.kernel)

    assert quantized(OwnConvolution()).packed_kernel.scale.shape == (16, 1)


def test_buffers_of_a_state_dict_stay_buffers(tmp_path: Path) -> None:
    """A state dict does not say which is which; the float model does."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(100, 64, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table[: len(x)]

    model, x = Positions(), torch.randn(5, 64)
    mq.save(mq.quantize(model.state_dict(), bits=8), tmp_path / "positions.safetensors")
    loaded = mq.load(tmp_path / "positions.safetensors", Positions())
    assert torch.allclose(loaded(x), model(x), atol=0.05)
    back = mq.dequantize(loaded)
    assert [name for name, _ in back.named_buffers()] == ["table"]
    assert list(back.parameters()) == []


def test_state_dicts_of_parametrized_models_are_covered() -> None:
    """What a weight is computed from stays in float, with the reason and what to do."""
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(64, 64)), nn.Linear(64, 64))
    report = mq.quantize(model.state_dict(), bits=8).report
    assert sum(record.parameters for record in report.layers) == sum(one.numel() for one in model.parameters())
    record = next(record for record in report.layers if record.layer == "0.parametrizations.weight")
    assert record.reason == "a parametrization computes a weight from it"
    assert "give the model itself" in record.remedy


def test_ordinary_names_in_a_state_dict_are_no_sign_of_packing() -> None:
    """A float tensor may be called layout."""
    result = mq.quantize({"packed_x.layout": torch.randn(64, 64), "l.weight": torch.randn(64, 64)}, bits=8)
    assert result.info.selected_layers == ["packed_x", "l"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_model_of_integers_can_be_traced() -> None:
    """Also in its first call."""
    model, x = (
        quantized(nn.Sequential(nn.Linear(64, 64)), activations="dynamic", run_validation=False),
        torch.randn(2, 64),
    )
    exact_method.cache_clear()
    traced = torch.jit.trace(model, x)
    assert torch.equal(traced(x), model(x))
