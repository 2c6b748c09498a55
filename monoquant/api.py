"""The functions most people call; each builds a Quantizer and runs it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from monoquant.checks import AccuracyGate
from monoquant.errors import ConfigError, InputError, require_flag
from monoquant.hooks import PluginManager
from monoquant.passes.accuracy_warning import AccuracyWarningPass
from monoquant.passes.base import PackPass, Pass
from monoquant.passes.calibration import CalibrationPass, Forward, Progress
from monoquant.passes.int4_pack import Int4PackPass
from monoquant.passes.skip_selection import Names, SkipSelectionPass, Types, name_rules, type_rules
from monoquant.passes.validation import ValidationPass
from monoquant.quantizer import Quantizer, QuantResult
from monoquant.registry import Registry
from monoquant.report import QuantizationInfo
from monoquant.rules import AnyRule, SkipRule
from monoquant.source import inventory
from monoquant.values import INT4
from monoquant.verdict import deliver, require_policy, run_checks

Policy = Literal["error", "warn", "ignore"]


def quantize(
    model: nn.Module,
    bits: int = 4,
    *,
    group_size: int = 128,
    symmetric: bool = False,
    scale_dtype: torch.dtype = torch.float16,
    calibration_data: Iterable[Any] | None = None,
    num_calibration_samples: int = 150,
    select: int | str | None = None,
    forward: Forward | None = None,
    progress: bool | Progress = False,
    layer_types: Types | None = None,
    layer_names: Names | None = None,
    modules_to_not_convert: Names | None = None,
    skip_layer_types: Types | None = None,
    skip_layer_names: Names | None = None,
    skip_param_threshold: int | None = None,
    add_default_skips: bool = False,
    run_validation: bool = True,
    on_failure: Policy = "error",
    accuracy_warning: Policy = "warn",
    sqnr_warning_threshold: float = 20.0,
    sqnr_error_threshold: float = 10.0,
    inplace: bool = False,
    plugins: bool = True,
) -> QuantResult:
    """Quantize a model's Linear layers to INT4, and measure what it cost.

    Args:
        model: A trained module; left alone unless ``inplace``.
        bits: 4 (default); other widths are refused until they arrive.
        group_size: Input features per scale; default 128.
        symmetric: Codes -8..7 instead of 0..15 with a zero_point; default False.
        scale_dtype: torch.float16 (default), torch.bfloat16 or torch.float32.
        calibration_data: Batches to measure layer outputs on; None (default) measures weights only. See
            :class:`CalibrationPass` for this and the next four.
        num_calibration_samples: Samples to use at most; default 150.
        select: Position or key of the batch item that is the model's input.
        forward: ``forward(model, batch)``, where the input alone does not do.
        progress: Show progress on stderr, or call a function; default False.
        layer_types: Quantize only modules of these classes (and what they contain); default all.
        layer_names: Quantize only layers with these names; default all. With both, either suffices.
        modules_to_not_convert: Names of layers to keep in float; default ``["lm_head"]``.
        skip_layer_types: Classes of modules to keep; default DEFAULT_INT4_SKIP["skip_types"].
        skip_layer_names: Further names to keep; default none.
        skip_param_threshold: Keep layers with fewer parameters; default 512.
        add_default_skips: Whether the last four add to their defaults instead of replacing them; default False.
        run_validation: Whether to measure and check; default True. False leaves SQNR and sizes None.
        on_failure: What a failed packing, saving or range check does; default ``"error"``.
        accuracy_warning: ``"warn"`` (default), ``"error"`` or ``"ignore"`` when the damage is large.
        sqnr_warning_threshold: dB; default 20.
        sqnr_error_threshold: dB; default 10.
        inplace: Change ``model`` itself; default False.
        plugins: Whether installed plugins take part; default True.

    Returns:
        ``QuantResult(model, info, report)``.

    Raises:
        ConfigError: For wrong options.
        InputError: For a model or data that cannot be used.
        ValidationError: When a packed layer fails a check and ``on_failure="error"``.
        AccuracyError: When the damage is CRITICAL and ``accuracy_warning="error"``.
        PluginError: When an installed plugin is wrong.
    """
    flags = {"add_default_skips": add_default_skips, "run_validation": run_validation, "plugins": plugins}
    for name, value in {**flags, "inplace": inplace}.items():
        require_flag(name, value)
    _require_int4(bits, None)
    _require_measured_gate(accuracy_warning, run_validation)
    pack = Int4PackPass(group_size, symmetric, scale_dtype)
    skips = SkipSelectionPass.from_options(
        modules_to_not_convert,
        skip_layer_types,
        skip_layer_names,
        skip_param_threshold,
        add_default_skips=add_default_skips,
        extra_rules=_selection_rules(layer_types, layer_names),
    )
    data = [] if calibration_data is None else calibration_data
    calibration = CalibrationPass(data, num_calibration_samples, select, forward, progress)
    if calibration_data is None and calibration != CalibrationPass(data):
        raise ConfigError("num_calibration_samples, select, forward and progress do nothing without calibration_data")
    gate = AccuracyWarningPass(accuracy_warning, sqnr_warning_threshold, sqnr_error_threshold)
    validation = ValidationPass(on_failure)
    feed = None if calibration_data is None else calibration
    steps = (skips, feed, pack, validation if run_validation else None, gate)
    return _quantizer(steps, plugins).run(model, inplace=inplace)


def static_quantize(
    model: nn.Module,
    calibration_data: Iterable[Any],
    dtype: torch.dtype | None = None,
    bits: int | None = None,
    symmetric: bool = False,
    layer_types: Types | None = None,
    layer_names: Names | None = None,
    skip_types: Types | None = None,
    skip_names: Names | None = None,
    num_calibration_samples: int = 150,
    modules_to_not_convert: Names | None = None,
    skip_layer_types: Types | None = None,
    skip_layer_names: Names | None = None,
    skip_param_threshold: int | None = None,
    group_size: int = 128,
    run_validation: bool = True,
    on_failure: Policy = "error",
    accuracy_warning: Policy = "warn",
    sqnr_warning_threshold: float = 20.0,
    sqnr_error_threshold: float = 10.0,
    *,
    select: int | str | None = None,
    forward: Forward | None = None,
) -> tuple[nn.Module, QuantizationInfo]:
    """Quantize a copy of a model with calibration data; :func:`quantize` with the parameters existing users know.

    Args:
        model: A trained module; left alone.
        calibration_data: Batches; a tuple or list is passed as positional arguments.
        dtype: torch.int4; torch.qint8 and torch.int8 (also meant by giving neither this nor ``bits``) are refused
            until INT8 arrives.
        bits: 4, another way to ask for INT4.
        symmetric: Codes -8..7 instead of 0..15 with a zero_point; default False.
        layer_types: Quantize only modules of these classes; default all.
        layer_names: Quantize only layers with these names; default all.
        skip_types: Classes of modules to keep, besides ``skip_layer_types`` and its default.
        skip_names: Names of layers to keep, besides the other two and their defaults.
        num_calibration_samples: Samples to use at most; default 150.
        modules_to_not_convert: Names of layers to keep in float; default ``["lm_head"]``.
        skip_layer_types: Classes of modules to keep; default DEFAULT_INT4_SKIP["skip_types"].
        skip_layer_names: Further names to keep; default none.
        skip_param_threshold: Keep layers with fewer parameters; default 512.
        group_size: Input features per scale; default 128.
        run_validation: Whether to measure and check; default True.
        on_failure: What a failed check does; default ``"error"``.
        accuracy_warning: ``"warn"`` (default), ``"error"`` or ``"ignore"`` when the damage is large.
        sqnr_warning_threshold: dB; default 20.
        sqnr_error_threshold: dB; default 10.
        select: Position or key of the batch item that is the model's input, for ``(input, label)`` batches.
        forward: ``forward(model, batch)``, where the input alone does not do.

    Returns:
        The quantized copy and its QuantizationInfo.

    Raises:
        MonoquantError: As :func:`quantize`.
    """
    require_flag("run_validation", run_validation)
    _require_int4(bits, dtype)
    _require_measured_gate(accuracy_warning, run_validation)
    if calibration_data is None:
        raise InputError("calibration_data is None: give batches, or call quantize(), which can do without")
    pack = Int4PackPass(group_size, symmetric)
    skips = SkipSelectionPass.from_options(
        modules_to_not_convert,
        skip_layer_types,
        skip_layer_names,
        skip_param_threshold,
        extra_rules=[*_selection_rules(layer_types, layer_names), *type_rules(skip_types), *name_rules(skip_names)],
    )
    calibration = CalibrationPass(calibration_data, num_calibration_samples, select, forward)
    gate = AccuracyWarningPass(accuracy_warning, sqnr_warning_threshold, sqnr_error_threshold)
    validation = ValidationPass(on_failure)
    steps = (skips, calibration, pack, validation if run_validation else None, gate)
    result = _quantizer(steps, plugins=True).run(model)
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


def _quantizer(steps: Iterable[Pass | None], plugins: bool) -> Quantizer:
    passes = [step for step in steps if step is not None]
    scheme = next(step.scheme for step in passes if isinstance(step, PackPass))
    return Quantizer(passes, PluginManager(discover=plugins).registry(scheme))


def _require_measured_gate(accuracy_warning: str, run_validation: bool) -> None:
    require_policy("accuracy_warning", accuracy_warning)
    if accuracy_warning == "error" and not run_validation:
        raise ConfigError("accuracy_warning='error' has nothing to judge with run_validation=False: leave one of them")


def _selection_rules(types: Types | None, names: Names | None) -> list[SkipRule]:
    chosen = [*type_rules(types), *name_rules(names)]
    if not chosen and (types is not None or names is not None):
        raise ConfigError("layer_types and layer_names select no layer at all: give None to quantize every kind")
    return [~(chosen[0] if len(chosen) == 1 else AnyRule(chosen))] if chosen else []


def _require_int4(bits: int | None, dtype: torch.dtype | None) -> None:
    by_dtype: dict[torch.dtype, int] = {INT4: 4, torch.qint8: 8, torch.int8: 8, torch.float16: 16}
    if bits is not None and not isinstance(bits, int):
        raise ConfigError(f"bits={bits!r}: give 4 (and calibration data by name: calibration_data=...)")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in by_dtype):
        raise ConfigError(f"dtype={dtype!r}: give torch.int4")
    meant = by_dtype[dtype] if dtype is not None else (8 if bits is None else bits)
    if dtype is not None and bits is not None and bits != meant:
        raise ConfigError(f"bits={bits!r} and dtype={dtype} disagree: give one of them")
    if meant != 4 or isinstance(bits, bool):
        what = {8: "INT8", 16: "FP16"}.get(meant, f"bits={meant!r}")
        raise ConfigError(f"{what} is not in this version of monoquant: ask for INT4 with bits=4 or dtype=torch.int4")
