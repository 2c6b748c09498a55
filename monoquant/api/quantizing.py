"""quantize: every precision, every option."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from monoquant.adapters.base import ModuleAdapter
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.api.gate import Gate
from monoquant.batches import Forward
from monoquant.comparison import Comparison
from monoquant.errors import ConfigError, require_flag
from monoquant.formats.weights_file import read_weights
from monoquant.hooks import Plugins, manager_of
from monoquant.modules.tensor_holder import hold
from monoquant.passes.accuracy_warning import AccuracyWarningPass
from monoquant.passes.base import Pass
from monoquant.passes.budget import BudgetPass
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.pack import PackPass
from monoquant.passes.skip_selection import Names, SkipSelectionPass, Types, name_rules, type_rules
from monoquant.passes.trials import Evaluate
from monoquant.passes.validation import ValidationPass
from monoquant.precision import (
    Activations,
    Quality,
    chosen_algorithm,
    packing_pass,
    require_more_careful,
    require_precision,
    secondary_passes,
)
from monoquant.progress import Progress
from monoquant.quantizer import Quantizer, QuantResult
from monoquant.ranges import ObserverKind
from monoquant.registry import own_adapters
from monoquant.rules import AnyRule, SkipRule
from monoquant.verdict import require_policy

Policy = Literal["error", "warn", "ignore"]
Weights = Mapping[str, Tensor] | str | os.PathLike[str]

_CALIBRATION_DEFAULTS = (150, False, 1 << 32)


def quantize(
    model: nn.Module | Weights,
    bits: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    scale_dtype: torch.dtype | None = None,
    activations: Activations | None = None,
    observer: str | ObserverKind = "minmax",
    quality: Quality = "auto",
    algorithm: str | WeightAlgorithm | None = None,
    exact: bool = False,
    target_bits_per_weight: float | None = None,
    target_sqnr_db: float | None = None,
    evaluate: Evaluate | None = None,
    tolerated_drop: float | None = None,
    calibration_data: Iterable[Any] | None = None,
    num_calibration_samples: int = 150,
    select: int | str | None = None,
    forward: Forward | None = None,
    progress: bool | Progress = False,
    statistics_bytes: int = 1 << 32,
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
    run_validation: bool = True,
    compare: Comparison | Iterable[Any] | None = None,
    on_failure: Policy = "error",
    accuracy_warning: Policy | None = None,
    sqnr_warning_threshold: float = 20.0,
    sqnr_error_threshold: float = 10.0,
    gate: Gate | None = None,
    recipe: str | None = None,
    inplace: bool = False,
    plugins: Plugins = True,
) -> QuantResult:
    """Reduce the weight matrices of a model, and measure what it cost.

    Args:
        model: A trained module, left alone unless ``inplace``; or a state dict, or the path of a file or folder that
            holds one (safetensors, or what ``torch.save`` wrote; what is in it decides, not its name). Names and shapes
            of a state dict stand for kinds of modules (the README lists the signs), and the result is loaded into the
            float architecture with ``load``.
        bits: 4 (default), 8 or 16.
        dtype: Another way to say so: torch.int4, torch.int8 or torch.qint8, torch.float16, torch.bfloat16.
        group_size: Input features per scale; default 128 for INT4, a whole output channel for INT8.
        symmetric: Signed codes around zero instead of unsigned ones with a zero_point; default False for INT4, True
            for INT8.
        scale_dtype: torch.float16 (default for INT4), torch.bfloat16 or torch.float32 (default for INT8); that of all
            scales, those of ``skip_to="int8"`` included.
        activations: For INT8: None (default), ``"dynamic"`` or ``"static"``; see :class:`Int8PackPass`.
        observer: For static activations; default ``"minmax"``; see :class:`Int8PackPass`.
        quality: How much is done to choose INT4 codes well. ``"fast"`` rounds to nearest; ``"balanced"`` and ``"best"``
            fit codes to calibration data (clip_search, gptq). ``"auto"`` (default) is best with data, fast without.
        algorithm: What chooses INT4 codes, by name or object, instead of ``quality``; see :class:`Int4PackPass`.
        exact: Whether INT4 kernels must be as exact as a float32 product; default False, see :class:`Int4PackPass`.
        target_bits_per_weight: Share precision out: bytes of packed weights, times 8, divided by their number. Layers
            that matter more get smaller groups, INT8 or 16 bits; see :class:`BudgetPass` for this and the next three,
            of which one goal may be given, with calibration data.
        target_sqnr_db: SQNR that each layer's product must reach, as cheaply as possible.
        evaluate: ``evaluate(model)`` judges a model, higher is better: the cheapest one is searched.
        tolerated_drop: How far below the float model's value is good enough.
        calibration_data: Batches to fit INT4 codes to and to measure layer outputs on; None (default) measures weights
            only. See :class:`CalibrationPass` for this and the next five.
        num_calibration_samples: Samples to use at most; default 150.
        select: Position or key of the batch item that is the model's input.
        forward: ``forward(model, batch)``, where the input alone does not do.
        progress: Show progress on stderr, or call a function; default False.
        statistics_bytes: Memory for the statistics that algorithms need; default 4 GiB.
        layer_types: Quantize only modules of these classes (and what they contain); default all.
        layer_names: Quantize only layers with these names; default all. With both, either suffices.
        modules_to_not_convert: Names of layers to keep in float; default ``["lm_head"]`` for INT4.
        skip_layer_types: Classes of modules to keep; default DEFAULT_INT4_SKIP["skip_types"] for INT4.
        skip_layer_names: Further names to keep; default none.
        skip_param_threshold: Keep layers with fewer parameters; default 512 for INT4.
        skip_to: What the last four, and their defaults, reduce layers to instead of keeping them: ``"int8"``,
            ``"float16"``, ``"bfloat16"``; default None keeps them in float.
        add_default_skips: Whether explicit values add to the defaults instead of replacing them; default False.
        rules: Further skip rules, each with a ``skip_to`` of its own; asked first; default none.
        adapters: Adapters for further kinds of modules; default none.
        run_validation: Whether to measure and check; default True. False leaves SQNR and sizes None.
        compare: Batches, or a :class:`Comparison`, to compare the whole model's answers on: KL of logits, or cosine;
            default None. Plain batches are given to the model as calibration data is.
        on_failure: What a failed packing, saving or range check does; default ``"error"``.
        accuracy_warning: ``"warn"``, ``"error"`` or ``"ignore"`` when the damage is large; default ``"error"`` with a
            gate, else ``"warn"``.
        sqnr_warning_threshold: dB; default 20.
        sqnr_error_threshold: dB; default 10.
        gate: Limits and a baseline that the result must keep to; default none.
        recipe: TOML text of the recipe that these options follow, which the report keeps; default none. Nothing is read
            from it.
        inplace: Change ``model`` itself; default False.
        plugins: Whether installed plugins take part; default True. A list adds to them: paths of ``.py`` files (which
            are executed), modules, or objects; ``"no:NAME"`` in it blocks one. Or a :class:`PluginManager`.

    Returns:
        ``QuantResult(model, info, report)``; of a state dict, ``result.model.state_dict()`` is the packed one.

    Raises:
        ConfigError: For wrong options.
        InputError: For a model or data that cannot be used.
        FileError: For a file that cannot be read.
        ValidationError: When a packed layer fails a check and ``on_failure="error"``.
        AccuracyError: When the damage is CRITICAL, or the gate fails, and ``accuracy_warning="error"``.
        PluginError: When an installed plugin is wrong.
    """
    flags = {
        "add_default_skips": add_default_skips,
        "run_validation": run_validation,
        "inplace": inplace,
        "exact": exact,
    }
    for name, value in flags.items():
        require_flag(name, value)
    judging = judging_pass(gate, accuracy_warning, sqnr_warning_threshold, sqnr_error_threshold)
    _require_measured_gate(judging, run_validation)
    target = require_precision(bits, dtype, default="int4")
    require_more_careful(skip_to, target)
    fitted = chosen_algorithm(quality, algorithm, has_data=calibration_data is not None)
    pack = packing_pass(target, group_size, symmetric, scale_dtype, activations, observer, fitted, exact)
    skips = SkipSelectionPass.from_options(
        modules_to_not_convert,
        skip_layer_types,
        skip_layer_names,
        skip_param_threshold,
        add_default_skips=add_default_skips,
        extra_rules=[*rules, *selection_rules(layer_types, layer_names)],
        skip_to=skip_to,
        defaults=target == "int4",
    )
    calibration = None
    if activations == "static" and calibration_data is None:
        raise ConfigError("activations='static' needs calibration_data to find the ranges of inputs: give batches")
    if calibration_data is not None:
        calibration = CalibrationPass(
            calibration_data, num_calibration_samples, select, forward, progress, statistics_bytes
        )
    elif (num_calibration_samples, progress, statistics_bytes) != _CALIBRATION_DEFAULTS:
        raise ConfigError("num_calibration_samples, progress and statistics_bytes do nothing without calibration_data")
    elif compare is None and (select is not None or forward is not None):
        raise ConfigError("select and forward do nothing without calibration_data, or data to compare on")
    budget = _budget(target_bits_per_weight, target_sqnr_db, evaluate, tolerated_drop, calibration)
    compared = _comparison(compare, select, forward, run_validation)
    validation = ValidationPass(on_failure, compare=compared) if run_validation else None
    steps = (skips, calibration, budget, pack, *secondary_passes(target, scale_dtype), validation, judging)
    quantizer = quantizer_of(steps, plugins, adapters, recipe)
    return quantizer.run(_as_module(model, calibration, activations, compare), inplace=inplace)


def quantizer_of(
    steps: Iterable[Pass | None], plugins: Plugins, adapters: Iterable[ModuleAdapter], recipe: str | None = None
) -> Quantizer:
    """A pipeline, with all that plugins and the caller bring.

    Args:
        steps: Passes; None for those that are not wanted.
        plugins: As in :func:`quantize`.
        adapters: The caller's.
        recipe: As in :func:`quantize`; default none.
    """
    passes = [step for step in steps if step is not None]
    scheme = next(step.scheme for step in passes if isinstance(step, PackPass))
    registry = manager_of(plugins).registry(scheme)
    registry = attrs.evolve(registry, adapters=(*own_adapters(adapters), *registry.adapters))
    return Quantizer(passes, registry, recipe)


def judging_pass(
    gate: Gate | None, accuracy_warning: Policy | None, sqnr_warning_threshold: float, sqnr_error_threshold: float
) -> AccuracyWarningPass:
    """The pass that judges a run.

    Args:
        gate: As in :func:`quantize`, as are the others.
        accuracy_warning: None means error with a gate, else warn.
        sqnr_warning_threshold: dB.
        sqnr_error_threshold: dB.

    Raises:
        ConfigError: For wrong values.
    """
    if gate is not None and not isinstance(gate, Gate):
        raise ConfigError(f"gate={gate!r}: give a monoquant.Gate, such as Gate(min_layer_sqnr_db=12), or None")
    policy = accuracy_warning or ("warn" if gate is None else "error")
    require_policy("accuracy_warning", policy)
    thresholds = sqnr_warning_threshold, sqnr_error_threshold
    if gate is None:
        return AccuracyWarningPass(policy, *thresholds)
    return AccuracyWarningPass(policy, *thresholds, fail_on=gate.fail_on, checks=gate.checks)


def _as_module(
    model: nn.Module | Weights, calibration: CalibrationPass | None, activations: Activations | None, compare: Any
) -> nn.Module:
    if isinstance(model, (str, os.PathLike)):
        model = read_weights(model)
    if not isinstance(model, Mapping):
        return model
    if calibration is not None:
        raise ConfigError("calibration_data runs a model, and a state dict has none: give the module, or no data")
    if compare is not None:
        raise ConfigError("compare runs a model, and a state dict has none: give the module, or nothing to compare")
    if activations is not None:
        raise ConfigError(f"activations={activations!r} is about how a module runs, and a state dict has none")
    return hold(model)


def _budget(
    target_bits_per_weight: float | None,
    target_sqnr_db: float | None,
    evaluate: Evaluate | None,
    tolerated_drop: float | None,
    calibration: CalibrationPass | None,
) -> BudgetPass | None:
    goals = (target_bits_per_weight, target_sqnr_db, evaluate, tolerated_drop)
    if all(goal is None for goal in goals):
        return None
    budget = BudgetPass(*goals)
    if calibration is None:
        raise ConfigError("precision is shared out by what calibration data shows: give calibration_data")
    return budget


def _comparison(
    compare: Comparison | Iterable[Any] | None,
    select: int | str | None,
    forward: Forward | None,
    run_validation: bool,
) -> Comparison | None:
    if compare is None:
        return None
    if not run_validation:
        raise ConfigError("compare is a part of validation, which run_validation=False leaves out: leave one of them")
    return compare if isinstance(compare, Comparison) else Comparison(compare, select=select, forward=forward)


def _require_measured_gate(judging: AccuracyWarningPass, run_validation: bool) -> None:
    if judging.checks and not run_validation:
        raise ConfigError("gate has nothing to judge with run_validation=False: leave one of them")
    if judging.on_failure == "error" and not run_validation:
        raise ConfigError("accuracy_warning='error' has nothing to judge with run_validation=False: leave one of them")


def selection_rules(types: Types | None, names: Names | None) -> list[SkipRule]:
    """Rules that skip all but some layers.

    Args:
        types: Classes of modules to quantize; None for all.
        names: Names of layers to quantize; None for all.

    Raises:
        ConfigError: When they select nothing.
    """
    chosen = [*type_rules(types), *name_rules(names)]
    if not chosen and (types is not None or names is not None):
        raise ConfigError("layer_types and layer_names select no layer at all: give None to quantize every kind")
    return [~(chosen[0] if len(chosen) == 1 else AnyRule(chosen))] if chosen else []
