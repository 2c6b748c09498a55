"""What compressed-tensors ``pack-quantized``, as transformers 5.23 reads it, cannot hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from monoquant.errors import FileError, quoted
from monoquant.modules.half_weight import HalfWeight
from monoquant.modules.integer_compute import IntegerCompute
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PackedModule, float_class
from monoquant.modules.packed_weight import PackedWeight
from monoquant.numerics.affine import dequantize
from monoquant.numerics.grouping import from_groups, row_chunks, to_groups
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.source import names_of_modules


def packed_linears(model: nn.Module, dtype: torch.dtype) -> dict[str, PackedMatrix]:
    """Packed Linear layers that the format can hold.

    Args:
        model: The quantized model.
        dtype: What readers compute weights in: the model's.

    Returns:
        Their weights by name.

    Raises:
        FileError: For packed layers that it cannot hold; all of them are named, each with what to do.
    """
    modules = {module: names for module, names in names_of_modules(model).items() if isinstance(module, PackedModule)}
    uses = Counter(weight for module in modules for weight in module.packed_weights().values())
    found: dict[str, PackedMatrix] = {}
    problems: dict[str, list[str]] = {}
    for module, names in modules.items():
        obstacles = list(_obstacles(module, names, uses, dtype))
        weight = module._modules.get("packed_weight")
        if obstacles:
            problems[names[0]] = obstacles
        elif isinstance(weight, PackedMatrix):
            found[names[0]] = weight
    if problems:
        raise FileError(_listed(problems), layers=problems)
    if not found:
        raise FileError(
            "no layer of the model is packed in codes: quantize with bits=4 or bits=8; for 16-bit weights, save with "
            "model.half().save_pretrained(folder)"
        )
    return found


def group_size_of(matrix: PackedMatrix) -> int | None:
    """Input features that share a scale; None where all of a row do, unless that is a whole group.

    Args:
        matrix: A packed weight.
    """
    return None if matrix.columns < (matrix.scheme.group_size or matrix.columns + 1) else matrix.group_size


def _listed(problems: Mapping[str, list[str]]) -> str:
    layers: dict[str, list[str]] = {}
    for name, found in problems.items():
        for problem in found:
            layers.setdefault(problem, []).append(name)
    lines = "\n".join(f"- {quoted(names)}: {problem}" for problem, names in layers.items())
    return f"compressed-tensors cannot hold these layers:\n{lines}"


def _obstacles(
    module: PackedModule, names: list[str], uses: Counter[PackedWeight], dtype: torch.dtype
) -> Iterator[str]:
    weights = module.packed_weights()
    if all(isinstance(weight, HalfWeight) for weight in weights.values()):
        return
    kind = float_class(module)
    matrix = weights.get("weight")
    plain = isinstance(matrix, PackedMatrix) and matrix.form == MatrixForm.rows_first((matrix.rows, matrix.columns))
    if kind is not nn.Linear or not isinstance(matrix, PackedMatrix) or not plain:
        yield f"only nn.Linear can be packed, not {kind.__name__}; skip it by skip_layer_types or by name"
        return
    if len(names) > 1 or uses[matrix] > 1:
        yield "its weight is shared with another layer, which readers would untie; skip it by modules_to_not_convert"
    yield from _obstacles_of_scheme(module, matrix)
    yield from _inexact(matrix, dtype)


def _obstacles_of_scheme(module: PackedModule, matrix: PackedMatrix) -> Iterator[str]:
    if isinstance(module, IntegerCompute):
        yield "its inputs are quantized to INT8 in a way that readers do not know; quantize with activations=None"
    if not matrix.scheme.symmetric:
        yield "its codes are asymmetric, which transformers fails to load; quantize with symmetric=True"
    if matrix.columns % matrix.group_size != 0:
        yield (
            f"its {matrix.columns} input features are no multiple of group_size={matrix.group_size}; quantize with "
            f"{_divisors(matrix.columns)}, or skip it by modules_to_not_convert"
        )


def _divisors(columns: int) -> str:
    sizes = [size for size in (128, 64, 32, 16) if columns % size == 0]
    return f"group_size={sizes[0]}" if sizes else "bits=8"


def _inexact(matrix: PackedMatrix, dtype: torch.dtype) -> Iterator[str]:
    if matrix.dtype != dtype:
        yield f"its dtype is {matrix.dtype}, that of the model {dtype}; call result.model.to({dtype}) first"
    elif matrix.scheme.symmetric and not matrix.scale.is_meta and not _reads_equal(matrix, dtype):
        wanted = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16
        yield (
            f"readers multiply codes and scales in {dtype}, which rounds its {matrix.scale.dtype} scales; quantize "
            f"with scale_dtype={wanted}"
        )


def _reads_equal(matrix: PackedMatrix, dtype: torch.dtype) -> bool:
    return all(
        torch.equal(as_readers_compute(codes.codes, codes.scale.to(dtype), matrix), _own(codes.codes, matrix, rows))
        for rows in row_chunks(matrix.rows, matrix.columns)
        for codes in [matrix.read_rows(rows)]
    )


def _own(codes: Tensor, matrix: PackedMatrix, rows: slice) -> Tensor:
    middle = matrix.scheme.middle_code
    return dequantize(codes, matrix.scale[rows], middle, matrix.group_size).to(matrix.dtype)


def as_readers_compute(codes: Tensor, scale: Tensor, matrix: PackedMatrix) -> Tensor:
    """Weights as compressed-tensors decompresses them: all in the dtype of the scales.

    Args:
        codes: Unsigned codes ``[n, columns]``.
        scale: ``[n, groups]``.
        matrix: What they are of.

    Returns:
        ``[n, columns]`` in the dtype of the scales.
    """
    values = to_groups((codes.int() - matrix.scheme.middle_code).to(scale.dtype), matrix.group_size)
    return from_groups(values * scale.unsqueeze(-1), matrix.columns)
