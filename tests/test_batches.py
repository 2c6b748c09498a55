"""Batches: every sample is used once, and the right ones are held out, whatever kind the data is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import monoquant as mq
from monoquant.batches import HELD_OUT_OF, Batches, Part, run_model

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)
most = st.integers(1, 200)


def numbered(counts: list[int]) -> list[Tensor]:
    """Batches whose samples are numbered through."""
    return list(torch.arange(float(sum(counts))).unsqueeze(1).split(counts))


def as_tuple(batch: Tensor) -> Any:
    return batch, -batch


def as_mapping(batch: Tensor) -> Any:
    return {"x": batch, "nested": [batch, {"y": batch}], "flag": True}


def as_tensor(batch: Tensor) -> Any:
    return batch


def samples(content: Any) -> list[float]:
    """The numbers of the samples in a part; all tensors of it must agree."""
    if isinstance(content, Mapping):
        x, (same, inner) = content["x"], content["nested"]
        assert content["flag"] is True
        assert torch.equal(x, same)
        assert torch.equal(x, inner["y"])
        return samples(x)
    if isinstance(content, (tuple, list)):
        assert torch.equal(content[0], -content[1])
        return samples(content[0])
    return content.flatten().tolist()


divisible = pytest.mark.parametrize("kind", [as_tensor, as_tuple, as_mapping])


@divisible
@given(counts=sizes, most=most)
def test_samples_are_used_once_and_some_held_out(kind: Any, counts: list[int], most: int) -> None:
    """In order, as many as are wanted and there are; of those, one of so many is held out, the second one first."""
    parts = list(Batches([kind(batch) for batch in numbered(counts)], most).parts(hold_out=True))
    used = min(most, sum(counts))
    assert [number for part in parts for number in samples(part.content)] == list(range(used))
    assert all(part.samples == len(samples(part.content)) > 0 for part in parts)
    assert sum(part.samples for part in parts if part.held_out) == (used + HELD_OUT_OF - 2) // HELD_OUT_OF


@divisible
@given(counts=sizes, most=most)
def test_parts_of_a_batch_belong_together(kind: Any, counts: list[int], most: int) -> None:
    """At most two, the held-out one last; they know their batch, and which of them ends it."""
    batches = [kind(batch) for batch in numbered(counts)]
    parts = list(Batches(batches, most).parts(hold_out=True))
    indices = [part.index for part in parts]
    assert indices == sorted(indices)
    assert sorted(set(indices)) == list(range(len(set(indices))))
    for index in set(indices):
        own = [part for part in parts if part.index == index]
        assert [part.held_out for part in own] in ([False], [True], [False, True])
        assert [part.ends_batch for part in own] == [False] * (len(own) - 1) + [True]
        assert all(part.batch is batches[index] for part in own)


@divisible
@given(counts=sizes, most=most)
def test_held_out_samples_are_spread_over_the_batches(kind: Any, counts: list[int], most: int) -> None:
    """At any point of the data, as many have been held out as were due."""
    seen = held = 0
    for part in Batches([kind(batch) for batch in numbered(counts)], most).parts(hold_out=True):
        seen += part.samples
        held += part.samples * part.held_out
        if part.ends_batch:
            assert held == (seen + HELD_OUT_OF - 2) // HELD_OUT_OF


@given(counts=sizes, most=most)
def test_without_holding_out_batches_stay_whole(counts: list[int], most: int) -> None:
    """Where nothing is fitted, each batch is one part, and only the last one is cut."""
    batches = numbered(counts)
    parts = list(Batches(batches, most).parts(hold_out=False))
    assert [part.samples for part in parts[:-1]] == counts[: len(parts) - 1]
    assert sum(part.samples for part in parts) == min(most, sum(counts))
    assert all(part.ends_batch and not part.held_out for part in parts)
    assert [part.index for part in parts] == list(range(len(parts)))


def keeps_index(parts: list[Part]) -> list[int]:
    return [part.index for part in parts if part.held_out]


@given(counts=sizes, most=most, by_forward=st.booleans())
def test_what_cannot_be_cut_is_held_out_whole(counts: list[int], most: int, by_forward: bool) -> None:
    """Batches that a function takes, or with a tensor that does not count samples: the second one, and so on."""
    whole = [batch if by_forward else (batch, torch.ones(len(batch) + 1)) for batch in numbered(counts)]
    forward = (lambda model, batch: model(batch)) if by_forward else None
    parts = list(Batches(whole, most, forward=forward).parts(hold_out=True))
    assert all(part.content is batch for part, batch in zip(parts, whole, strict=False))
    assert [part.samples for part in parts] == counts[: len(parts)]
    assert sum(counts[: len(parts) - 1]) < most
    assert len(parts) == len(counts) or sum(counts[: len(parts)]) >= most
    assert keeps_index(parts) == list(range(1, len(parts), HELD_OUT_OF))
    assert all(part.ends_batch for part in parts)


@given(counts=sizes, most=most)
def test_no_batch_is_drawn_that_is_not_used(counts: list[int], most: int) -> None:
    """A generator may be slow, and what is left of it may serve someone else."""
    drawn: list[int] = []

    def data() -> Iterator[Tensor]:
        for index, batch in enumerate(numbered(counts)):
            drawn.append(index)
            yield batch

    parts = list(Batches(data(), most).parts(hold_out=True))
    assert len(drawn) == parts[-1].index + 1


@given(counts=sizes, most=most)
def test_a_generator_that_is_kept_can_be_run_again(counts: list[int], most: int) -> None:
    """With the same parts each time; no more of it is drawn than is used."""
    drawn: list[int] = []

    def data() -> Iterator[Tensor]:
        for index, batch in enumerate(numbered(counts)):
            drawn.append(index)
            yield batch

    kept = Batches(data(), most).kept()
    one, other = ([samples(part.content) for part in kept.parts(hold_out=True)] for _ in range(2))
    assert one == other
    assert [number for part in one for number in part] == list(range(min(most, sum(counts))))
    assert sum(counts[: len(drawn) - 1]) < most


def test_what_can_be_run_again_is_not_kept() -> None:
    """A DataLoader may hold more than memory does."""
    batches = Batches([torch.ones(2, 1)], 5)
    assert batches.kept() is batches


@pytest.mark.parametrize("select", [0, "pixels"])
def test_the_choice_comes_before_the_cut(select: int | str) -> None:
    """Labels of another length do not keep a batch from being cut."""
    pixels, labels = torch.arange(20.0).unsqueeze(1), torch.arange(7)
    batch = (pixels, labels) if select == 0 else {"labels": labels, "pixels": pixels}
    parts = list(Batches([batch], 18, select=select).parts(hold_out=True))
    assert [number for part in parts for number in samples(part.content)] == list(range(18))
    assert any(part.held_out for part in parts)
    assert all(part.batch is batch for part in parts)


@given(mask=st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=2, max_size=30))
def test_positions_that_an_attention_mask_keeps_are_counted(mask: list[list[int]]) -> None:
    """Of each part, those of its own samples; None where there is no padding."""
    given_mask = torch.tensor(mask)
    batch = {"input_ids": torch.zeros(len(mask), 5, dtype=torch.int64), "attention_mask": given_mask}
    counted = []
    for part in Batches([batch], 100).parts(hold_out=True):
        expected = part.content["attention_mask"] != 0
        assert (part.counted is None) == bool(expected.all())
        counted.append(torch.ones_like(expected) if part.counted is None else part.counted)
    assert torch.equal(torch.cat(counted), given_mask != 0)


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(3, 5),
        (torch.ones(3, 5), torch.zeros(3, 5)),
        {"attention_mask": torch.zeros(3, 5)},  # floats are added to scores: zero lets a position through
        {"attention_mask": torch.zeros(3, 1, 5, 5, dtype=torch.bool)},
        {"attention_mask": None, "x": torch.ones(3, 5)},
        {"mask": torch.zeros(3, 5, dtype=torch.bool)},
    ],
    ids=["tensor", "tuple", "float mask", "mask of four axes", "no mask", "another name"],
)
def test_what_is_no_attention_mask_of_positions_leaves_nothing_out(batch: Any) -> None:
    """Better to count padding than to leave data out."""
    [part] = Batches([batch], 100).parts(hold_out=False)
    assert part.counted is None


@given(counts=sizes, size=st.integers(1, 10))
def test_pieces_are_a_part_cut_small(counts: list[int], size: int) -> None:
    """In order and complete; what cannot be cut stays whole."""
    batches = Batches(numbered(counts), 10**6)
    for part in batches.parts(hold_out=True):
        pieces = list(batches.pieces(part, size))
        assert [number for piece in pieces for number in samples(piece.content)] == samples(part.content)
        assert all(piece.samples == len(piece.content) <= size for piece in pieces)
        assert {piece.index for piece in pieces} == {part.index}
    uncut = Batches([(torch.ones(9, 1), torch.ones(1))], 100)
    [part] = uncut.parts(hold_out=False)
    assert list(uncut.pieces(part, size)) == [part]


@divisible
@given(counts=sizes, most=most, size=st.integers(1, 10), hold_out=st.booleans())
def test_what_is_a_part_of_a_batch_says_so(kind: Any, counts: list[int], most: int, size: int, hold_out: bool) -> None:
    """Whatever it was cut for: to fit, to hold some out, to be small; all of a batch is not cut."""
    batches = Batches([kind(batch) for batch in numbered(counts)], most)
    for part in batches.parts(hold_out=hold_out):
        assert part.is_cut == (part.samples < counts[part.index])
        for piece in batches.pieces(part, size):
            assert piece.is_cut == (piece.samples < counts[piece.index])


@pytest.mark.parametrize("once", [False, True])
@given(counts=sizes, most=most, size=st.integers(1, 10))
def test_batches_that_are_left_whole_start_again(once: bool, counts: list[int], most: int, size: int) -> None:
    """From the first one, also where an iterator has given it away; none is cut, whatever it would be for."""
    given_ = numbered(counts)
    data = iter(given_) if once else given_
    batches = Batches(data, most)
    first = next(batches.parts(hold_out=True)).batch
    whole = batches.left_whole(first)
    parts = list(whole.parts(hold_out=True))
    assert all(part.content is batch for part, batch in zip(parts, given_, strict=False))
    assert sum(counts[: len(parts) - 1]) < most
    assert len(parts) == len(counts) or sum(counts[: len(parts)]) >= most
    assert [part.held_out for part in parts] == [index % HELD_OUT_OF == 1 for index in range(len(parts))]
    assert not any(part.is_cut for part in parts)
    assert all(list(whole.pieces(part, size)) == [part] for part in parts)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (torch.tensor([1.0]), ("x",)),
        ([torch.tensor([1.0]), torch.tensor([2.0])], ("x", "y")),
        ((torch.tensor([1.0]), torch.tensor([2.0])), ("x", "y")),
        ({"y": torch.tensor([2.0]), "x": torch.tensor([1.0])}, ("x", "y")),
    ],
)
def test_parts_are_given_to_the_model_as_batches_are(content: Any, expected: tuple[str, ...]) -> None:
    """One argument, positional ones, named ones."""

    class Model(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> list[float]:
            return [float(one) for one in (x, y) if one is not None]

    answer = run_model(Model(), Part(content, 0, 1, content), None)
    assert answer == [1.0, 2.0][: len(expected)]


@pytest.mark.parametrize("data", [[], [torch.ones(0, 3)], iter([])])
def test_no_samples_at_all_is_an_error(data: Any) -> None:
    """Which says what the data was for."""
    with pytest.raises(mq.InputError, match="comparison data holds no samples"):
        list(Batches(data, 5, what="comparison").parts(hold_out=True))


def test_batches_without_samples_between_others_do_no_harm() -> None:
    """They are no part, or an empty one."""
    data = [torch.arange(3.0).unsqueeze(1), torch.ones(0, 1), torch.arange(3.0, 6).unsqueeze(1)]
    parts = list(Batches(data, 10).parts(hold_out=True))
    assert [number for part in parts for number in samples(part.content)] == list(range(6))
