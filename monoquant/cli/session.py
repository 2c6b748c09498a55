"""What every command has: streams, a meter, plugins, and the leave to run code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import attrs
import click

from monoquant.cli.meter import Look, Meter, Tally
from monoquant.cli.streams import Streams
from monoquant.cli.watching import StageWatcher
from monoquant.errors import ConfigError, InputError
from monoquant.hooks import PluginManager
from monoquant.progress import Progress
from monoquant.recipes import PluginsTable
from monoquant.values import BUILT_IN

_WATCHER = "monoquant's own meter"
_NOTHING_SAID = PluginsTable()
_HERE = Path()


@attrs.frozen(eq=False)
class Session:
    """One call of a command.

    Args:
        streams: Where things are told.
        meter: What shows how far it is.
        watcher: What tells the meter of passes.
        trust_code: Whether code that arguments name may run.
        plugin_options: What the command line says of plugins.
    """

    streams: Streams
    meter: Meter
    watcher: StageWatcher
    trust_code: bool
    plugin_options: dict[str, Any]

    @property
    def verbose(self) -> bool:
        """Whether all there is was asked for."""
        return self.streams.verbosity > 0

    def plugins(
        self,
        table: PluginsTable = _NOTHING_SAID,
        folder: Path = _HERE,
        on_broken: Literal["error", "leave out"] = "error",
    ) -> PluginManager:
        """The plugins that take part.

        Args:
            table: What a recipe says of them, beside the command line; default: nothing.
            folder: Where paths in it start; default: the current folder.
            on_broken: As in PluginManager.

        Raises:
            InputError: For plugin files that are not trusted.
            PluginError: When a plugin is wrong.
        """
        own = self.plugin_options
        files = [*(folder / file for file in table.files), *own["add"]]
        if files and not self.trust_code:
            named = ", ".join(map(str, files))
            raise InputError(f"plugin files run code: {named}; look at them, then allow it with --trust-code")
        manager = PluginManager(
            files,
            discover=own["discover"] and table.installed,
            block=[*table.block, *own["block"]],
            trace=own["trace"],
            on_broken=on_broken,
        )
        manager.register(self.watcher, BUILT_IN, _WATCHER)
        return manager

    @contextmanager
    def stage(self, what: str, look: Look | None = None) -> Iterator[None]:
        """Say what the block does.

        Args:
            what: For a person.
            look: How far it is; default: nobody knows.
        """
        self.streams.detail(what)
        with self.meter.stage(what, look):
            yield

    @contextmanager
    def counted(self, what: str) -> Iterator[Progress]:
        """Say what the block does, and how far it is.

        Args:
            what: For a person.

        Yields:
            What is told how far it is.
        """
        tally = Tally()
        with self.stage(what, tally.look):
            yield tally.count


_OPTIONS = (
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of text."),
    click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors."),
    click.option("-v", "--verbose", is_flag=True, help="More on stderr, and all there is in tables."),
)
_PLUGIN_OPTIONS = (
    click.option(
        "--plugin", "add", multiple=True, type=click.Path(path_type=Path), help="Run this .py file as a plugin."
    ),
    click.option("--block-plugin", "block", multiple=True, metavar="NAME", help="Leave this plugin out."),
    click.option("--no-plugins", "no_plugins", is_flag=True, help="Leave all installed plugins out."),
    click.option("--trace-plugins", "trace", is_flag=True, help="Tell every call of a hook on stderr."),
    click.option(
        "--trust-code",
        is_flag=True,
        help="Let code run that arguments name: plugin files, package.module:factory, and code in model folders. "
        "Without it nothing but installed packages runs.",
    ),
)


def command(function: Callable[..., int]) -> click.Command:
    """Make a command of a function that takes a Session, and what its own options say.

    Args:
        function: Returns an exit code; its name is that of the command, its docstring the help.
    """

    @functools.wraps(function)
    def run(as_json: bool, quiet: bool, verbose: bool, no_plugins: bool, trust_code: bool, **own: Any) -> int:
        streams = Streams(function.__name__, as_json, -1 if quiet else int(verbose))
        click.get_current_context().find_root().obj = streams
        if quiet and verbose:
            raise ConfigError("--quiet and --verbose exclude each other: give one of them")
        meter = Meter(streams.err, is_shown=not quiet)
        options = {name: own.pop(name) for name in ("add", "block", "trace")}
        options |= {"discover": not no_plugins, "trace": options["trace"] or None}
        try:
            # Stdout is for results; what factories and plugins print are none.
            with redirect_stdout(sys.stderr), meter.running():
                return function(Session(streams, meter, StageWatcher(meter), trust_code, options), **own)
        finally:
            streams.flush()

    for option in reversed((*_OPTIONS, *_PLUGIN_OPTIONS)):
        run = option(run)
    return click.command(function.__name__)(run)
