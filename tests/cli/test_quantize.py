"""``monoquant quantize``: what is written, when, and what is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import monoquant as mq
from tests.cli.conftest import Run, model

TRUSTED = ("--trust-code", "recipe_factory:build")


def test_weights_become_a_file_that_load_reads(run: Run) -> None:
    """The tensors and the report are those of quantize_file."""
    told = run("quantize", "float.safetensors", "-o", "int4.safetensors", "--group-size", "32")
    assert told.code == 0, told.err
    assert told.out.splitlines()[0] == "int4 g32 asymmetric float16: 2 quantize, 0 unsupported, 1 skip"
    assert told.out.splitlines()[-1].startswith("wrote int4.safetensors: ")
    mq.quantize_file("float.safetensors", "reference.safetensors", group_size=32, accuracy_warning="ignore")
    loaded, reference = (mq.load(name, model()) for name in ("int4.safetensors", "reference.safetensors"))
    batch = torch.randn(4, 64)
    assert torch.equal(loaded(batch), reference(batch))
    assert (
        mq.load_report("int4.safetensors").recipe == '[scheme]\ngroup_size = 32\n\n[gate]\naccuracy_warning = "error"\n'
    )


def test_a_factorys_model_is_fitted_to_data(run: Run) -> None:
    """The result is that of the function with the same options."""
    told = run("quantize", *TRUSTED, "--data", "data.safetensors", "--samples", "100", "-o", "int4.safetensors")
    assert told.code == 0, told.err
    batches = list(torch.split(torch.randn(128, 64, generator=torch.Generator().manual_seed(0)), 8))
    expected = mq.quantize(model(), calibration_data=batches, num_calibration_samples=100, accuracy_warning="ignore")
    batch = torch.randn(4, 64)
    assert torch.equal(mq.load("int4.safetensors", model())(batch), expected.model(batch))
    assert "calibration: 100 samples" in told.out


def test_json_is_one_document_on_stdout(run: Run) -> None:
    """With the report, and nothing besides; messages are elsewhere."""
    told = run("quantize", "float.safetensors", "-o", "int4.safetensors", "--json")
    document = told.document
    assert (document["version"], document["command"], document["exit_code"]) == (1, "quantize", 0)
    assert document["bytes"] == Path("int4.safetensors").stat().st_size
    assert mq.QuantReport.from_dict(document["report"]) == mq.load_report("int4.safetensors")


def test_a_failed_gate_writes_reports_only(run: Run) -> None:
    """Exit code 1, the limit told with its figure, and no model."""
    told = run(
        "quantize", "float.safetensors", "-o", "int4.safetensors", "--min-layer-sqnr", "60", "--report", "report.json"
    )
    assert told.code == 1
    assert not Path("int4.safetensors").exists()
    assert "min_layer_sqnr_db=60" in told.err
    assert "Traceback" not in told.err
    assert "AccuracyWarningPass" not in told.err
    codes = {finding["code"] for finding in json.loads(Path("report.json").read_text())["findings"]}
    assert "gate-layer-sqnr" in codes


def test_a_failed_gate_of_a_fitted_model_writes_reports_only(run: Run) -> None:
    """Also where the model is in memory; and in JSON."""
    command = ("quantize", *TRUSTED, "--data", "data.safetensors", "-o", "x.safetensors", "--report", "r.txt", "--json")
    told = run(*command, "--min-model-sqnr", "99")
    assert told.code == 1
    assert told.document["error"]["kind"] == "AccuracyError"
    assert told.document["report"]["validation"]["sqnr_db"] < 99
    assert Path("r.txt").exists()
    assert not Path("x.safetensors").exists()


def test_critical_damage_fails_unless_it_is_ignored(run: Run) -> None:
    """Without any option for it: a build must not ship a broken layer."""
    harsh = ("--set", "gate.sqnr_error_threshold=50", "--set", "gate.sqnr_warning_threshold=60")
    command = ("quantize", *TRUSTED, "--data", "data.safetensors", "-o", "x.safetensors", *harsh)
    assert run(*command).code == 1
    assert not Path("x.safetensors").exists()
    assert run(*command, "--set", "gate.accuracy_warning=ignore").code == 0
    assert Path("x.safetensors").exists()


def test_what_is_there_stays_unless_it_may_be_replaced(run: Run) -> None:
    """Usage errors come before any work."""
    Path("out.safetensors").write_text("precious")
    told = run("quantize", "float.safetensors", "-o", "out.safetensors")
    assert (told.code, Path("out.safetensors").read_text()) == (2, "precious")
    assert "--overwrite" in told.err
    assert run("quantize", "float.safetensors", "-o", "out.safetensors", "--overwrite").code == 0
    assert mq.load_report("out.safetensors").layers


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["float.safetensors", "-o", "float.safetensors", "--overwrite"], 2, "it is, or holds, the model"),
        (["float.safetensors", "-o", ".", "--format", "monoquant", "--overwrite"], 2, "it is, or holds"),
        (["float.safetensors", "-o", "x.bin"], 2, "give --format with one of monoquant"),
        (["float.safetensors", "-o", "x.safetensors", "--format", "onnx"], 2, "--format onnx: give --format with one"),
        (["float.safetensors", "-o", "no/x.safetensors"], 3, "does not exist; create it first"),
        (["float.safetensors", "-o", "x.safetensors", "--report", "x.doc"], 2, "give a name that ends in .txt"),
        (["float.safetensors", "-o", "x.safetensors", "--report", "no/x.txt"], 3, "the folder does not exist"),
        (["float.safetensors", "-o", "x.safetensors", "--bits", "5"], 2, "bits = 5: give one of 4, 8, 16"),
        (["float.safetensors", "-o", "x.safetensors", "--set", "scheme.bit=4"], 2, "do you mean 'bits'?"),
        (["float.safetensors", "-o", "x.safetensors", "--data", "data.safetensors"], 2, "a state dict has none"),
        (["float.safetensors"], 2, "Missing option '-o'"),
        (["nothing.safetensors", "-o", "x.safetensors"], 3, "no such file"),
        (["recipe_factory:build", "-o", "x.safetensors"], 3, "--trust-code"),
        (["recipe_factory:broken", "-o", "x.safetensors", "--trust-code"], 3, "no such checkpoint"),
        (["float.safetensors", "-o", "x.safetensors", "--plugin", "recipe_factory.py"], 3, "--trust-code"),
    ],
)
def test_mistakes_are_told_in_words(run: Run, arguments: list[str], code: int, text: str) -> None:
    """The exit code says whose they are; nothing is written, and nothing is left beside."""
    before = sorted(Path().iterdir())
    told = run("quantize", *arguments)
    assert told.code == code, told.err
    assert text in told.err
    assert "Traceback" not in told.err
    assert told.out == ""
    after = [path for path in sorted(Path().iterdir()) if path.name != "__pycache__"]
    assert after == before


def test_a_full_disk_is_known_before_the_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is needed, and what there is."""
    free = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: free)
    monkeypatch.setattr("monoquant.cli.commands.quantize.quantize_model", None)  # would fail if it were called
    told = run("quantize", *TRUSTED, "--data", "data.safetensors", "-o", "x.safetensors")
    assert told.code == 3
    assert "no space left, the file needs" in told.err
    assert "1000 B free" in told.err


