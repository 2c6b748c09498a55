"""SmolLM2 as a folder, for peers that look there for its configuration or its tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.models import smollm2
from torch import nn
from transformers import PreTrainedTokenizerFast


def tokenizer() -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer as transformers has them."""
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    return PreTrainedTokenizerFast(tokenizer_object=smollm2.tokenizer(), **ends)


@contextmanager
def folder(model: Any) -> Iterator[Path]:
    """A folder that holds a model and its tokenizer until the block ends."""
    with tempfile.TemporaryDirectory() as name:
        model.save_pretrained(name)
        tokenizer().save_pretrained(name)
        yield Path(name)


def loaded(path: Path, like: nn.Module) -> nn.Module:
    """The float model of a folder, which knows where it came from."""
    kind: Any = type(like)
    model: nn.Module = kind.from_pretrained(path).float().eval()
    return model
