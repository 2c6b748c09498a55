"""Which tensor of a model becomes which of a GGUF file, bit by bit, and what cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from monoquant.errors import FileError, quoted
from monoquant.formats.folder_floats import float_tensors
from monoquant.formats.gguf_blocks import BLOCK, to_blocks
from monoquant.formats.gguf_names import EMBEDDING, HEAD, Architecture, architecture_of
from monoquant.modules.half_weight import HalfWeight
from monoquant.modules.integer_compute import IntegerCompute
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PackedModule, float_class
from monoquant.numerics.grouping import row_chunks
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.source import joined, names_of_modules

_FLOAT_KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_MOST_NAMES = 6
"""In a line of an error, whose `layers` has all of them; large models have hundreds."""
_SKIP = "skip it by modules_to_not_convert"


@attrs.frozen(eq=False)
class GgufTensor:
    """One tensor of the file.

    Args:
        name: llama.cpp's name.
        source: The model's.
        weight: Codes, or floats.
        heads: How many heads have their rows reordered; 0: none.
    """

    name: str
    source: str
    weight: PackedMatrix | Tensor
    heads: int

    @property
    def kind(self) -> str:
        """GGUF's name of how it is stored; llama.cpp wants vectors in float32."""
        if isinstance(self.weight, PackedMatrix):
            return f"Q{self.weight.scheme.bits}_0"
        return _FLOAT_KINDS[self.weight.dtype] if self.weight.dim() > 1 else "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """As the model has it."""
        return (
            (self.weight.rows, self.weight.columns)
            if isinstance(self.weight, PackedMatrix)
            else tuple(self.weight.shape)
        )

    def content(self) -> Tensor:
        """What is written: uint8 ``[..., bytes of a row]``."""
        order = llama_order(self.shape[0], self.heads) if self.heads else slice(None)
        if not isinstance(self.weight, PackedMatrix):
            kept = self.weight.detach()[order].cpu().contiguous()
            return (kept if kept.dim() > 1 else kept.float()).view(torch.uint8)
        matrix, rows = self.weight, torch.arange(self.weight.rows)[order]
        parts = [rows[chunk].to(matrix.scale.device) for chunk in row_chunks(matrix.rows, matrix.columns)]
        return torch.cat([to_blocks(matrix.read_rows(part), matrix.scheme.bits).cpu() for part in parts])


def llama_order(rows: int, heads: int) -> Tensor:
    """Which row of a query or key weight of transformers comes where in llama.cpp.

    There, features that are rotated together are neighbours; in transformers they are half a head apart.

    Args:
        rows: Of the weight.
        heads: Of these rows.

    Returns:
        int64 ``[rows]``.
    """
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).flatten()


def planned(model: nn.Module) -> tuple[Architecture, list[GgufTensor]]:
    """All tensors of the file.

    Args:
        model: The quantized model; it may be on the meta device.

    Returns:
        What llama.cpp takes it for, and the tensors.

    Raises:
        FileError: For what cannot be written exactly; all of it is named, with what to do.
    """
    architecture = architecture_of(model)
    packed, problems = _packed(model)
    weights: dict[str, PackedMatrix | Tensor] = {**packed, **float_tensors(model)}
    embedding = weights.get(EMBEDDING)
    if isinstance(embedding, PackedMatrix) and weights.get(HEAD) is embedding:
        del weights[HEAD]  # readers tie what is not there
    for name, weight in weights.items():
        if architecture.name_of(name) is None:
            problems.setdefault(name.rpartition(".")[0], []).append(
                f"llama.cpp's {architecture.name} has no place for it; save with format='compressed-tensors'"
            )
        elif isinstance(weight, Tensor) and weight.dtype not in _FLOAT_KINDS:
            problems.setdefault(name.rpartition(".")[0], []).append(
                f"its dtype is {weight.dtype}; call result.model.float() first, and see what that costs"
            )
    if problems:
        raise FileError(_listed(problems), layers=problems)
    return architecture, list(_tensors(weights, architecture, model.config))


def _tensors(
    weights: Mapping[str, PackedMatrix | Tensor], architecture: Architecture, config: Any
) -> Iterator[GgufTensor]:
    for source, weight in weights.items():
        name = architecture.name_of(source)
        if name is not None:
            yield GgufTensor(name, source, weight, architecture.heads_of(source, config))


def _packed(model: nn.Module) -> tuple[dict[str, PackedMatrix], dict[str, list[str]]]:
    """What is packed in codes, under all of its names; and what cannot be written."""
    found: dict[str, PackedMatrix] = {}
    problems: dict[str, list[str]] = {}
    for module, names in names_of_modules(model).items():
        weights = module.packed_weights() if isinstance(module, PackedModule) else {}
        if not isinstance(module, PackedModule) or all(isinstance(one, HalfWeight) for one in weights.values()):
            continue
        matrix = weights.get("weight")
        obstacles = list(_obstacles(module, matrix))
        if obstacles:
            problems[names[0]] = obstacles
        elif isinstance(matrix, PackedMatrix):
            found |= {joined(name, "weight"): matrix for name in names}
    return found, problems


def _obstacles(module: PackedModule, matrix: Any) -> Iterator[str]:
    kind = float_class(module)
    plain = isinstance(matrix, PackedMatrix) and matrix.form == MatrixForm.rows_first((matrix.rows, matrix.columns))
    if kind not in (nn.Linear, nn.Embedding) or not plain:
        yield f"only nn.Linear and nn.Embedding can be packed, not {kind.__name__}; {_SKIP}"
        return
    scheme = matrix.scheme
    if isinstance(module, IntegerCompute):
        yield "its inputs are quantized to INT8 in a way that readers do not know; quantize with activations=None"
    if not scheme.symmetric:
        yield "its codes are asymmetric; quantize with symmetric=True"
    if matrix.columns % BLOCK != 0:
        yield f"its {matrix.columns} input features are no multiple of {BLOCK}; {_SKIP}"
    elif scheme.group_size != BLOCK:
        size = "a row" if scheme.group_size is None else f"{scheme.group_size} input features"
        yield f"it has one scale for {size}; quantize with group_size={BLOCK}"
    if scheme.scale_dtype != torch.float16:
        yield f"its scales are {scheme.scale_dtype}; quantize with scale_dtype=torch.float16"


def _listed(problems: Mapping[str, list[str]]) -> str:
    layers: dict[str, list[str]] = {}
    for name, found in problems.items():
        for problem in dict.fromkeys(found):
            layers.setdefault(problem, []).append(name)
    lines = "\n".join(f"- {_shortened(names)}: {problem}" for problem, names in layers.items())
    return f"GGUF cannot hold these layers exactly:\n{lines}"


def _shortened(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return quoted(names) if more <= 0 else f"{quoted(names[:_MOST_NAMES])} and {more} more"
