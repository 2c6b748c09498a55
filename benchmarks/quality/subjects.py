"""The two models with their calibration data and their measure of what was lost."""

from __future__ import annotations

import abc
from functools import cached_property
from typing import Any, ClassVar

from common.models import minilm, smollm2, texts
from torch import Tensor, nn


class Subject(abc.ABC):
    """A model to quantize.

    Args:
        windows: Windows of 128 tokens to measure a language model on.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    """What `measure` gives."""

    def __init__(self, windows: int) -> None:
        self.windows = windows

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """What is measured, on what."""

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """The float model in eval mode."""

    @abc.abstractmethod
    def calibration(self, size: int) -> list[Any]:
        """Calibration data in batches of `size` samples, as the model takes them."""

    @abc.abstractmethod
    def measure(self, model: nn.Module) -> dict[str, float]:
        """What a model lost on text that it was not calibrated on, by the name of the column."""


class MiniLm(Subject):
    """The sentence encoder all-MiniLM-L6-v2."""

    name = "minilm"
    columns = ("1 - cosine",)

    @property
    def title(self) -> str:
        measure = "1 - cosine to the float embeddings of 200 held-out sentences"
        return f"all-MiniLM-L6-v2: {measure}; calibrated on 800 others"

    def build(self) -> nn.Module:
        return minilm.build()

    def calibration(self, size: int) -> list[Any]:
        return minilm.batches(texts.calibration_and_held_out()[0], size)

    def measure(self, model: nn.Module) -> dict[str, float]:
        return {"1 - cosine": minilm.one_minus_cosine(self._reference, minilm.embed(model, self._held_out))}

    @cached_property
    def _held_out(self) -> list[dict[str, Any]]:
        return minilm.batches(texts.calibration_and_held_out()[1], 32)

    @cached_property
    def _reference(self) -> Tensor:
        return minilm.embed(self.build(), self._held_out)


class SmolLm2(Subject):
    """SmolLM2-135M-Instruct, permuted."""

    name = "smollm2"
    columns = ("KL", "perplexity")
    calibration_windows = 48

    @property
    def title(self) -> str:
        return (
            f"SmolLM2-135M-Instruct, permuted: KL to the float model and perplexity on {self.windows} x 128 tokens; "
            f"calibrated on {self.calibration_windows} x 128 of other text"
        )

    def build(self) -> nn.Module:
        return smollm2.build()

    def calibration(self, size: int) -> list[Any]:
        text = texts.calibration_text()
        return smollm2.batches(smollm2.windows(text, self.calibration_windows, 128), size)

    def measure(self, model: nn.Module) -> dict[str, float]:
        found = smollm2.evaluate(model, self._held_out, self._reference)
        return {"KL": found.divergence, "perplexity": found.perplexity}

    @cached_property
    def _held_out(self) -> Tensor:
        return smollm2.windows(texts.evaluation_text(), self.windows, 128)

    @cached_property
    def _reference(self) -> list[Tensor]:
        return smollm2.logits(self.build(), self._held_out)


SUBJECTS: dict[str, type[Subject]] = {"minilm": MiniLm, "smollm2": SmolLm2}
