"""Batches of data, whatever their kind: how many samples they hold, how they are cut, how a model is run on one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from monoquant.errors import ConfigError, InputError, PluginError

Forward = Callable[[nn.Module, Any], Any]
HELD_OUT_OF = 16
"""One sample of so many is kept apart where something is fitted to the others."""


@attrs.frozen(eq=False)
class Part:
    """What a model is run on at once.

    Args:
        content: A batch, or some samples of one.
        index: Number of the batch.
        samples: Samples in the part.
        held_out: Whether the part is kept apart from what is fitted to.
        ends_batch: Whether the batch is done with it.
        batch: The whole batch, for messages.
        what: What the data is for, for messages.
        is_cut: Whether the batch was cut: to fit, to hold samples out, or to go backward for few of them.
    """

    content: Any
    index: int
    samples: int
    batch: Any
    held_out: bool = False
    ends_batch: bool = True
    what: str = "calibration"
    is_cut: bool = False

    @property
    def counted(self) -> Tensor | None:
        """Which positions hold data rather than padding: bool ``[samples, positions]``; None if all do.

        Known where a batch is a mapping with an ``attention_mask`` of two axes, as in transformers.
        """
        mask = self.content.get("attention_mask") if isinstance(self.content, Mapping) else None
        if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.is_floating_point():
            return None
        counted = mask != 0
        return None if bool(counted.all()) else counted


@attrs.frozen(eq=False)
class Batches:
    """Data, and how much of it is used.

    Args:
        data: Batches.
        most: Samples to use at most.
        select: Position or key of a batch's part that is the model's input; None for all of it.
        forward: Runs a model on a batch, whatever that is; None for the usual way.
        what: What the data is for, for messages.
        uncut: Whether batches are left whole, because what they lead with is no samples.
    """

    data: Iterable[Any]
    most: int
    select: int | str | None = None
    forward: Forward | None = None
    what: str = "calibration"
    uncut: bool = False

    def parts(self, *, hold_out: bool) -> Iterator[Part]:
        """What to run a model on, in order; the last batch is cut to fit where it can be.

        Args:
            hold_out: Whether to keep one sample of HELD_OUT_OF apart: the last ones of each batch that can be cut, or
                whole batches.

        Raises:
            InputError: For a batch that cannot be used, or data without any sample.
        """
        used = 0
        for index, batch in enumerate(noting_failures(self.data, self.what)):
            chosen = choose_input(batch, index, self.select, self.what)
            size = self._size(chosen, index)
            divisible = self._can_cut(chosen, size)
            too_long = divisible and size > self.most - used
            if too_long:
                size = self.most - used
                chosen = samples_of(chosen, 0, size)
            whole = Part(chosen, index, size, batch, what=self.what, is_cut=too_long)
            yield from _split(whole, used if divisible else None) if hold_out else [whole]
            used += size
            if used >= self.most:
                break
        if not used:
            raise InputError(f"{self.what} data holds no samples: it is empty, or a generator that was used up before")

    def pieces(self, part: Part, size: int) -> Iterator[Part]:
        """A part in pieces of few samples, where it can be cut.

        Args:
            part: One of :meth:`parts`.
            size: Most samples in a piece.
        """
        if part.samples <= size or not self._can_cut(part.content, part.samples):
            yield part
            return
        for start in range(0, part.samples, size):
            stop = min(start + size, part.samples)
            content = samples_of(part.content, start, stop)
            yield attrs.evolve(part, content=content, samples=stop - start, is_cut=True)

    def whole(self, part: Part) -> Part:
        """All of the batch that a part is of.

        Args:
            part: One of :meth:`parts`.
        """
        content = choose_input(part.batch, part.index, self.select, self.what)
        return attrs.evolve(part, content=content, samples=self._size(content, part.index), is_cut=False)

    def _size(self, chosen: Any, index: int) -> int:
        return batch_size(chosen, index, self.what, counts_items=self.forward is not None)

    def _can_cut(self, chosen: Any, size: int) -> bool:
        return self.forward is None and not self.uncut and is_divisible(chosen, size)

    def left_whole(self, first: Any) -> Batches:
        """The same from the start, its batches not cut.

        Args:
            first: The first batch, which an iterator will not give again.
        """
        once = iter(self.data) is self.data
        return attrs.evolve(self, data=itertools.chain([first], self.data) if once else self.data, uncut=True)

    def kept(self) -> Batches:
        """The same, to be run any number of times; an iterator's batches are kept, as many as are used."""
        if iter(self.data) is not self.data:
            return self
        batches, used = [], 0
        for index, batch in enumerate(noting_failures(self.data, self.what)):
            batches.append(batch)
            used += self._size(choose_input(batch, index, self.select, self.what), index)
            if used >= self.most:
                break
        return attrs.evolve(self, data=batches)


def _split(whole: Part, before: int | None) -> Iterator[Part]:
    """Keep some samples apart.

    Args:
        whole: A batch, as far as it is used.
        before: Samples before it; None if it cannot be cut.
    """
    if before is None:
        yield attrs.evolve(whole, held_out=whole.index % HELD_OUT_OF == 1)
        return
    # The second sample is the first one held out, so that two samples suffice for both.
    size = whole.samples
    apart = (before + size + HELD_OUT_OF - 2) // HELD_OUT_OF - (before + HELD_OUT_OF - 2) // HELD_OUT_OF
    cut = size - apart
    is_cut = whole.is_cut or 0 < apart < size
    if cut:
        fitted_to = samples_of(whole.content, 0, cut) if apart else whole.content
        yield attrs.evolve(whole, content=fitted_to, samples=cut, ends_batch=not apart, is_cut=is_cut)
    if apart:
        content = samples_of(whole.content, cut, size)
        yield attrs.evolve(whole, content=content, samples=apart, held_out=True, is_cut=is_cut)


