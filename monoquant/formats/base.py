"""What an exporter is: it writes a quantized model in one format."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import ClassVar

from torch import nn

from monoquant.quantizer import QuantResult


class Exporter(abc.ABC):
    """Base of all exporters: a value without state that writes a result in one format."""

    name: ClassVar[str]
    """What ``save(result, path, format=...)`` calls it."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Ends of file names by which ``save`` chooses it where no format is given; default none."""

    def obstacle_at(self, path: Path) -> str:
        """Why what is at the target must not be replaced, asked before anything is written.

        A format that writes a folder should say so where one holds anything else: all of it would be gone.

        Args:
            path: Where the caller wants the result; there need not be anything.

        Returns:
            A text that says what to do, for a FileError; default: empty, all may be replaced.
        """
        return ""

    def require_held(self, model: nn.Module) -> None:  # noqa: B027 - most formats hold anything
        """Refuse a model that the format cannot hold, as far as kinds, names, shapes and schemes tell.

        Commands ask before the work, so that none is lost; ``save`` does not.

        Args:
            model: As it will be once it is packed; its packed weights may be on the meta device.

        Raises:
            FileError: With all layers concerned, each with what to do; default: never.
        """

    @abc.abstractmethod
    def write(self, result: QuantResult, path: Path) -> None:
        """Write a quantized model.

        ``save`` gives the exporter a path of the right name in a new, empty folder. What is written there, files beside
        the path included, is moved into place when all has been written; where that fails, what was there stays as it
        was. (monoquant's own single file replaces another by itself.)

        Args:
            result: What quantize() or a Quantizer returned; not to be changed.
            path: Where to write, a file or a folder as the format has it.

        Raises:
            FileError: When it cannot be written, or the format cannot hold the model; the message says what to do.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
