"""``plan``, ``inspect``, ``validate`` and ``compare``: they look, and change nothing."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import pytest
import torch

import monoquant as mq
from monoquant.container import write_container
from tests.cli.conftest import Run, model

TRUSTED = ("--trust-code", "recipe_factory:build")


@pytest.fixture
def quantized(run: Run) -> None:
    """``a.safetensors`` in INT4, ``b.safetensors`` in INT4 with larger groups, and the report of each."""
    for name, size in (("a", "16"), ("b", "64")):
        assert run("quantize", "float.safetensors", "-o", f"{name}.safetensors", "--group-size", size).code == 0
        mq.save_report(mq.load_report(f"{name}.safetensors"), f"{name}.json")


def test_a_plan_tells_what_each_line_did(run: Run) -> None:
    """A line that matched nothing included, with the nearest name; no data is read."""
    Path("r.toml").write_text(
        '[[skip]]\nnames = ["0"]\n[[skip]]\ntypes = ["LayerNrom"]\n[calibration]\ndata = "missing.safetensors"\n'
    )
    told = run("plan", *TRUSTED, "--recipe", "r.toml")
    assert told.code == 0, told.err
    assert "kept in float: 1 layer (0)" in told.out
    assert "matched no layer" in told.out
    assert "LayerNorm" in told.out.split("line by line")[1]
    assert list(Path().glob("*.safetensors.*")) == []


def test_a_plan_knows_the_bytes_beforehand(run: Run) -> None:
    """Those of the run."""
    planned = run("plan", "float.safetensors", "--bits", "8", "--json").document["report"]
    run("quantize", "float.safetensors", "--bits", "8", "-o", "x.safetensors")
    report = mq.load_report("x.safetensors")
    assert planned["quantized_bytes"] == report.quantized_bytes
    assert [one["bytes_after"] for one in planned["layers"]] == [one.bytes_after for one in report.layers]


def test_a_plan_of_a_quantized_model_is_refused(run: Run, quantized: None) -> None:
    """In words."""
    told = run("plan", "a.safetensors")
    assert told.code == 3
    assert "no float model" in told.err


def test_inspect_lists_layers_the_largest_first(run: Run) -> None:
    """With what they weigh."""
    told = run("inspect", "float.safetensors")
    assert told.code == 0
    lines = told.out.splitlines()
    assert lines[0].startswith("file of weights, 6 tensors")
    assert [line.split()[0] for line in lines[4:]] == ["0", "3", "2"]
    document = run("inspect", "float.safetensors", "--json").document
    assert document["bytes"] == sum(one.numel() * 4 for one in model().state_dict().values())


def test_inspect_shows_the_report_and_turns_it_into_other_forms(run: Run, quantized: None) -> None:
    """Of a file, or of the report itself."""
    told = run("inspect", "a.safetensors", "--report", "again.json", "--report", "again.txt")
    assert told.code == 0, told.err
    assert str(mq.load_report("a.safetensors")) in told.out
    assert mq.load_report("again.json") == mq.load_report("a.safetensors")
    assert Path("again.txt").read_text() == mq.render_report(mq.load_report("a.safetensors"), "text")
    assert str(mq.load_report("a.safetensors")) in run("inspect", "a.json").out
    assert run("inspect", "float.safetensors", "--report", "x.txt").code == 2


def test_a_sound_file_is_validated(run: Run, quantized: None) -> None:
    """Against the float model, too."""
    told = run("validate", "a.safetensors", "float.safetensors")
    assert (told.code, told.out.splitlines()[-1]) == (0, "passed")
    assert run("validate", "a.json").code == 0
    assert run("validate", "a.safetensors", "--json").document["passed"] is True


def test_limits_fail_validation(run: Run, quantized: None) -> None:
    """Of a file, or of a report."""
    for name in ("a.safetensors", "a.json"):
        told = run("validate", name, "--min-layer-sqnr", "50", "--json")
        assert told.code == 1
        assert {finding["code"] for finding in told.document["findings"]} >= {"gate-layer-sqnr"}
    assert run("validate", "b.json", "--baseline", "a.json", "--max-drop", "0.5").code == 1
    assert run("validate", "b.json", "--baseline", "a.json", "--max-drop", "50").code == 0


def test_another_float_model_is_noticed(run: Run, quantized: None) -> None:
    """By its values, or by its names."""
    state = model().state_dict()
    changed = {**state, "0.weight": state["0.weight"] + 0.05 * torch.randn(128, 64)}
    write_container(Path("changed.safetensors"), changed, {})
    told = run("validate", "a.safetensors", "changed.safetensors")
    assert told.code == 1
    assert "weights-differ" in told.out
    write_container(Path("norm.safetensors"), {**state, "2.weight": 2 * state["2.weight"]}, {})
    told = run("validate", "a.safetensors", "norm.safetensors")
    assert told.code == 1
    assert "'2.weight' was left in float, and is not that of the float model" in told.out
    write_container(Path("other.safetensors"), {"x.weight": torch.randn(8, 8)}, {})
    told = run("validate", "a.safetensors", "other.safetensors")
    assert told.code == 1
    assert "not-the-original" in told.out


def test_a_report_has_no_weights_to_compare(run: Run, quantized: None) -> None:
    """A usage error."""
    assert run("validate", "a.json", "float.safetensors").code == 2


def test_a_damaged_file_is_refused(run: Run, quantized: None) -> None:
    """By its hash, with exit code 3."""
    content = bytearray(Path("a.safetensors").read_bytes())
    content[-1] ^= 1
    Path("a.safetensors").write_bytes(content)
    told = run("validate", "a.safetensors")
    assert told.code == 3
    assert "differ from their hashes" in told.err


def test_reports_are_compared(run: Run, quantized: None) -> None:
    """Files by their reports; with limits the exit code judges."""
    told = run("compare", "a.safetensors", "b.json")
    assert told.code == 0, told.err
    assert str(mq.compare_reports(mq.load_report("a.json"), mq.load_report("b.json"))) in told.out
    assert run("compare", "a.json", "b.json", "--max-drop", "0.5").code == 1
    assert run("compare", "b.json", "a.json", "--max-drop", "0.5").code == 0
    assert run("compare", "b.json", "a.json", "--max-growth", "1").code == 1
    document = run("compare", "a.json", "b.json", "--json").document
    assert document["difference"] == mq.compare_reports(mq.load_report("a.json"), mq.load_report("b.json")).to_dict()


def test_models_are_compared_by_their_weights(run: Run, quantized: None) -> None:
    """Float with quantized, or two quantized ones."""
    document = run("compare", "float.safetensors", "a.safetensors", "--json").document
    found = {one["name"]: one["sqnr_db"] for one in document["weights"]["tensors"]}
    reported = {f"{one.layer}.weight": one.weight_sqnr_db for one in mq.load_report("a.json").layers}
    assert found["0.weight"] == pytest.approx(reported["0.weight"], abs=1e-6)
    assert found["2.weight"] == "inf"
    assert "weights, pooled" in run("compare", "a.safetensors", "b.safetensors", "--weights").out
    assert run("compare", "float.safetensors", "a.safetensors", "--max-drop", "1").code == 2


def test_validate_judges_by_the_thresholds_of_the_recipe(run: Run, quantized: None) -> None:
    """Not by those that the run had."""
    assert run("validate", "a.json", "--set", "gate.sqnr_warning_threshold=91").code == 0
    told = run("validate", "a.json", "--set", "gate.sqnr_warning_threshold=91", "--set", "gate.sqnr_error_threshold=90")
    assert told.code == 1
    assert "sqnr-critical" in told.out


def test_a_limit_of_growth_that_judged_nothing_fails(run: Run, quantized: None) -> None:
    """As models of other sizes cannot be compared."""
    report = mq.load_report("a.json")
    mq.save_report(attrs.evolve(report, original_bytes=report.original_bytes + 8), "other.json")
    told = run("compare", "other.json", "a.json", "--max-growth", "1000")
    assert told.code == 1
    assert "--max-growth has nothing to judge" in told.out
    assert run("compare", "other.json", "a.json", "--max-drop", "0").code == 0


def test_growth_alone_is_no_matter_of_layers(run: Run, quantized: None) -> None:
    """Also where they cannot be compared, or lost all that there was."""
    report = mq.load_report("a.json")
    lost = {"weight_sqnr_db": None, "output_sqnr_db": None}
    unmeasured = tuple(attrs.evolve(one, **lost) for one in report.layers)
    exact = tuple(attrs.evolve(one, weight_sqnr_db=math.inf) if one.scheme else one for one in report.layers)
    for layers in (unmeasured, exact):
        mq.save_report(attrs.evolve(report, layers=layers), "other.json")
        assert run("compare", "other.json", "a.json", "--max-growth", "0").code == 0
        assert run("compare", "other.json", "a.json", "--max-growth", "0", "--max-drop", "1").code == 1


def test_inspect_replaces_nothing_that_it_reads(run: Run, quantized: None) -> None:
    """And refuses forms that it cannot write as the other commands do."""
    before = Path("a.json").read_bytes()
    told = run("inspect", "a.json", "--report", "a.json")
    assert (told.code, Path("a.json").read_bytes()) == (2, before)
    assert "it is, or is a part of, the model" in told.err
    assert run("inspect", "a.json", "--report", "a.doc").code == 2
    assert "wrote again.html" in run("inspect", "a.json", "--report", "again.html").err


@pytest.mark.parametrize("setting", ["scheme.bits=8", "gate.accuracy_warning=ignore", "calibration.samples=3"])
def test_settings_that_would_change_nothing_are_refused(run: Run, quantized: None, setting: str) -> None:
    """Validating quantizes nothing."""
    told = run("validate", "a.json", "--set", setting)
    assert told.code == 2
    assert f"--set {setting}: nothing is quantized here" in told.err
    assert run("validate", "a.json", "--set", "gate.min_layer_sqnr_db=1").code == 0


def test_layers_that_were_not_compared_are_told(run: Run) -> None:
    """Where the report has no figure to compare with."""
    run("quantize", *TRUSTED, "-o", "x.safetensors", "--set", "validation.run=false")
    told = run("validate", "x.safetensors", "float.safetensors")
    assert told.code == 0, told.err
    assert "not-compared: The weights of layer '0' were not held against the float ones" in told.out
