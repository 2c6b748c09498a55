"""What a packed layer lost, and whether it holds and survives what it should."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from monoquant.container import read_container, write_container
from monoquant.errors import FileError
from monoquant.kernels.base import EXACT
from monoquant.kernels.op import PORTABLE
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_weight import PackedWeight, same_bits
from monoquant.modules.storage import empty_weight
from monoquant.numerics.grouping import row_blocks, row_chunks
from monoquant.numerics.metrics import Energy, energy_of, measure
from monoquant.numerics.reference import gaussian_reference
from monoquant.observers import Call

_PROBE_ROWS = (2, 20)
"""Input rows of the products that kernels are tried on."""
_CHANCE = 8
"""Standard deviations, and more, by which the energy of normally distributed errors may exceed what is expected."""


@attrs.frozen
class Measurement:
    """What was lost in one layer; add those of several weights to pool them.

    Args:
        weight: Energies of the float weight and of its error.
        reference: Energies the same scheme has on Gaussian weights of the same size.
        output: Energies of the layer's output on sampled calibration inputs (a product's without its bias); None if
            none were seen.
        rows: Input rows, or samples of calls, the output was measured on.
    """

    weight: Energy = attrs.field(factory=Energy)
    reference: Energy = attrs.field(factory=Energy)
    output: Energy | None = None
    rows: int = 0

    def __add__(self, other: Measurement) -> Measurement:
        outputs = [one.output for one in (self, other) if one.output is not None]
        output = sum(outputs, Energy()) if outputs else None
        return Measurement(
            self.weight + other.weight, self.reference + other.reference, output, max(self.rows, other.rows)
        )


def measure_weight(
    original: Tensor, packed: PackedWeight, inputs: Tensor | None = None, correction: Tensor | None = None
) -> Measurement:
    """Compare a packed weight with the float one, a few rows at a time.

    Args:
        original: The float weight in its own shape, any real float dtype.
        packed: The same weight, packed.
        inputs: ``[n, columns]`` sampled inputs of its product, or None.
        correction: ``[rows]``, what its bias gained; None for nothing.

    Returns:
        Energies of weight and output; non-finite values give a nan SQNR.
    """
    weight, output = Energy(), Energy()
    double = torch.float64 in (original.dtype, None if inputs is None else inputs.dtype)
    working = torch.float64 if double else torch.float32
    seen = None if inputs is None or not len(inputs) else inputs.to(original.device, working)
    matrix = packed.form.to_matrix(original.detach())
    for block in row_blocks(packed.rows, packed.columns):
        # Summed as a kernel does that measures while it packs, block by block.
        subtotal = Energy()
        for chunk in row_chunks(block.stop - block.start, packed.columns):
            rows = slice(block.start + chunk.start, block.start + chunk.stop)
            reference = matrix[rows].to(working)
            approximation = packed.dequantized_rows(rows).to(working)
            subtotal += measure(reference, approximation)
            if seen is not None:
                noise = seen @ (reference - approximation).T
                if correction is not None:
                    noise -= correction[rows].to(noise)
                output += energy_of(seen @ reference.T, noise)
        weight += subtotal
    standard = gaussian_reference(packed.scheme, packed.columns).times(packed.rows)
    return Measurement(weight, standard, output, len(seen)) if seen is not None else Measurement(weight, standard)


def measure_product(matrix: Tensor, packed: nn.Module, inputs: Tensor) -> Energy:
    """Compare the product that a packed module computes with the float one, without bias.

    Args:
        matrix: ``[out_features, in_features]``, the float weight.
        packed: The packed module.
        inputs: ``[n, in_features]`` sampled inputs.

    Returns:
        Energies of the outputs.
    """
    rows = inputs.to(matrix)
    with torch.no_grad():
        bias = packed(torch.zeros_like(rows[:1]))
        return measure(rows @ matrix.T, packed(rows) - bias)


def answer(module: nn.Module, call: Call) -> Tensor | None:
    """What a module answers to a call that calibration saw.

    Args:
        module: A module in eval mode.
        call: The call; its tensors and containers are copied first, because a forward may write to them.

    Returns:
        The first floating-point tensor of the answer, padded if it is nested; None if there is none.
    """
    own = call.copied()
    with torch.no_grad():
        return next(_floats(module.forward(*own.args, **own.kwargs)), None)


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.to_padded_tensor(0.0) if value.is_nested else value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _floats(item)
    elif isinstance(value, dict):
        yield from _floats(list(value.values()))


def is_finite(packed: PackedWeight) -> bool:
    """Whether every dequantized value is finite in the weight's dtype.

    Args:
        packed: The weight.
    """
    chunks = row_chunks(packed.rows, packed.columns)
    return all(bool(torch.isfinite(packed.dequantized_rows(rows)).all()) for rows in chunks)


def survives_saving(packed: PackedWeight) -> bool:
    """Save a packed weight to a real file, load it into a fresh one, and compare them bit for bit.

    Args:
        packed: The weight.

    Returns:
        Whether it loads and is the same.

    Raises:
        FileError: When no temporary file can be written, which says nothing about the weight.
    """
    fresh = empty_weight(packed.form, packed.scheme, packed.dtype)
    with _temporary_folder() as folder:
        path = Path(folder, "layer.safetensors")
        write_container(path, packed.state_dict(), {})
        try:
            fresh.load_state_dict(read_container(path)[0], strict=True, assign=True)
        except (FileError, RuntimeError):
            return False
    loaded = fresh.state_dict()
    return all(same_bits(held.cpu(), loaded[name]) for name, held in packed.state_dict().items())


def multiplies_as_it_should(packed: PackedWeight) -> bool:
    """Whether the kernel of a packed weight multiplies random inputs to within the error that it declares.

    Args:
        packed: The weight.

    Returns:
        True also where nothing but the portable kernel, which the others are held against, would multiply.
    """
    if not isinstance(packed, PackedMatrix) or packed.kernel == PORTABLE:
        return True
    generator, codes = torch.Generator("cpu").manual_seed(0), packed.codes
    probe = torch.randn(max(_PROBE_ROWS), packed.columns, generator=generator, device="cpu", dtype=torch.float32)
    inputs = probe.to(packed.layout.device, packed.dtype)
    with torch.no_grad():
        expected = PORTABLE.multiply(inputs.float(), codes, (), None)
        # Kernels may do few rows in another way than many.
        energies = [measure(expected[:rows], packed.multiplied(inputs[:rows], None).float()) for rows in _PROBE_ROWS]
    allowed = max(packed.kernel.relative_error, EXACT) + torch.finfo(packed.dtype).eps
    # A product of few numbers may be near zero by chance, and its error may be a large one.
    each = energies[-1].signal / _PROBE_ROWS[-1]
    chance = [1 + _CHANCE / math.sqrt(rows * packed.rows) for rows in _PROBE_ROWS]
    limits = [allowed**2 * each * rows * more for rows, more in zip(_PROBE_ROWS, chance, strict=True)]
    return all(energy.noise <= limit for energy, limit in zip(energies, limits, strict=True))


def _temporary_folder() -> TemporaryDirectory[str]:
    try:
        return TemporaryDirectory(prefix="monoquant-")
    except OSError as error:
        raise FileError(f"no temporary folder to check saving in ({error}): set TMPDIR to one") from error
