"""What monoquant asks of this package."""

from __future__ import annotations

from collections.abc import Iterable

import monoquant as mq

from monoquant_cpu.kernels import CpuFloat, CpuInt8, CpuRounding
from monoquant_cpu.library import Unavailable, load


class NativeKernelsCheck(mq.WarningCheck):
    """Tells when this package is installed and its native library cannot be used."""

    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        library = load()
        if not isinstance(library, Unavailable):
            return []
        message = f"monoquant-cpu brings no kernels here: {library.reason}."
        remedy = "Portable kernels take their place."
        return [mq.Finding("native-kernels-missing", mq.Severity.INFO, message, None, remedy)]


@mq.hookimpl
def monoquant_register_kernels() -> Iterable[mq.Kernel]:
    """Register the native kernels."""
    return [CpuInt8(), CpuFloat(), CpuRounding()]


@mq.hookimpl
def monoquant_register_warning_checks() -> Iterable[mq.WarningCheck]:
    """Register the check that tells why there are none."""
    return [NativeKernelsCheck()]
