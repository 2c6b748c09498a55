"""monoquant's ways, through its public API alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor, nn

import monoquant as mq
from speed.ways import Way

BITS = 4.15625
"""A 16-bit scale and a 4-bit zero point for 128 weights."""
PLUGIN = "monoquant-cpu"
OPTIONS: dict[str, Any] = {"group_size": 128, "accuracy_warning": "ignore"}


def plugin_version() -> str | None:
    """The version of the native kernels, if they are installed."""
    try:
        return version(PLUGIN)
    except PackageNotFoundError:
        return None


def quantize(model: nn.Module, *, exact: bool, plugins: bool, **options: Any) -> nn.Module:
    """INT4 in groups of 128, with the kernels that are allowed.

    Args:
        model: The float model.
        exact: Forbid kernels that round activations.
        plugins: Allow native kernels.
        options: Of the call.
    """
    kernels = {"exact": exact} if CHOOSES_KERNELS else {}
    return mq.quantize(model, 4, plugins=plugins, **kernels, **OPTIONS, **options).model


CHOOSES_KERNELS = "exact" in inspect.signature(mq.quantize).parameters


def dequantized(packed: nn.Module) -> Tensor:
    """What the packed weight stands for."""
    weight: Any = packed.weight
    found: Tensor = weight.float()
    return found


def kernel_name(packed: Any) -> str:
    """The kernel that a layer multiplies with."""
    (weight,) = packed.packed_weights().values()
    return str(getattr(weight, "kernel_name", "portable"))


def _ways() -> Iterator[Way]:
    choices = {"portable exact": (True, False)}
    if CHOOSES_KERNELS:
        choices |= {"portable approximate": (False, False)}
        if plugin_version():
            choices |= {"native exact": (True, True), "native approximate": (False, True)}
    for name, (exact, plugins) in choices.items():
        integer = name == "native approximate"
        quantizer = partial(quantize, exact=exact, plugins=plugins, inplace=True)
        yield Way(
            f"monoquant {name}",
            BITS,
            ("float32", "bfloat16"),
            integer,
            quantizer,
            dequantized,
            kernel_name,
            quantization=False,
        )
    for plugins in [False, True] if plugin_version() else [False]:
        name = "monoquant native" if plugins else "monoquant portable"
        for inplace in (False, True):
            call = partial(quantize, exact=True, plugins=plugins, inplace=inplace)
            yield Way(f"{name}{', inplace=True' if inplace else ''}", BITS, (), quantize=call, models=False)
        call = partial(quantize, exact=True, plugins=plugins, inplace=True, run_validation=False)
        yield Way(f"{name}, inplace=True, run_validation=False", BITS, (), quantize=call, models=False)


NATIVE = f" with {PLUGIN} {plugin_version()}" if plugin_version() else ""
VERSION = f"monoquant {mq.__version__}{NATIVE}"
WAYS = list(_ways())
