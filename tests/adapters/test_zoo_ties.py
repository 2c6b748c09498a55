"""An embedding and the head that has its weight: one packed copy, one decision, whatever becomes of the model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.testing.zoo import specimen

Outputs = Callable[[nn.Module, tuple[Any, ...]], list[Tensor]]

TIED = specimen("tied head")


@pytest.fixture
def result(precision: str, result_of: Callable[[str, str], mq.QuantResult]) -> mq.QuantResult:
    """The tied model in each precision; not to be changed."""
    return result_of(TIED.name, precision)


def is_tied(model: nn.Module) -> bool:
    """Whether embedding and head have one packed weight, or one float weight."""
    if isinstance(model.embed, mq.PackedModule):
        return model.embed.packed_weight is model.head.packed_weight
    return model.embed.weight is model.head.weight


def test_they_share_one_packed_copy_under_one_decision(precision: str, result: mq.QuantResult) -> None:
    """Its bytes are counted and kept once; the embedding has no integer product, but the same storage."""
    assert is_tied(result.model)
    assert result.model.embed.packed_weight is not result.model.middle.packed_weight
    records = {record.layer: record for record in result.report.layers}
    embed, head = records["embed"], records["head"]
    assert embed.action is head.action is mq.Action.QUANTIZE
    assert embed.scheme.storage == head.scheme.storage
    assert embed.weight_sqnr_db == head.weight_sqnr_db
    assert torch.equal(result.model.embed.weight, result.model.head.weight)
    state = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in result.model.state_dict().values()}
    assert result.report.quantized_bytes == sum(state.values())


def test_the_tie_survives_copies_moves_and_pickles(result: mq.QuantResult) -> None:
    """Deep copies, pickles and casts keep one weight for both."""
    assert is_tied(copy.deepcopy(result.model))
    assert is_tied(pickle.loads(pickle.dumps(result.model)))
    moved = copy.deepcopy(result.model).bfloat16()
    assert is_tied(moved)
    assert moved.embed.weight.dtype == torch.bfloat16
    assert torch.equal(moved.embed.weight, result.model.embed.weight.bfloat16())


def test_the_tie_survives_a_file(result: mq.QuantResult, outputs: Outputs, tmp_path: Path) -> None:
    """The file holds one copy, and the loaded model has one."""
    mq.save(result, tmp_path / "tied.safetensors")
    loaded = mq.load(tmp_path / "tied.safetensors", TIED.build(99))
    assert is_tied(loaded)
    assert torch.equal(*outputs(loaded, TIED.inputs()), *outputs(result.model, TIED.inputs()))
    untied = TIED.build(99)
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    assert is_tied(mq.load(tmp_path / "tied.safetensors", untied)), "what is one in the file is one in the model"
    assert is_tied(mq.dequantize(loaded))


@pytest.mark.parametrize("inplace", [False, True])
def test_the_tie_survives_dequantizing(result: mq.QuantResult, inplace: bool) -> None:
    """Both get one Parameter, and training one trains the other."""
    model = copy.deepcopy(result.model)
    floating = mq.dequantize(model, inplace=inplace)
    assert (floating is model) == inplace
    assert is_tied(floating)
    assert isinstance(floating.embed.weight, nn.Parameter)
    assert [name for name, _ in floating.named_parameters()] == [name for name, _ in TIED.build().named_parameters()]


@pytest.mark.parametrize("skipped", [{"skip_layer_names": ["head"]}, {"skip_layer_types": [nn.Embedding]}])
def test_they_are_kept_in_float_together(precision: str, skipped: dict[str, Any]) -> None:
    """A rule for one of them holds for the other, which says so."""
    bits = {"int4": {"bits": 4}, "float16": {"bits": 16}}.get(precision, {"bits": 8})
    activations = precision.partition("-")[2] or None
    options = {"skip_layer_types": [], "modules_to_not_convert": [], "skip_param_threshold": 0, **skipped}
    result = mq.quantize(
        TIED.build(),
        **bits,
        activations=activations,
        calibration_data=[TIED.inputs()],
        accuracy_warning="ignore",
        plugins=False,
        **options,
    )
    assert is_tied(result.model)
    records = {record.layer: record for record in result.report.layers}
    assert records["embed"].action is records["head"].action is mq.Action.SKIP
    assert records["middle"].action is mq.Action.QUANTIZE
    assert sum("tied to" in record.reason for record in records.values()) == 1


@pytest.mark.parametrize("to", ["int8", "bfloat16"])
def test_they_are_reduced_less_together(to: str) -> None:
    """Where a rule sends one to another precision, the other goes along, to the same packed copy."""
    result = mq.quantize(
        TIED.build(), 4, skip_layer_types=[nn.Embedding], skip_to=to, accuracy_warning="ignore", plugins=False
    )
    assert is_tied(result.model)
    records = {record.layer: record for record in result.report.layers}
    assert records["embed"].scheme == records["head"].scheme != records["middle"].scheme
    assert records["head"].scheme.target == to
