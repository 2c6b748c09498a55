"""Strategies of weight matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Final

import torch
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Generator, Tensor

from monoquant.values import PACKABLE_DTYPES

_TELLING_COLUMNS: Final = (1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192, 255, 256, 257)
_TYPICAL_DEVIATION: Final = 0.02
_CONTIGUOUS: Final = "contiguous"


def weights(
    dtypes: Sequence[torch.dtype] = PACKABLE_DTYPES,
    max_rows: int = 24,
    max_columns: int = 288,
    *,
    contiguous: bool = False,
) -> SearchStrategy[Tensor]:
    """Weight matrices as they come in real life, and as they come in nightmares.

    Gaussian and heavy-tailed values, outlier channels, dead, constant and one-sided rows, one value everywhere, sparse
    rows, rows of very different size, values halfway between codes, magnitudes from the smallest subnormal of the dtype
    to the largest that every scheme can hold; sizes from 1x1 over ragged ones to ``[max_rows, max_columns]``;
    contiguous, transposed, and columns cut from a wider matrix. Always finite.

    Args:
        dtypes: dtypes to choose from; default: all that can be packed.
        max_rows: Most output features, >= 1; default 24.
        max_columns: Most input features, >= 1; default 288.
        contiguous: True leaves out transposed and cut ones; default False.

    Returns:
        A strategy of CPU tensors ``[rows, columns]`` without gradient. It shrinks towards few, Gaussian values in the
        first dtype, contiguous, and notes kind, layout and seed where a test fails.
    """
    telling = [columns for columns in _TELLING_COLUMNS if columns <= max_columns]
    return st.builds(
        _weight,
        kind=st.sampled_from(tuple(_KINDS)),
        dtype=st.sampled_from(tuple(dtypes)),
        rows=st.integers(1, max_rows),
        columns=st.integers(1, max_columns) | st.sampled_from(telling),
        seed=st.integers(0, 2**32 - 1),
        layout=st.just(_CONTIGUOUS) if contiguous else st.sampled_from((_CONTIGUOUS, *_LAYOUTS)),
    )


def _weight(kind: str, dtype: torch.dtype, rows: int, columns: int, seed: int, layout: str) -> Tensor:
    note(f"weights: {kind}, {dtype}, [{rows}, {columns}], {layout}, seed {seed}")
    unit_scale = _KINDS[kind](Generator("cpu").manual_seed(seed), rows, columns)
    weight = (unit_scale * _magnitude(kind, dtype)).to(dtype)
    return weight if layout == _CONTIGUOUS else _LAYOUTS[layout](weight)


def _transposed(weight: Tensor) -> Tensor:
    return weight.T.contiguous().T


def _cut_from_a_wider_one(weight: Tensor) -> Tensor:
    # What lies between is NaN, so that reading past a stride shows.
    wide = weight.new_full((len(weight), 2 * weight.shape[1] + 1), torch.nan)
    cut = wide[:, 1::2]
    cut.copy_(weight)
    return cut


_LAYOUTS: Final = MappingProxyType[str, Callable[[Tensor], Tensor]](
    {"transposed": _transposed, "cut from a wider one": _cut_from_a_wider_one}
)


def _magnitude(kind: str, dtype: torch.dtype) -> float:
    if kind == "large":
        # Half of float16's range leaves room for the rounding of the largest values; a float16 scale holds more.
        return 2.0**15 if dtype == torch.float16 else 2.0**18
    if kind == "tiny":
        return 1e-8
    if kind == "ties":
        return 2.0**-4
    if kind == "subnormal":
        limits = torch.finfo(dtype)
        return limits.smallest_normal * limits.eps
    return _TYPICAL_DEVIATION


def _randn(generator: Generator, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu")


def _rand(generator: Generator, rows: int, columns: int) -> Tensor:
    return torch.rand(rows, columns, generator=generator, dtype=torch.float64, device="cpu")


def _heavy_tails(generator: Generator, rows: int, columns: int) -> Tensor:
    return _randn(generator, rows, columns) / _randn(generator, rows, columns).abs().clamp_min(1e-3)


def _outlier_channels(generator: Generator, rows: int, columns: int) -> Tensor:
    channels = 1 + 60 * (_rand(generator, 1, columns) < 1 / 16)
    return _randn(generator, rows, columns) * channels


def _dead_rows(generator: Generator, rows: int, columns: int) -> Tensor:
    return _randn(generator, rows, columns) * (_rand(generator, rows, 1) < 0.5)


def _constant_rows(generator: Generator, rows: int, columns: int) -> Tensor:
    return _randn(generator, rows, 1).repeat(1, columns)


def _constant(generator: Generator, rows: int, columns: int) -> Tensor:
    return _randn(generator, 1, 1).repeat(rows, columns)


def _one_sided(generator: Generator, rows: int, columns: int) -> Tensor:
    # Values far from zero, where a range that had to begin at the smallest value would lose the zero.
    return (_randn(generator, rows, columns).abs() + 1) * _randn(generator, rows, 1).sign()


def _sparse(generator: Generator, rows: int, columns: int) -> Tensor:
    return _randn(generator, rows, columns) * (_rand(generator, rows, columns) < 0.05)


def _mixed_magnitudes(generator: Generator, rows: int, columns: int) -> Tensor:
    return _randn(generator, rows, columns) * 10.0 ** (8 * _rand(generator, rows, 1) - 6)


def _ties(generator: Generator, rows: int, columns: int) -> Tensor:
    # Halves from -7.5 to 7.5 span 15 steps, so that every second one lies exactly between two codes.
    return torch.randint(-15, 16, (rows, columns), generator=generator, dtype=torch.float64, device="cpu") / 2


def _integers(generator: Generator, rows: int, columns: int) -> Tensor:
    return torch.randint(-100, 101, (rows, columns), generator=generator, dtype=torch.float64, device="cpu")


def _full_range(generator: Generator, rows: int, columns: int) -> Tensor:
    return 2 * _rand(generator, rows, columns) - 1


_KINDS: Final = MappingProxyType[str, Callable[[Generator, int, int], Tensor]](
    {
        "gaussian": _randn,
        "heavy tails": _heavy_tails,
        "outlier channels": _outlier_channels,
        "dead rows": _dead_rows,
        "constant rows": _constant_rows,
        "constant": _constant,
        "one-sided": _one_sided,
        "sparse": _sparse,
        "mixed magnitudes": _mixed_magnitudes,
        "ties": _ties,
        "tiny": _randn,
        "subnormal": _integers,
        "large": _full_range,
    }
)
