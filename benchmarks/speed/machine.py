"""The machine and the versions that numbers belong to."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

TELLING = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd")
"""Flags that decide which kernels can run."""


def facts(threads: int) -> dict[str, Any]:
    """The machine, its flags, and what runs here.

    Args:
        threads: That were asked for.
    """
    name, flags = _cpu()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": name,
        "cores": os.cpu_count(),
        "flags": flags,
        "telling flags": [flag for flag in TELLING if flag in flags],
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
    }


def _cpu() -> tuple[str, list[str]]:
    """Its name and its flags, as Linux tells them; elsewhere the name that Python knows."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine(), []
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
    found = {key.strip(): value.strip() for key, _, value in lines}
    return found.get("model name", platform.machine()), found.get("flags", found.get("Features", "")).split()