def test_a_recipe_says_it_all_and_the_command_line_goes_first(run: Run) -> None:
    """Paths in a recipe start at its folder, and those of options where they are typed."""
    Path("recipes").mkdir()
    Path("recipes/r.toml").write_text(
        '[scheme]\nbits = 8\n[[skip]]\nnames = ["0"]\n[calibration]\ndata = "../data.safetensors"\nsamples = 64\n'
    )
    told = run("quantize", *TRUSTED, "--recipe", "recipes/r.toml", "-o", "x.safetensors", "--samples", "32")
    assert told.code == 0, told.err
    assert "calibration: 32 samples" in told.out
    assert "int8" in told.out
    told = run(
        "quantize", *TRUSTED, "--recipe", "recipes/r.toml", "--data", "data.safetensors", "-o", "y.safetensors", "-q"
    )
    assert told.code == 0, told.err
    recipe = mq.load_report("y.safetensors").recipe
    assert recipe is not None
    assert 'data = "../data.safetensors"' in recipe
    assert [one.layer for one in mq.load_report("y.safetensors").by_action(mq.Action.QUANTIZE)] == ["3"]


def test_skip_keeps_layers_by_name(run: Run) -> None:
    """As often as it is given."""
    told = run("quantize", "float.safetensors", "-o", "x.safetensors", "--skip", "0", "--json")
    actions = {one["layer"]: one["action"] for one in told.document["report"]["layers"]}
    assert actions == {"0": "skip", "2": "skip", "3": "quantize"}


def test_plugin_files_take_part_when_they_are_trusted(run: Run) -> None:
    """And the report says so, but for the meter, which is monoquant's own."""
    Path("rules.py").write_text(
        "import monoquant as mq\n\n@mq.hookimpl\ndef monoquant_register_skip_rules():\n    return [mq.NameRule('3')]\n"
    )
    told = run("quantize", *TRUSTED, "-o", "x.safetensors", "--plugin", "rules.py", "--json")
    assert told.code == 0, told.err
    report = mq.QuantReport.from_dict(told.document["report"])
    assert [name for name, _ in report.versions] == ["monoquant", "torch", "rules.py"]
    assert [one.layer for one in report.layers if one.origin.name == "rules.py"] == ["3"]


