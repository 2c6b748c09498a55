"""A model that looks like a Llama of transformers, which these tests run without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import monoquant as mq
from tests.formats.pretrained import Config, PreTrainedModel

HEADS, KEY_HEADS, WORDS = 4, 2, 40


def config(width: int = 64, **entries: Any) -> Config:
    """Of such a model."""
    own: dict[str, Any] = {
        "vocab_size": WORDS,
        "max_position_embeddings": 128,
        "hidden_size": width,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": width // HEADS,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return Config(**{**own, **entries})


class Layer(nn.Module):
    """One block; nobody calls it."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        keys = width // HEADS * KEY_HEADS
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, width, bias=bias),
                "k_proj": nn.Linear(width, keys, bias=bias),
                "v_proj": nn.Linear(width, keys, bias=bias),
                "o_proj": nn.Linear(width, width, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, 96, bias=False),
                "up_proj": nn.Linear(width, 96, bias=False),
                "down_proj": nn.Linear(96, width, bias=False),
            }
        )
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width), nn.RMSNorm(width)


class LlamaForCausalLM(PreTrainedModel):  # type: ignore[misc, valid-type]
    """Two blocks with grouped keys, and a head that may be tied to the embedding."""

    def __init__(self, width: int = 64, *, tied: bool = False, bias: bool = False, **entries: Any) -> None:
        super().__init__()
        self.config, self.name_or_path = config(width, **entries), ""
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(WORDS, width)
        self.model.layers = nn.ModuleList([Layer(width, bias), Layer(width, bias)])
        self.model.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, WORDS, bias=False)
        self.all_tied_weights_keys: dict[str, str] = {}
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight
            self.all_tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.model.norm(self.model.embed_tokens(ids)))
        return logits


class Qwen2ForCausalLM(LlamaForCausalLM):
    """The same modules under another name."""


def llama(width: int = 64, kind: type[LlamaForCausalLM] = LlamaForCausalLM, **options: Any) -> LlamaForCausalLM:
    """One with random weights, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(width, **options).eval()
        for parameter in model.parameters():
            parameter.data += torch.randn(parameter.shape) / 10  # norms and biases included
        return model


def quantized(model: nn.Module | None = None, bits: int = 4, **options: Any) -> mq.QuantResult:
    """A result that GGUF holds, unless options say otherwise."""
    own: dict[str, Any] = {"group_size": 32, "symmetric": True, "scale_dtype": torch.float16, **options}
    return mq.quantize(llama() if model is None else model, bits, plugins=False, accuracy_warning="ignore", **own)
