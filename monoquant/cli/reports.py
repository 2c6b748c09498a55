"""Reports that a command writes beside what it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from monoquant.api import save_report
from monoquant.cli.session import Session
from monoquant.errors import ConfigError, FileError
from monoquant.hooks import PluginManager
from monoquant.report import QuantReport

report_option: Callable[[Callable[..., int]], Callable[..., int]] = click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the report there, by its end as text (.txt), JSON (.json), a page (.html), or what a plugin brings; "
    "may be repeated.",
)


def require_forms(paths: Sequence[Path], plugins: PluginManager) -> None:
    """Refuse reports that could not be written, before there is one.

    Args:
        paths: Where they go.
        plugins: Who brings forms.

    Raises:
        ConfigError: For an end that no form has.
        FileError: For a folder that does not exist.
    """
    ends = [end for entry in plugins.reporters() for end in entry.value.suffixes]
    wrong = [str(path) for path in paths if not path.name.endswith(tuple(ends))]
    if wrong:
        raise ConfigError(f"--report {', '.join(wrong)}: give a name that ends in {', '.join(ends)}")
    lost = [str(path) for path in paths if not path.absolute().parent.is_dir()]
    if lost:
        raise FileError(f"--report {', '.join(lost)}: the folder does not exist; create it first")


def write_reports(session: Session, report: QuantReport, paths: Sequence[Path], plugins: PluginManager) -> None:
    """Write a report in every form that was asked for.

    Args:
        session: Of the command.
        report: The report.
        paths: Where to.
        plugins: Who brings forms.
    """
    for path in paths:
        save_report(report, path, plugins=plugins)
        session.streams.say(f"wrote {path}")
