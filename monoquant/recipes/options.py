"""From a recipe to the options of quantize() and quantize_file()."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from monoquant.api import Gate
from monoquant.comparison import Comparison
from monoquant.errors import ConfigError, InputError
from monoquant.hooks import PluginManager, Plugins
from monoquant.opening import open_data
from monoquant.opening.factory import is_factory
from monoquant.precision import DTYPES
from monoquant.recipes.entry_rules import rules_of
from monoquant.recipes.reading import plain
from monoquant.recipes.recipe import Recipe
from monoquant.recipes.tables import CalibrationTable, CompareTable
from monoquant.values import SCALE_DTYPES

_SCALE_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SCALE_DTYPES}

_GATE_FIELDS = tuple(field.name for field in attrs.fields(Gate))
_ONLY_IN_MEMORY = ("activations", "observer", "target_bits_per_weight", "target_sqnr_db", "exact")
_ROUNDED = {"quality": ("auto", "fast"), "algorithm": ("round_to_nearest",)}


def quantize_options(recipe: Recipe, *, trust_code: bool = False) -> dict[str, Any]:
    """What ``quantize(model, **options)`` is called with; data is opened, a baseline is read, plugins are loaded.

    Args:
        recipe: The recipe.
        trust_code: Whether plugin files, and data that a function makes, may run; default False.

    Returns:
        Options that differ from the defaults, and the recipe's own text.

    Raises:
        InputError: For data that cannot be opened, or code that is not trusted.
        FileError: For files that cannot be read.
        ConfigError: For options that contradict each other.
        PluginError: When a plugin is wrong.
    """
    judging = _judging(recipe, trust_code)  # before data is read, which may take long
    return {
        **scheme_options(recipe),
        **skip_options(recipe),
        **_calibration(recipe, trust_code),
        **_compare(recipe, trust_code),
        **({} if recipe.validation.run else {"run_validation": False}),
        **judging,
    }


def quantize_file_options(recipe: Recipe, *, trust_code: bool = False) -> dict[str, Any]:
    """What ``quantize_file(source, target, **options)`` is called with.

    Args:
        recipe: The recipe; it must ask for nothing that needs a model that runs.
        trust_code: Whether plugin files may run; default False.

    Returns:
        Options that differ from the defaults, and the recipe's own text.

    Raises:
        ConfigError: For keys that files cannot follow; all of them are named.
        FileError: For files that cannot be read.
        PluginError: When a plugin is wrong.
    """
    beyond = beyond_files(recipe)
    if beyond:
        raise ConfigError(
            f"a file is quantized without being run, and codes are rounded to nearest: leave out {', '.join(beyond)}; "
            "or give a model that can be run"
        )
    scheme = {name: value for name, value in scheme_options(recipe).items() if name not in _ROUNDED}
    return {**scheme, **skip_options(recipe), **_judging(recipe, trust_code)}


def beyond_files(recipe: Recipe) -> list[str]:
    """Keys that need more than a file of weights, which nothing can run.

    Args:
        recipe: The recipe.
    """
    scheme = plain(recipe.scheme)
    keys = [f"scheme.{key}" for key in _ONLY_IN_MEMORY if key in scheme]
    keys += [f"scheme.{key}" for key, fine in _ROUNDED.items() if scheme.get(key, fine[0]) not in fine]
    keys += [f"[{name}]" for name in ("calibration", "compare") if getattr(recipe, name) is not None]
    return keys if recipe.validation.run else [*keys, "validation.run"]


def plugins_of(recipe: Recipe, *, trust_code: bool = False) -> Plugins:
    """Who takes part, as ``plugins=`` of quantize().

    Args:
        recipe: The recipe.
        trust_code: Whether plugin files may run; default False.

    Raises:
        InputError: For plugin files that are not trusted.
        PluginError: When a plugin is wrong.
    """
    table = recipe.plugins
    if not table.block and not table.files:
        return table.installed
    if table.files and not trust_code:
        named = ", ".join(table.files)
        raise InputError(
            f"plugins.files run code: {named}; look at them, then allow it with --trust-code (trust_code=True)"
        )
    files = [str(located(recipe, file)) for file in table.files]
    return PluginManager(files, discover=table.installed, block=table.block)


def located(recipe: Recipe, given: str) -> Path:
    """A path of a recipe, from the current folder.

    Args:
        recipe: The recipe.
        given: As it says.
    """
    return recipe.folder / os.path.expanduser(given)  # noqa: PTH111 - Path fails for users that there are not


def scheme_options(recipe: Recipe) -> dict[str, Any]:
    """The options of ``[scheme]``.

    Args:
        recipe: The recipe.
    """
    options = plain(recipe.scheme)
    if "dtype" in options:
        options["dtype"] = DTYPES[options["dtype"]]
    if "scale_dtype" in options:
        options["scale_dtype"] = _SCALE_DTYPES[options["scale_dtype"]]
    return options


def skip_options(recipe: Recipe) -> dict[str, Any]:
    """The options of ``[[skip]]``, ``[select]`` and ``[skip_defaults]``.

    Args:
        recipe: The recipe.
    """
    kept, options = recipe.skip_defaults, dict[str, Any]()
    if not kept.names:
        options["modules_to_not_convert"] = []
    if not kept.types:
        options["skip_layer_types"] = []
    if not kept.smaller_than:
        options["skip_param_threshold"] = 0
    if kept.to is not None:
        options["skip_to"] = kept.to
    rules = rules_of(recipe)
    return {**options, "rules": rules} if rules else options


def _calibration(recipe: Recipe, trust_code: bool) -> dict[str, Any]:
    table = recipe.calibration
    if table is None:
        return {}
    options = {
        "num_calibration_samples": table.samples,
        "select": table.select,
        "statistics_bytes": table.statistics_bytes,
    }
    return {"calibration_data": _data(recipe, table, trust_code), **_given(options)}


def _compare(recipe: Recipe, trust_code: bool) -> dict[str, Any]:
    table = recipe.compare
    if table is None:
        return {}
    settings = {
        "measure": table.measure,
        "warning_threshold": table.warning_threshold,
        "error_threshold": table.error_threshold,
        "num_samples": table.samples,
        "select": table.select,
    }
    return {"compare": Comparison(_data(recipe, table, trust_code), **_given(settings))}


def _data(recipe: Recipe, table: CalibrationTable | CompareTable, trust_code: bool) -> Iterable[Any]:
    settings = {"batch_size": table.batch_size, "max_length": table.max_length, "samples": table.samples}
    tokenizer = None if table.tokenizer is None else str(located(recipe, table.tokenizer))
    given = table.data if is_factory(table.data) else str(located(recipe, table.data))
    return open_data(given, tokenizer=tokenizer, trust_code=trust_code, **_given(settings))


def _judging(recipe: Recipe, trust_code: bool) -> dict[str, Any]:
    table = recipe.gate
    others = {name: value for name, value in plain(table).items() if name not in _GATE_FIELDS}
    on_failure = plain(recipe.validation).get("on_failure")
    gate, plugins = gate_of(recipe), plugins_of(recipe, trust_code=trust_code)
    options = {**others, "on_failure": on_failure, "gate": gate, "recipe": recipe.to_toml()}
    return {**_given(options), **({} if plugins is True else {"plugins": plugins})}


def gate_of(recipe: Recipe) -> Gate | None:
    """The gate of a recipe, its baseline read; None where it sets no limit.

    Args:
        recipe: The recipe.

    Raises:
        FileError: When the baseline cannot be read.
    """
    limits = {name: value for name, value in plain(recipe.gate).items() if name in _GATE_FIELDS}
    if "baseline" in limits:
        limits["baseline"] = located(recipe, limits["baseline"])
    return Gate(**limits) if limits else None


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
