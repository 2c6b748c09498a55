"""The tables of a recipe; a key that is not there is None, or holds the default that is written here."""

from __future__ import annotations

from typing import Any

import attrs

from monoquant.errors import ConfigError
from monoquant.recipes.allowed import (
    flag,
    layer_names,
    number,
    one_of,
    position_or_key,
    shown,
    text,
    texts,
    type_names,
    whole_number,
)
from monoquant.values import TARGETS

POLICIES = ("error", "warn", "ignore")


def listed(given: Any) -> Any:
    """A list as the tuple that frozen values hold; anything else as it is, for a validator to refuse.

    Args:
        given: What was given.
    """
    return tuple(given) if isinstance(given, list) else given


@attrs.frozen(kw_only=True)
class SchemeTable:
    """``[scheme]``: what weights are reduced to, and how their codes are chosen.

    Args:
        bits: 4 (default), 8 or 16.
        dtype: Another way to say so: ``"int4"``, ``"int8"``, ``"float16"``, ``"bfloat16"``.
        group_size: Input features per scale; default 128 for INT4, a whole output channel for INT8.
        symmetric: Signed codes around zero; default false for INT4, true for INT8.
        scale_dtype: ``"float16"`` (default for INT4), ``"bfloat16"`` or ``"float32"`` (default for INT8); that of all
            scales, those of layers that rules reduce to INT8 included.
        activations: For INT8: ``"dynamic"`` or ``"static"``; default: inputs stay float.
        observer: For static activations: the name of a range observer; default ``"minmax"``.
        quality: ``"auto"`` (default), ``"fast"``, ``"balanced"`` or ``"best"``.
        algorithm: What chooses INT4 codes, by name, instead of ``quality``.
        exact: Whether INT4 kernels must be as exact as a float32 product; default false.
        target_bits_per_weight: A budget, shared out by what calibration data shows.
        target_sqnr_db: SQNR that each layer's product must reach, as cheaply as possible.
    """

    bits: int | None = attrs.field(default=None, validator=one_of(4, 8, 16))
    dtype: str | None = attrs.field(default=None, validator=one_of("int4", "int8", "float16", "bfloat16"))
    group_size: int | None = attrs.field(default=None, validator=whole_number(1, "32, 64 or 128"))
    symmetric: bool | None = attrs.field(default=None, validator=flag())
    scale_dtype: str | None = attrs.field(default=None, validator=one_of("float16", "bfloat16", "float32"))
    activations: str | None = attrs.field(default=None, validator=one_of("dynamic", "static"))
    observer: str | None = attrs.field(default=None, validator=text('the name of an observer, such as "histogram"'))
    quality: str | None = attrs.field(default=None, validator=one_of("auto", "fast", "balanced", "best"))
    algorithm: str | None = attrs.field(default=None, validator=text('the name of an algorithm, such as "gptq"'))
    exact: bool = attrs.field(default=False, validator=flag())
    target_bits_per_weight: float | None = attrs.field(default=None, validator=number("4.5", least=0))
    target_sqnr_db: float | None = attrs.field(default=None, validator=number("25"))

    def __attrs_post_init__(self) -> None:
        for first, second in EXCLUSIVE:
            one, other = getattr(self, first), getattr(self, second)
            if one is not None and other is not None and (first, one, other) != ("bits", 16, "bfloat16"):
                self._refuse_unless_same(first, one, second, other)

    def _refuse_unless_same(self, first: str, one: Any, second: str, other: Any) -> None:
        if first == "bits" and _DTYPE_OF_BITS[one] == other:
            return
        raise ConfigError(
            f"{first} = {shown(one)} and {second} = {shown(other)} contradict each other: give one of them"
        )

    @property
    def target(self) -> str:
        """What all that is not skipped is reduced to: ``"int4"``, ``"int8"``, ``"float16"`` or ``"bfloat16"``."""
        return self.dtype or _DTYPE_OF_BITS[self.bits or 4]


EXCLUSIVE = (("bits", "dtype"), ("quality", "algorithm"), ("target_bits_per_weight", "target_sqnr_db"))
_DTYPE_OF_BITS = {4: "int4", 8: "int8", 16: "float16"}


