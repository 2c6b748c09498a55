"""``monoquant quantize``: from a float model to a smaller one, if it is good enough."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from monoquant.api import quantize as quantize_model
from monoquant.api import quantize_file, save
from monoquant.cli.exits import EXIT_FINE
from monoquant.cli.opening import opened
from monoquant.cli.planning import completed, inputs_of, require_possible, run_options
from monoquant.cli.recipe_options import recipe_options
from monoquant.cli.reports import report_option, require_forms, write_reports
from monoquant.cli.session import Session, command
from monoquant.cli.tables import report_view
from monoquant.cli.target import Target, require_apart, size_of, target_of
from monoquant.disk.replacing import written_so_far
from monoquant.errors import AccuracyError
from monoquant.formats.native import FORMAT
from monoquant.hooks import PluginManager
from monoquant.opening import OpenedKind, OpenedModel
from monoquant.quantizer import QuantResult
from monoquant.recipes import PluginsTable, Recipe, beyond_files, quantize_file_options
from monoquant.report import QuantReport
from monoquant.report.table import format_bytes


@command
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The new file or folder.")
@click.option("--format", "format_", metavar="NAME", help="Of the new file; default: by its end, or the model's kind.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option(
    "--as-weights",
    is_flag=True,
    help="Take a HuggingFace folder for a heap of weights: block by block, so that it need not fit into memory.",
)
@report_option
@recipe_options(data=True)
def quantize(
    session: Session,
    model: str,
    output: Path,
    format_: str | None,
    overwrite: bool,
    as_weights: bool,
    reports: tuple[Path, ...],
    recipe: Recipe,
) -> int:
    """Quantize MODEL, measure the damage, and write the result unless the damage is too big.

    MODEL is a file of weights (.safetensors, or what torch.save wrote of a state dict), a HuggingFace folder, or
    package.module:factory (with --trust-code); what is in it decides, not its name. The output is complete or not there
    at all. Where a layer is CRITICAL, or a limit is not kept, nothing is written but reports, and the exit code is 1;
    --set gate.accuracy_warning=ignore writes it all the same.
    """
    found = opened(session, model)
    recipe = completed(recipe, found)
    plugins = session.plugins(recipe.plugins, recipe.folder)
    target = target_of(
        output,
        format_ or recipe.output.format,
        plugins.exporters(),
        model=found.path,
        is_huggingface=found.kind is OpenedKind.HUGGINGFACE and not as_weights,
        overwrite=overwrite,
    )
    require_forms(reports, plugins)
    require_apart("--report", reports, {**inputs_of(recipe, found), "--output": output})
    try:
        report = _run(session, found, target, recipe, plugins, as_weights=as_weights)
    except AccuracyError as error:
        if error.report is not None:
            _tell(session, error.report, reports, plugins)
        raise
    _tell(session, report, reports, plugins)
    written = size_of(target.path)
    session.streams.show(f"\nwrote {target.path}: {format_bytes(written)}, format {target.format}")
    session.streams.put(output=str(target.path), format=target.format, bytes=written)
    return EXIT_FINE


def _run(
    session: Session,
    found: OpenedModel,
    target: Target,
    recipe: Recipe,
    plugins: PluginManager,
    *,
    as_weights: bool,
) -> QuantReport:
    is_heap = found.streamable is not None and (as_weights or found.kind is OpenedKind.WEIGHTS)
    if is_heap and target.format == FORMAT and (as_weights or not beyond_files(recipe)):
        return _streamed(session, found, target, recipe, plugins)
    read = found.module if found.can_run and not as_weights else found.state
    with session.counted(f"reading {found.given}") as progress:
        source: Any = read(progress)
    require_possible(session, recipe, source, target, plugins)
    options = run_options(session, recipe, plugins)
    result = quantize_model(source, **options)
    _write(session, result, target, plugins)
    return result.report


def _write(session: Session, result: QuantResult, target: Target, plugins: PluginManager) -> None:
    size = result.report.quantized_bytes
    with (
        session.stage(f"writing {target.path}", lambda: (written_so_far(target.path), size)),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always", UserWarning)
        save(result, target.path, target.format, plugins=plugins)
    for one in caught:
        session.streams.say(f"Warning: {one.message}")


def _streamed(
    session: Session, found: OpenedModel, target: Target, recipe: Recipe, plugins: PluginManager
) -> QuantReport:
    # Plugins are loaded already, those of the command line among them.
    options = quantize_file_options(attrs.evolve(recipe, plugins=PluginsTable()))
    with session.counted("quantizing") as progress:
        options |= {"plugins": plugins, "recipe": recipe.to_toml(), "progress": progress}
        return quantize_file(found.streamable or found.given, target.path, **options)


def _tell(session: Session, report: QuantReport, reports: Sequence[Path], plugins: PluginManager) -> None:
    session.streams.show(report_view(report, session.streams.out, everything=session.verbose))
    session.streams.put(report=report.to_dict())
    write_reports(session, report, reports, plugins)
