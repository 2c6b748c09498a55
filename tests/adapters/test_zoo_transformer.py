"""TransformerEncoder: nearly all of it is packed, and torch's fused kernel bypasses no Linear that multiplies codes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import monoquant as mq
from monoquant.modules.integer_compute import IntegerCompute
from monoquant.testing.zoo import Specimen
from monoquant.testing.zoo import specimen as named

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")

Outputs = Callable[[nn.Module, tuple[Any, ...]], list[Tensor]]

LAYER, ENCODER = named("TransformerEncoderLayer"), named("TransformerEncoder")
KINDS = pytest.mark.parametrize("specimen", [LAYER, ENCODER], ids=str)
INTEGERS = ("int8-dynamic", "int8-static")
KEPT_OFF = ("int4", "int8", *INTEGERS)
"""Where Linears multiply with packed weights, which the fused kernel would dequantize."""


@pytest.fixture(params=["no mask", "padding"])
def inputs(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    """A batch, as it is or with padding at the end of two sequences, which makes an encoder use nested tensors."""
    (x,) = ENCODER.inputs()
    if request.param == "no mask":
        return (x,)
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    mask[0, 4:] = mask[2, 6:] = True
    return x, None, mask


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each call of the fused kernel of an encoder layer."""
    calls: list[str] = []
    real = torch._transformer_encoder_layer_fwd

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        calls.append("fused")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", counting)
    return calls


@pytest.fixture
def slow_path() -> Iterator[Callable[[bool], None]]:
    """A switch that keeps torch from its fused kernels, off again afterwards."""
    before = torch.backends.mha.get_fastpath_enabled()
    yield lambda on: torch.backends.mha.set_fastpath_enabled(not on)
    torch.backends.mha.set_fastpath_enabled(before)


def real_tokens(answer: Tensor, inputs: tuple[Any, ...]) -> Tensor:
    """The part of an answer that is not padding."""
    return answer[~inputs[2]] if len(inputs) == 3 else answer


@KINDS
def test_nearly_all_parameters_are_packed(specimen: Specimen, precision: str, result: mq.QuantResult) -> None:
    """All matrices are in, that is 95 % of the parameters: attention's as well, though it keeps no Linears for them."""
    original = dict(specimen.build().named_parameters())
    packed = [
        original[f"{layer}.{name}".lstrip(".")]
        for layer, module in result.model.named_modules()
        if isinstance(module, mq.PackedModule)
        for name in module.packed_weights()
    ]
    assert sum(one.numel() for one in packed) >= 0.95 * sum(one.numel() for one in original.values())
    assert len(packed) == sum(one.dim() >= 2 for one in original.values())


@KINDS
def test_the_fused_kernel_computes_what_the_modules_would(
    specimen: Specimen,
    precision: str,
    result: mq.QuantResult,
    inputs: tuple[Any, ...],
    fused: list[str],
    slow_path: Callable[[bool], None],
    outputs: Outputs,
) -> None:
    """It is taken where Linears dequantize anyway; where they multiply with packed weights, it never is."""
    fast = real_tokens(outputs(result.model, inputs)[0], inputs)
    layers = [module for module in result.model.modules() if isinstance(module, nn.TransformerEncoderLayer)]
    assert len(fused) == (0 if precision in KEPT_OFF else len(layers))
    slow_path(True)
    fused.clear()
    slow = real_tokens(outputs(result.model, inputs)[0], inputs)
    assert not fused
    assert_close(fast, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", INTEGERS)
def test_with_padding_no_integer_layer_is_bypassed(
    precision: str,
    inputs: tuple[Any, ...],
    result_of: Callable[[str, str], mq.QuantResult],
    monkeypatch: pytest.MonkeyPatch,
    outputs: Outputs,
) -> None:
    """Each Linear of each layer multiplies integers in each forward, nested or not."""
    model = result_of(ENCODER.name, precision).model
    expected = {module for module in model.modules() if isinstance(module, IntegerCompute)}
    assert len(expected) == 4
    called: set[nn.Module] = set()
    for kind in {type(module) for module in expected}:
        real = kind.integer_rows
        monkeypatch.setattr(kind, "integer_rows", lambda self, *args, real=real: called.add(self) or real(self, *args))
    outputs(model, inputs)
    assert called == expected


@KINDS
@pytest.mark.parametrize("how", ["copy", "load", "dequantize"])
def test_the_fused_kernel_stays_off_or_comes_back(
    specimen: Specimen,
    how: str,
    precision: str,
    result: mq.QuantResult,
    fused: list[str],
    outputs: Outputs,
    tmp_path: Any,
) -> None:
    """A copy and a loaded model keep off it like the first; a dequantized one uses it as before."""
    if how == "copy":
        model = copy.deepcopy(result.model)
    elif how == "dequantize":
        model = mq.dequantize(result.model)
    else:
        mq.save(result, tmp_path / "model.safetensors")
        model = mq.load(tmp_path / "model.safetensors", specimen.build(99))
    outputs(model, specimen.inputs())
    layers = [module for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer)]
    assert len(fused) == (0 if precision in KEPT_OFF and how != "dequantize" else len(layers))


def test_the_nested_path_is_the_one_with_padding(inputs: tuple[Any, ...], outputs: Outputs) -> None:
    """Padding comes back as zeros only from nested tensors, so that the tests above do run them."""
    (answer,) = outputs(ENCODER.build(), inputs)
    assert len(inputs) == 1 or not answer[inputs[2]].any()
