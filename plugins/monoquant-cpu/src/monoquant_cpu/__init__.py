"""INT4 weights packed and multiplied by native CPU kernels."""

from __future__ import annotations

from monoquant_cpu.kernels import CpuFloat, CpuInt8, CpuRounding
from monoquant_cpu.library import Library, Unavailable, load

__all__ = ["CpuFloat", "CpuInt8", "CpuRounding", "Library", "Unavailable", "load"]
