"""See every operation of a model, to find out what computes the inputs of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from monoquant.statistics.held import follow_outputs
from monoquant.statistics.origins import FoldSites, Origins
from monoquant.statistics.watch import Block, ProductWatch, RowOrder, WatchedWeight


class _Products:
    """Receives the products of one operation."""

    def __init__(self) -> None:
        self.seen: list[tuple[Block, Tensor]] = []

    def receive(self, block: Block, inputs: Tensor, shared: bool, order: RowOrder | None = None) -> None:
        self.seen.append((block, inputs))

    def about_to_change(self, tensor: Tensor) -> None:
        """Operations that write are seen as such."""


class OriginWatch(ProductWatch):  # type: ignore[no-untyped-call]  # torch's class hook has no annotations
    """While active, finds out what computes the inputs of weights.

    Enter it after other watches, so that it sees the model's operations only.

    Args:
        model: The model.
        weights: Those whose inputs matter.
    """

    def __init__(self, model: nn.Module, weights: Sequence[WatchedWeight]) -> None:
        self._products = _Products()
        super().__init__(weights, self._products)
        self._origins = Origins(model, weights)
        self._followed = list(follow_outputs(model, {one.layer for one in weights}))
        self._paused = False

    @contextmanager
    def watching(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self._followed:
                stack.callback(module.register_forward_hook(self._noting(name)).remove)
            stack.enter_context(super().watching(modules))
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not look at what runs inside."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def end_call(self, answer: Any) -> None:
        """The model has run once.

        Args:
            answer: What it returned.
        """
        self._origins.gave_out("", _opened(answer), root=True)
        self._origins.end_call()

    def forget_call(self) -> None:
        """The model has failed, and will run again."""
        self._origins.forget_call()

    def found(self) -> FoldSites:
        """Where factors of inputs can be moved to."""
        return self._origins.found()

    def _noting(self, name: str) -> Any:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            self._origins.gave_out(name, _opened(output), root=not name)

        return note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._paused:
            return func(*args, **(kwargs or {}))
        self._products.seen = []
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self._origins.saw(func, args, kwargs or {}, result, self._products.seen)
        return result


def _opened(output: Any) -> Any:
    """An answer, or what is in it if it is an object of some class."""
    state = getattr(output, "__dict__", None)
    return [output, state] if state and not isinstance(output, Tensor) else output
