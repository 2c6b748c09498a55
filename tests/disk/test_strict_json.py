"""JSON that says one thing, with numbers, in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoquant.disk import strict_json
from monoquant.disk.strict_json import parse_json, read_json
from monoquant.errors import FileError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_json_writes_is_read(value: object) -> None:
    """As text and as bytes."""
    text = json.dumps(value)
    assert parse_json(text) == value
    assert parse_json(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "'c' appears twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "1e999 is no number that fits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[" + "0," * 10_000_000 + "0]", "10000001 values in it, where at most 10000000 make sense"),
        (b"\xff\xfe[\0]\0", "can't decode byte 0xff"),
        (b"\xef\xbb\xbf[]", "BOM"),
        ("[1", "Expecting"),
        ("[" + "9" * 5000 + "]", "digits"),
    ],
    ids=lambda one: str(one)[:20],
)
def test_what_is_refused(text: str | bytes, said: str) -> None:
    """With the reason."""
    with pytest.raises(ValueError, match=said):
        parse_json(text)


def test_texts_that_no_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too long, or too much once it is read."""
    monkeypatch.setattr(strict_json, "MOST_BYTES", 3)
    with pytest.raises(ValueError, match="4 characters of it, where at most 3"):
        parse_json("[ ] ")

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(strict_json.json, "loads", full)
    with pytest.raises(ValueError, match="there is no memory for it"):
        parse_json("[]")


def test_a_file(tmp_path: Path) -> None:
    """Errors name it, and what it should be."""
    (tmp_path / "a").write_text('{"a": 1, "a": 2}')
    with pytest.raises(FileError, match=r"a: not an index \('a' appears twice\); get it again"):
        read_json(tmp_path / "a", "an index")
    with pytest.raises(FileError, match="at most 3 make sense"):
        read_json(tmp_path / "a", "an index", most=3)
    (tmp_path / "a").write_text("[3]")
    assert read_json(tmp_path / "a", "an index") == [3]
