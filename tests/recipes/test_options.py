"""From a recipe to a run: every option of quantize() is a key, or stands in a list with the reason why not."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.container import write_container
from monoquant.recipes import Recipe, gate_of, plugins_of, quantize_file_options, quantize_options
from monoquant.recipes.entry_rules import EntryRule, SelectRule

NOT_IN_RECIPES = {
    "model": "what a recipe is for",
    "source": "what a recipe is for",
    "target": "what a recipe is for",
    "evaluate": "a function",
    "tolerated_drop": "says nothing without evaluate",
    "forward": "a function",
    "adapters": "objects",
    "progress": "how a command shows its work",
    "inplace": "nothing to keep where a file is written",
    "layer_types": "[select] types, by name, as a rule",
    "layer_names": "[select] names, as a rule",
    "skip_layer_names": "[[skip]] names, as a rule",
    "add_default_skips": "[[skip]] entries always add to the defaults, which [skip_defaults] turns off",
}

ALL_KEYS = [
    '[scheme]\ndtype = "int8"\nsymmetric = true\nscale_dtype = "float32"\nactivations = "static"\nobserver = "auto"',
    '[scheme]\nbits = 4\ngroup_size = 32\nquality = "best"\nexact = true\ntarget_bits_per_weight = 5',
    '[scheme]\nalgorithm = "gptq"\ntarget_sqnr_db = 30',
    '[skip_defaults]\nnames = false\ntypes = false\nsmaller_than = false\nto = "int8"\n[[skip]]\nnames = ["a"]',
    '[calibration]\ndata = "x.safetensors"\nsamples = 9\nselect = 0\nstatistics_bytes = 1000000',
    '[compare]\ndata = "x.safetensors"\n[validation]\non_failure = "warn"',
    "[validation]\nrun = false",
    '[gate]\naccuracy_warning = "warn"\nsqnr_warning_threshold = 15\nsqnr_error_threshold = 5\nfail_on = "warning"',
    "[plugins]\ninstalled = false",
]

KEYS_OF_FILES = [
    '[scheme]\ndtype = "int8"\nsymmetric = true\nscale_dtype = "float32"\n[validation]\non_failure = "warn"',
    "[scheme]\nbits = 4\ngroup_size = 32",
    *ALL_KEYS[3:4],
    *ALL_KEYS[7:],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data in it."""
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    write_container(tmp_path / "x.safetensors", {"x": inputs}, {})
    return tmp_path


@pytest.mark.parametrize(
    ("function", "make", "texts"),
    [(mq.quantize, quantize_options, ALL_KEYS), (mq.quantize_file, quantize_file_options, KEYS_OF_FILES)],
)
def test_every_option_is_reachable_or_listed(function: Any, make: Any, texts: list[str], folder: Path) -> None:
    """A new option of quantize() needs a key here, or a reason."""
    reached = {option for text in texts for option in make(Recipe.from_toml(text, folder=folder))}
    options = inspect.signature(function).parameters.keys()
    assert reached <= options
    assert reached.isdisjoint(NOT_IN_RECIPES)
    assert options - reached - NOT_IN_RECIPES.keys() == set()


def test_an_empty_recipe_is_quantize_as_it_is(small: nn.Module) -> None:
    """No option but the recipe's own (empty) text."""
    assert quantize_options(Recipe()) == quantize_file_options(Recipe()) == {"recipe": ""}
    plain = mq.quantize(small, plugins=False, accuracy_warning="ignore").report
    cooked = mq.quantize(small, plugins=False, accuracy_warning="ignore", **quantize_options(Recipe())).report
    assert attrs.evolve(cooked, recipe=None) == plain


