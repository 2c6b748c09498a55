"""What folders for other tools have in common: Linear layers in codes, all else in float, and a config that says so."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monoquant.formats.base import Exporter
from monoquant.formats.folder import (
    dtype_of,
    folder_obstacle,
    refuse_meta,
    require_pretrained,
    side_files,
    write_folder,
)
from monoquant.formats.folder_floats import held_floats
from monoquant.formats.packed_linears import packed_linears
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.quantizer import QuantResult


class LinearsExporter(Exporter):
    """Base of exporters whose name is the ``quant_method`` of the config they write."""

    def obstacle_at(self, path: Path) -> str:
        return folder_obstacle(path, self.name, self.name)

    def require_held(self, model: nn.Module) -> None:
        require_pretrained(model)
        self._held(model)

    def write(self, result: QuantResult, path: Path) -> None:
        model = result.model
        require_pretrained(model)
        refuse_meta(model)
        packed, floats = self._held(model)
        tensors = {**floats, **self.tensors_of(packed, dtype_of(model))}
        write_folder(path, model, self.config_of(model, packed), tensors)
        self.check(path, model, packed, floats)

    def _held(self, model: nn.Module) -> tuple[dict[str, PackedMatrix], dict[str, Tensor]]:
        """What the format holds in codes, and in float; refused before anything is written."""
        packed = packed_linears(model, self.name, partial(self.obstacles_of, dtype=dtype_of(model)))
        floats = held_floats(model, packed)
        side_files(model)
        return packed, floats

    @abc.abstractmethod
    def obstacles_of(self, matrix: PackedMatrix, dtype: torch.dtype) -> Iterator[str]:
        """Why the format cannot hold a Linear's weight.

        Args:
            matrix: The weight; may be on the meta device.
            dtype: The model's.

        Yields:
            Texts, each with what to do.
        """

    @abc.abstractmethod
    def config_of(self, model: nn.Module, packed: Mapping[str, PackedMatrix]) -> dict[str, Any]:
        """What config.json says of the weights.

        Args:
            model: The quantized model.
            packed: Its packed Linear layers by name.
        """

    @abc.abstractmethod
    def tensors_of(self, packed: Mapping[str, PackedMatrix], dtype: torch.dtype) -> dict[str, Tensor]:
        """What the folder holds for packed layers.

        Args:
            packed: The layers by name.
            dtype: The model's.

        Returns:
            Tensors by full name.
        """

    @abc.abstractmethod
    def check(
        self, folder: Path, model: nn.Module, packed: Mapping[str, PackedMatrix], floats: Mapping[str, Tensor]
    ) -> None:
        """Refuse a folder that readers would take for another model.

        Args:
            folder: What was written.
            model: The quantized model.
            packed: Its packed Linear layers by name.
            floats: All its other tensors by name.

        Raises:
            FileError: With all that is not as it is in the model.
        """
