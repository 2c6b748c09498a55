"""Recipes as text: every mistake at once, each with its line, key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import monoquant as mq
from monoquant.recipes import Recipe, SchemeTable, SkipEntry
from monoquant.recipes.reading import line_of

MISTAKES = """
[schem]
bits = 4

[scheme]
bitz = 3
group_size = 0
quality = "good"
symmetric = "no"

[[skip]]
names = ["a"]

[[skip]]  # the second one
names = "b"
to = "int3"

[[skip]]

[calibration]
samples = 3

[gate]
tolerance_db = 1
"min_layer_sqnr_db" = nan
"""

TOLD = """x.toml is no recipe:
- line 2: schem: there is no such table; do you mean 'scheme'?
- line 6: [scheme] bitz: there is no such key; do you mean 'bits'?
- line 7: [scheme] group_size = 0: give a whole number >= 1, such as 32, 64 or 128
- line 8: [scheme] quality = "good": give one of "auto", "fast", "balanced", "best"
- line 9: [scheme] symmetric = "no": give true or false
- line 15: [[skip]] 2: names = "b": give a list of layer names, such as ["lm_head", "*.gate"], each in quotes
- line 16: [[skip]] 2: to = "int3": give one of "int8", "float16", "bfloat16"
- line 18: [[skip]] 3: it fits no layer: give names, types or smaller_than
- line 20: [calibration] data is missing: it cannot do without
- line 25: [gate] min_layer_sqnr_db = nan: give a finite number, such as 12"""


def test_all_mistakes_are_told_at_once_in_the_order_of_lines() -> None:
    """Unknown tables and keys have the nearest known one, values have what is allowed."""
    with pytest.raises(mq.ConfigError) as caught:
        Recipe.from_toml(MISTAKES, "x.toml")
    assert str(caught.value) == TOLD


ONE_BY_ONE = [
    ("scheme = 4", "[scheme] 4 is no table: give keys of its own"),
    ("skip = 4", "[skip] these are several entries: write [[skip]] above each"),
    ('[skip]\nnames = ["a"]', "line 1: [skip] these are several entries: write [[skip]] above each"),
    ("skip = [3]", "[[skip]] 1: 3 is no table: give keys of its own"),
    ("[scheme]\nbits = true", "line 2: [scheme] bits = true: give one of 4, 8, 16"),
    ("[scheme]\nbits = 4.0", "line 2: [scheme] bits = 4.0: give one of 4, 8, 16"),
    ('[scheme]\nbits = "4"', 'line 2: [scheme] bits = "4": give one of 4, 8, 16'),
    ("[scheme]\ngroup_size = true", "line 2: [scheme] group_size = true: give a whole number >= 1"),
    ("[scheme]\nbits = 2026-11-28", "line 2: [scheme] bits = datetime.date(2026, 11, 28): give one of 4, 8, 16"),
    ("[scheme]\nexact = 1", "line 2: [scheme] exact = 1: give true or false"),
    ('[scheme]\nalgorithm = " "', 'line 2: [scheme] algorithm = " ": give the name of an algorithm, such as "gptq"'),
    ("[scheme]\ntarget_sqnr_db = inf", "line 2: [scheme] target_sqnr_db = inf: give a finite number, such as 25"),
    (
        "[scheme]\ntarget_bits_per_weight = -1",
        "line 2: [scheme] target_bits_per_weight = -1: give a finite number >= 0, such as 4.5",
    ),
    (
        '[scheme]\nbits = 8\ndtype = "int4"',
        'line 1: [scheme] bits = 8 and dtype = "int4" contradict each other: give one of them',
    ),
    (
        '[scheme]\nquality = "fast"\nalgorithm = "gptq"',
        'line 1: [scheme] quality = "fast" and algorithm = "gptq" contradict each other: give one of them',
    ),
    (
        "[scheme]\ntarget_bits_per_weight = 5\ntarget_sqnr_db = 30",
        "line 1: [scheme] target_bits_per_weight = 5 and target_sqnr_db = 30 contradict each other: give one of them",
    ),
    (
        '[[skip]]\nnames = ["re:("]',
        "line 2: [[skip]] 1: names = [\"re:(\"]: layer name 're:(' is not a regular expression",
    ),
    ('[[skip]]\nnames = ["a..b"]', "line 2: [[skip]] 1: names = [\"a..b\"]: layer name 'a..b' has an empty component"),
    (
        '[[skip]]\ntypes = ["nn Linear"]',
        "line 2: [[skip]] 1: types = [\"nn Linear\"]: 'nn Linear' is no name of a class",
    ),
    ('[[skip]]\nnames = ["a", 3]', 'line 2: [[skip]] 1: names = ["a", 3]: give a list of layer names'),
    ("[[skip]]\nsmaller_than = 0", "line 2: [[skip]] 1: smaller_than = 0: give a whole number >= 1, such as 512"),
    ('[[skip]]\nnmes = ["a"]', "line 2: [[skip]] 1: nmes: there is no such key; do you mean 'names'?"),
    (
        '[calibration]\ndata = "d"\nselect = 1.5',
        'line 3: [calibration] select = 1.5: give a position or a key, such as 0 or "input_ids"',
    ),
    ('[compare]\ndata = ""', 'line 2: [compare] data = "": give a file or package.module:factory, in quotes'),
    (
        "[gate]\nsize_tolerance_percent = 2",
        "line 1: [gate] tolerance_db and size_tolerance_percent say nothing without a baseline: give one",
    ),
    ('[gate]\nfail_on = "info"', 'line 2: [gate] fail_on = "info": give one of "critical", "warning"'),
    ('folder = "x"', "folder: there is no such table; give one of scheme, select"),
    (
        '[scheme]\nbits = 8\n[[skip]]\nnames = ["a"]\nto = "int8"',
        '[[skip]] 1: to = "int8" keeps no more of a layer than int8, which all are reduced to',
    ),
    (
        "[scheme]\nbits = 8\n[skip_defaults]\ntypes = false",
        "[skip_defaults] does nothing with int8: INT4 alone has defaults",
    ),
]


@pytest.mark.parametrize(("text", "told"), ONE_BY_ONE, ids=[text for text, _ in ONE_BY_ONE])
def test_a_mistake_is_told(text: str, told: str) -> None:
    """Nothing is turned into something else: "4", 4.0 and true are not 4."""
    with pytest.raises(mq.ConfigError) as caught:
        Recipe.from_toml(text)
    first, *problems = str(caught.value).split("\n- ")
    assert first == "the recipe is no recipe:"
    assert len(problems) == 1
    assert problems[0].startswith(told)


def test_what_is_no_toml_says_where() -> None:
    with pytest.raises(mq.ConfigError, match=r"^r is not TOML: .*at line 2, column \d+"):
        Recipe.from_toml("[scheme]\nbits = = 4\n", "r")
    with pytest.raises(mq.ConfigError, match="is not TOML: Cannot overwrite a value"):
        Recipe.from_toml("[scheme]\nbits = 4\nbits = 8\n")


def test_values_in_code_are_held_to_the_same() -> None:
    """The tables are values of their own: a wrong one cannot be built."""
    with pytest.raises(mq.ConfigError, match=r"^bits = 5: give one of 4, 8, 16$"):
        SchemeTable(bits=5)
    with pytest.raises(mq.ConfigError, match="it fits no layer"):
        SkipEntry(to="int8")
    with pytest.raises(mq.ConfigError, match='names = "a": give a list of layer names'):
        SkipEntry(names="a")
    assert SkipEntry(names=["a"]) == SkipEntry(names=("a",))
    assert SchemeTable(bits=16, dtype="bfloat16").target == "bfloat16"
    assert SchemeTable(bits=8, dtype="int8").target == "int8"
    with pytest.raises(mq.ConfigError, match="keeps no more"):
        Recipe(scheme=SchemeTable(bits=8), skip=[SkipEntry(names=["a"], to="int8")])


def test_files_are_read_with_their_folder(tmp_path: Path) -> None:
    """Errors name the file; relative paths start beside it."""
    path = tmp_path / "r.toml"
    path.write_text("[scheme]\nbits = 8\n", encoding="utf-8")
    recipe = Recipe.from_file(path)
    assert (recipe.scheme.bits, recipe.folder) == (8, tmp_path)
    path.write_text("[scheme]\nbits = 5\n", encoding="utf-8")
    with pytest.raises(mq.ConfigError) as caught:
        Recipe.from_file(str(path))
    assert str(caught.value) == f"{path} is no recipe:\n- line 2: [scheme] bits = 5: give one of 4, 8, 16"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(mq.ConfigError, match=r"r\.toml is not TOML: it is no UTF-8 text .* at byte 0"):
        Recipe.from_file(path)
    with pytest.raises(mq.FileError, match=r"none\.toml: cannot be read \(No such file or directory\)"):
        Recipe.from_file(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a", "x"), 2),
        (("a", "y"), 3),
        (("a", "z"), 1),
        (("b", 0, "x"), 6),
        (("b", 1, "x"), 9),
        (("b", 1), 8),
        (("c", "x"), 0),
        (("d", "x"), 10),
        ((), 0),
    ],
)
def test_lines_are_found(path: tuple[Any, ...], line: int) -> None:
    """A key in its table and entry; else the table; 0 where it is not plain to see."""
    text = '[a]\nx = 1\n"y" = 2\n# x = 3\n[[b]]\nx = 4\n# [a]\n[[ b ]] # second\n  x = 5\n[d]\n'
    assert line_of(text, path) == line


def test_single_keys_can_be_set() -> None:
    """As a command's options do; what is set takes the place of what it would contradict."""
    recipe = Recipe.from_toml('[scheme]\ndtype = "int4"\nquality = "fast"\n[gate]\nmin_layer_sqnr_db = 12')
    assert recipe.with_values({"scheme.bits": 8}).scheme == SchemeTable(bits=8, quality="fast")
    assert recipe.with_values({"scheme.algorithm": "gptq"}).scheme == SchemeTable(dtype="int4", algorithm="gptq")
    assert recipe.with_values({"scheme.dtype": None, "scheme.quality": None}).scheme == SchemeTable()
    assert recipe.with_values({"gate.min_layer_sqnr_db": None}).gate == Recipe().gate
    assert recipe.with_values({"calibration.data": "x.npy"}).calibration.data == "x.npy"
    assert recipe.with_values({}) == recipe
    assert recipe.with_values({"scheme.bits": None}) == recipe
    settings = ["scheme.group_size=32", " gate.fail_on = warning", 'compare.data="a=b"', "select.names=['a', 'b']"]
    changed = recipe.with_settings(settings)
    assert changed.scheme.group_size == 32
    assert changed.gate.fail_on == "warning"
    assert changed.compare.data == "a=b"
    assert changed.select.names == ("a", "b")


