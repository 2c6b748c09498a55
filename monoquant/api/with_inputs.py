"""The functions for INT8 inputs, with the parameters existing users know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from monoquant.api.quantizing import Policy, quantize
from monoquant.batches import Forward
from monoquant.errors import ConfigError, InputError
from monoquant.hooks import Plugins
from monoquant.passes.skip_selection import Names, Types, name_rules, type_rules
from monoquant.precision import (
    DTYPES,
    Quality,
    require_precision,
)
from monoquant.ranges import ObserverKind
from monoquant.report import QuantizationInfo


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
    observer: str | ObserverKind = "minmax",
    quality: Quality = "auto",
    select: int | str | None = None,
    forward: Forward | None = None,
    plugins: Plugins = True,
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
        plugins: Whether installed plugins take part; default True; see :func:`quantize`.

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
        plugins=plugins,
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
    *,
    plugins: Plugins = True,
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
        plugins: Whether installed plugins take part; default True; see :func:`quantize`.

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
        plugins=plugins,
    )
    return result.model, result.info
