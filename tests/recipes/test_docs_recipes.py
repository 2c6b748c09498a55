"""docs/recipes.md has every table and every key, and its recipe is one."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

import monoquant as mq
from monoquant.gates import baseline, limits
from monoquant.recipes import CalibrationTable, CompareTable, Recipe, SkipEntry

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## `\[+(\w+)\]+`.*?$(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \| (.*) \| (.*?) ?\|$", re.MULTILINE)
DOCUMENTED = {name: ROW.findall(text) for name, text in SECTION.findall(PAGE)}
FIELDS = {field.name: field for field in attrs.fields(Recipe) if field.metadata.get("key", True)}


def table_of(name: str) -> type:
    """The class of a table."""
    kinds = {"skip": SkipEntry, "calibration": CalibrationTable, "compare": CompareTable}
    return kinds.get(name) or FIELDS[name].default.factory


def test_every_table_has_a_section() -> None:
    assert DOCUMENTED.keys() == FIELDS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_every_key_has_a_row(name: str) -> None:
    """In the order of the class, with its default where it has one."""
    keys = attrs.fields(table_of(name))
    assert [key for key, *_ in DOCUMENTED[name]] == [key.name for key in keys]
    for key, (_, said, default) in zip(keys, DOCUMENTED[name], strict=True):
        assert said
        if key.default is attrs.NOTHING:
            assert default == "required"
        elif key.default is not None and key.default != ():
            assert default == f"`{str(key.default).lower()}`" or default == f'`"{key.default}"`'


@pytest.mark.parametrize("name", FIELDS)
def test_allowed_values_are_on_the_page(name: str) -> None:
    """What an error would list, the row lists: each value in quotes."""
    for key, (_, said, _default) in zip(attrs.fields(table_of(name)), DOCUMENTED[name], strict=True):
        with pytest.raises(mq.ConfigError) as caught:
            key.validator(None, key, object())
        for value in re.findall(r'"(\w+)"', str(caught.value)) if "give one of" in str(caught.value) else []:
            same = "as in `[[skip]]`" in said
            assert f'`"{value}"`' in said or same, (key.name, value)


def test_the_example_is_a_recipe() -> None:
    """It parses, and all of its keys arrive."""
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    recipe = Recipe.from_toml(text)
    assert len(recipe.skip) == 2
    assert recipe.gate.baseline == "last-release.json"
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_every_finding_of_a_gate_is_on_the_page() -> None:
    """By its code, which never changes."""
    source = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (baseline, limits))
    codes = set(re.findall(r'"(gate-[\w-]+)"', source))
    codes |= {f"baseline-{code}" for code in re.findall(r'_finding\(\s*"([\w-]+)"', source)}
    assert len(codes) == 18
    table = PAGE.split("| finding | about |")[1].split("\n\n")[0]
    told = set()
    for line in table.splitlines():
        first = ""
        for code in re.findall(r"`([\w-]+)`", line.split("|")[1] if "|" in line else ""):
            first = first or code.split("-")[0]
            told.add(f"{first}{code}" if code.startswith("-") else code)
    assert told == codes
