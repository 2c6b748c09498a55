"""Observers: what is remembered of the inputs that a layer sees during calibration, and how a pass asks for it."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import attrs
import torch
from torch import Tensor

from monoquant.errors import ConfigError, MonoquantError, PluginError
from monoquant.ranges import ObserverKind, RangeObserver

O = TypeVar("O")  # noqa: E741 - the observer of a request

_MOST_CALLS = 8
_INDIVISIBLE = (bool, int, float, str, type(None))
"""Arguments that say nothing of single samples, so that a tensor beside them can be cut."""


@attrs.frozen(eq=False)
class Call:
    """The arguments of one call of a module.

    Args:
        args: Positional ones.
        kwargs: Named ones.
        counted: bool, which positions of the inputs hold data rather than padding; None if all do.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    counted: Tensor | None = None

    def copied(self) -> Call:
        """The same arguments, with tensors and plain containers of their own."""
        return _mapped(self, lambda tensor: tensor.detach().clone())

    def rows(self, features: int) -> Iterator[Tensor]:
        """The first argument as rows.

        Args:
            features: Size of a row; inputs of other widths are left to the layer to refuse.

        Yields:
            ``[..., features]``, several for a nested tensor.
        """
        inputs = self.args[0] if self.args else next(iter(self.kwargs.values()), None)
        if not isinstance(inputs, Tensor):
            return
        for part in inputs.unbind() if inputs.is_nested else (inputs,):
            if part.dim() and part.shape[-1] == features:
                padded = self.counted is not None and part.shape[:-1] == self.counted.shape
                yield part[self.counted.to(part.device)] if padded and self.counted is not None else part


class Request(abc.ABC, Generic[O]):
    """What a pass wants to know of a layer's inputs; a frozen value, asked for with ``context.want``."""

    measures: ClassVar[bool] = False
    """Whether outputs are measured on what is remembered, so that it must not be what something was fitted to."""

    @abc.abstractmethod
    def observer(self) -> O:
        """A fresh observer that fulfils the request for one layer."""

    @abc.abstractmethod
    def feed(self, observer: O, call: Call) -> None:
        """Show an observer one call.

        Args:
            observer: One that :meth:`observer` made.
            call: The arguments; not to be changed, and to be copied as far as kept.
        """

    @abc.abstractmethod
    def saw_something(self, observer: O) -> bool:
        """Whether an observer was shown anything that it could use.

        Args:
            observer: One that :meth:`observer` made.
        """


def _check_rows(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"sample_rows={value!r}: give a whole number of input rows >= 1")


@attrs.frozen
class InputSample(Request["RowSampler"]):
    """A request to remember a uniform sample of a layer's input rows.

    Args:
        rows: Most rows to keep per layer, >= 1; the memory is ``rows * features`` elements per layer.
        features: Size of a row.
    """

    measures: ClassVar[bool] = True

    rows: int = attrs.field(validator=_check_rows)
    features: int

    def observer(self) -> RowSampler:
        return RowSampler(self.rows)

    def feed(self, observer: RowSampler, call: Call) -> None:
        for rows in call.rows(self.features):
            observer.update(rows)

    def saw_something(self, observer: RowSampler) -> bool:
        return observer.result() is not None


