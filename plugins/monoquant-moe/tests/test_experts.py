"""Stacked experts: packed along their inputs, and read one by one."""

from __future__ import annotations

import monoquant as mq
import pytest
import torch
from monoquant.modules.packed_matrix import PackedMatrix
from torch import Tensor, nn

from monoquant_moe import TransposedExpertsAdapter

EXPERTS, HIDDEN, INNER = 3, 48, 40


class GptOssExperts(nn.Module):
    """As in transformers: ``x @ gate_up_proj[expert]``."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        # One loud input feature: with scales along the outputs it would take the resolution of no other feature.
        loud = torch.ones(HIDDEN, 1).index_fill(0, torch.tensor([5]), 40.0)
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER, generator=generator) * loud)
        self.gate_up_proj_bias = nn.Parameter(torch.randn(EXPERTS, INNER, generator=generator))
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, INNER, HIDDEN, generator=generator))

    def forward(self, hidden: Tensor) -> Tensor:
        for expert in range(EXPERTS):
            inner = hidden @ self.gate_up_proj[expert] + self.gate_up_proj_bias[expert]
            hidden = hidden + torch.relu(inner) @ self.down_proj[expert]
        return hidden


class OtherExperts(GptOssExperts):
    """A subclass is transposed as well."""


@pytest.mark.parametrize("kind", [GptOssExperts, OtherExperts])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_run_along_the_inputs(kind: type[GptOssExperts], bits: int) -> None:
    """Each row of the packed matrix holds what one output of one expert is computed from; biases stay as they are."""
    model = kind().eval()
    result = mq.quantize(model, bits=bits, accuracy_warning="ignore")
    packed = result.model.get_submodule("packed_gate_up_proj")
    expected = model.gate_up_proj.detach().transpose(1, 2).reshape(EXPERTS * INNER, HIDDEN)
    assert isinstance(packed, PackedMatrix)
    assert torch.allclose(packed.dequantized_rows(slice(None)), expected, atol=float(packed.scale.abs().max()) * 0.51)
    assert torch.equal(result.model.gate_up_proj_bias, model.gate_up_proj_bias)
    (decision,) = [record for record in result.report.layers if record.layer == ""]
    assert decision.weights == ("gate_up_proj", "down_proj")


def test_the_adapter_says_what_is_missing() -> None:
    """A class of that name that keeps its experts as modules is unsupported, with a reason."""
    kind = type("GptOssExperts", (nn.Module,), {})
    module = kind()
    module.gate_up_proj = nn.Parameter(torch.randn(2, 4, 8))
    model = nn.ModuleDict({"experts": module, "head": nn.Linear(64, 64)})
    report = mq.quantize(model, bits=8, accuracy_warning="ignore").report
    decisions = {record.layer: record for record in report.layers}
    assert decisions["experts"].reason == "it has no down_proj"
    assert TransposedExpertsAdapter().claims(module)
