"""The sampler of whole calls: bounded, copied, and calls that can be made again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.errors import ConfigError
from monoquant.observers import Call, CallSample, CallSampler

BYTES = 4 * 8  # of a float32 row of eight


def sampled(size: int, *calls: Call) -> list[Call]:
    """What is kept of these calls with room for so many bytes."""
    request = CallSample(size)
    sampler = request.observer()
    for call in calls:
        request.feed(sampler, call)
    assert request.saw_something(sampler) == bool(sampler.calls)
    return sampler.calls


def rows(count: int) -> torch.Tensor:
    return torch.arange(count * 8.0).reshape(count, 8)


def test_calls_are_kept_whole_while_they_fit() -> None:
    """All arguments come back, tensors or not, by position and by name."""
    call = Call((rows(2), "text", None), {"mask": rows(1), "flag": True})
    [kept] = sampled(3 * BYTES, call)
    assert torch.equal(kept.args[0], rows(2))
    assert kept.args[1:] == ("text", None)
    assert torch.equal(kept.kwargs["mask"], rows(1))
    assert kept.kwargs["flag"] is True
    assert list(kept.kwargs) == ["mask", "flag"]


def test_a_call_with_one_tensor_is_cut_to_the_room_there_is() -> None:
    """Samples at the front are kept, as many as fit, and room that is used up is used up."""
    kept = sampled(5 * BYTES + 3, Call((rows(3),), {}), Call((), {"x": rows(7)}), Call((rows(1),), {}))
    assert [len(kept[0].args[0]), len(kept[1].kwargs["x"]), len(kept)] == [3, 2, 2]
    assert torch.equal(kept[1].kwargs["x"], rows(7)[:2])


def test_a_single_sample_is_kept_even_if_it_is_larger() -> None:
    """One that exceeds all room is better than none, but only as the first one."""
    first, second = Call((rows(4),), {}), Call((rows(4),), {})
    [kept] = sampled(BYTES - 1, first, second)
    assert torch.equal(kept.args[0], rows(1))


def test_calls_with_several_tensors_are_kept_whole_or_not_at_all() -> None:
    """Nobody knows along which axis they would have to be cut together; a later call may fit."""
    large, small = Call((rows(3), rows(2)), {}), Call((rows(1), rows(1)), {})
    kept = sampled(4 * BYTES, large, small, large)
    assert len(kept) == 1
    assert torch.equal(kept[0].args[1], rows(1))


@pytest.mark.parametrize("beside", [(rows(3),), [rows(3)], {"state": (rows(3),)}, [3], {}, object()])
def test_a_tensor_beside_something_of_its_length_is_not_cut(beside: Any) -> None:
    """States, lengths and objects that nobody can see into may count the samples, too."""
    assert sampled(2 * BYTES, Call((rows(3), beside), {})) == []
    assert len(sampled(6 * BYTES, Call((rows(3), beside), {}))) == 1
    assert len(sampled(2 * BYTES, Call((rows(3), True, None, 0.5), {"mode": "sum"}))) == 1


def test_tensors_inside_of_arguments_are_counted_and_copied() -> None:
    """States in tuples, lists, dicts and packed sequences take room like others, and keep their kind."""
    packed = nn.utils.rnn.pack_sequence([rows(2), rows(1)])
    values: list[Any] = [(rows(1), rows(1)), [rows(2)], {"state": (rows(2), 3)}]
    for value in values:
        [kept] = sampled(2 * BYTES, Call((value,), {}))
        assert type(kept.args[0]) is type(value)
        assert sampled(2 * BYTES - 1, Call((value,), {})) == []
        kept_tensors, tensors = (list(leaves(one)) for one in (kept.args[0], value))
        assert [one.tolist() for one in kept_tensors] == [one.tolist() for one in tensors]
        assert not {one.data_ptr() for one in kept_tensors} & {one.data_ptr() for one in tensors}
    [kept] = sampled(10 * BYTES, Call((packed,), {}))
    assert torch.equal(kept.args[0].data, packed.data)
    assert kept.args[0].data is not packed.data


def leaves(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)


@pytest.mark.parametrize("length", [10, 400])
def test_a_recurrent_layer_with_a_state_of_its_own_is_measured_or_left(length: int) -> None:
    """Its inputs, too large to be kept, are not cut apart from the state that goes with them."""

    class WithState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(64, 64, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = torch.zeros(1, len(x), 64)
            return self.rnn(x, (state, state))[0]

    data: dict[str, Any] = {"calibration_data": [torch.randn(60, length, 64)], "quality": "fast"}
    result = mq.quantize(WithState(), **data, accuracy_warning="ignore", plugins=False)
    [record] = result.report.layers
    assert (record.output_sqnr_db is None) == (length == 400)
    assert result.report.calibration.unseen_layers == (("rnn",) if length == 400 else ())


def test_a_tensor_given_twice_stays_one() -> None:
    """Modules may ask whether two arguments are the same object, and it takes the memory of one."""
    x = rows(4)
    [kept] = sampled(4 * BYTES, Call((x, x), {"value": x}))
    assert kept.args[0] is kept.args[1] is kept.kwargs["value"]
    assert torch.equal(kept.args[0], x)
    [cut] = sampled(2 * BYTES, Call((x, x), {"value": x}))
    assert cut.args[0] is cut.args[1] is cut.kwargs["value"]
    assert torch.equal(cut.args[0], rows(2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_self_attention_on_a_nested_tensor_can_be_called_again() -> None:
    """torch takes nested tensors for self-attention only, which it tells by their identity."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.nested.nested_tensor([rows(2), rows(3)])
    [kept] = sampled(10_000, Call((x, x, x), {"need_weights": False}))
    with torch.no_grad():
        answer = attention(*kept.args, **kept.kwargs)[0]
    assert [len(part) for part in answer.unbind()] == [2, 3]


def test_samples_are_copies_without_history() -> None:
    """A model that goes on writing to its activations does not change them, nor is a graph kept alive."""
    shown = rows(2).requires_grad_() * 2
    [kept] = sampled(10 * BYTES, Call((shown,), {}))
    shown.data.zero_()
    assert torch.equal(kept.args[0], rows(2) * 2)
    assert not kept.args[0].requires_grad


def test_calls_without_rows_are_no_observation() -> None:
    """An expert that is given nothing was not called, as far as its outputs go."""
    assert sampled(BYTES, Call((rows(0),), {})) == []
    assert len(sampled(BYTES, Call((rows(0),), {}), Call((rows(1),), {}))) == 1


def test_no_more_than_some_calls_are_kept() -> None:
    """Small calls without number would take long to repeat."""
    assert len(sampled(10**6, *[Call((rows(1),), {}) for _ in range(100)])) == 8
    assert CallSampler(1).calls is not CallSampler(1).calls


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "many", None])
def test_a_bad_number_of_bytes_is_refused(size: Any) -> None:
    """The error names what was given and what would be right."""
    with pytest.raises(ConfigError, match=r"sample_bytes=.*whole number"):
        CallSample(size)
