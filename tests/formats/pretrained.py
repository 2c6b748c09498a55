"""A model that looks like one of transformers, which these tests run without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

import monoquant as mq
from monoquant.formats import linears_exporter

PreTrainedModel = type("PreTrainedModel", (nn.Module,), {"__module__": "transformers.modeling_utils"})


class Config:
    """What a model is built from."""

    def __init__(self, **entries: Any) -> None:
        self.__dict__.update(entries)

    def to_json_string(self) -> str:
        return json.dumps({"model_type": "small", "_name_or_path": "gone", **self.__dict__})


class Small(PreTrainedModel):  # type: ignore[misc, valid-type]
    """An embedding, two Linears in a block, and a head that may be tied to the embedding."""

    def __init__(self, width: int = 64, *, tied: bool = False) -> None:
        super().__init__()
        self.config, self.name_or_path = Config(), ""
        self.embed = nn.Embedding(40, width)
        self.block = nn.Sequential(nn.Linear(width, 96), nn.ReLU(), nn.Linear(96, width))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 40, bias=False)
        self.all_tied_weights_keys: dict[str, str] = {}
        if tied:
            self.lm_head.weight = self.embed.weight
            self.all_tied_weights_keys = {"lm_head.weight": "embed.weight"}

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        logits: Tensor = self.lm_head(self.norm(hidden + self.block(hidden)))
        return logits


def small(width: int = 64, **options: Any) -> Small:
    """One with random weights, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small(width, **options).eval()


def quantized(model: nn.Module | None = None, bits: int = 4, **options: Any) -> mq.QuantResult:
    """A result of symmetric codes, in groups of 32 if they have 4 bits."""
    own: dict[str, Any] = {"group_size": 32} if bits == 4 else {"skip_layer_types": [nn.Embedding]}
    options = {"symmetric": True, "plugins": False, "accuracy_warning": "ignore", **own, **options}
    return mq.quantize(small() if model is None else model, bits, **options)


def saved(result: mq.QuantResult, path: Path, format: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is in config.json and in the file of weights of a folder."""
    mq.save(result, path, format, plugins=False)
    with safe_open(path / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return json.loads((path / "config.json").read_text()), tensors


def changed(change: Callable[[dict[str, Tensor]], object]) -> Callable[..., Any]:
    """What makes a writer of folders change tensors on the way."""

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def writing(path: Path, model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
            own = {name: tensor.clone() for name, tensor in tensors.items()}
            change(own)
            original(path, model, config, own)

        return writing

    return wrapped


def other_config(**entries: Any) -> Callable[..., Any]:
    """What makes a function that gives a configuration give some entries otherwise."""
    return lambda original: lambda *given: {**original(*given), **entries}


def place_of(name: str, module: ModuleType, exporter: type) -> Any:
    """Where a part of an exporter is looked up: its module, its class, or the module of what exporters share."""
    if name == "write_folder":
        return linears_exporter
    return exporter if hasattr(exporter, name) else module
