"""The command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from monoquant.demo import DEFAULT_STEPS, run_demo
from monoquant.errors import MonoquantError

EXIT_FINE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after ``monoquant``; default: those of the process.

    Returns:
        0 if all went well, 1 if quantization or its quality gate failed or nobody reads the output, 2 for wrong usage,
        130 after Ctrl-C.
    """
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stopped:
        return EXIT_FINE if stopped.code in (0, None) else EXIT_USAGE
    if options.command is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    try:
        run_demo(_write, steps=options.steps, keep=options.keep)
    except MonoquantError as error:
        sys.stderr.write(f"monoquant: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("monoquant: interrupted\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, say) has left: keep Python from failing once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return EXIT_FINE


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="monoquant", description="4-, 8- and 16-bit quantization of PyTorch models.")
    parser.add_argument("--version", action="version", version=f"monoquant {version('monoquant')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser("demo", help="train a small language model, quantize it, and compare; under a minute")
    demo.add_argument("--steps", type=_positive, default=DEFAULT_STEPS, help="training steps (default %(default)s)")
    demo.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the float and the quantized file there")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 1")
    return int(text)
