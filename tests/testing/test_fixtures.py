"""The fixtures that users get, and the state of a model that they compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from monoquant.testing import ModelState, assert_unchanged, zoo
from monoquant.testing.fixtures import small_batches, small_model, specimen, unchanged
from monoquant.testing.unchanged import torch_settings, untouched
from monoquant.testing.zoo import Specimen

__all__ = ["small_batches", "small_model", "specimen", "unchanged"]  # fixtures are found where they are imported


def test_the_small_model_takes_its_batches(small_model: nn.Module, small_batches: list[torch.Tensor]) -> None:
    """Logits of 50 tokens; one block is in eval mode, the rest is not; a new model each time."""
    assert [tuple(small_model(batch).shape) for batch in small_batches] == [(12, 50)] * 10
    assert {small_model.blocks[0].training, small_model.blocks[1].training} == {True, False}
    assert zoo.small_model() is not small_model
    assert torch.equal(zoo.small_model().lm_head.weight, small_model.lm_head.weight)
    assert not torch.equal(zoo.small_model(1).lm_head.weight, small_model.lm_head.weight)


def test_the_small_model_leaves_the_random_state_alone() -> None:
    """Building models does not change what a test draws."""
    before = torch_settings()
    zoo.small_model()
    zoo.small_batches()
    assert torch_settings() == before


def test_every_specimen_comes_by(specimen: Specimen) -> None:
    """A test that takes the fixture runs for each kind of module."""
    assert specimen.name in {one.name for one in zoo.specimens()}


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "values of lm_head.weight": lambda model: model.lm_head.weight.data[0, 0].add_(1),
    "values of embed.weight": lambda model: setattr(model.embed.weight, "data", model.embed.weight.data.half()),
    "values of bn.num_batches_tracked": lambda model: model.bn.num_batches_tracked.add_(1),
    "tensor object of embed.weight": lambda model: setattr(
        model.embed, "weight", nn.Parameter(model.embed.weight.data)
    ),
    "class of lm_head": lambda model: setattr(model.lm_head, "__class__", type("Other", (nn.Linear,), {})),
    "identity of blocks.0": lambda model: model.blocks.__setitem__(0, type(model.blocks[1])()),
    "training flag of (root)": lambda model: setattr(model, "training", False),
    "hooks of blocks.1": lambda model: model.blocks[1].register_forward_hook(lambda *_: None),
    "attributes of (root)": lambda model: setattr(model, "cache", 1),
    "requires_grad of lm_head.bias": lambda model: model.lm_head.bias.requires_grad_(False),
    "gradient of lm_head.bias": lambda model: setattr(model.lm_head.bias, "grad", torch.ones(50)),
    "class of new": lambda model: model.add_module("new", nn.Linear(2, 2)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_found_and_named(change: str, small_model: nn.Module, unchanged: Any) -> None:
    """Values bit for bit, objects, classes, flags, hooks, attributes, gradients."""
    check, state = unchanged(small_model), ModelState.of(small_model)
    check()
    assert state.differences(small_model) == []
    CHANGES[change](small_model)
    assert change in state.differences(small_model)
    with pytest.raises(AssertionError, match="the model was changed: "):
        check()
    with pytest.raises(AssertionError, match="the model was changed: "):
        assert_unchanged(small_model, state)


def test_nan_and_meta_are_the_same_as_themselves() -> None:
    """Weights are compared as bits, and those without values by what they are."""
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, torch.nan)
    for one in (model, nn.Linear(2, 2, device="meta")):
        assert ModelState.of(one).differences(one) == []


def test_untouched_also_looks_after_an_exception() -> None:
    """The change is told, and the exception is its cause."""
    model = nn.Linear(2, 2)

    def spoil() -> None:
        with untouched(model):
            model.bias.data.add_(1)
            raise KeyError

    with pytest.raises(AssertionError, match="values of bias") as failure:
        spoil()
    assert isinstance(failure.value.__context__, KeyError)
    with pytest.raises(KeyError), untouched(model):
        raise KeyError
