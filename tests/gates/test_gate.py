"""A gate as one value: what quantize() and quantize_file() make of it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.container import write_container

QUIET = {"plugins": False}


@pytest.fixture
def weights(tmp_path: Path, small: nn.Module) -> Path:
    """A file of float weights."""
    path = tmp_path / "float.safetensors"
    write_container(path, small.state_dict(), {})
    return path


LIMITS = [
    ({"min_layer_sqnr_db": 90}, "gate-layer-sqnr"),
    ({"min_model_sqnr_db": 90}, "gate-model-sqnr"),
    ({"max_bits_per_weight": 2}, "gate-bits-per-weight"),
    ({"min_compression": 90}, "gate-compression"),
]


@pytest.mark.parametrize(("limits", "code"), LIMITS)
def test_a_limit_that_is_not_kept_raises_with_the_report(
    small: nn.Module, limits: dict[str, Any], code: str, unchanged: Any
) -> None:
    """Giving a gate is enough; the model is left alone, and the error has report and info."""
    check = unchanged(small)
    with pytest.raises(mq.AccuracyError, match="CRITICAL: the quality gate failed") as caught:
        mq.quantize(small, gate=mq.Gate(**limits), **QUIET)
    check()
    assert code in {finding.code for finding in caught.value.report.findings}
    assert any(text.startswith("CRITICAL") for text in caught.value.info.warnings)


def test_a_gate_that_is_kept_is_silent(small: nn.Module) -> None:
    """Limits that the result reaches leave no finding."""
    gate = mq.Gate(min_layer_sqnr_db=15, min_model_sqnr_db=15, max_bits_per_weight=4.5, min_compression=1.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = mq.quantize(small, gate=gate, **QUIET).report
    assert not [finding for finding in report.findings if finding.code.startswith("gate-")]
    assert gate.judge(report) == []


def test_the_policy_is_the_callers(small: nn.Module) -> None:
    """With accuracy_warning="warn" a gate that fails is told, with "ignore" it is in the report only."""
    gate = mq.Gate(min_layer_sqnr_db=90)
    with pytest.warns(mq.AccuracyWarning, match="min_layer_sqnr_db=90"):
        mq.quantize(small, gate=gate, accuracy_warning="warn", **QUIET)
    silent = mq.quantize(small, gate=gate, accuracy_warning="ignore", **QUIET)
    stored = [finding for finding in silent.report.findings if finding.code == "gate-layer-sqnr"]
    assert stored == gate.judge(silent.report) == gate.failures(silent.report.findings)


def test_warnings_can_fail_a_build(small: nn.Module) -> None:
    """fail_on="warning" counts those of every check, and of rules that matched nothing."""
    options = {"skip_layer_names": ["no_such_layer"], **QUIET}
    mq.quantize(small, gate=mq.Gate(), **options)
    with pytest.raises(mq.AccuracyError, match="where a warning is enough\n- Warning: skip rule 'no_such_layer'"):
        mq.quantize(small, gate=mq.Gate(fail_on="warning"), **options)
    report = mq.quantize(small, accuracy_warning="ignore", **options).report
    assert mq.Gate().failures(report.findings) == []
    assert [finding.code for finding in mq.Gate(fail_on="warning").failures(report.findings)] == ["rule-unmatched"]


def test_a_baseline_is_a_report_a_path_or_a_saved_model(small: nn.Module, tmp_path: Path) -> None:
    """All three say the same of the same model, and a worse one fails with its layer."""
    result = mq.quantize(small, accuracy_warning="ignore", **QUIET)
    mq.save_report(result.report, tmp_path / "report.json", plugins=False)
    mq.save(result, tmp_path / "model.safetensors", plugins=False)
    given = [result.report, tmp_path / "report.json", str(tmp_path / "model.safetensors"), mq.Baseline(result.report)]
    gates = [mq.Gate(baseline=one, tolerance_db=0, size_tolerance_percent=0) for one in given]
    assert [gate.baseline.report for gate in gates] == [result.report] * 4
    for gate in gates:
        assert gate.failures(gate.judge(result.report)) == []
        assert "LayerReport" not in repr(gate)
    with torch.no_grad():
        small.blocks[0].up.weight[:, 0] = 3.0
    with pytest.raises(mq.AccuracyError, match=r"in .*report\.json") as caught:
        mq.quantize(small, gate=gates[1], **QUIET)
    assert caught.value.layers == ("blocks.0.up",)


@pytest.mark.parametrize(
    ("gate", "kept"),
    [({"min_layer_sqnr_db": 90}, False), ({"min_layer_sqnr_db": 15}, True), ({"min_compression": 90}, False)],
)
@pytest.mark.parametrize("there_before", [True, False])
def test_a_failed_gate_leaves_no_new_file(
    weights: Path, tmp_path: Path, gate: dict[str, float], kept: bool, there_before: bool
) -> None:
    """It is judged before the new file takes its place: an old one stays, and nothing lies about."""
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "int4.safetensors"
    if there_before:
        target.write_bytes(b"old")
    if kept:
        report = mq.quantize_file(weights, target, gate=mq.Gate(**gate), **QUIET)
        assert mq.load_report(target) == report
    else:
        with pytest.raises(mq.AccuracyError) as caught:
            mq.quantize_file(weights, target, gate=mq.Gate(**gate), **QUIET)
        assert caught.value.report.layers
        assert [path.name for path in folder.iterdir()] == (["int4.safetensors"] if there_before else [])
        assert not there_before or target.read_bytes() == b"old"


def test_a_recipes_text_is_kept(small: nn.Module, weights: Path, tmp_path: Path) -> None:
    """In the report, in the saved model and in the streamed file."""
    text = "[scheme]\nbits = 4\n"
    result = mq.quantize(small, recipe=text, accuracy_warning="ignore", **QUIET)
    assert result.report.recipe == text
    mq.save(result, tmp_path / "model.safetensors", plugins=False)
    mq.quantize_file(weights, tmp_path / "file.safetensors", recipe=text, accuracy_warning="ignore", **QUIET)
    for name in ("model.safetensors", "file.safetensors"):
        assert mq.load_report(tmp_path / name).recipe == text
    assert mq.quantize(small, accuracy_warning="ignore", **QUIET).report.recipe is None


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_long_recipe_fits_a_streamed_file(weights: Path, tmp_path: Path, size: int) -> None:
    """Room for the report is reserved before it is known; the recipe is a part of it."""
    report = mq.quantize_file(
        weights, tmp_path / "x.safetensors", recipe="#" * size, accuracy_warning="ignore", **QUIET
    )
    assert report.recipe == "#" * size == mq.load_report(tmp_path / "x.safetensors").recipe


BAD = [
    ({"fail_on": "info"}, "fail_on='info': give one of 'critical', 'warning'"),
    ({"fail_on": None}, "fail_on=None: give one of"),
    ({"min_layer_sqnr_db": "10"}, "min_layer_sqnr_db='10': give a finite number"),
    ({"min_layer_sqnr_db": float("nan")}, "min_layer_sqnr_db=nan: give a finite number"),
    ({"min_model_sqnr_db": True}, "min_model_sqnr_db=True: give a finite number"),
    ({"max_bits_per_weight": 0}, "max_bits_per_weight=0: give a finite number > 0"),
    ({"min_compression": -1}, "min_compression=-1: give a finite number > 0"),
    ({"tolerance_db": -0.1}, "tolerance_db=-0.1: give a finite number >= 0"),
    ({"tolerance_db": None}, "tolerance_db=None: give a finite number >= 0"),
    ({"size_tolerance_percent": float("inf")}, "size_tolerance_percent=inf: give a finite number >= 0"),
    ({"baseline": 3}, "baseline=3: give a QuantReport, or the path of a report or of a saved model"),
]


@pytest.mark.parametrize(("settings", "text"), BAD, ids=[text for _, text in BAD])
def test_bad_settings_are_refused_when_built(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(mq.ConfigError) as caught:
        mq.Gate(**settings)
    assert str(caught.value).startswith(text)


def test_a_baseline_that_cannot_be_read_says_how_to_write_one(tmp_path: Path) -> None:
    """Missing, cut and foreign files are refused before anything runs."""
    (tmp_path / "cut.json").write_text('{"version": 1,')
    (tmp_path / "later.json").write_text(json.dumps({"version": 99}))
    for name in ("none.json", "cut.json", "later.json"):
        with pytest.raises(mq.FileError, match="save_report") as caught:
            mq.Gate(baseline=tmp_path / name)
        assert str(caught.value).startswith(f"baseline={str(tmp_path / name)!r} is no baseline: ")


def test_other_things_than_gates_and_reports_are_refused(small: nn.Module) -> None:
    with pytest.raises(mq.ConfigError, match=r"gate=12: give a monoquant\.Gate"):
        mq.quantize(small, gate=12, **QUIET)
    with pytest.raises(mq.ConfigError, match="gate has nothing to judge with run_validation=False"):
        mq.quantize(small, gate=mq.Gate(min_layer_sqnr_db=1), run_validation=False, **QUIET)
    with pytest.raises(mq.ConfigError, match="recipe=3: give the recipe's TOML text"):
        mq.quantize(small, recipe=3, **QUIET)
    with pytest.raises(mq.InputError, match="report is a dict: give a QuantReport"):
        mq.Gate().judge({})
    with pytest.raises(mq.ConfigError, match="accuracy_warning='loud'"):
        mq.quantize(small, accuracy_warning="loud", **QUIET)


def test_a_summary_can_be_judged_too(small: nn.Module) -> None:
    """An info says what its report says."""
    result = mq.quantize(small, accuracy_warning="ignore", **QUIET)
    gate = mq.Gate(min_layer_sqnr_db=90, min_compression=90)
    assert gate.judge(result.info) == gate.judge(result.report) != []
    assert attrs.evolve(gate, min_compression=None).judge(result.info) == gate.judge(result.info)[:-1]


def test_the_pass_takes_checks_of_a_gate_or_of_ones_own() -> None:
    """They are held to be checks when the pass is built."""
    gate = mq.Gate(min_layer_sqnr_db=12)
    assert mq.AccuracyWarningPass(checks=gate.checks).checks == gate.checks
    assert mq.AccuracyWarningPass(checks=gate.checks[0]).checks == gate.checks
    with pytest.raises(mq.ConfigError, match="'sqnr' is no WarningCheck"):
        mq.AccuracyWarningPass(checks=["sqnr"])
    with pytest.raises(mq.ConfigError, match="fail_on='info': give one of 'critical', 'warning'"):
        mq.AccuracyWarningPass(fail_on="info")
