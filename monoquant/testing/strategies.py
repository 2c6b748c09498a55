"""Hypothesis strategies for tests of passes, rules and plugins.

Example::

    from hypothesis import given
    from monoquant.testing.strategies import layers

    @given(layers())
    def test_router_rule_keeps_experts(layer):
        if ".experts." in layer.name:
            assert RouterRule().reason(layer) is None
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import Final

import torch
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Generator, Tensor, nn

from monoquant.rules import NameRule, SkipRule, ThresholdRule, TypeRule
from monoquant.values import PACKABLE_DTYPES, SCALE_DTYPES, Ancestor, Layer, Scheme

_USUAL_GROUP_SIZES: Final = (128, 64, 32, 256, 16, 1)
_TELLING_COLUMNS: Final = (1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192, 255, 256, 257)
_TYPICAL_DEVIATION: Final = 0.02


def schemes() -> SearchStrategy[Scheme]:
    """Every kind of scheme: usual and odd group sizes, both symmetries, all scale dtypes.

    Returns:
        A strategy that shrinks towards asymmetric groups of 128 with float16 scales, the default scheme.
    """
    return st.builds(
        Scheme,
        group_size=st.sampled_from(_USUAL_GROUP_SIZES) | st.integers(1, 300),
        symmetric=st.booleans(),
        scale_dtype=st.sampled_from(SCALE_DTYPES),
    )


def weights(
    dtypes: Sequence[torch.dtype] = PACKABLE_DTYPES, max_rows: int = 24, max_columns: int = 288
) -> SearchStrategy[Tensor]:
    """Weight matrices as they come in real life, and as they come in nightmares.

    Gaussian and heavy-tailed values, outlier channels, dead, constant and one-sided rows, sparse rows, rows of very
    different size, values halfway between codes, magnitudes from the smallest subnormal of the dtype to the largest
    that every scheme can hold; sizes from 1x1 over ragged ones to ``[max_rows, max_columns]``. Always finite.

    Args:
        dtypes: dtypes to choose from; default: all that can be packed.
        max_rows: Most output features, >= 1; default 24.
        max_columns: Most input features, >= 1; default 288.

    Returns:
        A strategy of contiguous CPU tensors ``[rows, columns]`` without gradient. It shrinks towards few, Gaussian
        values in the first dtype, and notes kind and seed where a test fails.
    """
    telling = [columns for columns in _TELLING_COLUMNS if columns <= max_columns]
    return st.builds(
        _weight,
        kind=st.sampled_from(tuple(_KINDS)),
        dtype=st.sampled_from(tuple(dtypes)),
        rows=st.integers(1, max_rows),
        columns=st.integers(1, max_columns) | st.sampled_from(telling),
        seed=st.integers(0, 2**32 - 1),
    )


def _weight(kind: str, dtype: torch.dtype, rows: int, columns: int, seed: int) -> Tensor:
    note(f"weights: {kind}, {dtype}, [{rows}, {columns}], seed {seed}")
    unit_scale = _KINDS[kind](Generator("cpu").manual_seed(seed), rows, columns)
    return (unit_scale * _magnitude(kind, dtype)).to(dtype)


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
        "one-sided": _one_sided,
        "sparse": _sparse,
        "mixed magnitudes": _mixed_magnitudes,
        "ties": _ties,
        "tiny": _randn,
        "subnormal": _integers,
        "large": _full_range,
    }
)

_TOP_LEVEL: Final = MappingProxyType[str, type[nn.Module]](
    {
        "lm_head": nn.Linear,
        "classifier": nn.Linear,
        "0": nn.Linear,
        "": nn.Linear,
        "model.embed_tokens": nn.Embedding,
        "embeddings.word_embeddings": nn.Embedding,
        "bag": nn.EmbeddingBag,
        "model.norm": nn.LayerNorm,
        "conv1": nn.Conv2d,
        "bn1": nn.BatchNorm2d,
        "rnn": nn.LSTM,
    }
)
_STACKS: Final = ("model.layers", "encoder.layer", "transformer.h", "blocks", "decoder.layers", "features")
_BLOCK_PARTS: Final = MappingProxyType[str, type[nn.Module]](
    {
        "self_attn.q_proj": nn.Linear,
        "self_attn.v_proj": nn.Linear,
        "self_attn.out_proj": nn.modules.linear.NonDynamicallyQuantizableLinear,
        "attention.output.dense": nn.Linear,
        "mlp.gate": nn.Linear,
        "mlp.gate_up_proj": nn.Linear,
        "mlp.experts.3.down_proj": nn.Linear,
        "fc1": nn.Linear,
        "conv": nn.Conv1d,
        "input_layernorm": nn.LayerNorm,
        "bn": nn.BatchNorm1d,
    }
)
_KERNEL_DIMENSIONS: Final = MappingProxyType[type[nn.Module], int]({nn.Conv1d: 1, nn.Conv2d: 2})
_CONTAINERS: Final = (nn.Module, nn.Sequential, nn.TransformerEncoderLayer, nn.MultiheadAttention)
_RULE_ENTRIES: Final = ("layers.1", "self_attn", "mlp", "v_proj", "*.gate", "h.?", "re:.*v_proj", "norm", "typo")
_RULE_TYPES: Final = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.Conv1d, nn.TransformerEncoderLayer, nn.ModuleList)


def layers() -> SearchStrategy[Layer]:
    """Layers of transformers, convolutional nets and plain stacks, as rules are asked about them.

    Names are dotted and realistic (``model.layers.3.self_attn.q_proj``, ``lm_head``, ``0``, the root's ``""``); type,
    shape, parameter count and ancestors agree with each other, and some layers have an alias or a tie.

    Returns:
        A strategy that shrinks towards a one-parameter ``lm_head``.
    """
    return _layers()


@st.composite
def _layers(draw: DrawFn) -> Layer:
    name, kind = draw(_named_types())
    shape = draw(_shapes(kind))
    bias = draw(st.booleans()) and kind not in (nn.Embedding, nn.EmbeddingBag)
    weight_count = Layer(name, kind, shape).parameters
    aliases = draw(st.sampled_from(((), ("shared.head",)))) if name else ()
    other = draw(st.sampled_from(("", "model.embed_tokens", "decoder.out")))
    return Layer(
        name=name,
        type=kind,
        shape=shape,
        parameters=weight_count + (shape[0] if bias else 0),
        dtype=draw(st.sampled_from(PACKABLE_DTYPES)),
        aliases=aliases,
        ties=(other,) if other not in ("", name) else (),
        ancestors=draw(_ancestors((name, *aliases))),
    )


def _named_types() -> SearchStrategy[tuple[str, type[nn.Module]]]:
    def in_block(stack: str, index: int, part: tuple[str, type[nn.Module]]) -> tuple[str, type[nn.Module]]:
        return f"{stack}.{index}.{part[0]}", part[1]

    top_level = st.sampled_from(tuple(_TOP_LEVEL.items()))
    parts = st.sampled_from(tuple(_BLOCK_PARTS.items()))
    return top_level | st.builds(in_block, st.sampled_from(_STACKS), st.integers(0, 31), parts)


def _shapes(kind: type[nn.Module]) -> SearchStrategy[tuple[int, ...]]:
    features = st.integers(1, 4096) | st.sampled_from((64, 576, 768, 4096))
    if issubclass(kind, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
        return st.tuples(features)
    kernel_dimensions = _KERNEL_DIMENSIONS.get(kind, 0)
    return st.tuples(features, features, *[st.integers(1, 5)] * kernel_dimensions)


@st.composite
def _ancestors(draw: DrawFn, names: Iterable[str]) -> tuple[Ancestor, ...]:
    found: dict[str, type] = {}
    for name in names:
        parts = name.split(".") if name else []
        for depth, child in enumerate(parts):
            container = nn.ModuleList if child.isdigit() and depth else draw(st.sampled_from(_CONTAINERS))
            found.setdefault(".".join(parts[:depth]), container)
    return tuple(Ancestor(name, kind) for name, kind in found.items())


def skip_rules() -> SearchStrategy[SkipRule]:
    """Type, name and threshold rules, and what ``|``, ``&`` and ``~`` make of them.

    Returns:
        A strategy of rules that often, but not always, match what :func:`layers` yields; it shrinks towards a single
        rule.
    """
    entries = st.sampled_from(_RULE_ENTRIES) | _named_types().map(operator.itemgetter(0)).filter(bool)
    by_name = st.lists(entries, min_size=1, max_size=3).map(lambda chosen: NameRule(*chosen))
    kinds = st.lists(st.sampled_from(_RULE_TYPES), min_size=1, max_size=3)
    by_type = kinds.map(lambda chosen: TypeRule(*chosen))
    by_size = st.builds(ThresholdRule, st.sampled_from((0, 512, 100_000)) | st.integers(0, 2**24))
    leaves: SearchStrategy[SkipRule] = st.one_of(by_name, by_type, by_size)
    # Alone, st.recursive would hardly ever yield a rule that is not a combination.
    return leaves | _combined(st.recursive(leaves, _combined, max_leaves=4))


def _combined(rules: SearchStrategy[SkipRule]) -> SearchStrategy[SkipRule]:
    return st.one_of(
        st.builds(operator.or_, rules, rules),
        st.builds(operator.and_, rules, rules),
        rules.map(operator.invert),
    )
