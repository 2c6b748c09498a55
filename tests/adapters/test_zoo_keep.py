"""Every kind of module with packed weights is kept: in files, pickles and state dicts, and turned back into floats."""

from __future__ import annotations

import io
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

import monoquant as mq
from monoquant.modules.integer_compute import IntegerCompute
from monoquant.modules.kernel_compute import KernelCompute
from monoquant.testing.zoo import Specimen, specimens

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

Outputs = Callable[[nn.Module, tuple[Any, ...]], list[Tensor]]


@pytest.fixture
def assert_same(specimen: Specimen, result: mq.QuantResult, outputs: Outputs) -> Callable[[nn.Module], None]:
    """Fail unless a model answers bit for bit as the result does, to inputs that calibration did not see."""

    def check(model: nn.Module) -> None:
        for inputs in (specimen.inputs(), specimen.inputs(5)):
            for one, other in zip(outputs(model, inputs), outputs(result.model, inputs), strict=True):
                assert torch.equal(one, other)

    return check


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_computes_the_same(result: mq.QuantResult, how: str, assert_same: Callable[[nn.Module], None]) -> None:
    """A packed model goes through pickle, although its classes are made at run time."""
    if how == "pickle":
        assert_same(pickle.loads(pickle.dumps(result.model)))
        return
    file = io.BytesIO()
    torch.save(result.model, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=False))


_ANOTHER_PROCESS = """
import sys, warnings, torch
warnings.simplefilter("ignore")
models = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    torch.save({name: model(*inputs) for name, (model, inputs) in models.items()}, sys.argv[2])
"""


@pytest.mark.parametrize("precision", ["int4", "int8-static"])
def test_another_process_can_load_the_pickles(
    precision: str, result_of: Callable[[str, str], mq.QuantResult], outputs: Outputs, tmp_path: Path
) -> None:
    """The classes are made again where they never were."""
    models = {one.name: (result_of(one.name, precision).model, one.inputs()) for one in specimens()}
    torch.save(models, tmp_path / "models.pt")
    subprocess.run(
        [sys.executable, "-c", _ANOTHER_PROCESS, tmp_path / "models.pt", tmp_path / "answers.pt"], check=True
    )
    answers = torch.load(tmp_path / "answers.pt", weights_only=False)
    assert answers.keys() == models.keys()
    for name, (model, inputs) in models.items():
        expected = outputs(model, inputs)
        found = outputs(lambda name=name: answers[name], ())
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other), name


def test_a_state_dict_goes_into_another_quantized_instance(
    specimen: Specimen,
    precision: str,
    result: mq.QuantResult,
    quantize_all: Callable[..., mq.QuantResult],
    assert_same: Callable[[nn.Module], None],
) -> None:
    """One that was built, calibrated and quantized with other values answers as this one does."""
    other = quantize_all(specimen.build(7), precision, [specimen.inputs(7)]).model
    assert list(other.state_dict()) == list(result.model.state_dict())
    other.load_state_dict(result.model.state_dict(), strict=True)
    assert_same(other)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_file_goes_into_a_fresh_float_model(
    specimen: Specimen,
    result: mq.QuantResult,
    device: str,
    assert_same: Callable[[nn.Module], None],
    tmp_path: Path,
) -> None:
    """The model that is loaded has the classes of the saved one and answers bit for bit as it does."""
    mq.save(result, tmp_path / "model.safetensors")
    fresh = specimen.build(99).to(device)
    assert mq.load(tmp_path / "model.safetensors", fresh) is fresh
    assert_same(fresh)
    assert [type(module) for module in fresh.modules()] == [type(module) for module in result.model.modules()]
    assert list(fresh.state_dict()) == list(result.model.state_dict())
    assert mq.load_report(tmp_path / "model.safetensors") == result.report


def test_a_loaded_model_can_be_saved_again(
    specimen: Specimen, result: mq.QuantResult, assert_same: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    """A second generation is as good as the first."""
    mq.save(result, tmp_path / "first.safetensors")
    first = mq.load(tmp_path / "first.safetensors", specimen.build(99))
    mq.save(mq.QuantResult(first, result.info, result.report), tmp_path / "second.safetensors")
    assert (tmp_path / "second.safetensors").read_bytes() == (tmp_path / "first.safetensors").read_bytes()
    assert_same(mq.load(tmp_path / "second.safetensors", specimen.build(98)))


def test_dequantizing_gives_the_float_module_with_the_packed_values(specimen: Specimen, result: mq.QuantResult) -> None:
    """Classes, names and their order are the original ones, values exactly those that were computed with."""
    original, floating = specimen.build(), mq.dequantize(result.model)
    if specimen.is_reparametrized:
        assert type(floating) is type_before_parametrizations(original)
        assert list(floating.state_dict()) == list(specimen.make().state_dict())
        assert not floating._forward_pre_hooks
    else:
        assert [type(module) for module in floating.modules()] == [type(module) for module in original.modules()]
        assert list(floating.state_dict()) == list(original.state_dict())
        names = [name for name, _ in original.named_parameters()]
        assert [name for name, _ in floating.named_parameters()] == names
    assert vars(floating).keys() == vars(specimen.make()).keys()
    assert all(parameter.requires_grad for parameter in floating.parameters())
    for layer, names in specimen.packed.items():
        weights = result.model.get_submodule(layer).packed_weights()
        for name in names:
            assert torch.equal(floating.get_submodule(layer).get_parameter(name), weights[name].dequantize())


def test_a_dequantized_module_computes_what_the_packed_one_did(
    specimen: Specimen,
    result: mq.QuantResult,
    exact_model: nn.Module,
    assert_same: Callable[[nn.Module], None],
    outputs: Outputs,
    sqnr: Callable[[Tensor, Tensor], float],
) -> None:
    """But for the rounding of inputs, where those were rounded, also by a kernel; the packed model is left alone."""
    inputs = specimen.inputs()
    packed, exact = outputs(result.model, inputs), outputs(exact_model, inputs)
    floating = mq.dequantize(result.model)
    integers = any(isinstance(module, IntegerCompute) for module in result.model.modules())
    for one, other, exact_one in zip(outputs(floating, inputs), packed, exact, strict=True):
        if integers:
            assert 30 < sqnr(one, other) < 70
        else:
            assert sqnr(one, other) > _decibels_of_kernels(result.model)
            torch.testing.assert_close(one, exact_one, rtol=1e-5, atol=1e-6)
    assert any(isinstance(module, mq.PackedModule) for module in result.model.modules())
    assert_same(result.model)


def _decibels_of_kernels(model: nn.Module) -> float:
    """What outputs keep of the products of the least exact kernel, which is the rule where layers follow each other."""
    kernels = [module.packed_weight.kernel for module in model.modules() if isinstance(module, KernelCompute)]
    return -20 * math.log10(max((kernel.relative_error for kernel in kernels), default=0) or 1e-5)


def test_a_dequantized_module_can_be_quantized_again(
    specimen: Specimen,
    precision: str,
    result: mq.QuantResult,
    quantize_all: Callable[..., mq.QuantResult],
    outputs: Outputs,
    sqnr: Callable[[Tensor, Tensor], float],
) -> None:
    """Nothing of the first time is in the way, and little is lost: values are near the codes already."""
    again = quantize_all(mq.dequantize(result.model), precision, [specimen.inputs()])
    assert {one.layer: one.weights for one in again.report.layers} == {
        one.layer: one.weights for one in result.report.layers
    }
    for one, other in zip(
        outputs(again.model, specimen.inputs()), outputs(result.model, specimen.inputs()), strict=True
    ):
        assert sqnr(other, one) > 20
