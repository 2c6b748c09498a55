"""The functions most people call; each builds a Quantizer and runs it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from monoquant.adapters.base import ModuleAdapter
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.batches import Forward
from monoquant.checks import AccuracyGate
from monoquant.comparison import Comparison
from monoquant.errors import ConfigError, InputError, require_flag
from monoquant.formats.weights_file import read_weights
from monoquant.hooks import PluginManager
from monoquant.modules.tensor_holder import hold
from monoquant.passes.accuracy_warning import AccuracyWarningPass
from monoquant.passes.base import Pass
from monoquant.passes.budget import BudgetPass
from monoquant.passes.calibration import CalibrationPass, Progress
from monoquant.passes.pack import PackPass
from monoquant.passes.skip_selection import Names, SkipSelectionPass, Types, name_rules, type_rules
from monoquant.passes.trials import Evaluate
from monoquant.passes.validation import ValidationPass
from monoquant.precision import (
    DTYPES,
    Activations,
    Quality,
    chosen_algorithm,
    packing_pass,
    require_more_careful,
    require_precision,
    secondary_passes,
)
from monoquant.quantizer import Quantizer, QuantResult
from monoquant.registry import Registry, own_adapters
from monoquant.report import QuantizationInfo
from monoquant.rules import AnyRule, SkipRule
from monoquant.source import inventory
from monoquant.verdict import deliver, require_policy, run_checks

Policy = Literal["error", "warn", "ignore"]
Weights = Mapping[str, Tensor] | str | os.PathLike[str]

_CALIBRATION_DEFAULTS = (150, None, None, False, 1 << 32)


def quantize(
    model: nn.Module | Weights,
    bits: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    scale_dtype: torch.dtype | None = None,
    activations: Activations | None = None,
    observer: str = "minmax",
    quality: Quality = "auto",
    algorithm: str | WeightAlgorithm | None = None,
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
    accuracy_warning: Policy = "warn",
    sqnr_warning_threshold: float = 20.0,
    sqnr_error_threshold: float = 10.0,
    inplace: bool = False,
    plugins: bool = True,
) -> QuantResult:
    """Reduce the weight matrices of a model, and measure what it cost.

    Args:
        model: A trained module, left alone unless ``inplace``; or a state dict, or the path of a file that holds one
            (``.safetensors``, ``.pt``, ``.pth``, ``.bin``, ``.ckpt``). Names and shapes of a state dict stand for kinds
            of modules (the README lists the signs), and the result is loaded into the float architecture with ``load``.
        bits: 4 (default), 8 or 16.
        dtype: Another way to say so: torch.int4, torch.int8 or torch.qint8, torch.float16, torch.bfloat16.
        group_size: Input features per scale; default 128 for INT4, a whole output channel for INT8.
        symmetric: Signed codes around zero instead of unsigned ones with a zero_point; default False for INT4, True
            for INT8.
        scale_dtype: torch.float16 (default for INT4), torch.bfloat16 or torch.float32 (default for INT8).
        activations: For INT8: None (default), ``"dynamic"`` or ``"static"``; see :class:`Int8PackPass`.
        observer: For static activations; default ``"minmax"``; see :class:`Int8PackPass`.
        quality: How much is done to choose INT4 codes well. ``"fast"`` rounds to nearest; ``"balanced"`` and ``"best"``
            fit codes to calibration data (clip_search, gptq). ``"auto"`` (default) is best with data, fast without.
        algorithm: What chooses INT4 codes, by name or object, instead of ``quality``; see :class:`Int4PackPass`.
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
        accuracy_warning: ``"warn"`` (default), ``"error"`` or ``"ignore"`` when the damage is large.
        sqnr_warning_threshold: dB; default 20.
        sqnr_error_threshold: dB; default 10.
        inplace: Change ``model`` itself; default False.
        plugins: Whether installed plugins take part; default True.

    Returns:
        ``QuantResult(model, info, report)``; of a state dict, ``result.model.state_dict()`` is the packed one.

    Raises:
        ConfigError: For wrong options.
        InputError: For a model or data that cannot be used.
        FileError: For a file that cannot be read.
        ValidationError: When a packed layer fails a check and ``on_failure="error"``.
        AccuracyError: When the damage is CRITICAL and ``accuracy_warning="error"``.
        PluginError: When an installed plugin is wrong.
    """
    flags = {"add_default_skips": add_default_skips, "run_validation": run_validation, "plugins": plugins}
    for name, value in {**flags, "inplace": inplace}.items():
        require_flag(name, value)
    _require_measured_gate(accuracy_warning, run_validation)
    target = require_precision(bits, dtype, default="int4")
    require_more_careful(skip_to, target)
    fitted = chosen_algorithm(quality, algorithm, has_data=calibration_data is not None)
    pack = packing_pass(target, group_size, symmetric, scale_dtype, activations, observer, fitted)
    skips = SkipSelectionPass.from_options(
        modules_to_not_convert,
        skip_layer_types,
        skip_layer_names,
        skip_param_threshold,
        add_default_skips=add_default_skips,
        extra_rules=[*rules, *_selection_rules(layer_types, layer_names)],
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
    elif (num_calibration_samples, select, forward, progress, statistics_bytes) != _CALIBRATION_DEFAULTS:
        options = "num_calibration_samples, select, forward, progress and statistics_bytes"
        raise ConfigError(f"{options} do nothing without calibration_data")
    budget = _budget(target_bits_per_weight, target_sqnr_db, evaluate, tolerated_drop, calibration)
    gate = AccuracyWarningPass(accuracy_warning, sqnr_warning_threshold, sqnr_error_threshold)
    compared = _comparison(compare, select, forward, run_validation)
    validation = ValidationPass(on_failure, compare=compared) if run_validation else None
    steps = (skips, calibration, budget, pack, *secondary_passes(target), validation, gate)
    module = _as_module(model, calibration, activations)
    return _quantizer(steps, plugins, adapters).run(module, inplace=inplace)


def static_quantize(
    model: nn.Module,
    calibration_data: Iterable[Any],
    dtype: torch.dtype | None = None,
    bits: int | None = None,
    symmetric: bool | None = None,
    layer_types: Types | None = None,
    layer_names: Names | None = None,
    skip_types: Types | None = None,
    skip_names: Names | None = None,
    num_calibration_samples: int = 150,
    modules_to_not_convert: Names | None = None,
    skip_layer_types: Types | None = None,
    skip_layer_names: Names | None = None,
    skip_param_threshold: int | None = None,
    group_size: int | None = None,
    run_validation: bool = True,
    on_failure: Policy = "error",
    accuracy_warning: Policy = "warn",
    sqnr_warning_threshold: float = 20.0,
    sqnr_error_threshold: float = 10.0,
    *,
    observer: str = "minmax",
    quality: Quality = "auto",
    select: int | str | None = None,
    forward: Forward | None = None,
) -> tuple[nn.Module, QuantizationInfo]:
    """Quantize a copy of a model with calibration data; :func:`quantize` with the parameters existing users know.

    INT8 is static: inputs of Linear layers are quantized too, to ranges that the data shows. INT4 is
    fitted to the data, and the 16-bit types are measured on it.

    Args:
        model: A trained module; left alone.
        calibration_data: Batches; a tuple or list is passed as positional arguments.
        dtype: torch.qint8 or torch.int8 (default), torch.int4, torch.float16 or torch.bfloat16.
        bits: 8, 4 or 16, another way to say so.
        symmetric: Signed codes around zero; default False for INT4. INT8 with static inputs is always symmetric.
        layer_types: Quantize only modules of these classes; default all.
        layer_names: Quantize only layers with these names; default all.
        skip_types: Classes of modules to keep, besides ``skip_layer_types`` and its default.
        skip_names: Names of layers to keep, besides the other two and their defaults.
        num_calibration_samples: Samples to use at most; default 150.
        modules_to_not_convert: Names of layers to keep in float; default ``["lm_head"]`` for INT4.
        skip_layer_types: Classes of modules to keep; default DEFAULT_INT4_SKIP["skip_types"] for INT4.
        skip_layer_names: Further names to keep; default none.
        skip_param_threshold: Keep layers with fewer parameters; default 512 for INT4.
        group_size: Input features per scale, for INT4; default 128.
        run_validation: Whether to measure and check; default True.
        on_failure: What a failed check does; default ``"error"``.
        accuracy_warning: ``"warn"`` (default), ``"error"`` or ``"ignore"`` when the damage is large.
        sqnr_warning_threshold: dB; default 20.
        sqnr_error_threshold: dB; default 10.
        observer: How INT8 finds the ranges of inputs; default ``"minmax"``; see :class:`Int8PackPass`.
        quality: How much is done to choose INT4 codes well; default ``"auto"``, which is best; see :func:`quantize`.
        select: Position or key of the batch item that is the model's input, for ``(input, label)`` batches.
        forward: ``forward(model, batch)``, where the input alone does not do.

    Returns:
        The quantized copy and its QuantizationInfo.

    Raises:
        MonoquantError: As :func:`quantize`.
    """
    if calibration_data is None:
        raise InputError("calibration_data is None: give batches, or call quantize(), which can do without")
    target = require_precision(bits, dtype, default="int8")
    result = quantize(
        model,
        dtype=DTYPES[target],
        group_size=group_size,
        symmetric=symmetric,
        activations="static" if target == "int8" else None,
        observer=observer,
        quality=quality,
        calibration_data=calibration_data,
        num_calibration_samples=num_calibration_samples,
        select=select,
        forward=forward,
        layer_types=layer_types,
        layer_names=layer_names,
        modules_to_not_convert=modules_to_not_convert,
        skip_layer_types=skip_layer_types,
        skip_layer_names=skip_layer_names,
        skip_param_threshold=skip_param_threshold,
        rules=[*type_rules(skip_types), *name_rules(skip_names)],
        run_validation=run_validation,
        on_failure=on_failure,
        accuracy_warning=accuracy_warning,
        sqnr_warning_threshold=sqnr_warning_threshold,
        sqnr_error_threshold=sqnr_error_threshold,
    )
    return result.model, result.info


def dynamic_quantize(
    model: nn.Module,
    dtype: torch.dtype = torch.qint8,
    layer_types: Types | None = None,
    layer_names: Names | None = None,
    modules_to_not_convert: Names | None = None,
    skip_layer_types: Types | None = None,
    skip_layer_names: Names | None = None,
    skip_param_threshold: int | None = None,
    run_validation: bool = True,
    on_failure: Policy = "error",
    accuracy_warning: Policy = "warn",
    sqnr_warning_threshold: float = 20.0,
    sqnr_error_threshold: float = 10.0,
) -> tuple[nn.Module, QuantizationInfo]:
    """Quantize a copy of a model without data: INT8 with inputs quantized on each call, or 16-bit weights.

    Args:
        model: A trained module; left alone.
        dtype: torch.qint8 or torch.int8 (default): Linear layers multiply integers. torch.float16 or torch.bfloat16:
            weights are stored in 16 bits and computed with in the model's dtype.
        layer_types: Quantize only modules of these classes; default all.
        layer_names: Quantize only layers with these names; default all.
        modules_to_not_convert: Names of layers to keep in float; default none.
        skip_layer_types: Classes of modules to keep; default none.
        skip_layer_names: Further names to keep; default none.
        skip_param_threshold: Keep layers with fewer parameters; default 0.
        run_validation: Whether to measure and check; default True.
        on_failure: What a failed check does; default ``"error"``.
        accuracy_warning: ``"warn"`` (default), ``"error"`` or ``"ignore"`` when the damage is large.
        sqnr_warning_threshold: dB; default 20.
        sqnr_error_threshold: dB; default 10.

    Returns:
        The quantized copy and its QuantizationInfo.

    Raises:
        MonoquantError: As :func:`quantize`.
    """
    target = require_precision(None, dtype, default="int8")
    if target == "int4":
        raise ConfigError(f"dtype={dtype}: dynamic quantization is INT8 or 16 bits; INT4 is quantize(model, bits=4)")
    result = quantize(
        model,
        dtype=dtype,
        activations="dynamic" if target == "int8" else None,
        layer_types=layer_types,
        layer_names=layer_names,
        modules_to_not_convert=modules_to_not_convert,
        skip_layer_types=skip_layer_types,
        skip_layer_names=skip_layer_names,
        skip_param_threshold=skip_param_threshold,
        run_validation=run_validation,
        on_failure=on_failure,
        accuracy_warning=accuracy_warning,
        sqnr_warning_threshold=sqnr_warning_threshold,
        sqnr_error_threshold=sqnr_error_threshold,
    )
    return result.model, result.info


def check_accuracy_warnings(
    info: QuantizationInfo,
    sqnr_warning_threshold: float = 20.0,
    sqnr_error_threshold: float = 10.0,
    all_layers_quantized_warning: bool = True,
    low_calibration_warning: bool = True,
    on_failure: Policy = "warn",
) -> QuantizationInfo:
    """Judge a summary with the built-in checks.

    Args:
        info: From a run, or built by hand; missing texts are added to its ``warnings``.
        sqnr_warning_threshold: Below this many dB: a warning; default 20.
        sqnr_error_threshold: Below this many dB, or nan: CRITICAL; default 10.
        all_layers_quantized_warning: Whether to tell when nothing was kept in float; default True.
        low_calibration_warning: Whether to tell when fewer than 50 calibration samples were used; default True.
        on_failure: ``"warn"`` (default) emits one AccuracyWarning, ``"error"`` raises if a finding is CRITICAL,
            ``"ignore"`` only fills the list.

    Returns:
        The same ``info``.

    Raises:
        ConfigError: For swapped thresholds or an unknown ``on_failure``.
        AccuracyError: With ``on_failure="error"`` and a CRITICAL finding; names every failing layer, worst first.
    """
    if not isinstance(info, QuantizationInfo):
        raise InputError(f"info is a {type(info).__name__}: give a QuantizationInfo, such as result.info")
    require_policy("on_failure", on_failure)
    gate = AccuracyGate(sqnr_warning_threshold, sqnr_error_threshold)
    switches = {"all-layers-quantized": all_layers_quantized_warning, "low-calibration": low_calibration_warning}
    disabled = [code for code, enabled in switches.items() if not enabled]
    deliver(info, run_checks(Registry().warning_checks, info, gate, disabled), on_failure)
    return info


def get_layers_to_skip(
    model: nn.Module,
    modules_to_not_convert: Names | None = None,
    skip_layer_types: Types | None = None,
    skip_layer_names: Names | None = None,
    skip_param_threshold: int | None = 0,
) -> set[str]:
    """Name the layers that the given options keep in float; here None means none, not a default.

    Args:
        model: Any module; meta tensors are fine.
        modules_to_not_convert: Layer names.
        skip_layer_types: Module classes.
        skip_layer_names: Further layer names.
        skip_param_threshold: Layers with strictly fewer parameters; default 0: none.

    Returns:
        Names of modules that own parameters. Layers that only follow a tied one in a plan are not among them.

    Raises:
        ConfigError: For a value of the wrong kind.
    """
    options = SkipSelectionPass.from_options(
        [] if modules_to_not_convert is None else modules_to_not_convert,
        [] if skip_layer_types is None else skip_layer_types,
        skip_layer_names,
        0 if skip_param_threshold is None else skip_param_threshold,
    )
    rules = [rule.value for rule in options.rules]
    return {layer.name for layer in inventory(model) if any(rule.reason(layer) is not None for rule in rules)}


def _quantizer(steps: Iterable[Pass | None], plugins: bool, adapters: Iterable[ModuleAdapter]) -> Quantizer:
    passes = [step for step in steps if step is not None]
    scheme = next(step.scheme for step in passes if isinstance(step, PackPass))
    registry = PluginManager(discover=plugins).registry(scheme)
    return Quantizer(passes, attrs.evolve(registry, adapters=(*own_adapters(adapters), *registry.adapters)))


def _as_module(
    model: nn.Module | Weights, calibration: CalibrationPass | None, activations: Activations | None
) -> nn.Module:
    if isinstance(model, (str, os.PathLike)):
        model = read_weights(model)
    if not isinstance(model, Mapping):
        return model
    if calibration is not None:
        raise ConfigError("calibration_data runs a model, and a state dict has none: give the module, or no data")
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


def _require_measured_gate(accuracy_warning: str, run_validation: bool) -> None:
    require_policy("accuracy_warning", accuracy_warning)
    if accuracy_warning == "error" and not run_validation:
        raise ConfigError("accuracy_warning='error' has nothing to judge with run_validation=False: leave one of them")


def _selection_rules(types: Types | None, names: Names | None) -> list[SkipRule]:
    chosen = [*type_rules(types), *name_rules(names)]
    if not chosen and (types is not None or names is not None):
        raise ConfigError("layer_types and layer_names select no layer at all: give None to quantize every kind")
    return [~(chosen[0] if len(chosen) == 1 else AnyRule(chosen))] if chosen else []
