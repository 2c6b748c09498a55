"""Biases and orders of rows are known of modules that compute as torch's own classes do, and of no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.adapters.attention import AttentionAdapter
from monoquant.adapters.base import ModuleAdapter, torch_class
from monoquant.adapters.convolution import ConvolutionAdapter
from monoquant.adapters.linear import LinearAdapter, TransposedLinearAdapter
from monoquant.adapters.recurrent import RecurrentAdapter
from monoquant.algorithms.gptq import Gptq

FEATURES = 64


class Conv1D(nn.Module):
    """As ``transformers.pytorch_utils.Conv1D``."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(FEATURES, 48)), nn.Parameter(torch.zeros(48))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


KINDS: dict[str, tuple[ModuleAdapter, Callable[..., nn.Module], type[nn.Module], tuple[Any, ...], str, str]] = {
    "Linear": (LinearAdapter(), nn.Linear, nn.Linear, (FEATURES, 48), "weight", "bias"),
    "Conv1d": (ConvolutionAdapter(), nn.Conv1d, nn.Conv1d, (16, 24, 4), "weight", "bias"),
    "ConvTranspose2d": (ConvolutionAdapter(), nn.ConvTranspose2d, nn.ConvTranspose2d, (16, 24, 4), "weight", "bias"),
    "LSTM": (RecurrentAdapter(), nn.LSTM, nn.LSTM, (FEATURES, 32), "weight_hh_l0", "bias_hh_l0"),
    "GRUCell": (RecurrentAdapter(), nn.GRUCell, nn.GRUCell, (FEATURES, 32), "weight_ih", "bias_ih"),
    "attention": (
        AttentionAdapter(),
        nn.MultiheadAttention,
        nn.MultiheadAttention,
        (FEATURES, 4),
        "in_proj_weight",
        "in_proj_bias",
    ),
    "Conv1D": (TransposedLinearAdapter(), Conv1D, Conv1D, (), "weight", "bias"),
}
each = pytest.mark.parametrize("kind", KINDS)


@each
def test_the_bias_of_a_known_class_is_its_own(kind: str) -> None:
    """And that of a subclass which computes the same."""
    adapter, make, known, sizes, weight, bias = KINDS[kind]
    quiet = type("Quiet", (known,), {"remark": "computes the same"})
    for module in (make(*sizes), quiet(*sizes)):
        assert adapter.bias_of(module, weight) == bias
        assert adapter.row_order(module) == (None if isinstance(adapter, ConvolutionAdapter) else "kept")


@each
@pytest.mark.parametrize("own", ["of the class", "of a class above", "of the instance", "called"])
def test_who_computes_otherwise_may_add_it_otherwise(kind: str, own: str) -> None:
    """A forward of one's own may scale the product, leave the bias out, or take rows in another order."""
    adapter, _, known, sizes, weight, _ = KINDS[kind]

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return known.forward(self, *args, **kwargs)

    kind_ = type("Own", (known,), {"__call__" if own == "called" else "forward": forward})
    if own == "of a class above":
        kind_ = type("Derived", (kind_,), {})
    module = known(*sizes) if own == "of the instance" else kind_(*sizes)
    if own == "of the instance":
        module.forward = forward.__get__(module)
    assert adapter.bias_of(module, weight) is None
    assert adapter.row_order(module) is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Conv1D"])
def test_without_a_parameter_there_is_no_bias(kind: str) -> None:
    """Neither where there is none, nor where something computes it."""
    adapter, make, _, sizes, weight, bias = KINDS[kind]
    assert adapter.bias_of(make(*sizes, bias=False), weight) is None
    computed = make(*sizes)
    nn.utils.parametrize.register_parametrization(computed, bias, nn.Tanh())
    assert adapter.bias_of(computed, weight) is None


def test_weights_that_no_bias_belongs_to_have_none() -> None:
    """Of separate projections torch adds parts of one bias."""
    apart = nn.MultiheadAttention(FEATURES, 4, kdim=32, vdim=32)
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        assert AttentionAdapter().bias_of(apart, name) is None