def test_the_folder_stays_when_keys_are_set() -> None:
    recipe = Recipe.from_toml("", folder="somewhere")
    assert recipe.with_values({"scheme.bits": 8}).folder == recipe.folder == Path("somewhere")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"scheme.bitz": 3}, "- [scheme] bitz: there is no such key; do you mean 'bits'?"),
        ({"gates.fail_on": "warning"}, "- gates: there is no such table; do you mean 'gate'?"),
        ({"scheme.bits": 3}, "- [scheme] bits = 3: give one of 4, 8, 16"),
        ({"scheme": 3}, "scheme: give table.key, such as scheme.bits"),
        ({"skip.names": ["a"]}, "skip.names: give table.key, such as scheme.bits; [[skip]] entries stand in a file"),
    ],
)
def test_wrong_keys_are_told_when_set(values: dict[str, Any], told: str) -> None:
    with pytest.raises(mq.ConfigError) as caught:
        Recipe().with_values(values)
    assert told in str(caught.value)


@pytest.mark.parametrize("setting", ["scheme.bits", "=3", "scheme.bits="])
def test_settings_need_key_and_value(setting: str) -> None:
    with pytest.raises(mq.ConfigError, match=r"give table\.key=value, such as scheme.group_size=32"):
        Recipe().with_settings([setting])
