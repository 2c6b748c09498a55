"""How people say which precision they want, and what each word means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq

INT8 = mq.Scheme(8, None, True, torch.float32)
STATIC, DYNAMIC = (mq.Scheme(8, None, True, torch.float32, activations) for activations in ("static", "dynamic"))
QUIET: dict[str, Any] = {"accuracy_warning": "ignore"}


def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(20, 64, generator=generator) for _ in range(3)]


WORDS = [
    ({}, mq.Scheme(), mq.Int4Linear),
    ({"bits": 4}, mq.Scheme(), mq.Int4Linear),
    ({"dtype": torch.int4}, mq.Scheme(), mq.Int4Linear),
    ({"bits": 4, "dtype": torch.int4}, mq.Scheme(), mq.Int4Linear),
    ({"bits": 8}, INT8, mq.Int8Linear),
    ({"dtype": torch.int8}, INT8, mq.Int8Linear),
    ({"dtype": torch.qint8}, INT8, mq.Int8Linear),
    ({"bits": 8, "dtype": torch.qint8}, INT8, mq.Int8Linear),
    ({"bits": 8, "activations": "dynamic"}, DYNAMIC, mq.Int8DynamicLinear),
    ({"bits": 8, "activations": "static", "calibration_data": data()}, STATIC, mq.Int8StaticLinear),
    ({"bits": 16}, mq.HalfScheme(torch.float16), mq.HalfLinear),
    ({"dtype": torch.float16}, mq.HalfScheme(torch.float16), mq.HalfLinear),
    ({"dtype": torch.bfloat16}, mq.HalfScheme(torch.bfloat16), mq.HalfLinear),
    ({"bits": 16, "dtype": torch.bfloat16}, mq.HalfScheme(torch.bfloat16), mq.HalfLinear),
]


@pytest.mark.parametrize(("options", "scheme", "kind"), WORDS, ids=[str(sorted(options)) for options, *_ in WORDS])
def test_words_of_quantize(options: dict[str, Any], scheme: Any, kind: type[nn.Module]) -> None:
    """Bits and dtypes are two ways to say the same; the report and the layer agree on what was meant."""
    result = mq.quantize(nn.Linear(64, 64), plugins=False, **QUIET, **options)
    assert type(result.model) is kind
    assert result.report.scheme == result.report.layers[0].scheme == scheme
    assert result.model.packed_weight.scheme == scheme.storage


@pytest.mark.parametrize(
    ("options", "kind", "dtype"),
    [
        ({}, mq.Int8StaticLinear, torch.int8),
        ({"dtype": torch.qint8}, mq.Int8StaticLinear, torch.int8),
        ({"dtype": torch.int8, "bits": 8}, mq.Int8StaticLinear, torch.int8),
        ({"bits": 4}, mq.Int4Linear, torch.int4),
        ({"dtype": torch.int4}, mq.Int4Linear, torch.int4),
        ({"bits": 16}, mq.HalfLinear, torch.float16),
        ({"dtype": torch.bfloat16}, mq.HalfLinear, torch.bfloat16),
    ],
)
def test_words_of_static_quantize(options: dict[str, Any], kind: type[nn.Module], dtype: torch.dtype) -> None:
    """Without a word it is static INT8, as existing users know it."""
    model, info = mq.static_quantize(nn.Linear(64, 64), data(), **QUIET, **options)
    assert type(model) is kind
    assert info.dtype == dtype
    assert (info.calibration_samples_used, info.sqnr_kind) == (60, "output")


@pytest.mark.parametrize(
    ("options", "kind", "dtype"),
    [
        ({}, mq.Int8DynamicLinear, torch.int8),
        ({"dtype": torch.int8}, mq.Int8DynamicLinear, torch.int8),
        ({"dtype": torch.float16}, mq.HalfLinear, torch.float16),
        ({"dtype": torch.bfloat16}, mq.HalfLinear, torch.bfloat16),
    ],
)
def test_words_of_dynamic_quantize(options: dict[str, Any], kind: type[nn.Module], dtype: torch.dtype) -> None:
    """Without a word it is dynamic INT8, and it never needs data."""
    model, info = mq.dynamic_quantize(nn.Linear(64, 64), **QUIET, **options)
    assert type(model) is kind
    assert info.dtype == dtype
    assert (info.calibration_samples_used, info.sqnr_kind) == (0, "weight")


def test_dynamic_quantize_refuses_int4() -> None:
    """INT4 has no dynamic kind; the error names the function that has INT4."""
    with pytest.raises(mq.ConfigError, match=r"INT4 is quantize\(model, bits=4\)"):
        mq.dynamic_quantize(nn.Linear(64, 64), torch.int4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layer_types": nn.Embedding}, {"embed"}),
        ({"layer_names": ["blocks.1"]}, {"blocks.1.up", "blocks.1.down"}),
        ({"modules_to_not_convert": ["blocks"]}, {"embed", "lm_head"}),
        ({"skip_layer_types": nn.Linear}, {"embed"}),
        ({"skip_layer_names": ["up", "down"]}, {"embed", "lm_head"}),
        ({"skip_param_threshold": 19_201}, {"blocks.0.up", "blocks.1.up"}),
    ],
)
def test_selection_in_dynamic_quantize(small: nn.Module, options: dict[str, Any], expected: set[str]) -> None:
    """Each way to choose layers changes which ones are quantized; without one, all that have a matrix are."""
    everything = {"embed", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "lm_head"}
    assert set(mq.dynamic_quantize(small, **QUIET)[1].selected_layers) == everything
    assert set(mq.dynamic_quantize(small, **QUIET, **options)[1].selected_layers) == expected


def test_int8_and_16_bits_have_no_default_skips(small: nn.Module) -> None:
    """The defaults are for INT4, which loses more; given options work all the same."""
    for bits in (8, 16):
        info = mq.quantize(small, bits, plugins=False, **QUIET).info
        assert info.skipped_layers == []
        assert set(info.unsupported_layers) == {"blocks.0.norm", "blocks.1.norm", "bn"}
        info = mq.quantize(small, bits, modules_to_not_convert="lm_head", plugins=False, **QUIET).info
        assert info.skipped_layers == ["lm_head"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bits": 4, "activations": "static"}, "activations='static' is for INT8: give bits=8"),
        ({"bits": 16, "activations": "dynamic"}, "activations='dynamic' is for INT8: give bits=8"),
        ({"bits": 8, "activations": "both"}, "activations='both': give None, 'dynamic' or 'static'"),
        ({"bits": 8, "observer": "histogram"}, "does nothing without activations='static'"),
        ({"bits": 8, "activations": "static"}, "needs calibration_data to find the ranges of inputs"),
        ({"bits": 16, "scale_dtype": torch.float16}, "scale_dtype change nothing in float16"),
        ({"bits": 8, "dtype": torch.float16}, "disagree"),
        ({"dtype": "int8"}, "dtype='int8': give one of"),
        ({"dtype": torch.quint8}, "dtype=torch.quint8: give one of"),
    ],
)
def test_words_that_do_not_fit_together_are_refused(options: dict[str, Any], text: str) -> None:
    """What would do nothing, or contradicts itself, is an error rather than a silent choice."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.quantize(nn.Linear(64, 64), plugins=False, **options)


@pytest.mark.parametrize(
    ("options", "skip_to"),
    [
        ({"bits": 8}, "int8"),
        ({"bits": 16}, "int8"),
        ({"dtype": torch.bfloat16}, "float16"),
        ({"dtype": torch.float16}, "float16"),
    ],
)
def test_layers_cannot_be_kept_in_what_all_are_reduced_to(options: Any, skip_to: str) -> None:
    """Nor in less: the option would change nothing, or the opposite of what it says."""
    with pytest.raises(mq.ConfigError, match=f"skip_to='{skip_to}' keeps no more of a layer than"):
        mq.quantize(torch.nn.Linear(40, 32), skip_to=skip_to, **options)
