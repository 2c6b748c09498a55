"""What a person should know of the kernels that packed layers multiply through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from monoquant.kernels.base import EXACT, ProductKernel
from monoquant.modules.kernel_compute import uses_kernels
from monoquant.modules.packed_layer import PackedLayer
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.report.table import format_bytes
from monoquant.values import Finding, Severity


def notes_on_kernels(layers: Iterable[PackedLayer]) -> list[Finding]:
    """One finding for each kernel that rounds more than float32 does, or keeps something beside the weights.

    Args:
        layers: Packed layers, their kernels chosen.
    """
    matrices: defaultdict[ProductKernel, dict[int, PackedMatrix]] = defaultdict(dict)
    for layer in layers:
        for weight in layer.weights.values() if uses_kernels(layer.mixin) else ():
            if isinstance(weight, PackedMatrix):
                matrices[weight.kernel][id(weight)] = weight
    notes = (_note(kernel, list(of_it.values())) for kernel, of_it in matrices.items())
    return [note for note in notes if note is not None]


def _note(kernel: ProductKernel, matrices: list[PackedMatrix]) -> Finding | None:
    kept = sum(matrix.derived_bytes for matrix in matrices)
    facts = []
    if kernel.relative_error > EXACT:
        facts.append(f"its products have a relative error of up to {kernel.relative_error:g}")
    if kept:
        facts.append(f"it keeps {format_bytes(kept)} in memory beside the packed weights")
    if not facts:
        return None
    count = f"{len(matrices)} weight{'s' if len(matrices) > 1 else ''}"
    message = f"Kernel {kernel.name} multiplies {count}: {', and '.join(facts)}."
    return Finding("kernel", Severity.INFO, message, None, "exact=True does without it.")
