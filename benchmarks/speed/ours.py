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


CHOICES: dict[str, dict[str, bool]] = {
    "portable exact": {"exact": True, "plugins": False},
    "portable approximate": {"exact": False, "plugins": False},
    "native exact": {"exact": True, "plugins": True},
    "native approximate": {"exact": False, "plugins": True},
}
"""What kernels may do: round activations, or come from plugins."""
CHOOSES_KERNELS = "exact" in inspect.signature(mq.quantize).parameters


def kernel_options(name: str) -> dict[str, bool]:
    """Options of a call that choose kernels, by the name of a way.

    A version without such options has one kernel, which is exact.
    """
    options = CHOICES[name.removeprefix("monoquant ")]
    return options if CHOOSES_KERNELS else {"plugins": options["plugins"]}


def quantize(model: nn.Module, **options: Any) -> nn.Module:
    """INT4 in groups of 128."""
    return mq.quantize(model, 4, **OPTIONS, **options).model


def dequantized(packed: nn.Module) -> Tensor:
    """What the packed weight stands for."""
    weight: Any = packed.weight
    found: Tensor = weight.float()
    return found


def kernel_name(packed: Any) -> str:
    """The kernel that a layer multiplies with."""
    (weight,) = packed.packed_weights().values()
    return str(weight.kernel.name)


def _choices() -> list[str]:
    """The names of the choices that this installation has."""
    there = [name for name in CHOICES if plugin_version() or not name.startswith("native")]
    return there if CHOOSES_KERNELS else ["portable exact"]


def _kernel_ways() -> Iterator[Way]:
    for name in _choices():
        yield Way(
            f"monoquant {name}",
            BITS,
            ("float32", "bfloat16"),
            integer=name == "native approximate",
            quantize=partial(quantize, inplace=True, **kernel_options(name)),
            weight=dequantized,
            kernel=kernel_name,
            quantization=False,
        )


def _quantization_ways() -> Iterator[Way]:
    calls: dict[str, dict[str, bool]] = {
        "": {},
        ", inplace=True": {"inplace": True},
        ", inplace=True, run_validation=False": {"inplace": True, "run_validation": False},
    }
    for plugins in [False, True] if plugin_version() else [False]:
        for name, options in calls.items():
            quantizer = partial(quantize, plugins=plugins, **options)
            title = f"monoquant {'native' if plugins else 'portable'}{name}"
            yield Way(title, BITS, (), quantize=quantizer, models=False)


NATIVE = f" with {PLUGIN} {plugin_version()}" if plugin_version() else ""
VERSION = f"monoquant {mq.__version__}{NATIVE}"
WAYS = [*_kernel_ways(), *_quantization_ways()]
