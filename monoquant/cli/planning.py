"""Recipes as a command runs them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor, nn

from monoquant.cli.recipe_options import seen_from
from monoquant.cli.session import Session
from monoquant.cli.target import Target
from monoquant.disk.kinds import FileKind, kind_of
from monoquant.disk.replacing import require_space
from monoquant.hooks import PluginManager
from monoquant.opening import OpenedKind, OpenedModel
from monoquant.recipes import PluginsTable, Recipe, located, planner_of, quantize_options

_TEXTS = (FileKind.OTHER, FileKind.JSON)


def completed(recipe: Recipe, model: OpenedModel) -> Recipe:
    """A recipe with what commands do unless they are told otherwise.

    CRITICAL damage fails, and texts are read by the model's own tokenizer.

    Args:
        recipe: As given.
        model: The model.
    """
    values: dict[str, Any] = {}
    if recipe.gate.accuracy_warning is None and recipe.validation.run:
        values["gate.accuracy_warning"] = "error"
    if model.kind is OpenedKind.HUGGINGFACE and model.path is not None:
        for name in ("calibration", "compare"):
            table = getattr(recipe, name)
            if table is not None and table.tokenizer is None and _is_text(recipe, table.data):
                values[f"{name}.tokenizer"] = seen_from(recipe.folder, str(model.path))
    return recipe.with_values(values)


def _is_text(recipe: Recipe, data: str) -> bool:
    path = located(recipe, data)
    return path.is_file() and kind_of(path) in _TEXTS


def require_possible(
    session: Session, recipe: Recipe, model: nn.Module | Mapping[str, Tensor], target: Target, plugins: PluginManager
) -> None:
    """Refuse a run whose result could not be written, before it begins.

    Args:
        session: Of the command.
        recipe: The recipe.
        model: A float model or its state dict.
        target: Where the result goes.
        plugins: Who takes part.

    Raises:
        FileError: When there is too little room, or the format cannot hold the model.
    """
    with session.stage("planning"):
        planner = planner_of(recipe, plugins=plugins)
        require_space(target.path, planner.forecast(model).quantized_bytes)
        target.exporter.require_held(planner.sketch(model))


def inputs_of(recipe: Recipe, model: OpenedModel) -> dict[str, Path | None]:
    """Files and folders that a run reads, by what people call them.

    Args:
        recipe: The recipe.
        model: The model.
    """
    given = {"the baseline": recipe.gate.baseline}
    for name, table in (("the calibration data", recipe.calibration), ("the data to compare on", recipe.compare)):
        if table is not None:
            given |= {name: table.data, f"the tokenizer of {name}": table.tokenizer}
    return {"the model": model.path, **{name: located(recipe, one) for name, one in given.items() if one is not None}}


def run_options(session: Session, recipe: Recipe, plugins: PluginManager) -> dict[str, Any]:
    """What ``quantize(model, **options)`` is called with.

    Args:
        session: Of the command.
        recipe: The recipe.
        plugins: Who takes part.
    """
    # Plugins are loaded already, those of the command line among them.
    without = attrs.evolve(recipe, plugins=PluginsTable())
    with session.stage("reading data"):
        options = quantize_options(without, trust_code=session.trust_code)
    counted = {"progress": session.watcher.samples.count} if recipe.calibration is not None else {}
    return {**options, **counted, "plugins": plugins, "recipe": recipe.to_toml()}