def test_values_arrive_as_quantize_takes_them(folder: Path) -> None:
    """Names of dtypes become dtypes, entries become rules that say which line they are."""
    text = """
[scheme]
dtype = "int8"
scale_dtype = "bfloat16"
[select]
names = ["encoder"]
[[skip]]
names = ["a", "b"]
types = ["Linear"]
smaller_than = 100
to = "float16"
reason = "it is fragile"
[plugins]
installed = false
"""
    options = quantize_options(Recipe.from_toml(text))
    assert (options["dtype"], options["scale_dtype"]) == (torch.int8, torch.bfloat16)
    entry, select = options["rules"]
    assert isinstance(entry, EntryRule)
    assert isinstance(select, SelectRule)
    assert repr(entry) == (
        '[[skip]] 1: names = ["a", "b"], types = ["Linear"], smaller_than = 100, to = "float16", '
        'reason = "it is fragile"'
    )
    assert repr(select) == '[select] names = ["encoder"]'
    small, large = mq.Layer("x.a", nn.Linear, (9, 9)), mq.Layer("x.a", nn.Linear, (10, 10))
    assert entry.reason(small) == (
        "it is fragile (name matches 'a' and 81 parameters, fewer than 100 and type Linear is a Linear)"
    )
    assert entry.skip_to == entry.target(small) == "float16"
    assert entry.reason(large) is None
    assert entry.reason(attrs.evolve(small, type=nn.Conv2d)) is None
    assert entry.reason(attrs.evolve(small, name="x.c")) is None
    assert options["plugins"] is False
    assert select.reason(small) == "not selected"
    assert select.reason(attrs.evolve(small, name="encoder.x")) is None


def test_entries_are_asked_from_top_to_bottom_and_before_the_defaults(small: nn.Module) -> None:
    """The first one that fits decides, also on what a layer becomes."""
    text = """
[[skip]]
names = ["blocks.0"]
to = "int8"
[[skip]]
names = ["up", "lm_head"]
to = "float16"
"""
    options = quantize_options(Recipe.from_toml(text))
    report = mq.quantize(small, plugins=False, accuracy_warning="ignore", **options).report
    schemes = {record.layer: str(record.scheme).split()[0] for record in report.layers if record.scheme is not None}
    assert schemes["blocks.0.up"] == schemes["blocks.0.down"] == "int8"
    assert schemes["blocks.1.up"] == "float16"
    assert schemes["blocks.1.down"] == "int4"
    record = next(record for record in report.layers if record.layer == "blocks.1.up")
    assert record.rule == '[[skip]] 2: names = ["up", "lm_head"], to = "float16"'


def test_a_run_by_recipe_keeps_the_recipe(small: nn.Module, tmp_path: Path) -> None:
    """With what was set besides; reading it gives the same run."""
    recipe = Recipe.from_toml("[scheme]\ngroup_size = 64\n").with_values({"scheme.group_size": 32})
    result = mq.quantize(small, plugins=False, accuracy_warning="ignore", **quantize_options(recipe))
    mq.save(result, tmp_path / "model.safetensors", plugins=False)
    stored = mq.load_report(tmp_path / "model.safetensors").recipe
    again = mq.quantize(small, plugins=False, accuracy_warning="ignore", **quantize_options(Recipe.from_toml(stored)))
    assert again.report == result.report
    assert result.report.scheme.group_size == 32


