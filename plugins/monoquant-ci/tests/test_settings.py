"""Where the gate gets its baseline and tolerances from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import monoquant as mq
import pytest
import torch
from torch import nn

import monoquant_ci
from monoquant_ci.gate import BASELINE, SIZE_TOLERANCE, TOLERANCE_DB, Gate, NoBaselineCheck, check_of_environment


@pytest.fixture(scope="module")
def result() -> mq.QuantResult:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    return mq.quantize(model, plugins=False, accuracy_warning="ignore")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (BASELINE, TOLERANCE_DB, SIZE_TOLERANCE):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_a_baseline_is_a_report_or_a_saved_model(
    result: mq.QuantResult, tmp_path: Path, kind: str, as_text: bool
) -> None:
    """Both hold the same report, and it is the one that was written."""
    path = tmp_path / f"baseline.{kind}"
    if kind == "json":
        mq.save_report(result.report, path, plugins=False)
    else:
        mq.save(result, path, plugins=False)
    gate = Gate(str(path) if as_text else path)
    assert gate.baseline.report == result.report == Gate(result.report).baseline.report
    assert gate.baseline.source == str(path)
    assert "LayerReport" not in repr(gate)


def test_the_environment_gives_a_gate(result: mq.QuantResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tolerances have their defaults where they are not set."""
    mq.save_report(result.report, tmp_path / "baseline.json", plugins=False)
    monkeypatch.setenv(BASELINE, str(tmp_path / "baseline.json"))
    assert check_of_environment() == Gate(tmp_path / "baseline.json", 0.5, 1.0)
    monkeypatch.setenv(TOLERANCE_DB, "0.25")
    monkeypatch.setenv(SIZE_TOLERANCE, " 3 ")
    assert check_of_environment() == Gate(tmp_path / "baseline.json", 0.25, 3.0)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_no_baseline_is_told(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """It is one INFO finding with the way out, so that it can be seen and disturbs nobody."""
    if value is not None:
        monkeypatch.setenv(BASELINE, value)
    (check,) = monoquant_ci.monoquant_register_warning_checks()
    assert check == NoBaselineCheck()
    info = mq.QuantizationInfo(["a"], [], 0, torch.int8, True)
    (finding,) = check.check(info, mq.AccuracyGate())
    assert (finding.code, finding.severity) == ("baseline-not-set", mq.Severity.INFO)
    assert "MONOQUANT_CI_BASELINE is not set" in finding.message
    assert "save_report" in finding.remedy


@pytest.mark.parametrize("variable", [TOLERANCE_DB, SIZE_TOLERANCE])
@pytest.mark.parametrize("text", ["half", "-1", "nan", "inf"])
def test_the_environment_is_held_to_numbers(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    """A tolerance that cannot be read is an error, with or without a baseline."""
    monkeypatch.setenv(variable, text)
    with pytest.raises(mq.ConfigError, match=f"^{variable}='{text}': give a finite number >= 0"):
        check_of_environment()


@pytest.mark.parametrize("setting", ["tolerance_db", "size_tolerance_percent"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), True, "0.5", None])
def test_tolerances_are_held_to_numbers(result: mq.QuantResult, setting: str, value: object) -> None:
    with pytest.raises(mq.ConfigError, match=f"^{setting}={value!r}: give a finite number >= 0"):
        Gate(result.report, **{setting: value})


@pytest.mark.parametrize("given", [None, 3, {"version": 1}])
def test_other_kinds_of_baseline_are_refused(given: object) -> None:
    with pytest.raises(mq.ConfigError, match="give a QuantReport, or the path of a report or of a saved model"):
        Gate(given)


BROKEN = {
    "missing.json": (None, "no such file"),
    "missing.safetensors": (None, "no such file"),
    "cut.json": ('{"version": 1,', "not a report that save_report wrote"),
    "list.json": ("[]", "not a stored report"),
    "later.json": ('{"version": 99}', "report version 99"),
    "other.json": (json.dumps({"version": 1, "scores": []}), "scores"),
    "text.safetensors": ("hello", "nor a model that save wrote"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_baseline_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The error says which setting, which file, what is wrong, and how to write a sound one."""
    path, (content, reason) = tmp_path / name, BROKEN[name]
    if content is not None:
        path.write_text(content)
    with pytest.raises(mq.FileError) as caught:
        Gate(path)
    assert str(caught.value).startswith(f"baseline={str(path)!r} is no baseline: ")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("write one with monoquant.save_report(result.report, 'baseline.json')")
    monkeypatch.setenv(BASELINE, str(path))
    with pytest.raises(mq.FileError, match=f"^{BASELINE}="):
        check_of_environment()
