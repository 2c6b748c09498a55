"""Every specimen of the zoo in every precision, quantized once for the tests that only look."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.kernels.choice import Offer
from monoquant.modules.kernel_compute import choose_kernels
from monoquant.testing.zoo import Specimen, specimens
from monoquant.testing.zoo import specimen as named

PRECISIONS: Final[Mapping[str, dict[str, Any]]] = MappingProxyType(
    {
        "int4": {"bits": 4, "group_size": 32},
        "int8": {"bits": 8},
        "int8-dynamic": {"bits": 8, "activations": "dynamic"},
        "int8-static": {"bits": 8, "activations": "static"},
        "float16": {"bits": 16},
    }
)
EVERYTHING: Final = {"skip_param_threshold": 0, "skip_layer_types": [], "modules_to_not_convert": []}


def quantize(model: nn.Module, precision: str, data: list[Any], **options: Any) -> mq.QuantResult:
    """Quantize all that can be, quietly and without plugins."""
    quiet: dict[str, Any] = {"accuracy_warning": "ignore", "plugins": False}
    return mq.quantize(model, calibration_data=data, **PRECISIONS[precision], **EVERYTHING, **quiet, **options)


@functools.cache
def quantized(name: str, precision: str) -> mq.QuantResult:
    """A specimen in a precision; tests must not change it."""
    one = named(name)
    return quantize(one.build(), precision, [one.inputs()])


@pytest.fixture(params=specimens(), ids=str)
def specimen(request: pytest.FixtureRequest) -> Specimen:
    """Each specimen of the zoo."""
    return request.param


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    """Each precision."""
    return request.param


@pytest.fixture
def result(specimen: Specimen, precision: str) -> mq.QuantResult:
    """A specimen in a precision; not to be changed."""
    return quantized(specimen.name, precision)


@functools.cache
def _exact(name: str, precision: str) -> nn.Module:
    model = copy.deepcopy(quantized(name, precision).model)
    choose_kernels(model, Offer(exact=True))
    return model


@pytest.fixture
def exact_model(specimen: Specimen, precision: str) -> nn.Module:
    """The model of the result, multiplied by kernels as exact as float32 products; not to be changed."""
    return _exact(specimen.name, precision)


@pytest.fixture
def result_of() -> Callable[[str, str], mq.QuantResult]:
    """The same by names."""
    return quantized


@pytest.fixture
def quantize_all() -> Callable[..., mq.QuantResult]:
    """``quantize(model, precision, data, **options)`` with nothing skipped."""
    return quantize


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)


@pytest.fixture
def outputs() -> Callable[[nn.Module, tuple[Any, ...]], list[Tensor]]:
    """``outputs(model, inputs)``: all tensors of the answer, without gradients."""

    def run(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
        with torch.no_grad():
            return list(_tensors(model(*inputs)))

    return run


@pytest.fixture
def sqnr() -> Callable[[Tensor, Tensor], float]:
    """``sqnr(reference, approximation)`` in dB, from energies in float64."""

    def decibels(reference: Tensor, approximation: Tensor) -> float:
        exact = reference.double()
        return float(10 * torch.log10(exact.square().sum() / (exact - approximation.double()).square().sum()))

    return decibels
