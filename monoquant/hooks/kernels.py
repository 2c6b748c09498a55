"""Holding kernels of plugins to what they should compute, before anything is computed by them."""

from __future__ import annotations

from collections.abc import Iterable

from monoquant.errors import PluginError
from monoquant.kernels.base import Kernel, ProductKernel, located
from monoquant.kernels.checking import disagreement
from monoquant.kernels.op import kernel_at
from monoquant.registry import Registered
from monoquant.values import BUILT_IN


def usable(
    entries: Iterable[Registered[Kernel]],
) -> tuple[tuple[Registered[Kernel], ...], tuple[Registered[str], ...]]:
    """Try the kernels of plugins.

    Args:
        entries: Kernels with their origins.

    Returns:
        Those that compute what they should (monoquant's own are not tried), and a text for each of the others.

    Raises:
        PluginError: For kernels that no compiled graph or pickle could refer to.
    """
    kept, disabled = [], []
    for entry in entries:
        _require_importable(entry)
        problem = None if entry.origin == BUILT_IN else disagreement(entry.value)
        if problem is None:
            kept.append(entry)
        else:
            disabled.append(Registered(f"{entry.value.name}: {problem}", entry.origin))
    return tuple(kept), tuple(disabled)


def _require_importable(entry: Registered[Kernel]) -> None:
    kernel, place = entry.value, located(entry.value)
    if isinstance(kernel, ProductKernel) and ("<locals>" in place or kernel_at(place) != kernel):
        raise PluginError(
            f"plugin {entry.origin}: the class {place} of its kernel {kernel.name!r} cannot be imported and called "
            "without arguments: define it at the top level of a module"
        )
