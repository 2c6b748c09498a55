"""Exit codes: what a build script learns from a command."""

from __future__ import annotations

from typing import Final

from monoquant.errors import AccuracyError, ConfigError, FileError, InputError, PluginError, ValidationError

EXIT_FINE: Final = 0
EXIT_GATE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INPUT: Final = 3
EXIT_INTERNAL: Final = 4
EXIT_INTERRUPTED: Final = 130

_BY_ERROR: Final[tuple[tuple[type[Exception], int], ...]] = (
    (AccuracyError, EXIT_GATE),
    (ValidationError, EXIT_GATE),
    (ConfigError, EXIT_USAGE),
    (InputError, EXIT_INPUT),
    (FileError, EXIT_INPUT),
    (PluginError, EXIT_INPUT),
    (OSError, EXIT_INPUT),
)


def exit_code_of(error: BaseException) -> int:
    """The exit code for an error.

    Args:
        error: What ended a command.

    Returns:
        1 to 4, or 130 for Ctrl-C.
    """
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), EXIT_INTERNAL)
