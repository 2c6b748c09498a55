"""Strategies of representations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from monoquant.values import CODE_BITS, HALF_DTYPES, SCALE_DTYPES, HalfScheme, Scheme

_USUAL_GROUP_SIZES: Final = (128, 64, 32, 256, 16, 1)


def schemes(bits: Sequence[int] = CODE_BITS) -> SearchStrategy[Scheme]:
    """Every kind of scheme: 4 and 8 bits, usual and odd group sizes, both symmetries, all scale dtypes.

    One scale per row comes up as well, and with 8 bits also schemes
    whose inputs are quantized, on each call or to calibrated ranges.

    Args:
        bits: Bits per code to choose from; default 4 and 8.

    Returns:
        A strategy that shrinks towards asymmetric INT4 in groups of 128 with float16 scales, the default scheme.
    """
    storage = st.builds(
        Scheme,
        bits=st.sampled_from(tuple(bits)),
        group_size=st.sampled_from(_USUAL_GROUP_SIZES) | st.integers(1, 300) | st.none(),
        symmetric=st.booleans(),
        scale_dtype=st.sampled_from(SCALE_DTYPES),
    )
    return storage | _with_integer_inputs() if 8 in bits else storage


def _with_integer_inputs() -> SearchStrategy[Scheme]:
    activations = st.sampled_from(("dynamic", "static"))
    return st.builds(Scheme, st.just(8), st.none(), st.just(True), st.sampled_from(SCALE_DTYPES), activations)


def half_schemes() -> SearchStrategy[HalfScheme]:
    """Storage in float16 and in bfloat16; joined with the schemes by ``|`` it is every representation that there is.

    Returns:
        A strategy that shrinks towards float16.
    """
    return st.builds(HalfScheme, st.sampled_from(HALF_DTYPES))
