"""The command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from monoquant.demo import DEFAULT_STEPS, run_demo
from monoquant.errors import MonoquantError
from monoquant.hooks import PluginInfo, PluginManager, list_plugins

EXIT_FINE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after ``monoquant``; default: those of the process.

    Returns:
        0 if all went well; 1 if quantization or its quality gate failed, a plugin is broken, or nobody reads the
        output; 2 for wrong usage; 130 after Ctrl-C.
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
        return _run(options)
    except MonoquantError as error:
        told = [str(error), *getattr(error, "__notes__", ())]
        sys.stderr.write("".join(f"monoquant: {text}\n" for text in told))
        return EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("monoquant: interrupted\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, say) has left: keep Python from failing once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _run(options: argparse.Namespace) -> int:
    if options.command == "plugins":
        found = list_plugins(_manager(options, on_broken="leave out"))
        _write(_listing(found))
        return EXIT_FAILED if any(one.status == "broken" for one in found) else EXIT_FINE
    run_demo(_write, steps=options.steps, keep=options.keep, plugins=_manager(options))
    return EXIT_FINE


def _manager(options: argparse.Namespace, on_broken: Literal["error", "leave out"] = "error") -> PluginManager:
    return PluginManager(
        options.plugin,
        discover=not options.no_plugins,
        block=options.block_plugin,
        trace=True if options.trace_plugins else None,
        on_broken=on_broken,
    )


def _listing(plugins: Sequence[PluginInfo]) -> str:
    lines = []
    for one in plugins:
        lines.append(f"{one.name} ({one.origin}): {one.status}")
        unknown = [f"{hook} (never called: this monoquant does not have it)" for hook in one.unknown_hooks]
        lines += [f"    {text}" for text in (*one.hooks, *unknown, *one.problem.splitlines())]
    return "".join(f"{line}\n" for line in lines or ["no plugins"])


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="monoquant", description="4-, 8- and 16-bit quantization of PyTorch models.")
    parser.add_argument("--version", action="version", version=f"monoquant {version('monoquant')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    plugins = _plugin_options()
    demo = commands.add_parser(
        "demo", parents=[plugins], help="train a small language model, quantize it, and compare; under a minute"
    )
    demo.add_argument("--steps", type=_positive, default=DEFAULT_STEPS, help="training steps (default %(default)s)")
    demo.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the float and the quantized file there")
    commands.add_parser("plugins", parents=[plugins], help="list plugins, their hooks, and what is wrong with them")
    return parser


def _plugin_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    options = parser.add_argument_group("plugins")
    options.add_argument("--plugin", action="append", default=[], metavar="FILE", help="run this .py file as a plugin")
    options.add_argument("--block-plugin", action="append", default=[], metavar="NAME", help="leave this plugin out")
    options.add_argument("--no-plugins", action="store_true", help="leave all installed plugins out")
    options.add_argument("--trace-plugins", action="store_true", help="tell every call of a hook on stderr")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 1")
    return int(text)
