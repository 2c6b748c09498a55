"""Models, data and questions for tests of fitted codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.algorithms.clip_search import ClipSearch
from monoquant.algorithms.gptq import Gptq
from monoquant.batches import HELD_OUT_OF

FEATURES = 64
UNWEIGHTED = Gptq(weigh_rows=False)
each = pytest.mark.parametrize("algorithm", [ClipSearch(), Gptq(), UNWEIGHTED], ids=["clip_search", "gptq", "alike"])


def rows(count: int, seed: int = 0, features: int = FEATURES, mixing: int = 99) -> Tensor:
    """Rows that mostly lie in a few directions, which ``mixing`` decides, and have a mean."""
    generator = torch.Generator().manual_seed(mixing)
    directions, mean = torch.randn(10, features, generator=generator), torch.randn(features, generator=generator)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, features, generator=generator)
    return torch.randn(count, 10, generator=generator) @ directions + 0.3 * noise + mean


def linear(features: int = FEATURES, outputs: int = 48, bias: bool = True) -> nn.Sequential:
    """One Linear with Gaussian weights."""
    model = nn.Sequential(nn.Linear(features, outputs, bias=bias))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return model.eval()


def fit(model: nn.Module, batches: Any, algorithm: WeightAlgorithm | str = "auto", **options: Any) -> mq.QuantResult:
    """Quantize with groups of 32, quietly, all layers; what is measured is what codes and biases do, and no kernel."""
    correct_bias = options.pop("correct_bias", True)
    pack = mq.Int4PackPass(32, algorithm=algorithm, correct_bias=correct_bias, exact=True)
    calibration = mq.CalibrationPass(batches, num_samples=10**6, **options)
    return mq.Quantizer([mq.SkipSelectionPass(), calibration, pack, mq.ValidationPass()]).run(model)


def by_forward(model: nn.Module, batch: Any) -> Any:
    """Runs a whole batch: nothing of it is held out unless it is the second one."""
    return model(batch)


def algorithms(result: mq.QuantResult) -> dict[str, str]:
    return {record.layer: record.algorithm for record in result.report.by_action(mq.Action.QUANTIZE)}


def codes(model: nn.Module, layer: str = "0", name: str = "weight") -> tuple[Tensor, Tensor, Tensor]:
    packed = model.get_submodule(layer).packed_weights()[name]
    found = packed.read_rows(slice(0, packed.rows))
    return found.codes, found.scale, found.zero_point


def assert_rounded(result: mq.QuantResult, model: nn.Module, layer: str = "0", name: str = "weight") -> None:
    """The weight's codes are those of rounding to nearest."""
    nearest = mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass(32)]).run(model).model
    for one, other in zip(codes(result.model, layer, name), codes(nearest, layer, name), strict=True):
        assert torch.equal(one, other)


def assert_finite(model: nn.Module) -> None:
    assert all(bool(torch.isfinite(tensor).all()) for tensor in mq.dequantize(model).state_dict().values())


def noise(model: nn.Module, quantized: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float((model(inputs) - quantized(inputs)).double().square().mean())


def nearest(model: nn.Module) -> nn.Module:
    return mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass(32, exact=True)]).run(model).model


def fitted_part(batch: Tensor) -> Tensor:
    """The samples of a batch that codes are fitted to."""
    return batch[: len(batch) - (len(batch) + HELD_OUT_OF - 2) // HELD_OUT_OF]
