"""A model, data and questions for tests of algorithms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import monoquant as mq

FEATURES = 96
QUIET: dict[str, Any] = {"accuracy_warning": "ignore", "plugins": False, "group_size": 32}


def data(samples: int = 144, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Samples that mostly lie in a few directions and have a mean, as inputs of real layers do."""
    mixing = torch.randn(12, FEATURES, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, FEATURES, generator=generator)
    return (torch.randn(samples, 12, generator=generator) @ mixing + 0.3 * noise + 0.5).to(dtype)


class Net(nn.Module):
    """Three projections of one input, and what becomes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(FEATURES, 64, bias=bias) for bias in (True, False, True))
        self.out = nn.Linear(64, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.q(x)) * self.k(x) + self.v(x))


def build(seed: int = 0) -> Net:
    net = Net()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(100 * seed + index))
    return net.eval()


def noise(model: nn.Module, quantized: nn.Module, inputs: Tensor) -> float:
    """Mean square of what quantizing does to the output."""
    with torch.no_grad():
        return float((model(inputs) - quantized(inputs)).double().square().mean())


def bytes_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def algorithms(result: mq.QuantResult) -> dict[str, str]:
    return {record.layer: record.algorithm for record in result.report.by_action(mq.Action.QUANTIZE)}
