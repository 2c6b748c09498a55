"""What monoquant itself contributes, registered the way a plugin registers its own."""

from __future__ import annotations

from collections.abc import Iterable

from monoquant.adapters.base import ModuleAdapter
from monoquant.adapters.choice import BUILT_IN_ADAPTERS
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.algorithms.choice import ALGORITHMS
from monoquant.checks import BUILT_IN_CHECKS, WarningCheck
from monoquant.formats.base import Exporter
from monoquant.formats.compressed_tensors import CompressedTensorsExporter
from monoquant.formats.gguf import GgufExporter
from monoquant.formats.gptq import GptqExporter
from monoquant.formats.huggingface import HuggingFaceExporter
from monoquant.formats.native import NativeExporter
from monoquant.hooks.specs import hookimpl
from monoquant.kernels.base import Kernel
from monoquant.kernels.choice import BUILT_IN_KERNELS
from monoquant.ranges import BUILT_IN_OBSERVERS, ObserverKind
from monoquant.report.reporters import BUILT_IN_REPORTERS, Reporter
from monoquant.values import AnyScheme


@hookimpl
def monoquant_register_warning_checks(
    scheme: AnyScheme,  # noqa: ARG001 - the hook's signature
) -> Iterable[WarningCheck]:
    """Register the built-in checks."""
    return BUILT_IN_CHECKS


@hookimpl
def monoquant_register_module_adapters() -> Iterable[ModuleAdapter]:
    """Register the built-in adapters."""
    return BUILT_IN_ADAPTERS


@hookimpl
def monoquant_register_algorithms() -> Iterable[WeightAlgorithm]:
    """Register the built-in algorithms."""
    return ALGORITHMS


@hookimpl
def monoquant_register_observers() -> Iterable[ObserverKind]:
    """Register the built-in observers."""
    return BUILT_IN_OBSERVERS


@hookimpl
def monoquant_register_kernels() -> Iterable[Kernel]:
    """Register the portable kernels, and those of torch's own operators."""
    return BUILT_IN_KERNELS


@hookimpl
def monoquant_register_exporters() -> Iterable[Exporter]:
    """Register monoquant's own file, and what other tools read."""
    return [
        NativeExporter(),
        CompressedTensorsExporter(),
        GptqExporter(),
        HuggingFaceExporter(),
        GgufExporter(),
    ]


@hookimpl
def monoquant_register_reporters() -> Iterable[Reporter]:
    """Register the table, JSON and HTML."""
    return BUILT_IN_REPORTERS
