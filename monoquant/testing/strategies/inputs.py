"""Strategies of what layers are multiplied with: activations, and the statistics that calibration makes of them."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

import torch
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Generator, Tensor

from monoquant.algorithms.clean import InputStatistics
from monoquant.testing.strategies.weights import weights


@st.composite
def _activations(draw: DrawFn, max_updates: int, max_channels: int) -> list[Tensor]:
    values = draw(weights(max_rows=max_channels, max_columns=60))
    cuts = sorted(draw(st.lists(st.integers(0, values.shape[1]), max_size=max_updates - 1)))
    parts = torch.tensor_split(values.double(), cuts, dim=1)
    return [part * 2.0 ** draw(st.just(0) | st.integers(-50, 50)) for part in parts]


def activations(max_updates: int = 6, max_channels: int = 6) -> SearchStrategy[list[Tensor]]:
    """What an observer is shown call after call: pieces of one matrix, of very different magnitudes, some empty.

    Args:
        max_updates: Most tensors, >= 1; default 6.
        max_channels: Most channels, >= 1; default 6.

    Returns:
        A strategy of lists of finite float64 tensors ``[channels, n]``, the channels alike and n >= 0, with at least
        one value in all; it shrinks towards one value. They can be concatenated along their last dimension.
    """
    return _activations(max_updates, max_channels)


def input_statistics(columns: int, max_samples: int = 40) -> SearchStrategy[InputStatistics]:
    """What is known of a matrix's inputs, by kinds that break algorithms.

    Independent and correlated columns, columns that are never used, all columns alike, one that outweighs all others,
    magnitudes from 1e-12 to 1e12, fewer rows than columns (so that the Hessian is singular) and a single one.

    Args:
        columns: Input features of the matrix, >= 1.
        max_samples: Most input rows, >= 1; default 40.

    Returns:
        A strategy of statistics with importance and hessian, as calibration has them; it shrinks towards one Gaussian
        row.
    """
    return st.builds(
        _statistics,
        st.sampled_from(tuple(_KINDS)),
        st.integers(1, max_samples),
        st.just(columns),
        st.integers(0, 2**32 - 1),
    )


def _statistics(kind: str, rows: int, columns: int, seed: int) -> InputStatistics:
    note(f"input_statistics: {kind}, {rows} rows of {columns} features, seed {seed}")
    return statistics_of(_KINDS[kind](Generator("cpu").manual_seed(seed), rows, columns))


def statistics_of(inputs: Tensor) -> InputStatistics:
    """What calibration remembers of input rows.

    Args:
        inputs: float32 ``[rows, columns]``.
    """
    hessian = inputs.T @ inputs / len(inputs)
    return InputStatistics(len(inputs), hessian.diagonal().clone(), hessian)


def _gaussian(generator: Generator, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=generator, device="cpu", dtype=torch.float32)


def _correlated(generator: Generator, rows: int, columns: int) -> Tensor:
    factors = _gaussian(generator, rows, 4) @ _gaussian(generator, 4, columns)
    return factors + 0.1 * _gaussian(generator, rows, columns)


def _dead_columns(generator: Generator, rows: int, columns: int) -> Tensor:
    """About half of the columns are never used; the first one is."""
    used = torch.rand(columns, generator=generator, device="cpu") < 0.5
    used[0] = True
    return _gaussian(generator, rows, columns) * used


def _outlier_column(generator: Generator, rows: int, columns: int) -> Tensor:
    inputs = _gaussian(generator, rows, columns)
    inputs[:, 0] = 1e4
    return inputs


_KINDS: Final = MappingProxyType[str, Callable[[Generator, int, int], Tensor]](
    {
        "gaussian": _gaussian,
        "correlated": _correlated,
        "dead columns": _dead_columns,
        "one row": lambda generator, _, columns: _gaussian(generator, 1, columns),
        "all columns alike": lambda generator, rows, columns: _gaussian(generator, rows, 1).repeat(1, columns),
        "outlier column": _outlier_column,
        "tiny": lambda generator, rows, columns: 1e-12 * _gaussian(generator, rows, columns),
        "huge": lambda generator, rows, columns: 1e12 * _correlated(generator, rows, columns),
    }
)
