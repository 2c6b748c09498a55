"""quantize_file: float files into quantized ones, larger than memory or not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from monoquant.adapters.base import ModuleAdapter
from monoquant.api.gate import Gate
from monoquant.api.quantizing import Policy, judging_pass, quantizer_of, selection_rules
from monoquant.errors import ConfigError, FileError, require_flag
from monoquant.hooks import Plugins
from monoquant.passes.skip_selection import Names, SkipSelectionPass, Types
from monoquant.passes.validation import ValidationPass
from monoquant.precision import packing_pass, require_more_careful, require_precision, secondary_passes
from monoquant.progress import Progress
from monoquant.report import QuantReport
from monoquant.rules import SkipRule
from monoquant.streaming.run import quantize_stream
from monoquant.streaming.source import TensorSource


def quantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    bits: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    scale_dtype: torch.dtype | None = None,
    progress: bool | Progress = False,
    layer_types: Types | None = None,
    layer_names: Names | None = None,
    modules_to_not_convert: Names | None = None,
    skip_layer_types: Types | None = None,
    skip_layer_names: Names | None = None,
    skip_param_threshold: int | None = None,
    skip_to: str | None = None,
    add_default_skips: bool = False,
    rules: Iterable[SkipRule] = (),
    adapters: Iterable[ModuleAdapter] = (),
    on_failure: Policy = "error",
    accuracy_warning: Policy | None = None,
    sqnr_warning_threshold: float = 20.0,
    sqnr_error_threshold: float = 10.0,
    gate: Gate | None = None,
    recipe: str | None = None,
    plugins: Plugins = True,
) -> QuantReport:
    """Quantize a file of float weights into one that :func:`load` reads, without holding more than a few blocks of it.

    The new file holds the tensors that ``save(quantize(source), target)`` writes, bit by bit, and its report says the
    same. It appears complete or not at all, and a killed run leaves the old file as it was; what that run left beside
    it is removed by the next one. Codes are rounded to nearest: nothing is run, so that nothing can be fitted.

    What :func:`quantize` checks on whole layers is checked on blocks: every block is read back and compared with what
    was written, and the first rows of each weight are compared with the definition of rounding. ``load`` verifies the
    SHA-256 of every tensor. Passes that plugins bring cannot take part, and nobody is told of passes.

    Args:
        source: A ``.safetensors`` file; a folder with ``model.safetensors.index.json`` and the files that it names, or
            with ``model.safetensors``, or else with any ``.safetensors`` files; or such an index.
        target: The new ``.safetensors`` file; what is there already is replaced.
        bits: As in :func:`quantize`, as are all options but the next.
        dtype: Another way to say so.
        group_size: Input features per scale.
        symmetric: Whether codes lie around zero.
        scale_dtype: dtype of the stored scales.
        progress: True shows progress on stderr; a function is called as ``progress(bytes_read, bytes_to_read)``.
            float16 and bfloat16 read weights twice, because their range is looked at first. Default False.
        layer_types: Quantize only layers that look like these classes.
        layer_names: Quantize only layers with these names.
        modules_to_not_convert: Names of layers to keep in float.
        skip_layer_types: Classes to keep.
        skip_layer_names: Further names to keep.
        skip_param_threshold: Keep layers with fewer parameters.
        skip_to: What the last four reduce layers to instead of keeping them.
        add_default_skips: Whether explicit values add to the defaults.
        rules: Further skip rules.
        adapters: Adapters for further kinds of tensors. A weight whose rows do not follow one another in the file is
            read whole, and a ``not-streamed`` finding says so, as for rows of more than 2 MiB.
        on_failure: What a failed check does.
        accuracy_warning: What large damage does; ``"error"`` leaves no new file.
        sqnr_warning_threshold: dB.
        sqnr_error_threshold: dB.
        gate: What the result must keep to; it is judged before the new file takes its place.
        recipe: TOML text of the recipe, which the report keeps.
        plugins: As in :func:`quantize`.

    Returns:
        The report, as :func:`load_report` reads it from the new file.

    Raises:
        ConfigError: For wrong options, and for plugins with passes that work on weights.
        FileError: For a source that is damaged, incomplete or written to meanwhile, and a target that is the source,
            cannot be written, or has no room.
        InputError: For weights that cannot be quantized, such as those with NaN; all of them are named.
        ValidationError: When a check fails and ``on_failure="error"``.
        AccuracyError: When the damage is CRITICAL, or the gate fails, and ``accuracy_warning="error"``.
        PluginError: When an installed plugin is wrong.
    """
    require_flag("add_default_skips", add_default_skips)
    if not (isinstance(progress, bool) or callable(progress)):
        raise ConfigError(f"progress={progress!r}: give True, False or a function of two numbers")
    precision = require_precision(bits, dtype, default="int4")
    require_more_careful(skip_to, precision)
    skips = SkipSelectionPass.from_options(
        modules_to_not_convert,
        skip_layer_types,
        skip_layer_names,
        skip_param_threshold,
        add_default_skips=add_default_skips,
        extra_rules=[*rules, *selection_rules(layer_types, layer_names)],
        skip_to=skip_to,
        defaults=precision == "int4",
    )
    steps = (
        skips,
        packing_pass(precision, group_size, symmetric, scale_dtype, None, "minmax", "auto", exact=False),
        *secondary_passes(precision, scale_dtype),
        ValidationPass(on_failure),
        judging_pass(gate, accuracy_warning, sqnr_warning_threshold, sqnr_error_threshold),
    )
    quantizer = quantizer_of(steps, plugins, adapters, recipe)
    old, new = _path("source", source), _path("target", target)
    if new.suffix != ".safetensors":
        raise FileError(f"{new}: give a name that ends in .safetensors")
    with TensorSource(old) as tensors:
        _refuse_to_overwrite(tensors, new)
        return quantize_stream(quantizer, tensors, new, progress, quantizer.registry.rounding_kernels)


def _path(option: str, given: Any) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        raise FileError(f"{option}={given!r} is no path: give the name of a file")
    return Path(given)


def _exists(target: Path) -> bool:
    try:
        return target.exists()
    except OSError as error:
        raise FileError(f"{target}: cannot be written ({error.strerror or error}); give another name") from error


def _refuse_to_overwrite(source: TensorSource, target: Path) -> None:
    same = [str(path) for path in source.paths if _exists(target) and path.samefile(target)]
    if same:
        raise FileError(f"{target}: would replace {same[0]}, which is being read; give another name")
