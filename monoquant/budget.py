"""Choose one of several options per layer under a budget of bytes; plain numbers, no tensors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs


@attrs.frozen
class Cost:
    """What an option costs.

    Args:
        size: Bytes.
        noise: Damage, >= 0, in a unit that adds up over layers.
    """

    size: int
    noise: float


@attrs.frozen
class Step:
    """A change of one layer from one option to the next better one.

    Args:
        layer: Index of the layer.
        before: Index of the option that is left.
        after: Index of the one that is taken.
        size: Bytes that it costs.
        gain: Noise that it saves.
    """

    layer: int
    before: int
    after: int
    size: int
    gain: float

    @property
    def worth(self) -> float:
        """Noise saved per byte."""
        return self.gain / self.size


def efficient(options: Sequence[Cost]) -> list[int]:
    """Options on the lower convex hull of noise over bytes: each saves less per byte than the one before.

    Args:
        options: At least one.

    Returns:
        Indices, the cheapest first.
    """
    kept: list[int] = []
    for index in sorted(range(len(options)), key=lambda one: (options[one].size, options[one].noise, one)):
        offered = options[index]
        if kept and (offered.noise >= options[kept[-1]].noise or offered.size == options[kept[-1]].size):
            continue
        while len(kept) > 1 and _is_under(options[kept[-2]], options[kept[-1]], offered):
            kept.pop()
        kept.append(index)
    return kept


def _is_under(first: Cost, middle: Cost, last: Cost) -> bool:
    """Whether the line from the first to the last option passes under the middle one."""
    return (first.noise - middle.noise) * (last.size - middle.size) <= (middle.noise - last.noise) * (
        middle.size - first.size
    )


def steps(layers: Sequence[Sequence[Cost]]) -> list[Step]:
    """All steps of all layers, those that save most noise per byte first.

    Args:
        layers: Options of each layer.
    """
    found = []
    for layer, options in enumerate(layers):
        for before, after in itertools.pairwise(efficient(options)):
            low, high = options[before], options[after]
            found.append(Step(layer, before, after, high.size - low.size, low.noise - high.noise))
    return sorted(found, key=lambda step: -step.worth)  # stable: of equal worth, the first layer's comes first


def choose(layers: Sequence[Sequence[Cost]], budget: int) -> list[int] | None:
    """The option of each layer that makes the least noise under a budget, within one step of the optimum.

    Steps are taken by noise saved per byte; one that no longer fits is passed over, and with it the layer's later ones.
    More budget never gives more noise: let two budgets first differ at a step that fits the larger one only. What the
    smaller one does afterwards costs less than that step, at no better worth, and so saves less than it.

    Args:
        layers: Options of each layer.
        budget: Bytes.

    Returns:
        Index of an option per layer; None if even the smallest ones take more.
    """
    chosen = [efficient(options)[0] for options in layers]
    free = budget - sum(options[index].size for options, index in zip(layers, chosen, strict=True))
    if free < 0:
        return None
    for step in steps(layers):
        if chosen[step.layer] == step.before and step.size <= free:
            chosen[step.layer] = step.after
            free -= step.size
    return chosen
