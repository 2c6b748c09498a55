"""Hooks that show observers the calls of modules, as far as passes asked for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from monoquant.observers import Call, Request

Observed = dict[tuple[str, Request[Any]], Any]


class Listening:
    """Feeds observers while a model runs.

    Requests that measure see held-out inputs only, once there are some; until then, and where none reach the layer,
    they see what was fitted to.

    Args:
        wanted: Requests by name of the module.
        honest: Whether something is fitted to the data at all; if not, everything is measured on.

    Attributes:
        held_out: Whether what comes now is held out; set by who runs the model.
        counted: Which positions hold data rather than padding, as in Call; set by who runs the model.
        apart: Surrounds what observers compute, which is nothing that the model does; set by who runs the model.
    """

    def __init__(self, wanted: Mapping[str, Sequence[Request[Any]]], *, honest: bool) -> None:
        self._wanted, self._honest = wanted, honest
        self.start_again()
        self.held_out = False
        self.counted: Tensor | None = None
        self.apart: Callable[[], AbstractContextManager[None]] = nullcontext

    def start_again(self) -> None:
        """Forget all that was heard."""
        self._observers: Observed = {
            (name, request): request.observer() for name, requests in self._wanted.items() for request in requests
        }
        self._apart: set[tuple[str, Request[Any]]] = set()

    @contextmanager
    def listening(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Hear of every call of the modules.

        Args:
            modules: Modules by the names in ``wanted``.
        """
        handles = []
        try:
            for name, module in modules.items():
                requests = [request for layer, request in self._observers if layer == name]
                handles.append(module.register_forward_pre_hook(self._feeding(name, requests), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _feeding(
        self, name: str, requests: Sequence[Request[Any]]
    ) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def observe(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with self.apart():
                for request in requests:
                    self._show((name, request), Call(args, kwargs, self.counted))

        return observe

    def _show(self, key: tuple[str, Request[Any]], call: Call) -> None:
        request = key[1]
        if self._honest and request.measures:
            if not self.held_out and key in self._apart:
                return
            if self.held_out and key not in self._apart:
                self._apart.add(key)
                self._observers[key] = request.observer()
        request.feed(self._observers[key], call)

    def fulfilled(self) -> Observed:
        """Observers that saw something."""
        return {key: observer for key, observer in self._observers.items() if key[1].saw_something(observer)}

    def measured_on_fitted(self) -> list[str]:
        """Names of modules whose outputs can only be measured on inputs that were fitted to."""
        if not self._honest:
            return []
        keys = [key for key in self.fulfilled() if key[1].measures and key not in self._apart]
        return list(dict.fromkeys(name for name, _ in keys))
