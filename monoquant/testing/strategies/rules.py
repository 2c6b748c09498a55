"""Strategies of skip rules."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import nn

from monoquant.rules import NameRule, SkipRule, ThresholdRule, TypeRule
from monoquant.testing.strategies.layers import named_types
from monoquant.values import TARGETS

_ENTRIES: Final = ("layers.1", "self_attn", "mlp", "v_proj", "*.gate", "h.?", "re:.*v_proj", "norm", "typo")
_TYPES: Final = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.Conv1d, nn.TransformerEncoderLayer, nn.ModuleList)


def skip_rules() -> SearchStrategy[SkipRule]:
    """Type, name and threshold rules, some with ``skip_to``, and what ``|``, ``&`` and ``~`` make of them, recursively.

    Returns:
        A strategy of rules that often, but not always, match what
        :func:`~monoquant.testing.strategies.layers` yields; it shrinks towards a single rule that keeps layers in
        float.
    """
    entries = st.sampled_from(_ENTRIES) | named_types().map(operator.itemgetter(0)).filter(bool)
    targets = st.none() | st.sampled_from(TARGETS)
    leaves: SearchStrategy[SkipRule] = st.one_of(
        st.builds(_of(NameRule), st.lists(entries, min_size=1, max_size=3), targets),
        st.builds(_of(TypeRule), st.lists(st.sampled_from(_TYPES), min_size=1, max_size=3), targets),
        st.builds(ThresholdRule, st.sampled_from((0, 512, 100_000)) | st.integers(0, 2**24), targets),
    )
    # Alone, st.recursive would hardly ever yield a rule that is not a combination.
    return leaves | _combined(st.recursive(leaves, _combined, max_leaves=4))


def _of(kind: Callable[..., SkipRule]) -> Callable[[list[Any], str | None], SkipRule]:
    return lambda members, skip_to: kind(*members, skip_to=skip_to)


def _combined(rules: SearchStrategy[SkipRule]) -> SearchStrategy[SkipRule]:
    return st.one_of(
        st.builds(operator.or_, rules, rules),
        st.builds(operator.and_, rules, rules),
        rules.map(operator.invert),
    )
