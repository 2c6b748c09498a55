"""The specimens that users get: repeatable, Gaussian, and what they say of themselves is so."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.testing.zoo import Specimen, make_gaussian, specimen, specimens

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

each = pytest.mark.parametrize("one", specimens(), ids=str)


def equal(first: Any, second: Any) -> bool:
    """Whether two values hold equal tensors in the same places."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(value, second[key]) for key, value in first.items())
    return all(equal(*pair) for pair in zip(first, second, strict=True))


def test_there_are_enough_of_them_and_their_names_differ() -> None:
    """Each is found by its name."""
    names = [str(one) for one in specimens()]
    assert len(set(names)) == len(names) >= 40
    assert [specimen(name).name for name in names] == names
    with pytest.raises(mq.ConfigError, match=r"'Lineal'.*'Linear'"):
        specimen("Lineal")


@each
def test_building_is_repeatable_and_leaves_the_random_state_alone(one: Specimen) -> None:
    """The seed decides, and nothing else does; two modules share no tensor."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = one.build()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal(one.build().state_dict(), model.state_dict())
    assert not equal(one.build(1).state_dict(), model.state_dict())
    assert not any(module.training for module in model.modules())
    pointers = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert pointers.isdisjoint(tensor.data_ptr() for tensor in one.build().state_dict().values())


@each
def test_inputs_are_repeatable_and_go_in(one: Specimen) -> None:
    """The seed decides; the module answers to them with finite values, the same each time."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert equal(one.inputs(), one.inputs())
    assert not equal(one.inputs(1), one.inputs())
    with torch.no_grad():
        answer = one.build()(*one.inputs())
        assert equal(one.build()(*one.inputs()), answer)
    assert torch.equal(torch.get_rng_state(), before)
    answer = answer[0] if isinstance(answer, tuple) else answer
    assert torch.isfinite(answer).all()
    assert answer.std() > 1e-3


@each
def test_the_default_device_changes_nothing_in_inputs(one: Specimen) -> None:
    """They are drawn on the CPU, for whoever moves them later."""
    with torch.device("meta"):
        inputs = one.inputs()
    assert equal(inputs, one.inputs())


@each
def test_what_is_said_to_be_packed_or_unsupported_is_all_there_is(one: Specimen) -> None:
    """The names are those of weights, and each module that owns parameters is mentioned."""
    model = one.build()
    modules = dict(model.named_modules())
    assert not one.packed.keys() & one.unsupported.keys()
    assert set(one.in_integers) <= one.packed.keys()
    owners = {name for name, module in modules.items() if module._parameters and "parametrizations" not in name}
    owners |= {name for name, module in modules.items() if nn.utils.parametrize.is_parametrized(module)}
    assert one.packed.keys() | one.unsupported.keys() == owners
    for layer, names in one.packed.items():
        for name in names:
            assert isinstance(getattr(modules[layer], name), Tensor)


@each
def test_weights_are_gaussian(one: Specimen) -> None:
    """A uniform distribution has a kurtosis of 1.8, a Gaussian one of 3."""
    model = one.build()
    with torch.no_grad():
        model(*one.inputs())  # hooks leave the weight that they compute in the attribute
        names = [(layer, name) for layer, weights in one.packed.items() for name in weights]
        weights = [getattr(model.get_submodule(layer), name) for layer, name in names]
        values = torch.cat([(weight / weight.std()).flatten() for weight in weights])
        kurtosis = (values - values.mean()).pow(4).mean() / values.var().square()
    assert 2.5 < kurtosis < 3.8
    assert all(parameter.any() for name, parameter in model.named_parameters() if "bias" in name)


def test_make_gaussian_keeps_what_stands_for_padding() -> None:
    """Rows of padding stay zero, weights of norms near one."""
    model = nn.Sequential(nn.Embedding(9, 64, padding_idx=4), nn.LayerNorm(64), nn.Linear(64, 64))
    make_gaussian(model)
    assert not model[0].weight[4].any()
    assert model[0].weight.any(1).sum() == 8
    assert 0.9 < model[1].weight.mean() < 1.1
    assert 0.08 < model[2].weight.std() < 0.12
    assert model[2].bias.std() > 0.05


@pytest.mark.filterwarnings("error")
def test_reparametrizing_is_quiet_and_leaves_a_stale_weight() -> None:
    """No deprecation is told; what the old hooks left in the attribute is not what the next forward computes."""
    for name in ("weight_norm", "spectral_norm", "pruned Linear"):
        one = specimen(name)
        assert one.is_reparametrized
        model = one.build()
        stale = model.weight.detach().clone()
        model(*one.inputs())
        assert not torch.equal(model.weight, stale), name
    assert not specimen("Linear").is_reparametrized


def test_transformers_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it there is one specimen less; with it there is one more, and it is not imported to know."""
    real = importlib.util.find_spec
    everything = {one.name for one in specimens()}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else real(name))
    less = {one.name for one in specimens()}
    assert everything - less == ({"transformers Conv1D"} if real("transformers") else set())
    code = "import sys; from monoquant.testing.zoo import specimens; specimens(); print(*sys.modules)"
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert {"transformers", "hypothesis", "pytest"}.isdisjoint(told.stdout.split())
