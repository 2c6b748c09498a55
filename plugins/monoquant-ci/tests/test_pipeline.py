"""The plugin at work: a release writes its baseline, and the next one is held against it."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import monoquant as mq
import pytest
import torch
from torch import nn

import monoquant_ci

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
ORIGIN = mq.Origin("monoquant-ci", monoquant_ci.__version__)
VARIABLES = ("MONOQUANT_CI_BASELINE", "MONOQUANT_CI_TOLERANCE_DB", "MONOQUANT_CI_SIZE_TOLERANCE_PERCENT")


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution, with the entry point that pyproject.toml declares; first on the path if it is there already."""
    folder = tmp_path / "site" / f"monoquant_ci-{ORIGIN.version}.dist-info"
    folder.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {ORIGIN.name}\nVersion: {ORIGIN.version}\nRequires-Dist: monoquant\n"
    (folder / "METADATA").write_text(metadata)
    points = PROJECT["project"]["entry-points"]["monoquant"]
    lines = [f"{name} = {target}" for name, target in points.items()]
    (folder / "entry_points.txt").write_text("\n".join(["[monoquant]", *lines, ""]))
    monkeypatch.syspath_prepend(folder.parent)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def model() -> nn.Sequential:
    """A float model; quantize() leaves it alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()


@pytest.fixture
def baseline(model: nn.Sequential, tmp_path: Path) -> Path:
    """The report of a release of that model."""
    path = tmp_path / "baseline.json"
    mq.save_report(mq.quantize(model, accuracy_warning="ignore").report, path)
    return path


def spoil(model: nn.Sequential, name: str) -> None:
    """One loud weight per row takes the resolution of all others."""
    with torch.no_grad():
        model.get_submodule(name).weight[:, 0] = 3.0


def told(report: mq.QuantReport) -> dict[str, list[str | None]]:
    """Layers by code, of what the gate found."""
    codes: dict[str, list[str | None]] = {}
    for finding in report.findings:
        if finding.code.startswith("baseline-"):
            codes.setdefault(finding.code.removeprefix("baseline-"), []).append(finding.layer)
    return codes


def test_the_entry_point_leads_to_the_module() -> None:
    """Installed, it is found by name with its version and hooks."""
    (point,) = (
        point for point in importlib.metadata.entry_points(group="monoquant") if point.dist.name == "monoquant-ci"
    )
    assert point.load() is sys.modules["monoquant_ci"]
    (info,) = (info for info in mq.list_plugins() if info.origin.name == "monoquant-ci")
    assert (info.status, info.origin) == ("active", ORIGIN)
    assert info.hooks == ("monoquant_register_reporters", "monoquant_register_warning_checks")


def test_without_a_baseline_one_line_says_so(model: nn.Sequential) -> None:
    """It is in the report, with the plugin's name, and not among the warnings."""
    result = mq.quantize(model, accuracy_warning="ignore")
    (finding,) = (finding for finding in result.report.findings if finding.origin == ORIGIN)
    assert (finding.code, finding.severity) == ("baseline-not-set", mq.Severity.INFO)
    assert not [text for text in result.info.warnings if "baseline" in text.lower()]


