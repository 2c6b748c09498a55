"""The command line; needs the extra ``cli``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from monoquant.cli.exits import EXIT_USAGE

_NEEDED = ("click", "rich", "cattrs", "tomli_w")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after ``monoquant``; default: those of the process.

    Returns:
        0 if all went well; 1 if a quality gate or a check failed; 2 for wrong usage, settings or recipes; 3 for a
        model, data, file or plugin that is refused; 4 for an error of monoquant's own; 130 after Ctrl-C.
    """
    try:
        from monoquant.cli.app import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _NEEDED:
            raise
        sys.stderr.write(f"monoquant: the command line needs {error.name}: pip install 'monoquant[cli]'\n")
        return EXIT_USAGE
    return run(sys.argv[1:] if arguments is None else arguments)
