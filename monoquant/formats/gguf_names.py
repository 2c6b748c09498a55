"""What llama.cpp calls the tensors of the architectures that are written, and what it takes for granted about them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import attrs
from torch import nn

from monoquant.errors import FileError
from monoquant.modules.packed_module import PackedModule, float_class
from monoquant.modules.pretrained import is_pretrained

_IN_BLOCKS = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_BIASES = {f"self_attn.{one}_proj.bias": f"attn_{one}.bias" for one in "qkv"}
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_OUTSIDE = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight", HEAD: "output.weight"}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


@attrs.frozen
class Architecture:
    """One that llama.cpp knows.

    Args:
        name: Its ``general.architecture``.
        biased: Whether queries, keys and values have biases.
        rotates_neighbours: Whether rotated features are neighbours in it, and not half a head apart as in transformers.
    """

    name: str
    biased: bool
    rotates_neighbours: bool

    def name_of(self, tensor: str) -> str | None:
        """What llama.cpp calls a tensor.

        Args:
            tensor: Its name in the model.

        Returns:
            A name; None where there is no place for it.
        """
        found = _BLOCK.fullmatch(tensor)
        if found is None:
            return _OUTSIDE.get(tensor)
        known = {**_IN_BLOCKS, **(_BIASES if self.biased else {})}
        part = known.get(found[2])
        return part and f"blk.{found[1]}.{part}"

    def heads_of(self, tensor: str, config: Any) -> int:
        """How many heads have their rows in another order than in transformers.

        Args:
            tensor: Its name in the model.
            config: The model's.

        Returns:
            0 where the order is the same.
        """
        if self.rotates_neighbours and tensor.endswith("self_attn.q_proj.weight"):
            return int(config.num_attention_heads)
        if self.rotates_neighbours and tensor.endswith("self_attn.k_proj.weight"):
            return int(config.num_key_value_heads)
        return 0


_LLAMA = Architecture("llama", biased=False, rotates_neighbours=True)
_KNOWN = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": Architecture("qwen2", biased=True, rotates_neighbours=False),
}


def architecture_of(model: nn.Module) -> Architecture:
    """What llama.cpp takes a model for.

    Args:
        model: The quantized model.

    Raises:
        FileError: For a model of another kind, or one that llama.cpp or transformers would compute otherwise.
    """
    kind = float_class(model) if isinstance(model, PackedModule) else type(model)
    found = _KNOWN.get(kind.__name__)
    if found is None or not is_pretrained(model):
        raise FileError(
            f"GGUF is written for {', '.join(_KNOWN)} of transformers, and this is a {kind.__name__}: save to a name "
            "that ends in .safetensors, or with format='compressed-tensors'"
        )
    unlike = list(_unlike(model.config, found))
    if unlike:
        listed = "\n".join(f"- {one}" for one in unlike)
        raise FileError(
            f"readers of GGUF would compute something else than this {kind.__name__}; save with "
            f"format='compressed-tensors':\n{listed}"
        )
    return found


def rope_of(config: Any) -> dict[str, Any]:
    """How a model rotates queries and keys.

    Args:
        config: The model's.
    """
    return dict(getattr(config, "rope_parameters", None) or {})


def head_width(config: Any) -> int:
    """Features of a head.

    Args:
        config: The model's.
    """
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _unlike(config: Any, architecture: Architecture) -> Iterator[str]:
    """What no tensor shows: settings for which the readers tested here have no field."""
    rope = rope_of(config)
    if "rope_theta" not in rope:
        yield "config.rope_parameters has no rope_theta"
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1) != 1:
        yield f"config.rope_parameters is {rope}; transformers reads no more than rope_theta from a GGUF file"
    if config.hidden_act != "silu":
        yield f"config.hidden_act is {config.hidden_act!r}; they take 'silu' for granted"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        yield f"config.sliding_window is {window}; they attend to all {config.max_position_embeddings} positions"
    if not architecture.rotates_neighbours and head_width(config) * config.num_attention_heads != config.hidden_size:
        yield f"config.head_dim is {head_width(config)}; they take hidden_size / num_attention_heads for granted"
