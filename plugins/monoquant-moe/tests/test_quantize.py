"""The plugin at work: a small Mixtral, quantized by a caller who only installed the plugin."""

from __future__ import annotations

from importlib.metadata import version

import monoquant as mq
import pytest
import torch
from torch import Tensor, nn

HIDDEN, INNER, EXPERTS = 64, 96, 8
ORIGIN = mq.Origin("monoquant-moe", version("monoquant-moe"))
ROUTER = "layers.0.block_sparse_moe.gate"


class Expert(nn.Module):
    """A gated feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, INNER, bias=False)
        self.up_proj = nn.Linear(HIDDEN, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(torch.sigmoid(self.gate_proj(hidden)) * self.up_proj(hidden))


class TinySparseMoeBlock(nn.Module):
    """Sends each token to the two experts its router likes best."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, hidden: Tensor) -> Tensor:
        scores, chosen = self.gate(hidden).softmax(dim=-1).topk(2)
        outputs = torch.stack([expert(hidden) for expert in self.experts], dim=-1)
        picked = outputs.gather(-1, chosen.unsqueeze(-2).expand(*hidden.shape, 2))
        return hidden + (picked * scores.unsqueeze(-2)).sum(dim=-1)


class DecoderLayer(nn.Module):
    """A norm and a block of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.block_sparse_moe = TinySparseMoeBlock()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.block_sparse_moe(self.norm(hidden))


class TinyMixtral(nn.Module):
    """An embedding, one layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, HIDDEN)
        self.layers = nn.ModuleList([DecoderLayer()])
        self.lm_head = nn.Linear(HIDDEN, 32, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.layers[0](self.embed(tokens)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A float model; quantize() leaves it alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyMixtral().eval()


@pytest.fixture(scope="module")
def result(model: nn.Module) -> mq.QuantResult:
    """The model quantized by a caller who installed the plugin and did nothing else."""
    return mq.quantize(model, accuracy_warning="ignore")


def record_of(result: mq.QuantResult, name: str) -> mq.LayerReport:
    return next(record for record in result.report.layers if record.layer == name)


def test_the_router_is_kept_and_the_report_says_whose_rule_it_was(model: nn.Module, result: mq.QuantResult) -> None:
    """The router is skipped by the plugin's rule and keeps its float weight."""
    record = record_of(result, ROUTER)
    assert record.action is mq.Action.SKIP
    assert record.origin == ORIGIN
    assert "router" in record.reason
    assert torch.equal(result.model.get_submodule(ROUTER).weight, model.get_submodule(ROUTER).weight)


def test_experts_are_quantized(model: nn.Module, result: mq.QuantResult) -> None:
    """Every projection of every expert becomes INT4, gate_proj included."""
    experts = {name for name, module in model.named_modules() if ".experts." in name and isinstance(module, nn.Linear)}
    assert len(experts) == 3 * EXPERTS
    assert experts <= set(result.info.selected_layers)


def test_the_printed_report_names_plugin_and_version(result: mq.QuantResult) -> None:
    """The table marks the router's line with the plugin, and the summary lists what was active."""
    line = next(line for line in str(result.report).splitlines() if line.startswith(ROUTER))
    assert line.endswith(f"[{ORIGIN}]")
    assert (ORIGIN.name, ORIGIN.version) in result.report.versions
    assert str(ORIGIN) in str(result.report).partition("layer ")[0]


def test_plugins_can_be_turned_off(model: nn.Module) -> None:
    """With plugins=False the router is quantized like any Linear, and the report does not name the plugin."""
    result = mq.quantize(model, accuracy_warning="ignore", plugins=False)
    assert ROUTER in result.info.selected_layers
    assert ORIGIN.name not in str(result.report)


def test_the_quantized_model_routes_like_the_float_one(model: nn.Module, result: mq.QuantResult) -> None:
    """With the router in float, its scores for the same hidden states are bit-identical."""
    hidden = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1))
    assert torch.equal(result.model.get_submodule(ROUTER)(hidden), model.get_submodule(ROUTER)(hidden))


def test_a_dense_model_is_left_alone() -> None:
    """Where nothing is a router, the plugin keeps nothing and warns of nothing."""
    dense = nn.Sequential(nn.Linear(HIDDEN, INNER), nn.ReLU(), nn.Linear(INNER, HIDDEN))
    result = mq.quantize(dense, accuracy_warning="ignore")
    assert result.info.selected_layers == ["0", "2"]
    assert not [
        finding
        for finding in result.report.findings
        if finding.origin == ORIGIN and finding.severity > mq.Severity.INFO
    ]
