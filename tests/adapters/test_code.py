"""What a class's code says: layers that packing would break are obstacles, ordinary ones are not."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq


class Merging(nn.Linear):
    """Adds an update to its weight when it is evaluated, as loralib does."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if not mode and not self.merged:
            self.weight.data += torch.ones_like(self.weight)
            self.merged = True
        return self


class Replacing(nn.Linear):
    def prepare(self) -> None:
        self.weight.data = self.weight.data.clamp(-1, 1)


class Clamping(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        self.weight.data.clamp_(-0.01, 0.01)
        return super().forward(input)


class Adding(nn.Linear):
    @torch.no_grad()
    def step(self) -> None:
        self.weight.add_(1)


class Setting(nn.Linear):
    def mask(self, row: int) -> None:
        self.weight.data[row] = 0


@pytest.mark.parametrize(
    ("kind", "method"),
    [(Merging, "train"), (Replacing, "prepare"), (Clamping, "forward"), (Adding, "step"), (Setting, "mask")],
)
def test_a_layer_that_writes_to_its_weight_is_an_obstacle(kind: type[nn.Module], method: str) -> None:
    """The write would go to a dequantized copy, and be lost without a word."""
    with pytest.raises(
        mq.InputError, match=rf"{kind.__name__}.{method} writes to its weight, which packing would undo"
    ):
        mq.quantize(nn.Sequential(kind(64, 8)), bits=8)


class Innocent(nn.Linear):
    """Writes to other things, freezes and reads its weight, and initializes it."""

    def remember(self, x: Tensor) -> Tensor:
        self.data = x
        return x @ self.weight.t()

    def clip(self) -> Tensor:
        self.bias.data = self.bias.data.clamp(-1, 1)
        self.bias.add_(1)
        return self.weight[0]

    def freeze(self) -> None:
        self.weight.requires_grad_(False)

    def reset_parameters(self) -> None:
        self.weight.data.normal_(0, 0.02)

    def collect(self, rows: dict[int, Tensor]) -> None:
        rows[0] = self.weight.data[0]


def test_a_layer_that_writes_to_other_things_is_packed() -> None:
    """Nothing of what it does concerns the packed weight."""
    assert mq.quantize(nn.Sequential(Innocent(64, 8)), bits=8).info.selected_layers == ["0"]


class Wrapper(nn.Module):
    """Merges an update into the layer inside, as peft's layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 64)
        self.other = nn.Linear(64, 64)

    def merge(self) -> None:
        self.base.weight.data += 1

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.base(x))


def test_an_owner_that_writes_to_a_weight_is_told() -> None:
    """The layer is packed, since most never merge; the write would change nothing."""
    report = mq.quantize(Wrapper(), bits=8, accuracy_warning="ignore").report
    (finding,) = [finding for finding in report.findings if finding.code == "written-by-owner"]
    assert (finding.layer, finding.severity) == ("base", mq.Severity.WARNING)
    assert finding.message.startswith("Warning: Wrapper.merge writes to a weight of layer 'base'")


class PastNames(nn.Module):
    """Reads its parameters past their names, and by name only in a method that forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))

    def l2(self) -> Tensor:
        return self.w1.square().sum() + self.w2.square().sum()

    def forward(self, x: Tensor) -> Tensor:
        for parameter in self.parameters():
            x = x @ parameter
        return x


class PastNamesToo(PastNames):
    """Reads one by name, but all of them past their names as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ self.w1 + self._parameters["w2"]


class CountsBuffers(PastNames):
    """Would count codes and scales as well."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w1 @ self.w2 + sum(buffer.sum() for buffer in self.buffers())


class Container(nn.Sequential):
    """Runs all that it holds."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU())
        self.w1 = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ self.w1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (PastNames, "reads past names, through parameters"),
        (PastNamesToo, "reads past names, through _parameters"),
        (CountsBuffers, "reads past names, through buffers"),
        (Container, "is a container, which would run packed weights as it runs modules"),
    ],
)
def test_a_forward_that_reaches_parameters_past_their_names_is_an_obstacle(kind: type[nn.Module], reason: str) -> None:
    """Packed, a loop over them would find nothing, or the storage of packed weights."""
    with pytest.raises(mq.InputError, match=reason):
        mq.quantize(kind(), bits=8, skip_param_threshold=0)


class Ordinary(nn.Module):
    """Has such methods, which its forward does not use; reads a dtype and a cached property."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(64, 64))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @functools.cached_property
    def scaled(self) -> float:
        return float(self.v.abs().max())

    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, x: Tensor, state: Any = None) -> Tensor:
        shift = torch.zeros(64, device=x.device, dtype=x.dtype)
        return x @ self.w / self.scaled + shift + (0 if state is None else state.parameters)


def test_an_ordinary_forward_is_no_obstacle() -> None:
    """What other objects have under such names, and what other methods do, says nothing."""
    assert mq.quantize(Ordinary(), bits=8, accuracy_warning="ignore").report.layers[0].weights == ("w", "v")
