"""What a packed layer lost, and whether it holds and survives what it should."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import torch
from torch import Tensor

from monoquant.container import read_container, write_container
from monoquant.errors import FileError
from monoquant.modules.packed_int4 import PackedInt4
from monoquant.numerics.affine import dequantize
from monoquant.numerics.grouping import row_chunks
from monoquant.numerics.metrics import Energy, energy_of, measure
from monoquant.numerics.reference import gaussian_reference

_PROBE_ROWS = 2


@attrs.frozen
class Measurement:
    """What was lost in one layer.

    Args:
        weight: Energies of the float weight and of its error.
        reference: Energies the same scheme has on Gaussian weights.
        output: Energies of the layer's output (without bias) on sampled calibration inputs; None if none were seen.
        rows: Input rows the output was measured on.
    """

    weight: Energy
    reference: Energy
    output: Energy | None = None
    rows: int = 0


def measure_layer(original: Tensor, packed: PackedInt4, inputs: Tensor | None = None) -> Measurement:
    """Compare a packed weight with the float one, a few rows at a time.

    Args:
        original: ``[out_features, in_features]``, any real float dtype.
        packed: The same matrix, packed.
        inputs: ``[n, in_features]`` sampled inputs, or None.

    Returns:
        Energies of weight and output; non-finite values give a nan SQNR.
    """
    weight, output = Energy(), Energy()
    double = torch.float64 in (original.dtype, None if inputs is None else inputs.dtype)
    working = torch.float64 if double else torch.float32
    seen = None if inputs is None or not len(inputs) else inputs.to(original.device, working)
    for rows in row_chunks(*original.shape):
        reference = original[rows].detach().to(working)
        approximation = dequantized_rows(packed, rows).to(working)
        weight += measure(reference, approximation)
        if seen is not None:
            output += energy_of(seen @ reference.T, seen @ (reference - approximation).T)
    standard = gaussian_reference(packed.scheme, packed.columns)
    return Measurement(weight, standard, output, len(seen)) if seen is not None else Measurement(weight, standard)


def dequantized_rows(packed: PackedInt4, rows: slice) -> Tensor:
    """Some rows of a packed matrix in floating point.

    Args:
        packed: The matrix.
        rows: Which rows.

    Returns:
        ``[rows, columns]`` in the matrix's dtype, equal to those rows of ``packed.dequantize()``.
    """
    codes = packed.read_rows(rows)
    return dequantize(codes.codes, codes.scale, codes.zero_point, packed.group_size).to(packed.dtype)


def is_finite(packed: PackedInt4) -> bool:
    """Whether every dequantized value is finite in the matrix's dtype.

    Args:
        packed: The matrix.
    """
    chunks = row_chunks(packed.rows, packed.columns)
    return all(bool(torch.isfinite(dequantized_rows(packed, rows)).all()) for rows in chunks)


def survives_saving(packed: PackedInt4) -> bool:
    """Save a packed matrix to a real file, load it into a fresh one, and compare outputs bit for bit.

    Args:
        packed: The matrix.

    Returns:
        Whether it loads and gives bit-equal outputs.

    Raises:
        FileError: When no temporary file can be written, which says nothing about the matrix.
    """
    fresh = PackedInt4(packed.rows, packed.columns, packed.scheme, dtype=packed.dtype, device="meta")
    with _temporary_folder() as folder:
        path = Path(folder, "layer.safetensors")
        write_container(path, packed.state_dict(), {})
        try:
            fresh.load_state_dict(read_container(path)[0], strict=True, assign=True)
        except (FileError, RuntimeError):
            return False
    generator = torch.Generator("cpu").manual_seed(0)
    probe = torch.randn(_PROBE_ROWS, packed.columns, generator=generator, device="cpu", dtype=torch.float32)
    return torch.equal(_outputs(packed, probe), _outputs(fresh, probe))


def _temporary_folder() -> TemporaryDirectory[str]:
    try:
        return TemporaryDirectory(prefix="monoquant-")
    except OSError as error:
        raise FileError(f"no temporary folder to check saving in ({error}): set TMPDIR to one") from error


def _outputs(packed: PackedInt4, probe: Tensor) -> Tensor:
    # Filled in place: small results kept between large temporaries would fragment the heap by tens of MiB.
    outputs = probe.new_empty(len(probe), packed.rows)
    for rows in row_chunks(packed.rows, packed.columns):
        outputs[:, rows] = probe @ dequantized_rows(packed, rows).cpu().float().T
    return outputs
