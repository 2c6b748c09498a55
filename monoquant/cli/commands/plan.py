"""``monoquant plan``: what would become of every layer, and why."""

from __future__ import annotations

from pathlib import Path

import click

from monoquant.cli.exits import EXIT_FINE
from monoquant.cli.opening import opened
from monoquant.cli.planning import completed, inputs_of
from monoquant.cli.recipe_options import recipe_options
from monoquant.cli.reports import report_option, require_forms, write_reports
from monoquant.cli.session import Session, command
from monoquant.cli.tables import report_view
from monoquant.cli.target import require_apart
from monoquant.recipes import Recipe, plan_recipe


@command
@click.argument("model")
@report_option
@recipe_options(data=True)
def plan(session: Session, model: str, reports: tuple[Path, ...], recipe: Recipe) -> int:
    """Show what quantize would make of MODEL: each layer with its reason and bytes, and what each line of a recipe did.

    Nothing is written, no data is read, and nothing is measured. A line of a recipe that matches no layer is told.
    """
    found = opened(session, model)
    recipe = completed(recipe, found)
    plugins = session.plugins(recipe.plugins, recipe.folder)
    require_forms(reports, plugins)
    require_apart("--report", reports, inputs_of(recipe, found))
    with session.stage(f"reading {model}"):
        module = found.skeleton()
    with session.stage("planning"):
        planned = plan_recipe(recipe, module, plugins=plugins)
    streams = session.streams
    streams.show(report_view(planned.forecast, streams.out, everything=session.verbose))
    streams.show(f"\nthe recipe, line by line:\n{planned.explanation}")
    streams.put(report=planned.forecast.to_dict(), recipe=planned.explanation.to_dict())
    write_reports(session, planned.forecast, reports, plugins)
    return EXIT_FINE
