"""Specimens of torch's own modules."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Final

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from monoquant.testing.zoo.inputs import floats, indices, one_tensor_thrice, weighted_bags
from monoquant.testing.zoo.specimen import Specimen

_ATTENTION: Final = {"": ("in_proj_weight",), "out_proj": ("weight",)}
_SEPARATE: Final = {"": ("q_proj_weight", "k_proj_weight", "v_proj_weight"), "out_proj": ("weight",)}
_ROOT: Final = ("",)

LINEAR: Final = (
    Specimen("Linear", lambda: nn.Linear(128, 48), floats((5, 128)), in_integers=_ROOT),
    Specimen("Linear without bias", lambda: nn.Linear(64, 48, bias=False), floats((2, 3, 64)), in_integers=_ROOT),
    Specimen("Linear of ragged groups", lambda: nn.Linear(77, 41), floats((5, 77)), in_integers=_ROOT),
    Specimen("Bilinear", lambda: nn.Bilinear(16, 32, 24), floats((5, 16), (5, 32))),
)

CONVOLUTIONS: Final = (
    Specimen(
        "Conv1d that reflects", lambda: nn.Conv1d(16, 24, 4, padding=2, padding_mode="reflect"), floats((3, 16, 9))
    ),
    Specimen(
        "Conv2d in groups",
        lambda: nn.Conv2d(32, 24, 2, stride=2, padding=1, dilation=2, groups=4),
        floats((3, 32, 8, 9)),
    ),
    Specimen("depthwise Conv2d", lambda: nn.Conv2d(24, 24, 3, padding="same", groups=24), floats((3, 24, 7, 7))),
    Specimen("Conv3d", lambda: nn.Conv3d(8, 12, 2, bias=False), floats((3, 8, 4, 4, 4))),
    Specimen(
        "ConvTranspose1d",
        lambda: nn.ConvTranspose1d(16, 24, 4, stride=2, groups=2, output_padding=1),
        floats((3, 16, 7)),
    ),
    Specimen(
        "ConvTranspose2d",
        lambda: nn.ConvTranspose2d(24, 16, (2, 4), stride=3, groups=2, output_padding=(1, 2)),
        floats((3, 24, 5, 5)),
    ),
    Specimen(
        "ConvTranspose3d",
        lambda: nn.ConvTranspose3d(12, 8, 2, stride=2, groups=4, output_padding=1, dilation=2),
        floats((3, 12, 3, 3, 3)),
    ),
)

EMBEDDINGS: Final = (
    Specimen("Embedding", lambda: nn.Embedding(90, 64, padding_idx=3), indices(90, 4, 9)),
    Specimen("EmbeddingBag of means", lambda: nn.EmbeddingBag(90, 64, mode="mean", padding_idx=3), indices(90, 4, 9)),
    Specimen("EmbeddingBag of weighted sums", lambda: nn.EmbeddingBag(90, 64, mode="sum"), weighted_bags),
)


def _encoder_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(64, 4, dim_feedforward=128, dropout=0.0, batch_first=True)


def _packed_in_encoder(*layers: str) -> dict[str, tuple[str, ...]]:
    parts = {"self_attn": "in_proj_weight", "self_attn.out_proj": "weight", "linear1": "weight", "linear2": "weight"}
    return {layer + part: (name,) for layer in layers for part, name in parts.items()}


def _in_each(layers: tuple[str, ...], *parts: str) -> tuple[str, ...]:
    return tuple(layer + part for layer in layers for part in parts)


_LAYERS: Final = ("layers.0.", "layers.1.")
_NORMS: Final = "LayerNorm has no weight matrix"

TRANSFORMERS: Final = (
    Specimen(
        "MultiheadAttention", lambda: nn.MultiheadAttention(64, 4, batch_first=True), one_tensor_thrice, _ATTENTION
    ),
    Specimen(
        "MultiheadAttention of three widths",
        lambda: nn.MultiheadAttention(64, 4, kdim=32, vdim=96, batch_first=True),
        floats((3, 7, 64), (3, 5, 32), (3, 5, 96)),
        _SEPARATE,
    ),
    Specimen(
        "MultiheadAttention with bias_kv",
        lambda: nn.MultiheadAttention(64, 4, add_bias_kv=True),
        floats((7, 3, 64), (5, 3, 64), (5, 3, 64)),
        _ATTENTION,
    ),
    Specimen(
        "TransformerEncoderLayer",
        _encoder_layer,
        floats((3, 7, 64)),
        _packed_in_encoder(""),
        dict.fromkeys(("norm1", "norm2"), _NORMS),
        in_integers=("linear1", "linear2"),
    ),
    Specimen(
        "TransformerEncoder",
        lambda: nn.TransformerEncoder(_encoder_layer(), 2),
        floats((3, 7, 64)),
        _packed_in_encoder(*_LAYERS),
        dict.fromkeys(_in_each(_LAYERS, "norm1", "norm2"), _NORMS),
        in_integers=_in_each(_LAYERS, "linear1", "linear2"),
    ),
)


def _recurrent(name: str, make: Callable[[], nn.Module], *weights: str) -> Specimen:
    packed = {"": tuple(f"weight_{weight}" for weight in weights)}
    return Specimen(name, make, floats((6, 3, 64)), packed, compilable=False)  # Dynamo knows no RNN


RECURRENT: Final = (
    _recurrent(
        "LSTM",
        lambda: nn.LSTM(64, 32, num_layers=2, bidirectional=True, proj_size=16),
        *(f"{kind}_l{layer}{back}" for layer in (0, 1) for back in ("", "_reverse") for kind in ("ih", "hh", "hr")),
    ),
    _recurrent("GRU", lambda: nn.GRU(64, 32), "ih_l0", "hh_l0"),
    _recurrent("RNN", lambda: nn.RNN(64, 32, nonlinearity="relu", batch_first=True), "ih_l0", "hh_l0"),
    Specimen("LSTMCell", lambda: nn.LSTMCell(64, 32), floats((5, 64)), {"": ("weight_ih", "weight_hh")}),
)


def _old_weight_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in many models
        weight_norm(module)
    _step(module, "weight_g")


def _old_spectral_norm(module: nn.Module) -> None:
    spectral_norm(module)
    module(torch.randn(5, 64))  # a forward in training mode: one power iteration
    _step(module, "weight_orig")


def _prune(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", 0.3)  # type: ignore[no-untyped-call]
    _step(module, "weight_orig")


def _step(module: nn.Module, name: str) -> None:
    """Change a parameter, as an optimizer does: the weight that a hook left as an attribute is stale until a call."""
    module.get_parameter(name).data[0].mul_(1.5)


def _linear() -> nn.Linear:
    return nn.Linear(64, 48)


_ROWS: Final = floats((5, 64))

REPARAMETRIZED: Final = (
    Specimen("weight_norm", _linear, _ROWS, in_integers=_ROOT, reparametrize=_old_weight_norm),
    Specimen("spectral_norm", _linear, _ROWS, in_integers=_ROOT, reparametrize=_old_spectral_norm),
    Specimen("pruned Linear", _linear, _ROWS, in_integers=_ROOT, reparametrize=_prune),
    Specimen(
        "parametrized weight_norm",
        lambda: nn.Conv1d(16, 24, 4),
        floats((3, 16, 9)),
        reparametrize=parametrizations.weight_norm,
    ),
    Specimen(
        "parametrized spectral_norm",
        _linear,
        _ROWS,
        in_integers=_ROOT,
        reparametrize=parametrizations.spectral_norm,
    ),
    Specimen("parametrized orthogonal", _linear, _ROWS, in_integers=_ROOT, reparametrize=parametrizations.orthogonal),
)