def test_the_same_model_passes_with_no_tolerance_at_all(
    model: nn.Sequential, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantization is deterministic: nothing is lost between two runs, and the report says what was compared."""
    monkeypatch.setenv("MONOQUANT_CI_BASELINE", str(baseline))
    monkeypatch.setenv("MONOQUANT_CI_TOLERANCE_DB", "0")
    report = mq.quantize(model, accuracy_warning="ignore").report
    assert told(report) == {"compared": [None], "size-compared": [None]}
    assert "Layers compared with" in str(report)


def test_a_worse_layer_fails_the_build(model: nn.Sequential, baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate's findings are the plugin's, and AccuracyError names the layer."""
    spoil(model, "2")
    monkeypatch.setenv("MONOQUANT_CI_BASELINE", str(baseline))
    report = mq.quantize(model, accuracy_warning="ignore").report
    assert told(report) == {"regression": ["2"], "compared": [None], "size-compared": [None]}
    (finding,) = (finding for finding in report.findings if finding.code == "baseline-regression")
    assert finding.origin == ORIGIN
    assert finding.severity is mq.Severity.CRITICAL
    with pytest.raises(mq.AccuracyError, match="SQNR of the weight of layer '2'") as caught:
        mq.quantize(model, accuracy_warning="error")
    assert caught.value.layers == ("2",)
    assert mq.render_report(caught.value.report, "github") == mq.render_report(report, "github")
    monkeypatch.setenv("MONOQUANT_CI_TOLERANCE_DB", "200")
    assert "regression" not in told(mq.quantize(model, accuracy_warning="error").report)


def test_a_gate_in_code_needs_no_environment(model: nn.Sequential, baseline: Path) -> None:
    """As an object it is the plugin itself; the installed one can be left out."""
    spoil(model, "4")
    plugins = ["no:monoquant-ci", monoquant_ci.Gate(baseline, tolerance_db=0.25)]
    report = mq.quantize(model, plugins=plugins, accuracy_warning="ignore").report
    assert told(report) == {"regression": ["4"], "compared": [None], "size-compared": [None]}
    origins = {finding.origin for finding in report.findings if finding.code.startswith("baseline-")}
    assert origins == {mq.Origin("Gate", monoquant_ci.__version__)}


def test_outputs_are_compared_with_outputs(model: nn.Sequential, baseline: Path) -> None:
    """With calibration data in both runs outputs count; in one only, nothing is compared."""
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(64, 64, generator=generator) for _ in range(2)]

    def calibrated(past: Path | mq.QuantReport) -> mq.QuantReport:
        plugins = ["no:monoquant-ci", monoquant_ci.Gate(past, tolerance_db=0)]
        return mq.quantize(model, calibration_data=batches, plugins=plugins, accuracy_warning="ignore").report

    first = calibrated(baseline)
    assert told(first)["measured-otherwise"] == ["0", "2", "4"]
    assert "compared-nothing" in told(first)
    assert told(calibrated(first)) == {"compared": [None], "size-compared": [None]}


def test_other_options_are_told(model: nn.Sequential, baseline: Path) -> None:
    """INT8 where INT4 was is another scheme for each layer, none of which lost anything, and a larger model."""
    plugins = ["no:monoquant-ci", monoquant_ci.Gate(baseline)]
    report = mq.quantize(model, bits=8, plugins=plugins, accuracy_warning="ignore").report
    expected = {"scheme-changed": ["0", "2", "4"], "compared": [None], "size": [None]}
    assert told(report) == expected


def test_a_broken_baseline_stops_the_run_before_it_begins(
    model: nn.Sequential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable, the file and the plugin; reports can still be written."""
    report = mq.quantize(model, accuracy_warning="ignore").report
    monkeypatch.setenv("MONOQUANT_CI_BASELINE", str(tmp_path / "none.json"))
    with pytest.raises(mq.FileError, match=r"^MONOQUANT_CI_BASELINE='.*none.json' is no baseline") as caught:
        mq.quantize(model)
    assert "of plugin ci of monoquant-ci 0" in caught.value.__notes__[0]
    mq.save_report(report, tmp_path / "new.json")
    assert mq.load_report(tmp_path / "new.json") == report


def test_reporters_are_found_by_name_and_end(model: nn.Sequential, baseline: Path, tmp_path: Path) -> None:
    """The failing layer is an error on GitHub, and a failed test case in a file that ends in .xml."""
    spoil(model, "2")
    gate = monoquant_ci.Gate(baseline)
    report = mq.quantize(model, plugins=["no:monoquant-ci", gate], accuracy_warning="ignore").report
    lines = mq.render_report(report, "github").splitlines()
    assert lines[0].startswith("::error title=baseline-regression%3A 2::CRITICAL: SQNR of the weight of layer '2'")
    assert len(lines) == len(report.findings)
    mq.save_report(report, tmp_path / "monoquant.xml")
    root = ET.parse(tmp_path / "monoquant.xml").getroot()  # noqa: S314 - written right here
    failed = [case.attrib["name"] for case in root.iter("testcase") if case.find("failure") is not None]
    assert failed == ["2"]
    assert mq.render_report(report, "junit") == (tmp_path / "monoquant.xml").read_text(encoding="utf-8")
