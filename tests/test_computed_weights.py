"""Weights that hooks compute, in layers that are packed and in layers that are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import monoquant as mq


def pruned(layer: nn.Linear, name: str = "weight") -> nn.Linear:
    prune.l1_unstructured(layer, name, 0.3)
    return layer


HOOKED = {
    "pruned": pruned,
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "pruned bias": lambda layer: pruned(layer, "bias"),
}


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("hooked", HOOKED.values(), ids=HOOKED)
def test_layers_that_stay_float_do_not_keep_a_model_from_being_copied(hooked: object) -> None:
    """After a forward with gradients the weight that a hook left behind has a history, which deepcopy refuses."""
    model = nn.Sequential(hooked(nn.Linear(64, 64)), hooked(nn.Linear(64, 4))).eval()
    x = torch.randn(5, 64)
    expected = model(x)
    result = mq.quantize(model, bits=8, skip_layer_names=["1"])
    assert result.info.selected_layers == ["0"]
    assert (result.model(x) - expected).abs().max() < 0.05 * expected.abs().max()
    assert torch.equal(model.eval()(x), model(x))
    result.model(x).sum().backward()


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_the_copy_of_a_float_layer_still_computes_its_weight() -> None:
    """What was copied is only the last value; the next forward makes another."""
    model = nn.Sequential(nn.Linear(8, 8), weight_norm(nn.Linear(8, 8)))
    copied = mq.quantize(model, bits=8, skip_layer_names=["1"]).model
    with torch.no_grad():
        copied[1].weight_g.mul_(2)
    inner, x = model[1].bias, torch.randn(3, 8)
    assert torch.allclose(copied[1](x) - inner, 2 * (model[1](x) - inner), atol=1e-5)