def test_paths_start_at_the_recipes_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, baselines and plugins stand beside the recipe, wherever the command runs."""
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
    report = mq.quantize(model, plugins=False, accuracy_warning="ignore").report
    mq.save_report(report, folder / "last.json", plugins=False)
    (folder / "rules.py").write_text(
        "import monoquant as mq\n\n@mq.hookimpl\ndef monoquant_register_skip_rules():\n    return [mq.NameRule('0')]\n"
    )
    (folder / "r.toml").write_text(
        '[calibration]\ndata = "x.safetensors"\nbatch_size = 4\nsamples = 12\n[gate]\nbaseline = "last.json"\n'
        'accuracy_warning = "ignore"\n[plugins]\nfiles = ["rules.py"]\ninstalled = false\n'
    )
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    recipe = Recipe.from_file(Path("..") / "r.toml")
    options = quantize_options(recipe, trust_code=True)
    assert [tuple(batch.shape) for batch in options["calibration_data"]] == [(4, 8)] * 3
    found = mq.quantize(model, **options).report
    assert found.calibration.samples == 12
    assert {record.layer: record.action.value for record in found.layers} == {"0": "skip", "2": "quantize"}
    assert "baseline-measured-otherwise" in {finding.code for finding in found.findings}
    gate = gate_of(recipe)
    assert gate.baseline.report == report
    assert Path(gate.baseline.source).resolve() == folder / "last.json"


def test_comparison_has_its_own_data(folder: Path) -> None:
    """[compare] makes a Comparison of all its keys."""
    text = (
        '[compare]\ndata = "x.safetensors"\nbatch_size = 5\nsamples = 7\nselect = 0\nmeasure = "cosine"\n'
        "warning_threshold = 0.9\nerror_threshold = 0.5\n"
    )
    compare = quantize_options(Recipe.from_toml(text, folder=folder))["compare"]
    assert (compare.measure, compare.warning_threshold, compare.error_threshold) == ("cosine", 0.9, 0.5)
    assert (compare.num_samples, compare.select) == (7, 0)
    assert [len(batch) for batch in compare.data] == [5, 2]


def test_code_runs_only_where_it_is_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugin files, and data from a factory, before anything is read."""
    (folder / "evil.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.chdir(folder)
    plugins = Recipe.from_toml('[plugins]\nfiles = ["evil.py"]\n[calibration]\ndata = "no such file"', folder=folder)
    for make in (quantize_options, quantize_file_options, plugins_of):
        recipe = plugins.with_values({"calibration.data": None})
        with pytest.raises(mq.InputError, match=r"plugins\.files run code: evil\.py; .*--trust-code"):
            make(recipe)
    with pytest.raises(mq.InputError, match=r"plugins\.files run code"):
        quantize_options(plugins)
    data = Recipe.from_toml('[calibration]\ndata = "evil:batches"', folder=folder)
    with pytest.raises(mq.InputError, match="--trust-code"):
        quantize_options(data)


def test_plugins_can_be_blocked_by_name() -> None:
    """A name that no plugin has is an error, as with quantize()."""
    with pytest.raises(mq.MonoquantError, match="no-such-plugin"):
        plugins_of(Recipe.from_toml('[plugins]\nblock = ["no-such-plugin"]'))
    assert plugins_of(Recipe()) is True


def test_files_refuse_what_needs_a_model_that_runs() -> None:
    """All such keys are named at once; what changes nothing there is fine."""
    text = """
[scheme]
quality = "best"
exact = true
target_sqnr_db = 20
[calibration]
data = "x"
[compare]
data = "y"
[validation]
run = false
"""
    with pytest.raises(mq.ConfigError) as caught:
        quantize_file_options(Recipe.from_toml(text))
    named = "scheme.target_sqnr_db, scheme.exact, scheme.quality, [calibration], [compare], validation.run"
    assert f"leave out {named}; or give a model that can be run" in str(caught.value)
    fine = Recipe.from_toml('[scheme]\nquality = "fast"\ngroup_size = 32')
    assert quantize_file_options(fine).keys() == {"group_size", "recipe"}
    fine = Recipe.from_toml('[scheme]\nalgorithm = "round_to_nearest"')
    assert quantize_file_options(fine).keys() == {"recipe"}


def test_a_file_follows_a_recipe_as_a_model_does(small: nn.Module, tmp_path: Path) -> None:
    """Same bits, same report, and the gate before the file takes its place."""
    state = {name: value.contiguous() for name, value in small.state_dict().items()}
    write_container(tmp_path / "float.safetensors", state, {})
    recipe = Recipe.from_toml('[scheme]\ngroup_size = 32\n[[skip]]\nnames = ["up"]\nto = "int8"\n')
    more = {"plugins": False, "accuracy_warning": "ignore"}
    streamed = mq.quantize_file(
        tmp_path / "float.safetensors", tmp_path / "q.safetensors", **quantize_file_options(recipe), **more
    )
    whole = mq.quantize(state, **quantize_options(recipe), **more).report
    first, second = ({one.layer: (one.scheme, one.rule) for one in report.layers} for report in (streamed, whole))
    assert first == second
    assert streamed.recipe == whole.recipe == recipe.to_toml()
    strict = recipe.with_values({"gate.min_layer_sqnr_db": 90})
    with pytest.raises(mq.AccuracyError, match="min_layer_sqnr_db=90"):
        mq.quantize_file(
            tmp_path / "float.safetensors", tmp_path / "new.safetensors", plugins=False, **quantize_file_options(strict)
        )
    assert not (tmp_path / "new.safetensors").exists()
