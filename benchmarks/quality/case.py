"""What is measured: one way to quantize one model. Peers' environments import this too, so it needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from subjects import Subject
from torch import nn


@dataclass(frozen=True)
class Outcome:
    """A quantized model.

    Attributes:
        model: Answers like the float one.
        bits: Bits per quantized weight, scales and zero points included.
        seconds: CPU seconds, where the whole call is not what should count; None counts the call.
        fit_seconds: CPU seconds of fitting alone, where they are known.
        critical: Findings that say the model is broken, where the library says such things.
    """

    model: nn.Module
    bits: float
    seconds: float | None = None
    fit_seconds: float | None = None
    critical: int | None = None


@dataclass(frozen=True)
class Case:
    """One way to quantize one model.

    Attributes:
        name: For the table.
        subject: The name of the model that it is for.
        quantize: Builds the float model, and quantizes it by what the subject offers as calibration data.
    """

    name: str
    subject: str
    quantize: Callable[[Subject, nn.Module], Outcome]


def body(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The Linear layers of a float model that everybody quantizes: all but the head."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
            yield name, module


def nominal_bits(model: nn.Module, group_size: int, zero_bits: int) -> float:
    """Bits per weight of a float model's body, once it is packed as file formats do it.

    Peers keep float32 scales in a float32 model; they are counted as the 16 bits of their files, which flatters them.

    Args:
        model: The float model.
        group_size: Input features per 16-bit scale; the last group of a row may be shorter.
        zero_bits: Bits of a group's zero point: 4 if it is an integer, 16 if it is a float.
    """
    bits = weights = 0
    for _, layer in body(model):
        bits += 4 * layer.weight.numel() + layer.out_features * -(-layer.in_features // group_size) * (16 + zero_bits)
        weights += layer.weight.numel()
    return bits / weights
