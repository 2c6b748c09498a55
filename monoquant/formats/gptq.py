"""GPTQ: a HuggingFace folder that gptqmodel, and transformers with optimum, read without monoquant.

The layout is that of gptqmodel 7.6. Per Linear, all transposed: ``qweight`` ``[in * bits / 32, out]`` holds unsigned
codes in int32 words along the input features, the first one in the lowest bits; ``qzeros``
``[groups, out * bits / 32]`` holds zero points along the output features; ``scales`` is float16 ``[groups, out]``;
``g_idx`` ``[in]`` says which group a feature is of.

The first version of the format, ``checkpoint_format`` "gptq", stores zero points minus one. Readers add one to whole
words: a zero point of 0, stored as the largest code, spills into its neighbour. So asymmetric codes are written in the
second version, "gptq_v2", which stores zero points as they are; the first is what more readers know.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from monoquant.formats.folder_floats import float_linears
from monoquant.formats.gptq_check import check_folder
from monoquant.formats.gptq_limits import obstacles
from monoquant.formats.linears_exporter import LinearsExporter
from monoquant.formats.packed_linears import group_size_of
from monoquant.formats.words import packed_words, to_words
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.numerics.grouping import row_chunks
from monoquant.numerics.packing import pack_nibbles

METHOD = "gptq"
WHOLE_ROW = -1
"""The group size of a row that is one group."""
_HEAD = "lm_head"


class GptqExporter(LinearsExporter):
    """Writes a folder that ``GPTQModel.load`` reads, and ``AutoModel.from_pretrained`` where optimum is installed."""

    name: ClassVar[str] = METHOD

    def obstacles_of(self, matrix: PackedMatrix, dtype: torch.dtype) -> Iterator[str]:
        return obstacles(matrix, dtype)

    def config_of(self, model: nn.Module, packed: Mapping[str, PackedMatrix]) -> dict[str, Any]:
        schemes = {name: (matrix.scheme.bits, group_size_of(matrix) or WHOLE_ROW) for name, matrix in packed.items()}
        [(usual, _)] = Counter(schemes.values()).most_common(1)
        others = {f"+:{_exactly(name)}": _scheme(*scheme) for name, scheme in schemes.items() if scheme != usual}
        floats: dict[str, dict[str, Any]] = {f"-:{_exactly(name)}": {} for name in float_linears(model)}
        return {
            "quant_method": METHOD,
            "checkpoint_format": "gptq" if _offset(packed) else "gptq_v2",
            **_scheme(*usual),
            "desc_act": False,
            "sym": _is_symmetric(packed),
            "lm_head": _HEAD in packed,
            "dynamic": floats | others,  # gptqmodel's way to tell layers apart
            # optimum's way: the full names of what is packed, anywhere
            "block_name_to_quantize": "",
            "modules_in_block_to_quantize": [list(packed)],
        }

    def tensors_of(self, packed: Mapping[str, PackedMatrix], dtype: torch.dtype) -> dict[str, Tensor]:
        offset = _offset(packed)
        tensors: dict[str, Tensor] = {}
        for name, matrix in packed.items():
            features = torch.arange(matrix.columns, dtype=torch.int32)
            tensors[f"{name}.qweight"] = packed_words(matrix).t().contiguous()
            tensors[f"{name}.qzeros"] = _zero_words(matrix, offset)
            tensors[f"{name}.scales"] = matrix.scale.t().to(torch.float16).contiguous()
            tensors[f"{name}.g_idx"] = features // matrix.group_size
        return tensors

    def check(
        self, folder: Path, model: nn.Module, packed: Mapping[str, PackedMatrix], floats: Mapping[str, Tensor]
    ) -> None:
        check_folder(folder, model, packed, floats)


def _scheme(bits: int, group_size: int) -> dict[str, Any]:
    return {"bits": bits, "group_size": group_size}


def _exactly(name: str) -> str:
    return f"^{re.escape(name)}$"


def _is_symmetric(packed: Mapping[str, PackedMatrix]) -> bool:
    return all(matrix.scheme.symmetric for matrix in packed.values())


def _offset(packed: Mapping[str, PackedMatrix]) -> int:
    """What is stored less than a zero point."""
    return 1 if _is_symmetric(packed) else 0


def _zero_words(matrix: PackedMatrix, offset: int) -> Tensor:
    parts = [matrix.read_rows(rows).zero_point for rows in row_chunks(matrix.rows, matrix.columns)]
    stored = torch.cat(parts).t() - offset
    return to_words(pack_nibbles(stored) if matrix.scheme.bits == 4 else stored)
