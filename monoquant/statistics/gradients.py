"""How strongly noise in a layer's output moves the model's: squared gradients of random directions of the output.

For a random direction v with E[v v^T] = 1, ``E[(v . dy)^2] = |dy|^2``; so the mean square of v's gradient at a layer's
output says how much energy noise there has in the model's output (Hutchinson's estimator; for logits, directions drawn
from the model's own distribution give the Fisher information, and so KL).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

Run = Callable[[], Any]


@attrs.define
class Sensitivity:
    """What gradients say of one module's output; sums over all of its elements that were seen.

    Args:
        gradient: Sum of squared gradients.
        energy: Sum of squares.
        elements: Number of elements.
    """

    gradient: float = 0.0
    energy: float = 0.0
    elements: int = 0


class GradientProbe:
    """Runs backward through a model for random directions of its output; weights get no gradients.

    Args:
        modules: Modules whose outputs matter, by name.

    Attributes:
        found: Sensitivities by name; a module whose output has no gradient is missing.
        output_energy: Sum of squares of the model's outputs; for logits, twice the number of rows.
        rows: Vectors in the model's outputs.
        is_kl: Whether outputs are logits, and sums are of KL.
        row_squares: Of the last probe: by module and call, squared gradients of the vectors in its output, of that
            output's shape without its last axis.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._outputs: list[tuple[str, Tensor]] = []
        self._generator = torch.Generator("cpu").manual_seed(0)
        self.found: dict[str, Sensitivity] = {}
        self.output_energy = 0.0
        self.rows = 0
        self.is_kl = False
        self.row_squares: dict[str, list[Tensor]] = {}

    def probe(self, run: Run, counted: Tensor | None = None) -> None:
        """Go forward and backward once.

        Args:
            run: Runs the model on some data, and returns its answer.
            counted: bool ``[samples, positions]``, which positions hold data rather than padding; None if all do.
        """
        self.row_squares = {}
        try:
            with torch.enable_grad(), self._recorded():
                self._go_backward(run(), counted)
        finally:
            self._outputs.clear()

    def _go_backward(self, answer: Any, counted: Tensor | None) -> None:
        logits = logits_of(answer)
        self.is_kl = logits is not None
        output = first_float(answer) if logits is None else logits
        if output is None:
            return
        if counted is not None and output.shape[:-1] == counted.shape:
            output = output[counted.to(output.device)]
        direction = self._sampled_likelihood(output) if self.is_kl else self._random_direction(output)
        if output.dim():
            self.rows += output.numel() // max(output.shape[-1], 1)
        if direction.requires_grad and self._outputs:
            self._collect(direction)

    def _random_direction(self, output: Tensor) -> Tensor:
        self.output_energy += float(output.detach().double().square().sum())
        drawn = torch.randn(output.shape, generator=self._generator, device="cpu", dtype=torch.float32)
        return (output * drawn.to(output)).sum()

    def _sampled_likelihood(self, logits: Tensor) -> Tensor:
        """Log-likelihood of classes drawn from the model's own distribution; halved squares of its change are KL."""
        likelihood = logits.reshape(-1, logits.shape[-1]).float().log_softmax(-1)
        self.output_energy += 2.0 * len(likelihood)
        return likelihood.gather(1, self._drawn(likelihood.detach().exp())).sum()

    def _drawn(self, chances: Tensor) -> Tensor:
        """One class per row; torch.multinomial draws a number per class, and takes seven times as long."""
        below = chances.cumsum(-1)
        total = below[:, -1:]
        if not bool(torch.isfinite(total).all()):
            raise ValueError("logits hold NaN, or no chance at all")
        at = torch.rand(len(chances), 1, generator=self._generator).to(below) * total
        return torch.searchsorted(below, at, right=True).clamp_(max=chances.shape[-1] - 1)

    def _collect(self, direction: Tensor) -> None:
        names, outputs = zip(*self._outputs, strict=True)
        gradients = torch.autograd.grad(direction, outputs, allow_unused=True)
        for name, output, gradient in zip(names, outputs, gradients, strict=True):
            if gradient is None:
                continue
            found = self.found.setdefault(name, Sensitivity())
            squares = _squares(gradient)
            found.gradient += float(squares.sum())
            found.energy += float(_squares(output.detach()).sum())
            found.elements += gradient.numel()
            if gradient.dim():
                self.row_squares.setdefault(name, []).append(squares.float())

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        handles = [module.register_forward_hook(self._recording(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _recording(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def record(_module: nn.Module, _args: Any, answer: Any) -> Any:
            output = first_float(answer)
            if output is None or output.is_inference() or not torch.is_grad_enabled():
                return None
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            self._outputs.append((name, output))
            # What follows may write to its input in place; the recorded tensor must stay.
            return _with_first_float(answer, output.clone())

        return record


def _squares(vectors: Tensor) -> Tensor:
    """Energy of each vector, float64."""
    norms = torch.linalg.vector_norm(vectors.float(), dim=-1) if vectors.dim() else vectors.abs()  # one pass, no copy
    return norms.double().square()


def logits_of(answer: Any) -> Tensor | None:
    """What a model calls its logits; None if it has none.

    Args:
        answer: What the model returned.
    """
    found = getattr(answer, "logits", None) if not isinstance(answer, Tensor) else None
    usable = isinstance(found, Tensor) and found.is_floating_point() and found.dim() > 0 and found.shape[-1] > 1
    return found if usable else None


def first_float(answer: Any) -> Tensor | None:
    """The first floating-point tensor of what a module returned; None if there is none.

    Args:
        answer: A tensor, or anything that holds some.
    """
    if isinstance(answer, Tensor):
        return answer if answer.is_floating_point() and not answer.is_nested else None
    items = answer.values() if isinstance(answer, Mapping) else answer if isinstance(answer, (tuple, list)) else ()
    return next((found for item in items if (found := first_float(item)) is not None), None)


def _with_first_float(answer: Any, replacement: Tensor) -> Any:
    if isinstance(answer, Tensor):
        return replacement
    if type(answer) in (tuple, list):
        position = next(index for index, item in enumerate(answer) if first_float(item) is not None)
        changed = list(answer)
        changed[position] = _with_first_float(answer[position], replacement)
        return type(answer)(changed)
    return answer
