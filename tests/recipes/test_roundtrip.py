"""Recipe, text, recipe: the same in both directions."""

from __future__ import annotations

import tomllib

import attrs
import pytest
from hypothesis import Phase, given, settings

from monoquant.recipes import CalibrationTable, CompareTable, Recipe, SkipEntry
from tests.recipes.recipes import recipes


@given(recipe=recipes())
def test_a_recipe_survives_being_written_and_read(recipe: Recipe) -> None:
    """Every value comes back, and the text is the same the second time."""
    text = recipe.to_toml()
    back = Recipe.from_toml(text)
    assert back == recipe
    assert back.to_toml() == text
    assert recipe.with_values({}) == recipe


@given(recipe=recipes())
def test_nothing_is_written_that_is_a_default(recipe: Recipe) -> None:
    """What stands in the text differs from an empty recipe, so that it says what was wanted."""
    for name, keys in tomllib.loads(recipe.to_toml()).items():
        assert keys
        field = attrs.fields_dict(Recipe)[name]
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else None
        if default is not None:
            assert all(getattr(default, key) != value for key, value in keys.items())


def test_an_empty_text_is_the_empty_recipe() -> None:
    """And the other way round: quantize()'s own defaults."""
    assert Recipe.from_toml("") == Recipe()
    assert Recipe().to_toml() == ""


def test_every_key_of_every_table_survives() -> None:
    """The strategy above leaves none out: together, many recipes have all keys."""
    seen: set[str] = set()

    @settings(max_examples=300, derandomize=True, phases=[Phase.generate])
    @given(recipe=recipes())
    def collect(recipe: Recipe) -> None:
        for name, table in tomllib.loads(recipe.to_toml()).items():
            for one in table if isinstance(table, list) else [table]:
                seen.update(f"{name}.{key}" for key in one)

    collect()
    assert seen == {
        f"{field.name}.{key.name}"
        for field in attrs.fields(Recipe)
        if field.metadata.get("key", True)
        for key in attrs.fields(_kind(field))
    }


def _kind(field: attrs.Attribute[object]) -> type:
    if isinstance(field.default, attrs.Factory):
        return field.default.factory
    return {"skip": SkipEntry, "calibration": CalibrationTable, "compare": CompareTable}[field.name]


@pytest.mark.parametrize("text", ["# nothing\n", "[scheme]\n", "[plugins]\ninstalled = true\n", "skip = []\n"])
def test_comments_and_defaults_are_not_kept(text: str) -> None:
    """A recipe holds values; its text is for people, and stays theirs."""
    assert Recipe.from_toml(text) == Recipe()
