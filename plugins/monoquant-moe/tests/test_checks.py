"""Experts that saw too few tokens are told, others are not."""

from __future__ import annotations

from typing import Any

import attrs
import monoquant as mq
import pytest
import torch
from monoquant.testing import WarningCheckConformance
from torch import Tensor, nn

from monoquant_moe import ExpertTokensCheck

GATE = mq.AccuracyGate()
RECORD = mq.LayerReport(
    "mlp.experts.0.up_proj", "Linear", (96, 64), 6144, mq.Action.QUANTIZE, "", 1, 1,
    weights=("weight",), matrices=((96, 64),), input_rows=63,
)  # fmt: skip


class TestContract(WarningCheckConformance):
    check = ExpertTokensCheck()


def told(*records: mq.LayerReport, check: ExpertTokensCheck | None = None) -> list[mq.Finding]:
    info = mq.QuantizationInfo([record.layer for record in records], [], 10, torch.qint8, False, layers=list(records))
    return list((check or ExpertTokensCheck()).check(info, GATE))


def test_an_expert_of_fewer_tokens_than_inputs_is_told() -> None:
    [finding] = told(RECORD)
    assert finding.severity is mq.Severity.WARNING
    assert finding.layer == "mlp.experts.0.up_proj"
    assert "1 layer of experts saw few calibration tokens: 'mlp.experts.0.up_proj' (63)." in finding.message


@pytest.mark.parametrize(
    "changes",
    [
        {"input_rows": 64},
        {"input_rows": None},
        {"layer": "mlp.up_proj"},
        {"layer": "mlp.shared_expert.up_proj"},
        {"layer": "mlp.shared_experts.up_proj"},
        {"layer": "mlp.shared_expert_gate"},
    ],
)
def test_others_are_not(changes: dict[str, Any]) -> None:
    assert not told(attrs.evolve(RECORD, **changes))


def test_stacked_experts_are_known_by_their_class() -> None:
    assert told(attrs.evolve(RECORD, layer="mlp.branch", kind="MixtralExperts"))


def test_the_widest_matrix_counts() -> None:
    record = attrs.evolve(RECORD, weights=("up", "down"), matrices=((96, 64), (64, 96)))
    assert told(attrs.evolve(record, input_rows=95))
    assert not told(attrs.evolve(record, input_rows=96))


def test_the_least_seen_are_named_first() -> None:
    records = [attrs.evolve(RECORD, layer=f"experts.{number}.up", input_rows=40 - number) for number in range(5)]
    [finding] = told(*records)
    assert finding.layer == "experts.4.up"
    assert "'experts.4.up' (36), 'experts.3.up' (37), 'experts.2.up' (38) and 2 more." in finding.message


def test_the_ratio_can_be_chosen() -> None:
    assert told(attrs.evolve(RECORD, input_rows=191), check=ExpertTokensCheck(3))
    assert not told(attrs.evolve(RECORD, input_rows=192), check=ExpertTokensCheck(3))


@pytest.mark.parametrize("value", [0, -1, True, "1", float("inf"), float("nan"), None])
def test_wrong_ratios_are_refused(value: Any) -> None:
    with pytest.raises(mq.ConfigError, match="tokens_per_input="):
        ExpertTokensCheck(value)


class Routed(nn.Module):
    """Sends rows to an expert by their sign; hardly any to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

    def forward(self, rows: Tensor) -> Tensor:
        rare = rows[:, 0] > 3
        answer = self.experts[0](rows)
        return answer.index_put((rare,), self.experts[1](rows[rare]))


def test_a_run_tells_of_the_expert_that_the_router_avoids() -> None:
    data = torch.randn(640, 64, generator=torch.Generator().manual_seed(0)).clamp_(-2, 2)
    data[:20, 0] = 4
    result = mq.quantize(Routed(), calibration_data=[data], num_calibration_samples=640, accuracy_warning="ignore")
    [finding] = [one for one in result.report.findings if one.code == "experts-saw-few-tokens"]
    assert finding.layer == "experts.1"
    assert finding.origin.name == "monoquant-moe"
