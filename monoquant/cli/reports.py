"""Reports that a command writes beside what it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

report_option: Callable[[Callable[..., int]], Callable[..., int]] = click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the report there, by its end as text (.txt), JSON (.json), a page (.html), or what a plugin brings; "
    "may be repeated.",
)
