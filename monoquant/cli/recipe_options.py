"""Options that say what a recipe says: each is a key of one, and goes before what its file says."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import click

from monoquant.errors import ConfigError
from monoquant.recipes import Recipe, SkipEntry

_FILE = click.Path(path_type=Path)
_SCHEME = {
    "bits": "scheme.bits",
    "dtype": "scheme.dtype",
    "group_size": "scheme.group_size",
    "symmetric": "scheme.symmetric",
    "scale_dtype": "scheme.scale_dtype",
    "activations": "scheme.activations",
    "quality": "scheme.quality",
    "algorithm": "scheme.algorithm",
    "target_bits": "scheme.target_bits_per_weight",
}
_DATA = {
    "data": "calibration.data",
    "tokenizer": "calibration.tokenizer",
    "samples": "calibration.samples",
    "batch_size": "calibration.batch_size",
    "max_length": "calibration.max_length",
}
_GATE = {
    "fail_on": "gate.fail_on",
    "min_layer_sqnr": "gate.min_layer_sqnr_db",
    "min_model_sqnr": "gate.min_model_sqnr_db",
    "baseline": "gate.baseline",
    "max_drop": "gate.tolerance_db",
}
_POLICY = "gate.accuracy_warning"
_PATHS = ("calibration.data", "calibration.tokenizer", "gate.baseline")

_SCHEME_OPTIONS = (
    click.option("--bits", type=int, help="4 (default), 8 or 16."),
    click.option("--dtype", help="Another way to say so: int4, int8, float16 or bfloat16."),
    click.option("--group-size", type=int, help="Input features per scale; 128 for INT4 by default."),
    click.option("--symmetric/--asymmetric", default=None, help="Signed codes around zero, or a zero_point per group."),
    click.option("--scale-dtype", help="float16, bfloat16 or float32."),
    click.option("--activations", help="For INT8: dynamic or static inputs in INT8 as well."),
    click.option("--quality", help="auto (default), fast, balanced or best."),
    click.option("--algorithm", help="What chooses INT4 codes, by name, instead of --quality."),
    click.option("--target-bits", type=float, help="Share out this many bits per weight, by calibration data."),
    click.option("--skip", multiple=True, metavar="NAME", help="Keep layers of this name in float; may be repeated."),
)
_DATA_OPTIONS = (
    click.option(
        "--data", metavar="DATA", help="Calibration data: .safetensors, .npy, text, or package.module:factory."
    ),
    click.option("--tokenizer", metavar="FOLDER", help="For text; default: the model's folder."),
    click.option("--samples", type=int, help="Samples to use at most; 150 by default."),
    click.option("--batch-size", type=int, help="Samples that are run at once."),
    click.option("--max-length", type=int, help="Tokens per sample, for text."),
)
_GATE_OPTIONS = (
    click.option("--fail-on", help="critical (default where a gate is given) or warning: what fails the build."),
    click.option("--min-layer-sqnr", type=float, metavar="DB", help="Every quantized layer must reach this."),
    click.option("--min-model-sqnr", type=float, metavar="DB", help="The model must reach this."),
    click.option("--baseline", metavar="REPORT", help="A report or a quantized file that no layer may be worse than."),
    click.option("--max-drop", type=float, metavar="DB", help="By how much it may be; 0.5 by default."),
)
_RECIPE_OPTIONS = (
    click.option("--recipe", "recipe_file", type=_FILE, metavar="FILE", help="TOML that says all of this, and more."),
    click.option("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="Any key of a recipe."),
)


def recipe_options(*, data: bool, scheme: bool = True) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Add the options, and give the function the recipe that they come to, as ``recipe``.

    Args:
        data: Whether there are options of calibration data.
        scheme: Whether there are options of what weights become; those of the gate are always there.
    """
    options = (*_RECIPE_OPTIONS, *(_SCHEME_OPTIONS if scheme else ()), *(_DATA_OPTIONS if data else ()), *_GATE_OPTIONS)

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def run(
            *arguments: Any,
            recipe_file: Path | None,
            settings: tuple[str, ...],
            skip: tuple[str, ...] = (),
            **given: Any,
        ) -> int:
            if not scheme:
                _require_limits(settings)
            keys = {**_SCHEME, **_DATA, **_GATE}
            values = {key: given.pop(name) for name, key in keys.items() if name in given}
            recipe = _recipe(recipe_file, {key: value for key, value in values.items() if value is not None}, settings)
            if skip:
                recipe = attrs.evolve(recipe, skip=(SkipEntry(names=skip), *recipe.skip))
            return function(*arguments, recipe=recipe, **given)

        for option in reversed(options):
            run = option(run)
        return run

    return decorate


def _require_limits(settings: Iterable[str]) -> None:
    """Refuse settings that would change nothing where nothing is quantized."""
    idle = [one for one in settings if not one.strip().startswith("gate.") or one.strip().startswith(_POLICY)]
    if idle:
        raise ConfigError(
            f"--set {', '.join(idle)}: nothing is quantized here, so set limits only, such as gate.fail_on"
        )


def _recipe(file: Path | None, values: dict[str, Any], settings: tuple[str, ...]) -> Recipe:
    recipe = Recipe() if file is None else Recipe.from_file(file)
    # Paths on a command line start where it was typed, and those in a recipe at its folder.
    own = {key: seen_from(recipe.folder, value) if key in _PATHS else value for key, value in values.items()}
    return recipe.with_values(own).with_settings(settings)


def seen_from(folder: Path, given: str) -> str:
    """A path of a command line, as a recipe in a folder would say it; what is absolute, or code, stays as it is.

    Args:
        folder: The recipe's.
        given: As it was typed.
    """
    is_path = Path(given).exists() or ":" not in given
    if not is_path or Path(given).is_absolute():
        return given
    # "..", as the system reads it, leads out of the folder that a link leads to.
    here = os.path.join(os.path.realpath(os.path.dirname(given)), os.path.basename(given))  # noqa: PTH118, PTH119, PTH120
    return os.path.relpath(here, os.path.realpath(folder))
