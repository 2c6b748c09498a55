"""AccuracyWarningPass: the gate of a build."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.values import BUILT_IN


def run(model: nn.Module, tokens: Any = None, registry: mq.Registry | None = None, **settings: Any) -> mq.QuantResult:
    """A whole pipeline with the gate's settings."""
    data = [mq.CalibrationPass(tokens)] if tokens is not None else []
    skips = mq.SkipSelectionPass.from_options()
    passes = [skips, *data, mq.Int4PackPass(), mq.ValidationPass(), mq.AccuracyWarningPass(**settings)]
    return mq.Quantizer(passes, registry or mq.Registry()).run(model)


def damage(model: nn.Module, layer: str, outlier: float = 1.5) -> None:
    """Give every group of a layer an outlier to both sides, so that INT4 flattens the rest: about 12 dB."""
    with torch.no_grad():
        model.get_submodule(layer).weight[:, ::100] = outlier
        model.get_submodule(layer).weight[:, 1::100] = -outlier


def test_a_healthy_model_passes_silently(small: nn.Module) -> None:
    """Gaussian weights at about 20 dB are what the format can do: no warning, no text."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run(small, on_failure="error")
    assert result.info.warnings == []
    assert 19 < result.info.sqnr_db < 21


def test_a_critical_layer_fails_the_build_and_leaves_the_model(small: nn.Module, tokens: Any, unchanged: Any) -> None:
    """The error contains CRITICAL, carries info and report, and names the failing layers worst first."""
    damage(small, "blocks.0.up")
    damage(small, "blocks.1.down", 2.5)
    check = unchanged(small)
    with pytest.raises(mq.AccuracyError, match="CRITICAL") as caught:
        run(small, tokens, on_failure="error", sqnr_error_threshold=15)
    check()
    error = caught.value
    assert isinstance(error, ValueError)
    assert set(error.layers) == {"blocks.0.up", "blocks.1.down"}
    by_name = {record.layer: record for record in error.info.layers}

    def worst(layer: str) -> float:
        record = by_name[layer]
        return min(record.weight_sqnr_db, record.output_sqnr_db)

    assert list(error.layers) == sorted(error.layers, key=worst)
    assert any("CRITICAL" in text for text in error.info.warnings)
    critical = [one.layer for one in error.report.findings if one.severity is mq.Severity.CRITICAL]
    assert set(critical) == set(error.layers)
    assert error.report.layers == error.info.layers


def test_one_broken_layer_does_not_hide_in_the_median(small: nn.Module, tokens: Any) -> None:
    """Three healthy layers do not excuse the fourth."""
    with torch.no_grad():
        small.blocks[0].up.weight[:, 0] = 100.0
        small.blocks[0].up.weight[:, 64] = -100.0
        small.blocks[0].norm.weight[[0, 64]] = 0.0
        small.blocks[0].norm.bias[[0, 64]] = 0.0
    with pytest.raises(mq.AccuracyError) as caught:
        run(small, tokens, on_failure="error")
    assert caught.value.layers == ("blocks.0.up",)
    assert caught.value.info.sqnr_db > 15


def test_one_warning_is_emitted_at_the_caller(small: nn.Module) -> None:
    """The warn policy emits a single filterable warning that points at the caller's line."""
    damage(small, "blocks.0.up")
    with pytest.warns(mq.AccuracyWarning, match=r"Weight SQNR .*'blocks\.0\.up'") as caught:
        run(small, on_failure="warn")
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_the_lists_are_filled_under_every_policy(small: nn.Module) -> None:
    """Ignore and warn give the same texts and findings, also in the validation."""
    damage(small, "blocks.0.up")
    silent = run(small, on_failure="ignore")
    with pytest.warns(mq.AccuracyWarning):
        told = run(small, on_failure="warn")
    assert silent.info.warnings == told.info.warnings != []
    assert silent.report == told.report
    assert silent.report.validation.warnings == silent.info.warnings


def test_codes_can_be_disabled(small: nn.Module) -> None:
    """A finding whose code is disabled is neither told nor counted."""
    damage(small, "blocks.0.up")
    codes = {finding.code for finding in run(small, on_failure="ignore").report.findings}
    noisy = {code for code in codes if code.startswith("sqnr")}
    assert noisy
    quiet = run(small, on_failure="error", disabled=noisy)
    assert not {finding.code for finding in quiet.report.findings} & noisy


def test_the_remedy_names_layers_and_bytes(small: nn.Module, tokens: Any) -> None:
    """Doing what the remedy says costs the bytes that it tells."""
    result = run(small, tokens, on_failure="ignore", sqnr_warning_threshold=60)
    finding = next(finding for finding in result.report.findings if finding.code == "sqnr-low")
    worst = min(result.report.by_action(mq.Action.QUANTIZE), key=lambda record: record.output_sqnr_db)
    assert finding.layer == worst.layer
    assert f"skip_layer_names=['{worst.layer}', " in finding.remedy
    names = finding.remedy.split("skip_layer_names=[")[1].split("]")[0].replace("'", "").split(", ")
    kept = mq.quantize(small, skip_layer_names=names, accuracy_warning="ignore", plugins=False)
    cost = kept.report.quantized_bytes - result.report.quantized_bytes
    assert f"(+{cost / 1024:.1f} KiB)" in finding.remedy


class LoudCheck(mq.WarningCheck):
    """Finds something critical in every run."""

    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        yield mq.Finding("loud", mq.Severity.CRITICAL, f"CRITICAL: gate at {gate.sqnr_error_threshold}", "bn")


def test_registered_checks_take_part_with_their_origin(small: nn.Module) -> None:
    """A plugin's check sees the thresholds, can fail a build, and its findings carry its origin."""
    origin = mq.Origin("loud-plugin", "1.2")
    registry = mq.Registry(warning_checks=[mq.Registered(LoudCheck(), origin)])
    with pytest.raises(mq.AccuracyError, match=r"gate at 3\.5") as caught:
        run(small, registry=registry, on_failure="error", sqnr_error_threshold=3.5)
    assert caught.value.layers == ("bn",)
    findings = run(small, registry=registry, on_failure="ignore").report.findings
    assert [finding.origin for finding in findings if finding.code == "loud"] == [origin]
    assert BUILT_IN in {finding.origin for finding in findings}


BAD_SETTINGS = [
    ({"on_failure": "raise"}, "on_failure='raise'.*'error', 'warn', 'ignore'"),
    ({"sqnr_warning_threshold": 5.0}, "sqnr_error_threshold=10.0 is above sqnr_warning_threshold=5.0"),
    ({"sqnr_error_threshold": float("nan")}, "sqnr_error_threshold=nan"),
    ({"sqnr_error_threshold": "10"}, "sqnr_error_threshold='10'"),
    ({"disabled": "loud"}, "disabled='loud'"),
    ({"disabled": [3]}, "disabled="),
]


@pytest.mark.parametrize(("settings", "text"), BAD_SETTINGS, ids=[text for _, text in BAD_SETTINGS])
def test_bad_settings_are_refused_when_built(settings: dict[str, Any], text: str) -> None:
    """Each wrong setting is a ConfigError before any model is seen."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.AccuracyWarningPass(**settings)