def test_a_format_that_cannot_hold_the_model_is_refused_before_the_work(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be packed, which is known beforehand."""
    monkeypatch.setattr("monoquant.cli.commands.quantize.quantize_model", None)  # would fail if it were called
    told = run("quantize", *TRUSTED, "--data", "data.safetensors", "-o", "folder", "--format", "compressed-tensors")
    assert told.code == 3
    assert "holds models of transformers, and this is a Sequential" in told.err
    assert not Path("folder").exists()


@pytest.mark.parametrize("model", ["float.safetensors", "recipe_factory:build"])
def test_plugin_files_of_a_recipe_take_part_when_they_are_trusted(run: Run, model: str) -> None:
    """Also where weights are quantized block by block; the recipe that is kept names them."""
    Path("rules.py").write_text(
        "import monoquant as mq\n\n@mq.hookimpl\ndef monoquant_register_skip_rules():\n    return [mq.NameRule('3')]\n"
    )
    Path("r.toml").write_text('[plugins]\nfiles = ["rules.py"]\n')
    told = run("quantize", model, "-o", "x.safetensors", "--recipe", "r.toml", "--trust-code", "--json")
    assert told.code == 0, told.err
    report = mq.QuantReport.from_dict(told.document["report"])
    assert [one.layer for one in report.layers if one.origin.name == "rules.py"] == ["3"]
    assert 'files = [\n    "rules.py",\n]' in (report.recipe or "")
    assert run("quantize", model, "-o", "y.safetensors", "--recipe", "r.toml").code == 3


def test_reports_replace_nothing_that_the_run_reads(run: Run) -> None:
    """A baseline that a failed run had replaced would let the next one pass."""
    assert run("quantize", "float.safetensors", "-o", "a.safetensors", "--report", "a.json").code == 0
    Path("link.json").symlink_to("a.json")
    Path("texts.txt").write_text("precious")
    for arguments, said in (
        (("--baseline", "a.json", "--report", "a.json"), "--report a.json: it is, or is a part of, the baseline; give"),
        (("--baseline", "a.json", "--report", "link.json"), "the baseline; give"),
        (("--data", "texts.txt", "--report", "texts.txt"), "the calibration data; give"),
        (("--set", "compare.data=texts.txt", "--report", "./texts.txt"), "the data to compare on; give"),
    ):
        told = run("quantize", "float.safetensors", "-o", "b.safetensors", *arguments)
        assert told.code == 2
        assert said in told.err
    assert run("plan", "float.safetensors", "--data", "texts.txt", "--report", "texts.txt").code == 2
    assert Path("texts.txt").read_text() == "precious"
    assert not Path("b.safetensors").exists()


def test_parts_of_a_model_are_replaced_by_nothing(run: Run) -> None:
    """Neither by the output nor by a report; new names in its folder are free."""
    Path("folder").mkdir()
    shutil.copy("float.safetensors", "folder/model.safetensors")
    Path("folder/notes.txt").write_text("precious")
    before = Path("folder/model.safetensors").read_bytes()
    told = run("quantize", "folder", "-o", "folder/model.safetensors", "--overwrite")
    assert told.code == 2
    assert "is a part of the model, and would be replaced" in told.err
    assert run("quantize", "folder", "-o", "x.safetensors", "--report", "folder/notes.txt").code == 2
    assert Path("folder/notes.txt").read_text() == "precious"
    assert Path("folder/model.safetensors").read_bytes() == before
    assert run("quantize", "folder", "-o", "x.safetensors", "--report", "folder/new.txt").code == 0


def test_paths_that_are_typed_start_here_also_beside_a_recipe_behind_a_link(run: Run) -> None:
    """Where ".." leads out of the folder that the link leads to."""
    Path("far/away").mkdir(parents=True)
    Path("far/away/r.toml").write_text("[scheme]\ngroup_size = 32\n")
    Path("link").symlink_to("far/away")
    for recipe in ("link/r.toml", "far/away/r.toml"):
        told = run("quantize", *TRUSTED, "--recipe", recipe, "--data", "data.safetensors", "-o", "x.safetensors",
                   "--overwrite")  # fmt: skip
        assert told.code == 0, told.err


def test_a_home_of_nobody_is_no_file(run: Run) -> None:
    """And no error of monoquant's own."""
    told = run("quantize", *TRUSTED, "--data", "~nobody-of-that-name/data.safetensors", "-o", "x.safetensors")
    assert told.code == 3
    assert "~nobody-of-that-name/data.safetensors: no such file" in told.err


WARNING = """
import warnings
import monoquant as mq

class Lossy(mq.Exporter):
    name = "lossy"
    suffixes = (".lossy",)

    def write(self, result, path):
        path.write_text("as it is")
        warnings.warn("colours are lost", stacklevel=1)

@mq.hookimpl
def monoquant_register_exporters():
    return [Lossy()]
"""


def test_what_a_format_warns_of_is_told(run: Run) -> None:
    """Though libraries' warnings are not, while the model is read and quantized."""
    Path("lossy.py").write_text(WARNING)
    told = run("quantize", *TRUSTED, "-o", "x.lossy", "--plugin", "lossy.py")
    assert told.code == 0, told.err
    assert "monoquant: Warning: colours are lost" in told.err
    assert Path("x.lossy").read_text() == "as it is"
