"""Strategies of layers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from types import MappingProxyType
from typing import Final

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import nn

from monoquant.values import PACKABLE_DTYPES, Ancestor, Layer

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


def layers() -> SearchStrategy[Layer]:
    """Layers of transformers, convolutional nets and plain stacks, as rules are asked about them.

    Names are dotted and realistic (``model.layers.3.self_attn.q_proj``, ``lm_head``, ``0``, the root's ``""``); type,
    shape, parameter count and ancestors agree with each other, and some layers have an alias or a tie.

    Returns:
        A strategy that shrinks towards a one-parameter ``lm_head``.
    """
    return _layers()


# Strategies that are made once are checked once: that is most of the time that drawing takes.
_ALIASES: Final = st.sampled_from(((), ("shared.head",)))
_TIES: Final = st.sampled_from(("", "model.embed_tokens", "decoder.out"))
_DTYPES: Final = st.sampled_from(PACKABLE_DTYPES)
_CONTAINER: Final = st.sampled_from(_CONTAINERS)


@st.composite
def _layers(draw: DrawFn) -> Layer:
    name, kind = draw(named_types())
    shape = draw(_shapes(kind))  # type: ignore[arg-type]  # classes can be hashed, whatever mypy says
    bias = draw(st.booleans()) and kind not in (nn.Embedding, nn.EmbeddingBag)
    weight_count = Layer(name, kind, shape).parameters
    aliases, other = draw(_ALIASES), draw(_TIES)
    if not name:
        aliases = ()
        draw(_CONTAINER)  # as many draws as for lm_head: examples shrink to what takes fewest
    return Layer(
        name=name,
        type=kind,
        shape=shape,
        parameters=weight_count + (shape[0] if bias else 0),
        dtype=draw(_DTYPES),
        aliases=aliases,
        ties=(other,) if other not in ("", name) else (),
        ancestors=_ancestors(draw, (name, *aliases)),
    )


@cache
def named_types() -> SearchStrategy[tuple[str, type[nn.Module]]]:
    """Realistic names of layers, each with the class that goes with it."""

    def in_block(stack: str, index: int, part: tuple[str, type[nn.Module]]) -> tuple[str, type[nn.Module]]:
        return f"{stack}.{index}.{part[0]}", part[1]

    top_level = st.sampled_from(tuple(_TOP_LEVEL.items()))
    parts = st.sampled_from(tuple(_BLOCK_PARTS.items()))
    return top_level | st.builds(in_block, st.sampled_from(_STACKS), st.integers(0, 31), parts)


@cache
def _shapes(kind: type[nn.Module]) -> SearchStrategy[tuple[int, ...]]:
    features = st.integers(1, 4096) | st.sampled_from((64, 576, 768, 4096))
    if issubclass(kind, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
        return st.tuples(features, features).map(lambda pair: pair[:1])  # again as many draws as for lm_head
    kernel_dimensions = _KERNEL_DIMENSIONS.get(kind, 0)
    return st.tuples(features, features, *[st.integers(1, 5)] * kernel_dimensions)


def _ancestors(draw: DrawFn, names: Iterable[str]) -> tuple[Ancestor, ...]:
    found: dict[str, type] = {}
    for name in names:
        parts = name.split(".") if name else []
        for depth, child in enumerate(parts):
            container = nn.ModuleList if child.isdigit() and depth else draw(_CONTAINER)
            found.setdefault(".".join(parts[:depth]), container)
    return tuple(Ancestor(name, kind) for name, kind in found.items())
