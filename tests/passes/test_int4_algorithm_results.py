"""Results of fitted codes: dtypes, biases, saving, what is left alone and what is undone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.algorithms.clip_search import ClipSearch
from monoquant.algorithms.gptq import Gptq
from monoquant.batches import HELD_OUT_OF
from tests.closeness import assert_same_sums
from tests.passes.algorithm_cases import FEATURES, QUIET, Net, algorithms, assert_same, build, bytes_of, data, noise


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("algorithm", ["gptq", "clip_search"])
def test_models_of_other_dtypes(dtype: torch.dtype, algorithm: str) -> None:
    """Weights and biases keep their dtype, codes are fitted, and the result is better than a rounded one."""
    model, fresh = build().to(dtype), data(500, 1, dtype)
    options = {"calibration_data": [data(dtype=dtype)], **QUIET}
    result = mq.quantize(model, algorithm=algorithm, **options)
    assert algorithms(result)["q"] == algorithm
    assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
    assert result.model.q.weight.dtype == dtype
    nearest = mq.quantize(model, algorithm="round_to_nearest", **options).model
    assert noise(model, result.model, fresh) < noise(model, nearest, fresh)


def test_the_users_model_is_left_alone(unchanged: Any) -> None:
    """Weights, biases, flags and hooks, and no gradient is left in it."""
    model = build().train()
    check = unchanged(model)
    result = mq.quantize(model, calibration_data=[data()], **QUIET)
    check()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not torch.equal(result.model.q.bias, model.q.bias)
    assert result.model.q.bias.requires_grad
    assert not result.model.q._forward_pre_hooks
    assert not result.model.q._forward_hooks


def test_frozen_biases_stay_frozen() -> None:
    """A corrected bias is as trainable as it was."""
    model = build()
    model.q.bias.requires_grad_(False)
    result = mq.quantize(model, calibration_data=[data()], **QUIET).model
    assert not result.q.bias.requires_grad
    assert result.v.bias.requires_grad
    assert not torch.equal(result.q.bias, model.q.bias)


def test_in_place() -> None:
    """The model becomes what the copy would have been."""
    model = build()
    copied = mq.quantize(build(), calibration_data=[data()], **QUIET).model
    result = mq.quantize(model, calibration_data=[data()], inplace=True, **QUIET)
    assert result.model is model
    assert_same(bytes_of(model), bytes_of(copied))


def test_a_later_failure_leaves_biases_as_they_were(unchanged: Any) -> None:
    """Also in place, after codes and biases were chosen."""

    class Late(mq.Pass):
        follows: ClassVar[tuple[type[mq.Pass], ...]] = (mq.Int4PackPass,)

        def run(self, context: mq.QuantContext) -> None:
            assert "q" in context.packed
            assert context.packed["q"].biases.keys() == {"bias"}
            raise RuntimeError("late")

    model = build()
    check = unchanged(model)
    passes = [mq.SkipSelectionPass(), mq.CalibrationPass([data()]), mq.Int4PackPass(32), Late()]
    with pytest.raises(RuntimeError, match="late"):
        mq.Quantizer(passes).run(model, inplace=True)
    check()


def test_saving_and_loading_keeps_corrected_biases(tmp_path: Path) -> None:
    """Into a fresh model with other weights; outputs are the same, bit for bit."""
    result = mq.quantize(build(), calibration_data=[data()], **QUIET)
    mq.save(result, tmp_path / "model.safetensors")
    loaded = mq.load(tmp_path / "model.safetensors", build(seed=7))
    assert_same(bytes_of(loaded), bytes_of(result.model))
    with torch.no_grad():
        assert torch.equal(loaded(data(9, 1)), result.model(data(9, 1)))


def test_dequantizing_keeps_corrected_biases() -> None:
    """Float modules of the original classes that compute what the packed ones do."""
    result = mq.quantize(build(), calibration_data=[data()], exact=True, **QUIET)
    plain = mq.dequantize(result.model)
    assert type(plain.q) is nn.Linear
    assert torch.equal(plain.q.bias, result.model.q.bias)
    assert not torch.equal(plain.q.bias, build().q.bias)
    with torch.no_grad():
        assert_same_sums(result.model(data(9, 1)), plain(data(9, 1)))


def test_a_fitted_model_can_be_copied_and_trained() -> None:
    """What is left in float has gradients, corrected biases among it."""
    result = mq.quantize(build(), calibration_data=[data()], **QUIET)
    model = copy.deepcopy(result.model)
    model(data(9)).square().mean().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        "q.bias",
        "v.bias",
        "out.bias",
    }


def global_settings() -> list[Any]:
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_global_settings_are_left_alone(fails: bool) -> None:
    """Modes, threads, kernels and random numbers, also if the model fails half-way."""
    seen: list[list[Any]] = []

    class Observed(Net):
        def forward(self, x: Tensor) -> Tensor:
            if fails and seen:
                raise ValueError
            seen.append([])
            return super().forward(x)

    model = Observed()
    before = global_settings()
    try:
        mq.quantize(model, calibration_data=list(data().split(64)), **QUIET)
    except mq.InputError:
        assert fails
    assert global_settings() == before


@pytest.mark.parametrize("algorithm", [ClipSearch(), Gptq()])
def test_layers_of_every_precision_side_by_side(algorithm: WeightAlgorithm) -> None:
    """Only INT4 layers are fitted; the others are reduced as ever, and share no statistics."""
    rules = [mq.NameRule("k", skip_to="int8"), mq.NameRule("out", skip_to="float16")]
    result = mq.quantize(build(), rules=rules, algorithm=algorithm, calibration_data=[data()], **QUIET)
    records = {record.layer: record for record in result.report.layers}
    assert {layer: str(record.scheme).split()[0] for layer, record in records.items()} == {
        "q": "int4",
        "k": "int8",
        "v": "int4",
        "out": "float16",
    }
    assert {layer: record.algorithm for layer, record in records.items()} == {
        "q": algorithm.name,
        "k": "",
        "v": algorithm.name,
        "out": "",
    }
    assert torch.equal(result.model.out.bias, build().out.bias)


def test_a_replaced_weight_is_what_is_fitted() -> None:
    """A pass before may give another weight; its inputs are still those of the model."""

    class Doubling(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            context.replace_weight("q", 2 * context.weight("q"))

    passes = [mq.SkipSelectionPass(), mq.CalibrationPass([data()]), Doubling(), mq.Int4PackPass(32)]
    found = mq.Quantizer(passes).run(build()).model.q.packed_weight.dequantize().detach()
    error = found - 2 * build().q.weight.detach()
    assert float(error.square().mean()) < 0.02 * float(found.square().mean())


@pytest.mark.parametrize("make", [lambda: data(), lambda: data()[0]], ids=["many", "one"])
def test_few_samples_are_no_error(make: Callable[[], Tensor]) -> None:
    """A single sample leaves nothing to hold out, and is too little to fit to."""
    batch = make().view(-1, FEATURES)
    result = mq.quantize(build(), calibration_data=[batch], **QUIET)
    facts = result.report.calibration
    assert facts.held_out == (min(len(batch), 150) + HELD_OUT_OF - 2) // HELD_OUT_OF
    codes = {finding.code for finding in result.report.findings}
    assert ("measured-on-fitted" in codes) == (facts.held_out == 0)
    assert ("algorithm-fell-back" in codes) == (len(batch) == 1)
