"""Everything monoquant raises or warns with: one base class, one subclass for each kind of cause."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class MonoquantError(Exception):
    """Base of every error that monoquant raises on purpose.

    Args:
        message: What was given, what is allowed, and what to do.
        layers: Names of all layers concerned, worst or first one first; empty when none is.
    """

    def __init__(self, message: str, *, layers: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.layers: tuple[str, ...] = tuple(layers)


class ConfigError(MonoquantError, ValueError):
    """A setting is wrong: known before any model or data is looked at."""


class InputError(MonoquantError, ValueError):
    """The model or the data cannot be used as given."""


class PassError(MonoquantError, RuntimeError):
    """A pass broke the pipeline's contract."""


class PluginError(MonoquantError, RuntimeError):
    """A plugin is wrong; the message names plugin, distribution and version."""


class FileError(MonoquantError, ValueError):
    """A file is not what it should be, or does not fit the model."""


class ValidationError(MonoquantError, ValueError):
    """A packed layer does not hold what it should, or does not survive saving and loading.

    Args:
        message: Every failed check, with its layer.
        layers: Names of the layers that failed.
        result: The ValidationResult as measured.
    """

    # Any, because reports live on a higher floor than errors.
    def __init__(self, message: str, *, layers: Iterable[str] = (), result: Any = None) -> None:
        super().__init__(message, layers=layers)
        self.result = result


class AccuracyError(MonoquantError, ValueError):
    """The quality gate failed: at least one finding is CRITICAL.

    Args:
        message: Text that contains ``CRITICAL``, with the worst layers named.
        layers: Every failing layer, worst first.
        info: The run's QuantizationInfo, its ``warnings`` filled.
        report: The run's QuantReport, to be stored or rendered; None where a summary alone was judged.
    """

    # Any, because reports live on a higher floor than errors.
    def __init__(self, message: str, *, layers: Iterable[str] = (), info: Any = None, report: Any = None) -> None:
        super().__init__(message, layers=layers)
        self.info = info
        self.report = report


class AccuracyWarning(UserWarning):
    """Quantization may have cost accuracy; filter it with ``warnings.filterwarnings``."""


def quoted(layers: Iterable[str]) -> str:
    """Names of layers as errors show them, the root as ``(root)``.

    Args:
        layers: Dotted names.
    """
    return ", ".join(repr(layer or "(root)") for layer in layers)


def require_flag(name: str, value: Any) -> None:
    """Refuse anything but True and False: a text such as ``"no"`` would count as yes.

    Args:
        name: The option's name.
        value: What was given.

    Raises:
        ConfigError: Unless it is a bool.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}: give True or False")
