"""State dicts in and out: names and shapes stand for modules, the result loads into the float architecture."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.container import write_container
from monoquant.modules.tensor_holder import TensorHolder, hold


class Model(nn.Module):
    """One module of each kind that names and shapes can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(40, 32)
        self.rnn = nn.LSTM(32, 24, 2, batch_first=True)
        self.conv = nn.Conv1d(24, 32, 3, padding=1)
        self.up = nn.ConvTranspose1d(32, 16, 3, padding=1)
        self.bn = nn.BatchNorm1d(16)
        self.experts = nn.Parameter(torch.randn(3, 64, 64))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 40)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.rnn(self.embeddings(tokens))[0].transpose(1, 2)
        x = self.bn(self.up(self.conv(x))).transpose(1, 2)
        return self.head(self.norm(x)) + self.experts[1].sum()


@pytest.fixture
def model() -> Model:
    """In eval mode, with running statistics that are not those of a new model."""
    generator = torch.Generator().manual_seed(0)
    built = Model().eval()
    with torch.no_grad():
        for tensor in built.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return built


TOKENS = torch.arange(12).view(2, 6)
EVERYTHING: dict[str, Any] = {
    "skip_layer_types": [],
    "modules_to_not_convert": [],
    "skip_param_threshold": 0,
    "accuracy_warning": "ignore",
}


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_result_loads_into_the_float_architecture(model: Model, tmp_path: Path, bits: int) -> None:
    """And computes what the float model would with the dequantized weights."""
    result = mq.quantize(model.state_dict(), bits=bits, **EVERYTHING)
    mq.save(result, tmp_path / "weights.safetensors")
    loaded = mq.load(tmp_path / "weights.safetensors", Model().eval())
    back = mq.dequantize(loaded)
    assert {name: type(module) for name, module in back.named_modules()} == {
        name: type(module) for name, module in model.named_modules()
    }
    for name, tensor in model.state_dict().items():
        tolerance = {4: 0.05, 8: 0.005, 16: 0.0005}[bits]
        assert torch.allclose(back.state_dict()[name].float(), tensor.float(), atol=tolerance), name
    with torch.no_grad():
        assert torch.allclose(loaded(TOKENS), back(TOKENS), atol=1e-5)
        assert torch.allclose(loaded(TOKENS), model(TOKENS), rtol={4: 0.2, 8: 0.02, 16: 0.002}[bits])


def test_names_and_shapes_stand_for_kinds(model: Model) -> None:
    """So that the rules for classes work as on a model; the docs list the signs."""
    kinds = {record.layer: record.kind for record in mq.quantize(model.state_dict(), **EVERYTHING).report.layers}
    assert kinds == {
        "": "TensorHolder",
        "embeddings": "Embedding",
        "rnn": "LSTM",
        "conv": "Conv1d",
        "up": "Conv1d",
        "bn": "BatchNorm2d",
        "norm": "LayerNorm",
        "head": "Linear",
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("word_embeddings", nn.Embedding),
        ("embed_tokens", nn.Embedding),
        ("emb", nn.Embedding),
        ("pos_emb", nn.Embedding),
        ("wte", nn.Embedding),
        ("ensemble", nn.Linear),
        ("member", nn.Linear),
        ("swte", nn.Linear),
    ],
)
def test_embeddings_are_told_by_their_name(name: str, kind: type[nn.Module]) -> None:
    """And words that only contain the letters are not taken for one."""
    holder = hold({f"transformer.{name}.weight": torch.zeros(4, 4)})
    assert holder.get_submodule(f"transformer.{name}").stands_for is kind


def test_default_skips_apply_by_kind(model: Model) -> None:
    """Embeddings and norms stay float at INT4, as those of a model do."""
    report = mq.quantize(model.state_dict(), accuracy_warning="ignore").report
    reasons = {record.layer: record.reason for record in report.by_action(mq.Action.SKIP)}
    assert reasons["embeddings"] == "type is Embedding"
    assert reasons["norm"] == "type is LayerNorm"


def test_every_parameter_is_in_the_report_once(model: Model) -> None:
    """Floats that are no running statistics count as parameters."""
    report = mq.quantize(model.state_dict(), bits=8).report
    assert sum(record.parameters for record in report.layers) == sum(one.numel() for one in model.parameters())
    before = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert report.original_bytes == before


def test_experts_get_a_scale_for_each_output(model: Model) -> None:
    """A stack of matrices is not flattened into one row for each expert."""
    result = mq.quantize(model.state_dict(), bits=8)
    assert result.model.get_buffer("packed_experts.scale").shape == (3 * 64, 1)


