"""Small models of transformers with random weights, seeded, saved and loaded once as a user's would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import monoquant as mq

SIZES = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2}
IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(1))
CLASSES = {"llama": "AutoModelForCausalLM", "bert": "AutoModel"}
"""What users load them by."""


def build(kind: str, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """A model, loaded by transformers from what transformers saved."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "llama":
            own = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False, **options}
            model: Any = LlamaForCausalLM(LlamaConfig(**{**SIZES, **own}))
        else:
            model = BertModel(BertConfig(**SIZES, num_attention_heads=4, **options))
    model.save_pretrained(folder)
    loaded: nn.Module = type(model).from_pretrained(folder, dtype=dtype).eval()
    return loaded


def quantized(model: nn.Module, **options: Any) -> mq.QuantResult:
    """With no plugins, and no words about accuracy, which random weights have none of."""
    return mq.quantize(model, plugins=False, accuracy_warning="ignore", **options)


@torch.no_grad()
def answer(model: nn.Module, inputs: Any = IDS) -> Tensor:
    """Its first output: logits or hidden states."""
    found: Tensor = (model(**inputs) if isinstance(inputs, dict) else model(inputs))[0]
    return found
