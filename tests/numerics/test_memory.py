"""Bytes that tensors hold."""

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from monoquant.numerics.memory import byte_view, stored_bytes
from monoquant.testing.strategies import weights


def test_sizes_follow_the_dtype() -> None:
    """Separate tensors add up, each with its own element size."""
    tensors = [torch.zeros(10, dtype=torch.float32), torch.zeros(3, 5, dtype=torch.uint8), torch.zeros(7).half()]
    assert stored_bytes(tensors) == 40 + 15 + 14


def test_ties_count_once() -> None:
    """One tensor held twice, or tied between two layers, takes its memory once."""
    head, embedding = nn.Linear(8, 6, bias=False), nn.Embedding(6, 8)
    head.weight = embedding.weight
    assert stored_bytes([head.weight, embedding.weight]) == 6 * 8 * 4
    assert stored_bytes([head.weight, embedding.weight.detach().view(48)]) == 6 * 8 * 4


def test_different_views_add_up_to_at_most_their_storage() -> None:
    """Parts of one storage count with their own sizes; what overlaps never counts beyond the storage."""
    base = torch.zeros(100)
    assert stored_bytes([base[:10], base[50:60]]) == 80
    assert stored_bytes([base[:10]]) == 40
    assert stored_bytes([base[:80], base[20:]]) == 400
    assert stored_bytes([base, base[:80], base[20:], base.view(10, 10).T]) == 400
    assert stored_bytes([torch.zeros(1).expand(1000)]) == 4


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 7), ()])
def test_meta_tensors_count_what_they_would_take(shape: tuple[int, ...]) -> None:
    """A model on the meta device can be sized before it is loaded."""
    tensor = torch.zeros(shape, dtype=torch.float64, device="meta")
    assert stored_bytes([tensor, torch.zeros(5, device="meta")]) == tensor.numel() * 8 + 20


def test_nothing_takes_nothing() -> None:
    """No tensors and empty tensors have no bytes."""
    assert stored_bytes([]) == stored_bytes([torch.zeros(0, 5)]) == 0


def test_tensors_made_on_the_way_count_each() -> None:
    """Tensors that only a generator holds are separate memory, although each may get the address of the last."""
    assert stored_bytes(torch.zeros(10) for _ in range(20)) == 20 * 40


@settings(deadline=None, max_examples=100)
@given(weight=weights(contiguous=True))
def test_byte_view_shows_the_bytes(weight: torch.Tensor) -> None:
    """The view holds exactly the bytes of the tensor, in order."""
    view = byte_view(weight)
    assert list(view) == weight.view(torch.uint8).flatten().tolist()
    assert view.nbytes == weight.numel() * weight.element_size()


def test_byte_view_is_no_copy() -> None:
    """What is written to the tensor appears in the view, which starts where the tensor starts."""
    base = torch.zeros(8, dtype=torch.uint8)
    view = byte_view(base[4:])
    base[5] = 200
    assert list(view) == [0, 200, 0, 0]


def test_byte_view_of_an_empty_tensor_is_empty() -> None:
    """An empty tensor may have no address at all."""
    assert byte_view(torch.zeros(0, 3)).nbytes == 0