def require_batches(data: Any, what: str) -> None:
    """Refuse what is no iterable of batches.

    Args:
        data: What was given.
        what: What it is for, for the message.

    Raises:
        ConfigError: For a single batch, a Dataset, or anything that cannot be iterated over.
    """
    if isinstance(data, (Tensor, Mapping, str, bytes)):
        kind = type(data).__name__
        raise ConfigError(f"{what} data is one {kind}: give an iterable of batches, such as [batch]")
    if isinstance(data, Dataset):
        raise ConfigError(f"{what} data is a Dataset, which yields single samples: give a DataLoader over it")
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise ConfigError(f"{what} data is {data!r}: give a DataLoader, a list or a generator of batches")


def check_forward(_instance: Any, _attribute: Any, value: Any) -> None:
    """Refuse what runs no model; a validator of attrs fields, as the next one.

    Raises:
        ConfigError: Unless it is a function, or None.
    """
    if value is not None and not callable(value):
        raise ConfigError(f"forward={value!r}: give a function forward(model, batch)")
    if value is not None and _instance.select is not None:
        raise ConfigError("select and forward are both given: let forward(model, batch) choose the input itself")


def check_select(_instance: Any, _attribute: Any, value: Any) -> None:
    """Refuse what chooses no part of a batch.

    Raises:
        ConfigError: Unless it is a position, a key, or None.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
        raise ConfigError(f"select={value!r}: give the position or the key of the batch item that is the input")


def choose_input(batch: Any, index: int, select: int | str | None, what: str) -> Any:
    """The part of a batch that a model is given.

    Args:
        batch: Anything.
        index: Its number, for messages.
        select: Position or key of the part; None for the whole batch.
        what: What the data is for, for messages.

    Raises:
        InputError: When the batch has no such part.
    """
    if select is None:
        return batch
    try:
        chosen = batch[select]
    except (TypeError, IndexError, KeyError) as error:
        message = f"{what} batch {index} ({describe(batch)}) has no item {select!r}; correct select="
        raise InputError(message) from error
    return chosen


def run_model(model: nn.Module, part: Part, forward: Forward | None) -> Any:
    """Run a model on data: a mapping gives named arguments, a tuple or list positional ones.

    Args:
        model: The model.
        part: What it is given.
        forward: ``forward(model, batch)`` runs it instead; None for the above.

    Returns:
        The model's answer, or the function's.

    Raises:
        InputError: When the model fails on it.
        PluginError: When what observes it fails.
    """
    given = part.content
    try:
        if forward is not None:
            return forward(model, given)
        if isinstance(given, Mapping):
            return model(**given)
        return model(*given) if isinstance(given, (tuple, list)) else model(given)
    except torch.OutOfMemoryError as error:
        error.add_note(f"while running {part.what} batch {part.index} ({describe(part.batch)})")
        raise
    except PluginError:  # of an observer: the model did not fail
        raise
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        raise InputError(
            f"the model failed on {part.what} batch {part.index} ({describe(part.batch)}): {failure}; if a batch "
            "holds more than the input, give select=0 or a forward(model, batch) function"
        ) from error


def noting_failures(data: Iterable[Any], what: str) -> Iterator[Any]:
    """The batches of data; an exception that the data raises says so.

    Args:
        data: Batches.
        what: What they are for.
    """
    batches = iter(data)
    index = 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            error.add_note(f"raised by the {what} data itself, before batch {index}")
            raise
        yield batch
        index += 1


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _tensors(value)


def batch_size(batch: Any, index: int, what: str, *, counts_items: bool) -> int:
    """Samples in a batch: the leading dimension of its first tensor.

    Args:
        batch: Anything.
        index: Its number, for messages.
        what: What it is for, for messages.
        counts_items: Whether a batch without tensors counts its items, texts say.

    Raises:
        InputError: When it holds nothing to count.
    """
    sizes = [tensor.shape[0] for tensor in _tensors(batch) if tensor.dim()]
    if not sizes and counts_items:  # texts, say, that forward() turns into tensors
        return len(batch) if isinstance(batch, Sized) else 1
    if not sizes:
        raise InputError(f"{what} batch {index} is {describe(batch)}: give tensors with a leading sample dimension")
    return sizes[0]


def is_divisible(batch: Any, size: int) -> bool:
    """Whether a batch can be cut by samples: all its tensors count the same ones.

    Args:
        batch: Anything.
        size: Its samples.
    """
    return all(tensor.dim() > 0 and tensor.shape[0] == size for tensor in _tensors(batch))


def samples_of(batch: Any, start: int, stop: int) -> Any:
    """Some samples of a batch.

    Args:
        batch: One that is divisible.
        start: The first sample.
        stop: One past the last.
    """
    if isinstance(batch, Tensor):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {key: samples_of(value, start, stop) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [samples_of(value, start, stop) for value in batch]
    return batch


def describe(batch: Any) -> str:
    """A batch in a few words: kinds, dtypes and shapes.

    Args:
        batch: Anything.

    Returns:
        For example ``"tuple of Tensor float32 [8, 4], Tensor int64 [8]"``.
    """
    if isinstance(batch, Tensor):
        return f"Tensor {str(batch.dtype).removeprefix('torch.')} {list(batch.shape)}"
    if isinstance(batch, Mapping):
        return f"mapping of {', '.join(f'{key}: {describe(value)}' for key, value in batch.items())}"
    if isinstance(batch, (tuple, list)):
        return f"{type(batch).__name__} of {', '.join(map(describe, batch))}"
    return type(batch).__name__
