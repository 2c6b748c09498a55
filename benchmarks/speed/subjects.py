"""The two real models: how they are called, how long each call is in tokens, and what a quantized one loses."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from common.models import minilm, smollm2, texts
from torch import Tensor, nn

SENTENCES = {"1 x 32 tokens": (1, 32), "32 x 64 tokens": (32, 64)}
PROMPT = 128
"""Tokens of a prompt."""
ANSWER = 16
"""Tokens that are decoded after it, one at a time."""
WINDOWS = 4
"""Of 128 tokens, to compare logits on."""

Calls = Mapping[str, Callable[[], object]]


class Subject(abc.ABC):
    """A model to run.

    Attributes:
        name: Of the model.
        loss_name: What `loss` gives.
    """

    name: ClassVar[str]
    loss_name: ClassVar[str]

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """The float model in eval mode."""

    @abc.abstractmethod
    def calls(self, model: nn.Module) -> Calls:
        """What is timed, by name."""

    @abc.abstractmethod
    def loss(self, model: nn.Module) -> float:
        """How far the answers of a model are from those of the float one."""


class MiniLm(Subject):
    """Encode sentences with all-MiniLM-L6-v2."""

    name = "MiniLM"
    loss_name = "1 - cosine"

    def build(self) -> nn.Module:
        return minilm.build()

    def calls(self, model: nn.Module) -> Calls:
        return {name: partial(model, **batch) for name, batch in self._batches.items()}

    def loss(self, model: nn.Module) -> float:
        return minilm.one_minus_cosine(self._reference, minilm.embed(model, [self._batches["32 x 64 tokens"]]))

    @cached_property
    def _batches(self) -> dict[str, dict[str, Tensor]]:
        ids = minilm.tokenizer()(texts.evaluation_text(), truncation=False, verbose=False)["input_ids"]
        return {name: _batch(ids, *shape) for name, shape in SENTENCES.items()}

    @cached_property
    def _reference(self) -> Tensor:
        return minilm.embed(self.build(), [self._batches["32 x 64 tokens"]])


def _batch(ids: list[int], count: int, length: int) -> dict[str, Tensor]:
    rows = torch.tensor(ids[: count * length]).view(count, length)
    return {"input_ids": rows, "attention_mask": torch.ones_like(rows)}


class SmolLm2(Subject):
    """Read a prompt with SmolLM2-135M, and go on; logits of the last token alone, as `generate` asks for them."""

    name = "SmolLM2-135M"
    loss_name = "KL"

    def build(self) -> nn.Module:
        return smollm2.build()

    def calls(self, model: Any) -> Calls:
        cache = model(self.ids[:, :PROMPT], use_cache=True, logits_to_keep=1).past_key_values
        prefill = partial(model, self.ids[:, :PROMPT], use_cache=True, logits_to_keep=1)
        return {f"prefill of {PROMPT} tokens": prefill, "decode, per token": partial(self._decode, model, cache)}

    def _decode(self, model: Any, cache: Any) -> None:
        """Feed the tokens after the prompt one at a time, and forget them."""
        for index in range(PROMPT, PROMPT + ANSWER):
            model(self.ids[:, index : index + 1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-ANSWER)

    def loss(self, model: nn.Module) -> float:
        return smollm2.evaluate(model, self.windows, self.reference).divergence

    @cached_property
    def ids(self) -> Tensor:
        """A prompt and what comes after it, `[1, 144]`."""
        return smollm2.windows(texts.evaluation_text(), 1, PROMPT + ANSWER)

    @cached_property
    def windows(self) -> Tensor:
        """Text to compare logits on, `[4, 128]`."""
        return smollm2.windows(texts.evaluation_text(), WINDOWS, PROMPT)

    @cached_property
    def reference(self) -> list[Tensor]:
        """The float model's logits there."""
        return smollm2.logits(self.build(), self.windows)


SUBJECTS: dict[str, type[Subject]] = {"minilm": MiniLm, "smollm2": SmolLm2}
