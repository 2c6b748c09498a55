"""Files of layers that multiply integers: loaded where they can, refused with a reason elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.container import HASHES_KEY, METADATA_HASH_KEY, read_container, write_container


class Scaled(nn.Linear):
    """Computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.fixture
def static(tmp_path: Path) -> Path:
    """A file with one static layer."""
    model, path = nn.Sequential(nn.Linear(32, 16)), tmp_path / "static.safetensors"
    mq.save(mq.quantize(model, bits=8, activations="static", calibration_data=[torch.randn(60, 32)]), path)
    return path


def test_a_layer_that_cannot_multiply_integers_here_is_named(static: Path) -> None:
    """It would compute something that its report does not say."""
    with pytest.raises(mq.FileError, match="layer '0' multiplied integers, and cannot here: Scaled has"):
        mq.load(static, nn.Sequential(Scaled(32, 16)))


@pytest.mark.parametrize("lost", ["scale", "zero_point", "correction"])
def test_a_static_layer_without_its_input_range_is_refused(static: Path, lost: str) -> None:
    """Although all hashes of the file are right."""
    tensors, metadata = read_container(static)
    del tensors[f"0.packed_input.{lost}"]
    kept = {key: text for key, text in metadata.items() if key not in (HASHES_KEY, METADATA_HASH_KEY)}
    write_container(static, tensors, kept)
    model = nn.Sequential(nn.Linear(32, 16))
    with pytest.raises(mq.FileError, match=f"layer '0' does not fit: Missing key.*{lost}"):
        mq.load(static, model)
    assert type(model[0]) is nn.Linear


def test_the_fused_kernel_of_gelu_layers_comes_back_too(tmp_path: Path) -> None:
    """Kept off by loading as by quantizing; let back by dequantize with the flag it had."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
    result = mq.quantize(nn.TransformerEncoder(layer, 1), bits=8, activations="dynamic", accuracy_warning="ignore")
    mq.save(result, tmp_path / "gelu.safetensors")
    loaded = mq.load(tmp_path / "gelu.safetensors", nn.TransformerEncoder(layer, 1))
    assert loaded.layers[0].activation_relu_or_gelu == 0
    assert mq.dequantize(loaded).layers[0].activation_relu_or_gelu == 2
