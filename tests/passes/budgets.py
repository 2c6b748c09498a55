"""Models, data and helpers for what a budget promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.modules.packed_weight import PackedWeight

FINE = mq.Scheme(4, 128)


class Net(nn.Module):
    """Three Linears of different size and weight; a buffer that the answer depends on."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b, self.c = nn.Linear(160, 96), nn.Linear(96, 160), nn.Linear(160, 32)
        self.register_buffer("shift", torch.full((32,), 0.5))
        with torch.no_grad():
            for scale, layer in ((1.5, self.a), (0.5, self.b), (0.7, self.c)):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * scale * 0.1)
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x))))) + self.shift


def batches(*shape: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator) + 0.2 for _ in range(count)]


DATA = batches(48, 160)


def quantize(model: nn.Module | None = None, data: Any = DATA, **options: Any) -> mq.QuantResult:
    """Quickly and quietly, if nothing else is said."""
    quick = {"accuracy_warning": "ignore", "plugins": False, "calibration_data": data}
    quick |= {} if "algorithm" in options or options.get("bits", 4) != 4 else {"quality": "fast"}
    return mq.quantize(model or Net(), **{**quick, **options})


def packed_weights(model: nn.Module) -> list[PackedWeight]:
    return [module for module in model.modules() if isinstance(module, PackedWeight)]


def bits_per_weight(model: nn.Module) -> float:
    """From the buffers of a model: all but those that say what the others mean."""
    found = packed_weights(model)
    buffers = [buffer for one in found for name, buffer in one.named_buffers() if name != "layout"]
    return (
        8
        * sum(buffer.numel() * buffer.element_size() for buffer in buffers)
        / sum(one.rows * one.columns for one in found)
    )


def codes(result: mq.QuantResult) -> set[str]:
    return {finding.code for finding in result.report.findings}


def chosen(result: mq.QuantResult) -> dict[str, Any]:
    return {record.layer: record.scheme for record in result.report.layers if record.scheme is not None}


GOALS = [
    ({"target_bits_per_weight": 6.5}, "chosen for 6.5 bits per weight"),
    ({"target_sqnr_db": 30}, "chosen for 30 dB"),
    ({"evaluate": lambda model: -float("int4" in str(model)), "tolerated_drop": 0.25}, "chosen for a drop of at most"),
]


class Judge:
    """Judges models by how near their answers are to a float model's; remembers what it was given.

    Args:
        model: The float model.
        x: What models are asked.
        harm: Done to each model on trial when it has been judged.
    """

    def __init__(self, model: nn.Module, x: Any, harm: Callable[[nn.Module], Any] | None = None) -> None:
        self.x, self.harm = x, harm
        self.original, self.reference = model, answer(model, x)
        self.answers: list[Tensor] = []
        self.values: list[float] = []

    def __call__(self, model: nn.Module) -> float:
        found = answer(model, self.x)
        self.answers.append(found)
        noise = (found - self.reference).double().square().sum() / self.reference.double().square().sum()
        self.values.append(-float(noise))
        if self.harm is not None and model is not self.original:
            self.harm(model)
        return self.values[-1]


def answer(model: nn.Module, x: Any) -> Tensor:
    training = model.training
    with torch.no_grad():
        found: Tensor = model.eval()(x)
    model.train(training)
    return found


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.recurrent, self.head = kind(64, 48, batch_first=True), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(64, 4, batch_first=True), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0])


class Tied(nn.Module):
    """Two Linears with one weight."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.first, self.second = nn.Linear(96, 96, bias=bias), nn.Linear(96, 96, bias=bias)
        self.last = nn.Linear(96, 32)
        self.second.weight = self.first.weight
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


MODELS = {
    "linear": (Net, DATA),
    "lstm": (Recurrent, batches(24, 5, 64)),
    "gru": (lambda: Recurrent(nn.GRU), batches(24, 5, 64)),
    "attention": (Attention, batches(24, 5, 64)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(8, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3)),
        batches(12, 8, 7, 7),
    ),
    "tied": (Tied, batches(32, 96)),
}


def pipeline(*between: mq.Pass, data: Any = DATA) -> mq.Quantizer:
    pack = [mq.Int4PackPass(algorithm="round_to_nearest"), mq.Int8PackPass(), mq.HalfCastPass()]
    return mq.Quantizer([mq.SkipSelectionPass.from_options(), mq.CalibrationPass(data), *between, *pack])
