"""What was opened: what it is, and what it can give."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import attrs
from torch import Tensor, nn

from monoquant.errors import InputError
from monoquant.modules.tensor_holder import hold
from monoquant.progress import Progress, untold
from monoquant.report import QuantReport

T = TypeVar("T")


class OpenedKind(enum.Enum):
    """What was opened; the value is what errors call it."""

    WEIGHTS = "a file of weights"
    HUGGINGFACE = "a HuggingFace folder"
    FACTORY = "a factory"
    QUANTIZED = "a quantized model"
    REPORT = "a report"


_CAN: dict[str, tuple[OpenedKind, ...]] = {
    "module": (OpenedKind.HUGGINGFACE, OpenedKind.FACTORY),
    "state": (OpenedKind.WEIGHTS, OpenedKind.HUGGINGFACE, OpenedKind.FACTORY),
    "report": (OpenedKind.QUANTIZED, OpenedKind.REPORT),
    "dequantized_state": (OpenedKind.QUANTIZED,),
}
_ASKED = {
    "module": "model that can be run",
    "state": "float model",
    "report": "quantized model, nor a report of one",
    "dequantized_state": "quantized model",
}


@attrs.frozen(eq=False, kw_only=True)
class OpenedModel:
    """What a person named, found to be there and sound as far as its headers tell; contents are read when asked for.

    Args:
        given: As it was written.
        kind: What it is.
        path: The file or folder that holds it; None for a factory.
        described: One line for people, such as ``HuggingFace folder, BertModel, 103 tensors in 2 shards``.
        streamable: What ``quantize_file`` can take as its source, or None.
    """

    given: str
    kind: OpenedKind
    path: Path | None
    described: str
    streamable: Path | None = None
    _module: Callable[[Progress], nn.Module] | None = attrs.field(default=None, alias="module", repr=False)
    _skeleton: Callable[[], nn.Module] | None = attrs.field(default=None, alias="skeleton", repr=False)
    _state: Callable[[Progress], Mapping[str, Tensor]] | None = attrs.field(default=None, alias="state", repr=False)
    _report: Callable[[Progress], QuantReport] | None = attrs.field(default=None, alias="report", repr=False)
    _dequantized: Callable[[Progress], Mapping[str, Tensor]] | None = attrs.field(
        default=None, alias="dequantized_state", repr=False
    )

    @property
    def can_run(self) -> bool:
        """Whether :meth:`module` gives something."""
        return self._module is not None

    def module(self, progress: Progress = untold) -> nn.Module:
        """The float model, in evaluation mode if transformers built it; a factory's is the same object each time.

        Args:
            progress: Told how much is loaded, where that is known; default: nobody is told.

        Raises:
            InputError: When it has none, or it cannot be built.
            FileError: When a file is damaged.
        """
        return self._asked(self._module, "module")(progress)

    def skeleton(self) -> nn.Module:
        """The float model for looking at, as a plan does: where it can, it comes without values, on the meta device.

        Raises:
            InputError: When it has none, or it cannot be built.
            FileError: When a file is damaged.
        """
        if self._skeleton is not None:
            return self._skeleton()
        return self.module() if self.can_run else hold(self.state())

    def state(self, progress: Progress = untold) -> Mapping[str, Tensor]:
        """Float weights on the CPU by the names that they have in the file, or in the factory's model.

        Args:
            progress: Told how much is read; default: nobody is told.

        Raises:
            InputError: When it has none.
            FileError: When a file is damaged.
        """
        return self._asked(self._state, "state")(progress)

    def report(self, progress: Progress = untold) -> QuantReport:
        """What was decided and measured when it was quantized.

        Args:
            progress: Told how much is read and verified; default: nobody is told.

        Raises:
            InputError: When it was not.
            FileError: When the file is damaged.
        """
        return self._asked(self._report, "report")(progress)

    def dequantized_state(self, progress: Progress = untold) -> Mapping[str, Tensor]:
        """Float weights on the CPU by their names before quantization, decoded without the model's code.

        Args:
            progress: Told how much is read and decoded; default: nobody is told.

        Raises:
            InputError: When it is not quantized.
            FileError: When the file is damaged.
        """
        return self._asked(self._dequantized, "dequantized_state")(progress)

    def _asked(self, how: Callable[[Progress], T] | None, what: str) -> Callable[[Progress], T]:
        if how is None:
            able = " or ".join(kind.value for kind in _CAN[what])
            raise InputError(f"{self.given} is no {_ASKED[what]}, but: {self.described}; give {able}")
        return how