@attrs.frozen
class InputRange(Request[RangeObserver]):
    """A request for the range of all values of a layer's input rows.

    Args:
        kind: How the range is chosen.
        features: Size of a row.
    """

    kind: ObserverKind
    features: int

    def observer(self) -> RangeObserver:
        return self.kind.observer()

    def feed(self, observer: RangeObserver, call: Call) -> None:
        for rows in call.rows(self.features):
            try:
                observer.update(rows)
            except (MonoquantError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # it is called while the model runs, and the model is not what failed
                raise PluginError(
                    f"observer {self.kind.name!r} ({type(observer).__name__}) raised {type(error).__name__}: {error}; "
                    "repair it, and call super().__init__() in an __init__ of its own"
                ) from error

    def saw_something(self, observer: RangeObserver) -> bool:
        return bool(observer.count or observer.non_finite)


def _check_bytes(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"sample_bytes={value!r}: give a whole number of bytes >= 1")


@attrs.frozen
class CallSample(Request["CallSampler"]):
    """A request to remember whole calls of a layer, for modules that are more than one product.

    Args:
        size: Most bytes of tensors to keep per layer, >= 1; a single sample is kept even if it is larger.
    """

    measures: ClassVar[bool] = True

    size: int = attrs.field(validator=_check_bytes)

    def observer(self) -> CallSampler:
        return CallSampler(self.size)

    def feed(self, observer: CallSampler, call: Call) -> None:
        observer.update(call)

    def saw_something(self, observer: CallSampler) -> bool:
        return bool(observer.calls)


class RowSampler:
    """Keeps a uniform random sample of all rows it is shown, of bounded size.

    Every row draws a key; the rows with the smallest keys are kept (reservoir sampling with random tags, Vitter 1985).

    Args:
        rows: Most rows to keep.
    """

    def __init__(self, rows: int) -> None:
        self._limit = rows
        self._generator = torch.Generator("cpu").manual_seed(0)
        self._keys = torch.empty(0, device="cpu", dtype=torch.float32)
        self._rows: Tensor | None = None

    def update(self, inputs: Tensor) -> None:
        """Show the observer one call's inputs.

        Args:
            inputs: ``[..., in_features]``; copied as far as kept.
        """
        inputs = inputs.detach().reshape(-1, inputs.shape[-1])
        keys = torch.rand(inputs.shape[0], generator=self._generator, device="cpu", dtype=torch.float32)
        candidates = torch.topk(keys, min(self._limit, len(keys)), largest=False)
        rows = inputs[candidates.indices.to(inputs.device)]
        if self._rows is not None:
            rows = torch.cat([self._rows, rows.to(self._rows)])
        keys = torch.cat([self._keys, candidates.values])
        kept = torch.topk(keys, min(self._limit, len(keys)), largest=False).indices
        self._keys, self._rows = keys[kept], rows[kept.to(rows.device)]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> RowSampler:
        """The same sample with other rows.

        Args:
            change: From rows to as many rows.
        """
        result = copy.copy(self)
        result._rows = None if self._rows is None else change(self._rows)
        return result

    def result(self) -> Tensor | None:
        """The sample.

        Returns:
            ``[n, in_features]`` with ``n <= rows`` in the inputs' dtype, or None if nothing was seen.
        """
        return self._rows if self._rows is not None and len(self._rows) else None


class CallSampler:
    """Keeps copies of the first calls it is shown, as many as fit.

    A call with one tensor, and nothing beside it that may depend on its length, is cut along its first axis to fit;
    others are kept whole or not at all.

    Args:
        size: Most bytes of tensors to keep.
    """

    def __init__(self, size: int) -> None:
        self._room = size
        self.calls: list[Call] = []

    def update(self, call: Call) -> None:
        """Show the observer one call.

        Args:
            call: Copied if kept.
        """
        if len(self.calls) >= _MOST_CALLS or any(tensor.numel() == 0 for tensor in _tensors(call)):
            return
        fitting = _cut(call, self._room, at_least_one=not self.calls)
        if fitting is None:
            return
        self._room -= _bytes(fitting)
        self.calls.append(fitting.copied())


def _tensors(call: Call) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in _held([*call.args, *call.kwargs.values()])}.values())


def _held(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif type(value) in (tuple, list) or _is_named_tuple(value):
        for item in value:
            yield from _held(item)
    elif type(value) is dict:
        yield from _held(list(value.values()))


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _bytes(call: Call) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(call))


def _cut(call: Call, room: int, *, at_least_one: bool) -> Call | None:
    size = _bytes(call)
    if size <= room:
        return call
    tensors = _tensors(call)
    others = [value for value in (*call.args, *call.kwargs.values()) if not isinstance(value, Tensor)]
    alone = len(tensors) == 1 and all(isinstance(value, _INDIVISIBLE) for value in others)
    if not alone or tensors[0].is_nested or not tensors[0].dim():
        return None
    samples = max(room, 0) * len(tensors[0]) // size
    if not samples and not at_least_one:
        return None
    return _mapped(call, lambda tensor: tensor[: max(samples, 1)])


def _mapped(call: Call, change: Any) -> Call:
    # A tensor that is given twice stays one: that is how nn.MultiheadAttention knows self-attention.
    tensors = {id(tensor): change(tensor) for tensor in _tensors(call)}

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tensors[id(value)]
        if _is_named_tuple(value):
            return type(value)(*map(changed, value))
        if type(value) in (tuple, list):
            return type(value)(map(changed, value))
        return {name: changed(item) for name, item in value.items()} if type(value) is dict else value

    return Call(tuple(map(changed, call.args)), {name: changed(value) for name, value in call.kwargs.items()})
