"""All commands, and what becomes of what they raise."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version

import click
from click.shell_completion import shell_complete

from monoquant.cli.commands.compare import compare
from monoquant.cli.commands.demo import demo
from monoquant.cli.commands.inspect import inspect
from monoquant.cli.commands.plan import plan
from monoquant.cli.commands.plugins import plugins
from monoquant.cli.commands.quantize import quantize
from monoquant.cli.commands.validate import validate
from monoquant.cli.exits import EXIT_GATE, EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USAGE, exit_code_of
from monoquant.cli.outlet import outlets
from monoquant.cli.streams import Streams
from monoquant.errors import MonoquantError

DEBUG = "MONOQUANT_DEBUG"
_COMPLETE = "_MONOQUANT_COMPLETE"
_INTERRUPTED = "interrupted: every file is as it was before, or complete"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("monoquant"), prog_name="monoquant", message="%(prog)s %(version)s")
def commands() -> None:
    """4-, 8- and 16-bit quantization of PyTorch models: says what it did, and what it cost.

    Exit codes: 0 fine; 1 a quality gate or a check failed; 2 wrong usage, settings or recipe; 3 a model, data, file or
    plugin is refused; 4 an error of monoquant's own; 130 interrupted.
    """


for _one in (plan, quantize, inspect, validate, compare, plugins, demo):
    commands.add_command(_one)


def run(arguments: Sequence[str]) -> int:
    """Run a command, and tell what it raises.

    Args:
        arguments: Words after ``monoquant``.

    Returns:
        The exit code.
    """
    with outlets():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    completion = os.environ.get(_COMPLETE)
    if completion:
        return shell_complete(commands, {}, "monoquant", _COMPLETE, completion)
    streams = Streams("monoquant")
    try:
        with commands.make_context("monoquant", list(arguments)) as context, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what people should know is in findings; libraries' warnings are not
            context.obj = streams
            try:
                code: int = commands.invoke(context)
            finally:
                streams = context.obj
        streams.finish(code)
        return code
    except click.exceptions.Exit as stopped:
        return stopped.exit_code
    except click.ClickException as error:
        return _shown(error, streams, arguments)
    except (KeyboardInterrupt, click.Abort):
        streams.fail(_INTERRUPTED)
        streams.finish(EXIT_INTERRUPTED, KeyboardInterrupt(_INTERRUPTED))
        return EXIT_INTERRUPTED
    except Exception as error:
        return _told(error, streams)


def _shown(error: click.ClickException, streams: Streams, arguments: Sequence[str]) -> int:
    error.show()
    code = EXIT_USAGE if isinstance(error, click.UsageError) else exit_code_of(error)
    context = getattr(error, "ctx", None)
    if not streams.as_json and "--json" in arguments and context is not None:  # the command was not reached
        streams = Streams(context.info_name, as_json=True)
    streams.finish(code, error, error.format_message())
    return code


def _told(error: Exception, streams: Streams) -> int:
    code = exit_code_of(error)
    # Which pass noticed that a limit is not kept, is nobody's concern.
    notes = () if code == EXIT_GATE else getattr(error, "__notes__", ())
    if isinstance(error, (MonoquantError, OSError)) and code != EXIT_INTERNAL:
        streams.fail("\n".join([str(error), *notes]))
    else:
        kind = type(error).__name__
        streams.fail("\n".join([f"an error of monoquant's own or of a plugin, {kind}: {error}", *notes]))
        streams.fail(f"set {DEBUG}=1 to see where it arose; please report it")
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    streams.finish(code, error)
    return code