def test_the_state_dict_is_left_alone_and_comes_out_packed(model: Model) -> None:
    """What is not packed comes out as it went in."""
    state = model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    out = mq.quantize(state, bits=8).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert "head.weight" not in out
    assert out["head.packed_weight.qweight"].dtype == torch.int8
    assert torch.equal(out["head.bias"], before["head.bias"])
    assert torch.equal(out["bn.running_mean"], before["bn.running_mean"])


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth", ".bin"])
def test_files_are_read_without_a_class(model: Model, tmp_path: Path, ending: str) -> None:
    """The same result as of the state dict."""
    path = tmp_path / f"weights{ending}"
    if ending == ".safetensors":
        write_container(path, model.state_dict(), {})
    else:
        torch.save(model.state_dict(), path)
    expected = mq.quantize(model.state_dict(), bits=8).model.state_dict()
    for given in (path, str(path)):
        found = mq.quantize(given, bits=8).model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_tied_tensors_stay_one(tmp_path: Path) -> None:
    """One packed copy, one decision, also after loading."""
    table = torch.randn(50, 32)
    state = {"embed.weight": table, "lm_head.weight": table}
    result = mq.quantize(state, bits=8)
    assert result.report.quantized_bytes < table.numel() * 1.2
    mq.save(result, tmp_path / "tied.safetensors")
    model = nn.ModuleDict({"embed": nn.Embedding(50, 32), "lm_head": nn.Linear(32, 50, bias=False)})
    model["lm_head"].weight = model["embed"].weight
    loaded = mq.load(tmp_path / "tied.safetensors", model)
    assert loaded["embed"].packed_weight is loaded["lm_head"].packed_weight


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_weights_behind_a_weight_norm_are_packed_where_they_are(tmp_path: Path) -> None:
    """A state dict does not say that weight_g and weight_v make a weight; the module goes on computing it."""
    float_model = nn.utils.weight_norm(nn.Linear(32, 16))
    mq.save(mq.quantize(float_model.state_dict(), bits=8), tmp_path / "normed.safetensors")
    loaded = mq.load(tmp_path / "normed.safetensors", nn.utils.weight_norm(nn.Linear(32, 16)))
    x = torch.randn(3, 32)
    assert torch.allclose(loaded(x), float_model(x), atol=0.05)
    assert loaded.packed_weights().keys() == {"weight_v"}


def test_a_prefix_that_is_also_a_tensor_is_refused() -> None:
    """No module can have both under one name."""
    with pytest.raises(mq.InputError, match=r"of these names: 'a\.b'; rename them"):
        mq.quantize({"a": torch.zeros(2, 2), "a.b": torch.zeros(2, 2)})


@pytest.mark.parametrize("name", ["forward", "a..b", "training.weight", "a.", ""])
def test_names_that_no_module_can_hold_are_refused(name: str) -> None:
    """Before any work, with all of them named."""
    with pytest.raises(mq.InputError, match="no module can hold tensors of these names"):
        hold({"fine.weight": torch.zeros(2, 2), name: torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({}, "the state dict is empty"),
        ({"model": {"weight": torch.zeros(2, 2)}}, r"one level deeper: 'model'.*quantize\(state\['model'\]\)"),
        ({"weight": torch.zeros(2, 2), "step": 3}, "these do not: 'step'"),
        ({3: torch.zeros(2, 2)}, "these do not: '3'"),
    ],
)
def test_other_mappings_are_refused(state: Any, text: str) -> None:
    """Each with what to give instead."""
    with pytest.raises(mq.InputError, match=text):
        mq.quantize(state)


def test_calibration_data_needs_a_module(model: Model) -> None:
    """A state dict cannot be run."""
    with pytest.raises(mq.ConfigError, match="a state dict has none"):
        mq.quantize(model.state_dict(), calibration_data=[TOKENS])


def test_an_ordered_dict_keeps_its_order() -> None:
    """As far as modules do: by module, then by name within."""
    names = ["b.weight", "a.weight", "b.bias"]
    held = hold(OrderedDict((name, torch.zeros(2, 2)) for name in names))
    assert list(held.state_dict()) == ["b.weight", "b.bias", "a.weight"]
    assert isinstance(held, TensorHolder)


def test_a_packed_state_dict_is_refused(model: Model, tmp_path: Path) -> None:
    """Its codes and scales are no weights, though some look like them."""
    result = mq.quantize(model.state_dict(), accuracy_warning="ignore")
    with pytest.raises(mq.InputError, match=r"already quantized: 'rnn.packed_weight_ih_l0'.*give the file to load\(\)"):
        mq.quantize(result.model.state_dict())
    mq.save(result, tmp_path / "packed.safetensors")
    with pytest.raises(mq.FileError, match=r"packed\.safetensors: written by monoquant\.save"):
        mq.quantize(tmp_path / "packed.safetensors")


def test_comparing_needs_a_module(model: Model) -> None:
    """Before anything is packed, and whatever the comparison is."""
    for compare in ([torch.ones(2, 3)], mq.Comparison([torch.ones(2, 3)])):
        with pytest.raises(mq.ConfigError, match="compare runs a model, and a state dict has none: give the module"):
            mq.quantize(model.state_dict(), compare=compare)


def test_how_a_module_runs_is_no_question_for_a_state_dict(model: Model) -> None:
    """Integer products need the module."""
    with pytest.raises(mq.ConfigError, match="activations='dynamic' is about how a module runs"):
        mq.quantize(model.state_dict(), bits=8, activations="dynamic")


def test_a_state_dict_that_is_called_says_what_to_do(model: Model) -> None:
    """Rather than that some method is missing."""
    with pytest.raises(mq.InputError, match=r"load\(\) it into a model of its architecture"):
        mq.quantize(model.state_dict(), bits=8).model(TOKENS)


def test_a_pipeline_takes_a_state_dict(model: Model) -> None:
    """Planned dry and run, with rules by name and by the kinds that names stand for."""
    rules = mq.SkipSelectionPass(mq.TypeRule(nn.Embedding) | mq.NameRule("head"))
    quantizer = mq.Quantizer([rules, mq.Int8PackPass(), mq.ValidationPass()])
    planned = quantizer.plan(model.state_dict())
    result = quantizer.run(model.state_dict())
    assert [decision.action for decision in planned] == [record.action for record in result.report.layers]
    assert {record.layer for record in result.report.by_action(mq.Action.SKIP)} == {"embeddings", "head"}