def test_the_class_of_torch_is_the_nearest_one() -> None:
    """Whatever is derived from it, mixed into it, or stands above it."""

    class Mixin(nn.Module):
        pass

    class Mine(Mixin, nn.Conv2d):
        pass

    for kind in (nn.Conv2d, nn.LSTM, nn.RNNCell):
        assert torch_class(kind(4, 4, 1)) is kind
    assert torch_class(Mine(4, 4, 1)) is nn.Conv2d


def rows(count: int, features: int = FEATURES) -> Tensor:
    """Rows with a mean, so that rounding shifts what they are multiplied to."""
    return torch.randn(count, features, generator=torch.Generator().manual_seed(0)) + 1.0


def corrected(model: nn.Module, batch: Tensor) -> Iterator[str]:
    """Names of the parameters that a run of GPTQ has changed."""
    torch.manual_seed(0)
    pack = mq.Int4PackPass(32, algorithm=Gptq(weigh_rows=False))
    result = mq.Quantizer([mq.SkipSelectionPass(), mq.CalibrationPass([batch]), pack]).run(model.eval()).model
    for name, parameter in model.named_parameters():
        if "bias" in name and not torch.equal(result.get_parameter(name), parameter):
            yield name


@pytest.mark.parametrize(
    ("base", "sizes", "shape"),
    [(nn.Linear, (FEATURES, 48), (FEATURES,)), (nn.Conv1d, (16, 24, 4), (16, 4)), (nn.Conv2d, (16, 24, 2), (16, 2, 2))],
)
def test_only_a_forward_that_is_known_is_corrected(
    base: type[nn.Module], sizes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    """The same weights, the same data, and a forward that says nothing of what it does."""

    class Own(base):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    batch = rows(100).view(100, *shape)
    plain, own = base(*sizes), Own(*sizes)
    own.load_state_dict(plain.state_dict())
    assert list(corrected(nn.Sequential(plain), batch)) == ["0.bias"]
    assert list(corrected(nn.Sequential(own), batch)) == []


class Tied(nn.Module):
    """Two layers with one weight, of which the second one, named first, multiplies it."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.second, self.first, self.last = nn.Linear(FEATURES, FEATURES), first, nn.Linear(FEATURES, 32)
        self.first.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)).tanh())


def test_a_weight_that_is_tied_to_a_product_has_no_bias_to_correct() -> None:
    """Nobody knows whose inputs were seen; other layers have theirs."""
    assert list(corrected(Tied(nn.Linear(FEATURES, FEATURES)), rows(100))) == ["last.bias"]


def test_a_weight_that_is_tied_to_an_embedding_has() -> None:
    """Rows that are looked up are no inputs, so that all that were seen are the head's."""
    tokens = torch.randint(0, FEATURES, (60, 5), generator=torch.Generator().manual_seed(0))
    assert list(corrected(Tied(nn.Embedding(FEATURES, FEATURES)), tokens)) == ["second.bias", "last.bias"]


@pytest.mark.parametrize("share", ["object", "memory", "nothing"])
def test_a_bias_that_others_hold_is_not_corrected(share: str) -> None:
    """As one object, or as several over the same memory, one of them in a module that is not packed."""
    model = nn.Sequential(nn.Linear(FEATURES, 48), nn.LayerNorm(48), nn.Linear(48, 48))
    if share == "object":
        model[1].bias = model[0].bias
    elif share == "memory":
        model[1].bias = nn.Parameter(model[0].bias.detach())
    expected = ["2.bias"] if share != "nothing" else ["0.bias", "2.bias"]
    assert list(corrected(model, rows(100))) == expected


def test_parameters_without_strides_are_no_obstacle() -> None:
    """A sparse one lies nowhere that a bias could; torch copies none, so that this is in place."""
    model = nn.Sequential(nn.Linear(FEATURES, 48)).eval()
    model.register_parameter("sparse", nn.Parameter(torch.eye(4).to_sparse()))
    before = model[0].bias.detach().clone()
    steps = [mq.SkipSelectionPass(), mq.CalibrationPass([rows(100)]), mq.Int4PackPass(32, algorithm=Gptq())]
    mq.Quantizer(steps).run(model, inplace=True)
    assert not torch.equal(model[0].bias, before)
