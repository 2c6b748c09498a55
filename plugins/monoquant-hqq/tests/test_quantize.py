"""The plugin at work: models quantized by callers who installed it and name the algorithm."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import monoquant as mq
import pytest
import torch
from torch import nn

from monoquant_hqq import Hqq

ORIGIN = mq.Origin("monoquant-hqq", version("monoquant-hqq"))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Two Linears with heavy-tailed weights, one of them with a ragged last group."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(200, 96), nn.ReLU(), nn.Linear(96, 64)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.02 * torch.randn_like(parameter) ** 3)
    return model


def norm(quantized: nn.Module, model: nn.Module) -> float:
    errors = [quantized[index].weight - model[index].weight for index in (0, 2)]
    return float(sum(error.detach().double().abs().pow(0.7).sum() for error in errors))


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"group_size": 32}, {"group_size": None}])
def test_callers_choose_it_by_name(model: nn.Module, options: dict[str, object]) -> None:
    """The report says who chose the codes, and the model is nearer to the float one than rounded to nearest."""
    result = mq.quantize(model, algorithm="hqq", accuracy_warning="ignore", **options)
    nearest = mq.quantize(model, accuracy_warning="ignore", **options)
    assert {record.algorithm for record in result.report.layers} == {"hqq"}
    assert {record.algorithm for record in nearest.report.layers} == {"round_to_nearest"}
    assert (ORIGIN.name, ORIGIN.version) in result.report.versions
    assert norm(result.model, model) < 0.98 * norm(nearest.model, model)


def test_callers_may_give_settings(model: nn.Module) -> None:
    """An instance needs no registration, and its settings count."""
    results = [
        mq.quantize(model, algorithm=Hqq(iterations=n), plugins=False, accuracy_warning="ignore") for n in (1, 100)
    ]
    assert norm(results[1].model, model) < norm(results[0].model, model)


def test_files_keep_the_codes(model: nn.Module, tmp_path: Path) -> None:
    """What is loaded computes what was saved, also where the plugin is not installed."""
    result = mq.quantize(model, algorithm="hqq", accuracy_warning="ignore")
    mq.save(result, tmp_path / "model.safetensors")
    loaded = mq.load(tmp_path / "model.safetensors", model, plugins=False)
    assert torch.equal(loaded[2].weight, result.model[2].weight)


def test_without_the_plugin_the_name_is_refused(model: nn.Module) -> None:
    """The error says what there is instead."""
    with pytest.raises(mq.ConfigError, match="algorithm='hqq': give one of 'round_to_nearest'"):
        mq.quantize(model, algorithm="hqq", plugins=False)


def test_it_is_listed_with_its_version() -> None:
    """The plugin manager finds it through the entry point, and it brings nothing else."""
    (info,) = [info for info in mq.list_plugins() if info.origin == ORIGIN]
    assert (info.status, info.hooks) == ("active", ("monoquant_register_algorithms",))
    registry = mq.PluginManager().registry(mq.Scheme())
    assert mq.Registered(Hqq(), ORIGIN) in registry.algorithms
