"""Strategies of small models, and of calibration data that goes into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor, nn

from monoquant.testing import zoo
from monoquant.testing.zoo import Specimen

_SEEDS = st.integers(0, 2**16 - 1)


def models(specimens: Sequence[Specimen] | None = None) -> SearchStrategy[nn.Module]:
    """Small models of every kind, with Gaussian weights, in eval mode.

    Args:
        specimens: Of the zoo, to choose from; default: :func:`monoquant.testing.zoo.specimens`, which hold every kind
            of module that monoquant packs, ties, parametrizations, and layers that it refuses.

    Returns:
        A strategy of new models, nobody else's to change; it shrinks towards the first specimen, a Linear, and notes
        name and seed where a test fails.
    """
    return st.builds(_build, st.sampled_from(_chosen(specimens)), _SEEDS)


def _chosen(specimens: Sequence[Specimen] | None) -> tuple[Specimen, ...]:
    return zoo.specimens() if specimens is None else tuple(specimens)


def _build(specimen: Specimen, seed: int) -> nn.Module:
    note(f"models: {specimen}, seed {seed}")
    return specimen.build(seed)


def calibration_data(specimen: Specimen, max_batches: int = 4) -> SearchStrategy[list[Any]]:
    """Batches that go into a model: tuples or lists of its arguments, or the tensor itself where it takes one.

    Args:
        specimen: Its :meth:`~monoquant.testing.zoo.Specimen.build` makes the model.
        max_batches: Most batches, >= 1; default 4.

    Returns:
        A strategy of lists of one batch or more; it shrinks towards one batch.
    """
    return st.lists(
        st.builds(_batch, st.just(specimen), _SEEDS, st.sampled_from((tuple, list))), min_size=1, max_size=max_batches
    )


def _batch(specimen: Specimen, seed: int, container: type[tuple[Any, ...]] | type[list[Any]]) -> Any:
    arguments = specimen.inputs(seed)
    alone = len(arguments) == 1 and isinstance(arguments[0], Tensor) and container is tuple
    return arguments[0] if alone else container(arguments)


def models_with_data(
    specimens: Sequence[Specimen] | None = None, max_batches: int = 4
) -> SearchStrategy[tuple[nn.Module, list[Any]]]:
    """Models as :func:`models` has them, each with :func:`calibration_data` that goes into it.

    Args:
        specimens: Of the zoo, to choose from; default: all.
        max_batches: Most batches, >= 1; default 4.

    Returns:
        A strategy of pairs of model and batches.
    """
    return _models_with_data(_chosen(specimens), max_batches)


@st.composite
def _models_with_data(draw: DrawFn, specimens: tuple[Specimen, ...], max_batches: int) -> tuple[nn.Module, list[Any]]:
    specimen = draw(st.sampled_from(specimens))
    return _build(specimen, draw(_SEEDS)), draw(calibration_data(specimen, max_batches))
