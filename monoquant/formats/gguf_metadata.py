"""What a GGUF file says of a model besides its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from monoquant.formats.gguf_names import Architecture, head_width, rope_of
from monoquant.formats.gguf_plan import GgufTensor

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
"""llama.cpp's numbers of files that are mostly of one kind."""
_QUANTIZATION_VERSION = 2
"""Of the layout of blocks."""


def model_entries(model: nn.Module, architecture: Architecture, tensors: Iterable[GgufTensor]) -> dict[str, Any]:
    """Metadata by key: whole numbers, floats that are kept in float32, and texts.

    Args:
        model: A PreTrainedModel.
        architecture: What llama.cpp takes it for.
        tensors: Of the file.
    """
    config: Any = model.config
    width = head_width(config)
    own: dict[str, Any] = {
        "vocab_size": int(config.vocab_size),
        "context_length": int(config.max_position_embeddings),
        "embedding_length": int(config.hidden_size),
        "block_count": int(config.num_hidden_layers),
        "feed_forward_length": int(config.intermediate_size),
        "rope.dimension_count": width,
        "rope.freq_base": float(rope_of(config)["rope_theta"]),
        "attention.head_count": int(config.num_attention_heads),
        "attention.head_count_kv": int(config.num_key_value_heads),
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    return {
        "general.type": "model",
        "general.name": _name(model),
        "general.file_type": _file_type(tensors),
        "general.quantization_version": _QUANTIZATION_VERSION,
        **{f"{architecture.name}.{key}": value for key, value in own.items()},
    }


def _name(model: nn.Module) -> str:
    found = Path(str(getattr(model, "name_or_path", ""))).name or type(model).__name__
    # transformers takes a file of just this name for another model, with a sliding window.
    return "Mistral" if found == "mistral" else found


def _file_type(tensors: Iterable[GgufTensor]) -> int:
    sizes: Counter[str] = Counter()
    for one in tensors:
        if len(one.shape) > 1:
            sizes[one.kind] += one.shape[0] * one.shape[1]
    kind, _ = sizes.most_common(1)[0]
    return _FILE_TYPES[kind]
