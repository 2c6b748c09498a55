"""Run calibration data through the model once, and collect what later passes asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from monoquant.context import QuantContext
from monoquant.errors import ConfigError, InputError, quoted
from monoquant.observers import Call, Request
from monoquant.passes.base import Pass
from monoquant.report import CalibrationFacts
from monoquant.restoring import undisturbed
from monoquant.values import Finding, Severity

Forward = Callable[[nn.Module, Any], Any]
Progress = Callable[[int, int], None]
Observers = Mapping[tuple[str, Request[Any]], Any]


def _check_data(_instance: Any, _attribute: Any, data: Any) -> None:
    if isinstance(data, (Tensor, Mapping, str, bytes)):
        kind = type(data).__name__
        raise ConfigError(f"calibration data is one {kind}: give an iterable of batches, such as [batch]")
    if isinstance(data, Dataset):
        raise ConfigError("calibration data is a Dataset, which yields single samples: give a DataLoader over it")
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise ConfigError(f"calibration data is {data!r}: give a DataLoader, a list or a generator of batches")


def _check_samples(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"num_samples={value!r}: give a whole number of calibration samples >= 1")


def _check_forward(instance: CalibrationPass, _attribute: Any, value: Any) -> None:
    if value is not None and not callable(value):
        raise ConfigError(f"forward={value!r}: give a function forward(model, batch)")
    if value is not None and instance.select is not None:
        raise ConfigError("select and forward are both given: let forward(model, batch) choose the input itself")


def _check_select(_instance: Any, _attribute: Any, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
        raise ConfigError(f"select={value!r}: give the position or the key of the batch item that is the input")


def _check_progress(_instance: Any, _attribute: Any, value: Any) -> None:
    if not isinstance(value, bool) and not callable(value):
        raise ConfigError(f"progress={value!r}: give True, False or a function progress(samples, wanted)")


@attrs.frozen
class CalibrationPass(Pass):
    """Feed batches to the model in eval mode without gradients; the model is left as it was.

    A tensor is passed as ``model(batch)``, a tuple or list as ``model(*batch)``, a mapping as ``model(**batch)``. Where
    a batch holds more than the input (labels, say), name the input with ``select``, or run the model yourself in
    ``forward``.

    Args:
        data: A DataLoader, or any iterable or generator of batches.
        num_samples: Samples (not batches) to use at most, counted along the leading dimension; default 150. The last
            batch is cut to fit where all its tensors have that leading dimension, and used whole elsewhere.
        select: Position or key of the item in each batch that is the model's one input; default: the whole batch.
        forward: ``forward(model, batch)`` runs the model on a batch; default: as above. Its batches may be anything;
            without tensors, their items are counted as samples.
        progress: True writes a line to stderr, a function is called as ``progress(samples, num_samples)`` after each
            batch; default False.
    """

    single: ClassVar[bool] = True

    data: Iterable[Any] = attrs.field(validator=_check_data, repr=False)
    num_samples: int = attrs.field(default=150, validator=_check_samples)
    select: int | str | None = attrs.field(default=None, validator=_check_select)
    forward: Forward | None = attrs.field(default=None, validator=_check_forward)
    progress: bool | Progress = attrs.field(default=False, validator=_check_progress)

    def run(self, context: QuantContext) -> None:
        observers = {
            (layer, request): request.observer() for layer in context.wanted for request in context.wanted[layer]
        }
        modules = {layer: context.module(layer) for layer in context.wanted}
        with undisturbed(context.model), _observed(modules, observers):
            samples, batches = self._feed(context.model)
        context.observed = {
            (layer, request): observer
            for (layer, request), observer in observers.items()
            if request.saw_something(observer)
        }
        seen = {layer for layer, _ in context.observed}
        unseen = tuple(layer for layer in context.wanted if layer not in seen)
        context.calibration = CalibrationFacts(samples, batches, unseen)
        context.report([_unseen_finding(name) for name in unseen])

    def _feed(self, model: nn.Module) -> tuple[int, int]:
        show = _progress_function(self.progress)
        samples = batches = 0
        try:
            for batch in _noting_failures(self.data):
                samples += self._feed_batch(model, batch, batches, self.num_samples - samples)
                batches += 1
                show(samples, self.num_samples)
                if samples >= self.num_samples:
                    break
        finally:
            if self.progress is True:
                sys.stderr.write("\n")
        if not samples:
            raise InputError("calibration data holds no samples: it is empty, or a generator that was used up before")
        return samples, batches

    def _feed_batch(self, model: nn.Module, batch: Any, index: int, room: int) -> int:
        chosen = self._chosen(batch, index)
        size = _batch_size(chosen, index, counts_items=self.forward is not None)
        if size > room and self.forward is None:
            chosen, size = _cut(chosen, size, room)
        self._run_model(model, chosen, index)
        return size

    def _chosen(self, batch: Any, index: int) -> Any:
        if self.select is None:
            return batch
        try:
            chosen = batch[self.select]
        except (TypeError, IndexError, KeyError) as error:
            message = f"calibration batch {index} ({describe(batch)}) has no item {self.select!r}; correct select="
            raise InputError(message) from error
        return chosen

    def _run_model(self, model: nn.Module, batch: Any, index: int) -> None:
        try:
            if self.forward is not None:
                self.forward(model, batch)
            elif isinstance(batch, Mapping):
                model(**batch)
            elif isinstance(batch, (tuple, list)):
                model(*batch)
            else:
                model(batch)
        except torch.OutOfMemoryError as error:
            error.add_note(f"while running calibration batch {index} ({describe(batch)})")
            raise
        except Exception as error:
            raise InputError(
                f"the model failed on calibration batch {index} ({describe(batch)}): {type(error).__name__}: {error}; "
                "if a batch holds more than the input, give select=0 or a forward(model, batch) function"
            ) from error


@contextmanager
def _observed(modules: Mapping[str, nn.Module], observers: Observers) -> Iterator[None]:
    handles = []
    try:
        for name, module in modules.items():
            own = [(request, observer) for (layer, request), observer in observers.items() if layer == name]
            handles.append(module.register_forward_pre_hook(_feeding(own), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _feeding(
    observers: Sequence[tuple[Request[Any], Any]],
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def observe(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(args, kwargs)
        for request, observer in observers:
            request.feed(observer, call)

    return observe


def _noting_failures(data: Iterable[Any]) -> Iterator[Any]:
    batches = iter(data)
    index = 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            error.add_note(f"raised by the calibration data itself, before batch {index}")
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


def _batch_size(batch: Any, index: int, *, counts_items: bool) -> int:
    sizes = [tensor.shape[0] for tensor in _tensors(batch) if tensor.dim()]
    if not sizes and counts_items:  # texts, say, that forward() turns into tensors
        return len(batch) if isinstance(batch, Sized) else 1
    if not sizes:
        raise InputError(
            f"calibration batch {index} is {describe(batch)}: give tensors with a leading sample dimension"
        )
    return sizes[0]


def _cut(batch: Any, size: int, room: int) -> tuple[Any, int]:
    if any(tensor.dim() == 0 or tensor.shape[0] != size for tensor in _tensors(batch)):
        return batch, size
    return _first_samples(batch, room), room


def _first_samples(batch: Any, count: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[:count]
    if isinstance(batch, Mapping):
        return {key: _first_samples(value, count) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [_first_samples(value, count) for value in batch]
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


def _progress_function(progress: bool | Progress) -> Progress:
    if callable(progress):
        return progress
    return _write_progress if progress else lambda _samples, _wanted: None


def _write_progress(samples: int, wanted: int) -> None:
    sys.stderr.write(f"\rcalibrating: {samples} of at most {wanted} samples")
    sys.stderr.flush()


def _unseen_finding(layer: str) -> Finding:
    message = f"Calibration kept no input of layer {quoted([layer])}, so only its weights are measured."
    remedy = (
        "Use data that reaches it; some modules read a layer's weight without calling it. "
        "Calls that hold more than ValidationPass(sample_bytes=...) are not kept."
    )
    return Finding("not-calibrated", Severity.INFO, message, layer, remedy)
