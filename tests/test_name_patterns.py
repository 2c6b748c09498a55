"""Names of layers: whole components, subtrees, numbers, globs, regular expressions, nearest names."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import monoquant as mq
from monoquant.name_patterns import NamePattern, nearest_names

WORDS = ("layers", "layer", "q_proj", "v_proj", "mlp", "gate", "gate_proj", "lm_head", "0", "1", "10", "11")
paths = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6)


def matches(entry: str, name: str) -> bool:
    return NamePattern(entry).matches(name)


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("lm_head", "lm_head"),
        ("lm_head", "model.lm_head"),
        ("layers.1", "model.layers.1"),
        ("layers.1", "model.layers.1.q"),
        ("model", "model.layers.1.q"),
        ("model.layers.1.q", "model.layers.1.q"),
    ],
)
def test_plain_entries_match_whole_components_at_any_depth(entry: str, name: str) -> None:
    """A plain entry hits the layer of that name, wherever it is, and all it contains."""
    assert matches(entry, name)


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("layers.1", "model.layers.10"),
        ("layers.1", "model.layers.11.q"),
        ("layers.1", "model.sublayers.1"),
        ("layers.1", "model.layers.0.1"),
        ("head", "lm_head"),
        ("lm_head", "lm_heads"),
        ("lm_head", "LM_HEAD"),
        ("up_proj", "mlp.gate_up_proj"),
        ("lm_head", ""),
        ("model.layers.1.q", "layers.1.q"),
    ],
)
def test_plain_entries_never_match_parts_of_components(entry: str, name: str) -> None:
    """Neither a prefix, a suffix, another case nor a shorter name is a hit."""
    assert not matches(entry, name)


@settings(deadline=None)
@given(wanted=paths, given_path=paths)
def test_plain_entries_are_contiguous_runs_of_components(wanted: list[str], given_path: list[str]) -> None:
    """An entry matches exactly the names that contain its components in a row."""
    assume(not all(part.isdigit() for part in wanted))
    entry, name = ".".join(wanted), ".".join(given_path)
    assert matches(entry, name) == (f".{entry}." in f".{name}.")


@settings(deadline=None)
@given(path=paths, below=paths)
def test_a_match_covers_the_subtree(path: list[str], below: list[str]) -> None:
    """What an entry matches, it matches with everything inside."""
    name = ".".join(path)
    assert matches(name, name)
    assert matches(name, ".".join([*path, *below]))


@settings(deadline=None)
@given(wanted=st.lists(st.sampled_from(("0", "1", "10")), min_size=1, max_size=3), given_path=paths)
def test_numbers_count_from_the_root(wanted: list[str], given_path: list[str]) -> None:
    """An entry of numbers only, as in nn.Sequential, is a position from the root and never one deeper down."""
    assert matches(".".join(wanted), ".".join(given_path)) == (given_path[: len(wanted)] == wanted)


@pytest.mark.parametrize(
    ("entry", "name", "expected"),
    [
        ("*.gate", "mlp.gate", True),
        ("*.gate", "model.layers.0.mlp.gate", True),
        ("*.gate", "model.layers.0.mlp.gate.wg", True),
        ("*.gate", "gate", False),
        ("*.gate", "mlp.gate_proj", False),
        ("layers.*.q", "layers.3.q", True),
        ("layers.*.q", "layers.3.attn.q", False),
        ("layers.?", "layers.3", True),
        ("layers.?", "layers.13", False),
        ("layers.[0-2].q", "layers.2.q", True),
        ("layers.[0-2].q", "layers.3.q", False),
        ("layers.[!0-2].q", "layers.3.q", True),
        ("*_proj", "attn.q_proj", True),
        ("*_PROJ", "attn.q_proj", False),
        ("*", "anything.at.all", True),
        ("*", "", True),
        ("?", "3", True),
        ("[01]", "attn.1.q", True),
    ],
)
def test_globs_work_within_one_component(entry: str, name: str, expected: bool) -> None:
    """``*``, ``?`` and ``[...]`` never reach across a dot."""
    assert matches(entry, name) is expected


@pytest.mark.parametrize(
    ("entry", "name", "expected"),
    [
        ("re:.*v_proj", "layers.0.v_proj", True),
        ("re:.*v_proj", "layers.0.v_proj.base", False),
        ("re:v_proj", "layers.0.v_proj", False),
        ("re:layers.[0-9]+.q", "layers.10.q", True),
        (r"re:layers\.(1|2)\..*", "layers.2.mlp.up", True),
        (r"re:layers\.(1|2)\..*", "layers.12.mlp.up", False),
        ("re:", "", True),
        ("re:", "layers", False),
    ],
)
def test_regular_expressions_match_the_full_name(entry: str, name: str, expected: bool) -> None:
    """``re:`` must describe the whole name, and covers no subtree of its own."""
    assert matches(entry, name) is expected


@pytest.mark.parametrize("entry", [None, 3, b"lm_head", ["lm_head"]])
def test_entries_must_be_strings(entry: Any) -> None:
    """Anything but a string is refused with an example."""
    with pytest.raises(mq.ConfigError, match=r"must be a string.*lm_head"):
        NamePattern(entry)


@pytest.mark.parametrize("entry", ["", ".", "a..b", ".a", "a."])
def test_entries_must_not_have_empty_components(entry: str) -> None:
    """An entry that could match nothing is refused when it is written, not when it is dead."""
    with pytest.raises(mq.ConfigError, match="empty component"):
        NamePattern(entry)


@pytest.mark.parametrize("entry", ["re:(", "re:*", "re:[a"])
def test_bad_regular_expressions_are_refused(entry: str) -> None:
    """The error quotes the entry and says what is wrong with it."""
    with pytest.raises(mq.ConfigError, match=r"is not a regular expression: .") as caught:
        NamePattern(entry)
    assert repr(entry) in str(caught.value)


def test_patterns_are_frozen_values() -> None:
    """Equal entries make equal patterns, which nobody can change."""
    assert {NamePattern("a"), NamePattern("a"), NamePattern("b")} == {NamePattern("b"), NamePattern("a")}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        NamePattern("a").entry = "b"  # type: ignore[misc]


NAMES = ["model.embed", "model.layers.0.mlp.gate_up_proj", "model.layers.0.self_attn.v_proj", "lm_head"]


@pytest.mark.parametrize(
    ("entry", "nearest"),
    [
        ("lm_heads", "lm_head"),
        ("self_atn", "self_attn"),
        ("re:vproj", "v_proj"),
        ("mlp.gate_up", "mlp.gate_up_proj"),
        ("model.layers.0.self_attn.vproj", "model.layers.0.self_attn.v_proj"),
    ],
)
def test_the_nearest_name_comes_first(entry: str, nearest: str) -> None:
    """A typo finds the component, the tail or the full name that was meant."""
    assert nearest_names(entry, NAMES)[0] == nearest


def test_nothing_is_near_when_nothing_is_similar() -> None:
    """A far-fetched proposal would mislead, so there is none."""
    assert nearest_names("xyzzy", NAMES) == []
    assert nearest_names("lm_head", []) == []


def test_bare_numbers_are_never_proposed() -> None:
    """The positions in a container look like every other number and say nothing."""
    assert nearest_names("12", ["1", "2", "layers.12"]) == []


@settings(deadline=None)
@given(entry=paths.map(".".join), names=st.lists(paths.map(".".join), max_size=5), count=st.integers(1, 4))
def test_proposals_are_real_few_and_different(entry: str, names: list[str], count: int) -> None:
    """Each proposal, written as an entry, matches an existing name; there are at most as many as asked for."""
    found = nearest_names(entry, names, count)
    assert len(found) == len(set(found)) <= count
    assert all(any(f".{proposal}." in f".{name}." for name in names) for proposal in found)
