"""Memory of this process, as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1 << 20
STATUS = Path("/proc/self/status")
RESET_PEAK = "5"
"""Written to clear_refs, this makes the peak what is resident now."""


@dataclass(frozen=True)
class Usage:
    """MiB above what was resident before a call; None where the system does not tell.

    Attributes:
        peak: While it ran.
        kept: After it.
    """

    peak: float | None
    kept: float | None


def measured(call: Callable[[], object]) -> Usage:
    """Call something, and tell what memory it took."""
    settle()
    before = _mebibytes("VmRSS")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="utf-8")
    kept = call()  # noqa: F841  # the result lives until its memory is counted
    peak = _mebibytes("VmHWM")
    settle()
    return Usage(_difference(peak, before), _difference(_mebibytes("VmRSS"), before))


def settle() -> None:
    """Free what nothing refers to, and give free memory back to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _mebibytes(name: str) -> float | None:
    if not STATUS.exists():
        return None
    lines = (line.partition(":") for line in STATUS.read_text(encoding="utf-8").splitlines())
    found = {key: value for key, _, value in lines}
    return int(found[name].removesuffix("kB")) * 1024 / MEBIBYTE
