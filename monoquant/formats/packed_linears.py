"""The Linear layers that a folder for other tools holds in codes, and what no such folder can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from monoquant.errors import FileError, quoted
from monoquant.modules.half_weight import HalfWeight
from monoquant.modules.integer_compute import IntegerCompute
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PackedModule, float_class
from monoquant.modules.packed_weight import PackedWeight
from monoquant.numerics.affine import GroupCodes
from monoquant.numerics.grouping import from_groups, row_chunks, to_groups
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.source import names_of_modules

Obstacles = Callable[[PackedMatrix], Iterator[str]]
"""Why a format cannot hold a Linear's weight, each with what to do."""


def packed_linears(model: nn.Module, format: str, obstacles: Obstacles) -> dict[str, PackedMatrix]:
    """Packed Linear layers, all of which a format must be able to hold.

    Args:
        model: The quantized model.
        format: Name of the format.
        obstacles: What it cannot hold beside what no such format can.

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
        obstructed = list(_obstacles(module, names, uses, obstacles))
        weight = module._modules.get("packed_weight")
        if obstructed:
            problems[names[0]] = obstructed
        elif isinstance(weight, PackedMatrix):
            found[names[0]] = weight
    if problems:
        raise FileError(f"{format} cannot hold these layers:\n{_listed(problems)}", layers=problems)
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
    return "\n".join(f"- {quoted(names)}: {problem}" for problem, names in layers.items())


def _obstacles(
    module: PackedModule, names: list[str], uses: Counter[PackedWeight], of_format: Obstacles
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
    if isinstance(module, IntegerCompute):
        yield "its inputs are quantized to INT8 in a way that readers do not know; quantize with activations=None"
    yield from of_format(matrix)
    if matrix.columns % matrix.group_size != 0:
        yield (
            f"its {matrix.columns} input features are no multiple of group_size={matrix.group_size}; quantize with "
            f"{_divisors(matrix.columns)}, or skip it by modules_to_not_convert"
        )


def _divisors(columns: int) -> str:
    sizes = [size for size in (128, 64, 32, 16) if columns % size == 0]
    return f"group_size={sizes[0]}" if sizes else "bits=8"


def inexact(matrix: PackedMatrix, dtype: torch.dtype) -> Iterator[str]:
    """Why readers, who compute weights in the model's dtype, would not get this one.

    Args:
        matrix: A packed weight.
        dtype: The model's.
    """
    if matrix.dtype != dtype:
        yield f"its dtype is {matrix.dtype}, that of the model {dtype}; call result.model.to({dtype}) first"
    elif not _reads_equal(matrix, dtype):
        wanted = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16
        yield (
            f"readers multiply codes and scales in {dtype}, which rounds its {matrix.scale.dtype} scales; quantize "
            f"with scale_dtype={wanted}"
        )


def _reads_equal(matrix: PackedMatrix, dtype: torch.dtype) -> bool:
    if matrix.scale.is_meta:
        return torch.promote_types(matrix.scale.dtype, dtype) == dtype
    return all(
        torch.equal(_as_readers_compute(matrix.read_rows(rows), dtype, matrix), matrix.dequantized_rows(rows))
        for rows in row_chunks(matrix.rows, matrix.columns)
    )


def _as_readers_compute(codes: GroupCodes, dtype: torch.dtype, matrix: PackedMatrix) -> Tensor:
    values = to_groups(codes.codes.int(), matrix.group_size) - codes.zero_point.int().unsqueeze(-1)
    return from_groups(values.to(dtype) * codes.scale.to(dtype).unsqueeze(-1), matrix.columns)