@attrs.frozen(kw_only=True)
class SelectTable:
    """``[select]``: quantize only these layers; with both keys, either suffices.

    Args:
        names: Layer names; default: all layers.
        types: Names of module classes, with what they contain; default: all classes.
    """

    names: tuple[str, ...] = attrs.field(default=(), converter=listed, validator=layer_names())
    types: tuple[str, ...] = attrs.field(default=(), converter=listed, validator=type_names())


@attrs.frozen(kw_only=True)
class SkipDefaultsTable:
    """``[skip_defaults]``: which of the INT4 defaults are kept beside the ``[[skip]]`` entries.

    Args:
        names: Keep ``lm_head`` in float; default true.
        types: Keep Embedding, EmbeddingBag, LayerNorm, BatchNorm1d and BatchNorm2d in float; default true.
        smaller_than: Keep layers with fewer than 512 parameters in float; default true.
        to: What these layers are reduced to instead: ``"int8"``, ``"float16"`` or ``"bfloat16"``; default: they
            stay float.
    """

    names: bool = attrs.field(default=True, validator=flag())
    types: bool = attrs.field(default=True, validator=flag())
    smaller_than: bool = attrs.field(default=True, validator=flag())
    to: str | None = attrs.field(default=None, validator=one_of(*TARGETS))


@attrs.frozen(kw_only=True)
class SkipEntry:
    """A ``[[skip]]`` entry: layers that fit all of its keys stay float, or are reduced less.

    Entries are asked from top to bottom, before the defaults; the first one that fits decides.

    Args:
        names: The layer has one of these names.
        types: The layer's module is of one of these classes, or in such a module.
        smaller_than: The layer has fewer parameters than this.
        to: What it is reduced to instead of staying float: ``"int8"``, ``"float16"`` or ``"bfloat16"``.
        reason: Why, for whoever reads the report.
    """

    names: tuple[str, ...] = attrs.field(default=(), converter=listed, validator=layer_names())
    types: tuple[str, ...] = attrs.field(default=(), converter=listed, validator=type_names())
    smaller_than: int | None = attrs.field(default=None, validator=whole_number(1, "512"))
    to: str | None = attrs.field(default=None, validator=one_of(*TARGETS))
    reason: str | None = attrs.field(default=None, validator=text("a reason"))

    def __attrs_post_init__(self) -> None:
        if not (self.names or self.types or self.smaller_than):
            raise ConfigError("it fits no layer: give names, types or smaller_than")


@attrs.frozen(kw_only=True)
class CalibrationTable:
    """``[calibration]``: data to fit codes to, and to measure layer outputs on.

    Args:
        data: A ``.safetensors`` or ``.npy`` file, a text file, or ``"package.module:factory"``, which runs code;
            relative paths start at the recipe's folder.
        tokenizer: A folder with a tokenizer, for text.
        samples: Samples to use at most; default 150.
        batch_size: Samples per batch; default 8.
        max_length: Tokens that are kept of a line, for text; default 128.
        select: Position or key of the batch item that is the model's input.
        statistics_bytes: Memory for the statistics that algorithms need; default 4 GiB.
    """

    data: str = attrs.field(validator=text("a file or package.module:factory"))
    tokenizer: str | None = attrs.field(default=None, validator=text("a folder with a tokenizer"))
    samples: int | None = attrs.field(default=None, validator=whole_number(1, "150"))
    batch_size: int | None = attrs.field(default=None, validator=whole_number(1, "8"))
    max_length: int | None = attrs.field(default=None, validator=whole_number(1, "128"))
    select: int | str | None = attrs.field(default=None, validator=position_or_key())
    statistics_bytes: int | None = attrs.field(default=None, validator=whole_number(1, "4294967296"))


@attrs.frozen(kw_only=True)
class CompareTable:
    """``[compare]``: data to compare the whole model's answers on, before and after.

    Args:
        data: As in ``[calibration]``; other data than that.
        tokenizer: A folder with a tokenizer, for text.
        samples: Samples to use at most; default: all.
        batch_size: Samples per batch; default 8.
        max_length: Tokens that are kept of a line, for text; default 128.
        select: Position or key of the batch item that is the model's input.
        measure: ``"auto"`` (default), ``"kl"`` or ``"cosine"``.
        warning_threshold: More KL, or less cosine, than this is worth a warning; default .25, .99.
        error_threshold: More KL, or less cosine, than this is CRITICAL; default .5, .95.
    """

    data: str = attrs.field(validator=text("a file or package.module:factory"))
    tokenizer: str | None = attrs.field(default=None, validator=text("a folder with a tokenizer"))
    samples: int | None = attrs.field(default=None, validator=whole_number(1, "64"))
    batch_size: int | None = attrs.field(default=None, validator=whole_number(1, "8"))
    max_length: int | None = attrs.field(default=None, validator=whole_number(1, "128"))
    select: int | str | None = attrs.field(default=None, validator=position_or_key())
    measure: str = attrs.field(default="auto", validator=one_of("auto", "kl", "cosine"))
    warning_threshold: float | None = attrs.field(default=None, validator=number("0.25"))
    error_threshold: float | None = attrs.field(default=None, validator=number("0.5"))


