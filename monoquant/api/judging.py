"""Judge a summary, and preview what options keep in float."""

from __future__ import annotations

from torch import nn

from monoquant.api.quantizing import Policy
from monoquant.checks import AccuracyGate
from monoquant.errors import InputError
from monoquant.passes.skip_selection import Names, SkipSelectionPass, Types
from monoquant.registry import Registry
from monoquant.report import QuantizationInfo
from monoquant.source import inventory
from monoquant.verdict import deliver, require_policy, run_checks


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
