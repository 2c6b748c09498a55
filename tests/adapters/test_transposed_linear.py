"""HuggingFace's Conv1D, a Linear with its weight transposed; known by its name: transformers is no dependency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq


class Conv1D(nn.Module):
    """As ``transformers.pytorch_utils.Conv1D``."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(nx, nf, generator=generator))
        self.bias = nn.Parameter(torch.randn(nf, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Doubling(Conv1D):
    """Computes something else."""

    __module__ = "models"

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


DATA = torch.randn(60, 5, 48, generator=torch.Generator().manual_seed(1))
MODES: dict[str, dict[str, Any]] = {
    "int4": {"bits": 4},
    "int8": {"bits": 8},
    "half": {"dtype": torch.float16},
    "dynamic": {"bits": 8, "activations": "dynamic"},
    "static": {"bits": 8, "activations": "static"},
}


@pytest.mark.parametrize("mode", MODES)
def test_groups_run_along_its_inputs_and_it_computes_the_same(mode: str, tmp_path: Path) -> None:
    """One matrix row for each output; the weight reads in the shape it had."""
    model = nn.Sequential(Conv1D(64, 48))
    result = mq.quantize(model, calibration_data=[DATA], accuracy_warning="ignore", **MODES[mode])
    layer = result.model[0]
    assert layer.packed_weight.form.rows == 64
    assert layer.weight.shape == (48, 64)
    noise = (result.model(DATA) - model(DATA)).square().mean() / model(DATA).square().mean()
    assert noise < (0.02 if mode == "int4" else 0.001)
    assert result.report.layers[0].output_sqnr_db > 30 or mode == "int4"
    mq.save(result, tmp_path / "conv1d.safetensors")
    loaded = mq.load(tmp_path / "conv1d.safetensors", nn.Sequential(Conv1D(64, 48)))
    assert torch.equal(loaded(DATA), result.model(DATA))


def test_it_multiplies_integers_unless_it_computes_something_else() -> None:
    """With the reason in a finding."""
    model = nn.ModuleDict({"plain": Conv1D(64, 48), "doubling": Doubling(64, 48)})
    report = mq.quantize(model, bits=8, activations="dynamic", accuracy_warning="ignore").report
    compute = {record.layer: record.compute for record in report.layers}
    assert compute["plain"].startswith("multiplies integers")
    assert compute["doubling"].startswith("dequantizes")
    (finding,) = [finding for finding in report.findings if finding.code == "float-compute"]
    assert "Doubling has a forward of its own" in finding.message


def test_integers_do_not_load_into_a_linear_of_the_same_shape(tmp_path: Path) -> None:
    """Whose weight is the other way round."""
    result = mq.quantize(nn.Sequential(Conv1D(48, 48)), accuracy_warning="ignore", **MODES["dynamic"])
    mq.save(result, tmp_path / "square.safetensors")
    with pytest.raises(mq.FileError, match="layer '0' keeps its weight in another order than the Linear of the model"):
        mq.load(tmp_path / "square.safetensors", nn.Sequential(nn.Linear(48, 48)))


def test_one_without_a_weight_is_an_obstacle() -> None:
    """Something else may have taken it."""
    layer = Conv1D(64, 48)
    layer.register_buffer("kept", layer.weight.detach())
    del layer.weight
    with pytest.raises(mq.InputError, match="Conv1D has no 2-D weight of its own; store the weight as a Parameter"):
        mq.quantize(nn.Sequential(layer), skip_param_threshold=0)