@attrs.frozen(kw_only=True)
class ValidationTable:
    """``[validation]``: what is measured and checked.

    Args:
        run: Whether to measure and check at all; default true. False leaves a gate nothing to judge.
        on_failure: What a failed packing, saving or range check does: ``"error"`` (default), ``"warn"``, ``"ignore"``.
    """

    run: bool = attrs.field(default=True, validator=flag())
    on_failure: str = attrs.field(default="error", validator=one_of(*POLICIES))


@attrs.frozen(kw_only=True)
class GateTable:
    """``[gate]``: what fails the build.

    Args:
        accuracy_warning: What too much damage does: ``"error"``, ``"warn"`` or ``"ignore"``; default ``"error"``
            where one of the keys from ``fail_on`` on is given, else ``"warn"``.
        sqnr_warning_threshold: dB, below which a layer's output is worth a warning; default 20.
        sqnr_error_threshold: dB, below which a layer is CRITICAL; default 10.
        fail_on: The least severity that fails the build: ``"critical"`` (default) or ``"warning"``.
        min_layer_sqnr_db: dB that every quantized layer must reach.
        min_model_sqnr_db: dB that the model must reach.
        max_bits_per_weight: Bits per weight that packed weights may take, scales and all.
        min_compression: How many times smaller the model must become.
        baseline: The report of an earlier release, or a quantized file: no layer may be worse, nor the model larger.
        tolerance_db: What a layer may lose against the baseline; dB, default 0.5.
        size_tolerance_percent: What the model may grow against the baseline; default 1.
    """

    accuracy_warning: str | None = attrs.field(default=None, validator=one_of(*POLICIES))
    sqnr_warning_threshold: float | None = attrs.field(default=None, validator=number("20"))
    sqnr_error_threshold: float | None = attrs.field(default=None, validator=number("10"))
    fail_on: str | None = attrs.field(default=None, validator=one_of("critical", "warning"))
    min_layer_sqnr_db: float | None = attrs.field(default=None, validator=number("12"))
    min_model_sqnr_db: float | None = attrs.field(default=None, validator=number("20"))
    max_bits_per_weight: float | None = attrs.field(default=None, validator=number("4.5", least=0))
    min_compression: float | None = attrs.field(default=None, validator=number("3.5", least=0))
    baseline: str | None = attrs.field(default=None, validator=text("the path of a report or of a quantized file"))
    tolerance_db: float | None = attrs.field(default=None, validator=number("0.5", least=0))
    size_tolerance_percent: float | None = attrs.field(default=None, validator=number("1", least=0))

    def __attrs_post_init__(self) -> None:
        if self.baseline is None and (self.tolerance_db is not None or self.size_tolerance_percent is not None):
            raise ConfigError("tolerance_db and size_tolerance_percent say nothing without a baseline: give one")


@attrs.frozen(kw_only=True)
class PluginsTable:
    """``[plugins]``: who takes part.

    Args:
        installed: Whether installed plugins do; default true.
        block: Names of plugins that do not.
        files: ``.py`` files that do, which are executed; relative paths start at the recipe's folder.
    """

    installed: bool = attrs.field(default=True, validator=flag())
    block: tuple[str, ...] = attrs.field(default=(), converter=listed, validator=texts("names of plugins"))
    files: tuple[str, ...] = attrs.field(default=(), converter=listed, validator=texts("paths of .py files"))


@attrs.frozen(kw_only=True)
class OutputTable:
    """``[output]``: how a command writes the result.

    Args:
        format: Name of a file format; default: by the end of the output's name.
    """

    format: str | None = attrs.field(default=None, validator=text('the name of a format, such as "monoquant"'))
