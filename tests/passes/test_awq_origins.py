"""Whose inputs are whose: factors are moved only where every reader, on every path that can be known, has them."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import monoquant as mq
from monoquant.folding import Folder
from tests.passes.folded import WIDTH, AnyFactors, assert_same_function, context_of, data, moved, reasons


@attrs.frozen
class Weighing(AnyFactors):
    """Goes backward through the model, as gptq does."""

    weighs_rows: ClassVar[bool] = True


@pytest.fixture(autouse=True)
def no_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors are taken although they make the codes worse, so that moving them is seen."""
    monkeypatch.setattr(Folder, "_worse", lambda *_: "")


class Block(nn.Module):
    """Parts for forwards of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.linear, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.calls, self.before = 0, torch.zeros(())
        for norm in (self.norm, self.other):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)

    def both(self, x: Tensor) -> Tensor:
        """What uses all parameters, so that none is unreached."""
        return torch.tanh(self.second(torch.sin(self.other(x))))


class TwoNorms(Block):
    """One Linear behind two norms, as in transformers that share a block."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(self.norm(x))) + torch.tanh(self.linear(self.other(2 * x))) + self.both(x)


class NormsInTurn(Block):
    """The same, one norm per call of the model."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.linear((self.norm if self.calls % 2 else self.other)(x))) + self.both(x)


class ResidualInProduct(Block):
    """The norm's output is multiplied and added in one operation."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).reshape(-1, WIDTH)
        return torch.tanh(torch.addmm(y, y, self.linear.weight.t())) + self.both(x).reshape(-1, WIDTH)


class ByItself(Block):
    """An operation with the same operand twice, linear in the first only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return torch.tanh(self.linear(torch.div(y, y))) + self.both(x)


class Squared(Block):
    """A parameter times itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x * (self.norm.weight * self.norm.weight))) + self.both(x)


class Kept(Block):
    """A call reads what an earlier one has computed."""

    def forward(self, x: Tensor) -> Tensor:
        y, before = self.norm(x), self.before
        self.before = y.detach()
        return torch.tanh(self.linear(y)) + before.mean() + self.both(x)


class Listed(Block):
    """The norm's parameters are also in a list, from where they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.both_of_norm: list[Any] = [self.norm.weight, {"bias": self.norm.bias}]
        self.both_of_norm.append(self.both_of_norm)

    def forward(self, x: Tensor) -> Tensor:
        weight, rest, _ = self.both_of_norm
        return torch.tanh(self.linear(functional.layer_norm(x, (WIDTH,), weight, rest["bias"]))) + self.both(x)


REASONS = {
    TwoNorms: "their weights are also given inputs that are computed elsewhere",
    NormsInTurn: "their weights are also given inputs that are computed elsewhere",
    ResidualInProduct: "aten.addmm reads their inputs as well",
    ByItself: "aten.div reads their inputs as well",
    Squared: "no norm and no Linear with parameters of its own computes their inputs",
    Listed: "the parameters that compute their inputs are shared",
    Kept: "a later call reads their inputs as well",
}


@pytest.mark.parametrize("algorithm", [AnyFactors(), Weighing()], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", REASONS)
def test_readers_and_sources_that_are_easily_missed(kind: type[Block], algorithm: AnyFactors) -> None:
    """Each keeps the factors away, and is told."""
    context = context_of(kind(), data(7, WIDTH), algorithm=algorithm)
    assert "linear" not in moved(context)
    assert any(REASONS[kind] in reason and "'linear'" in reason for reason in reasons(context))


class SumTwice(Block):
    """The norm's bias is added in two places."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.norm.weight
        return torch.tanh(self.linear(y + self.norm.bias) + self.linear(y + self.norm.bias)) + self.both(x)


class BothWays(Block):
    """A weight both scales and shifts."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x * self.norm.weight + self.norm.weight)) + self.both(x)


@pytest.mark.parametrize("kind", [SumTwice, BothWays])
def test_parameters_that_take_part_twice_are_divided_once(kind: type[Block]) -> None:
    """Or the function would change."""
    model = kind()
    context = context_of(model, data(7, WIDTH))
    assert "linear" in moved(context)
    assert_same_function(model, context, data(7, WIDTH, seed=5)[0])


class Experts(Block):
    """All experts read the norm's output, and which of them run depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        found = torch.tanh(self.linear(y))
        return found + torch.tanh(self.second(y)) if float(x.mean()) > 10 else found


@pytest.mark.parametrize("float_one", [False, True])
def test_expert_that_calibration_never_reached(float_one: bool) -> None:
    """It may read what was divided, whether it is packed or not."""
    model = Experts()
    rules = [mq.NameRule("second")] if float_one else []
    context = context_of(model, data(7, WIDTH), *rules)
    assert not moved(context)
    assert any(
        "calibration never reached 'second', which may read their inputs as well: 'linear'" in reason
        for reason in reasons(context)
    )
    reached = context_of(model, [batch + 20 for batch in data(7, WIDTH)])
    assert moved(reached) == {"linear", "second"}


class Model(nn.Module):
    """Experts of which one never ran, beside a head that never ran either, and a block that is complete."""

    def __init__(self) -> None:
        super().__init__()
        self.complete, self.experts, self.head = TwoReaders(), Experts(), nn.Linear(WIDTH, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(self.complete(x))


class TwoReaders(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return torch.tanh(self.linear(y)) + torch.tanh(self.second(y))


def test_what_did_not_leave_a_module_is_not_read_outside() -> None:
    """A head that calibration did without concerns nobody inside a block, an expert those in its own."""
    model = Model()
    context = context_of(model, data(7, WIDTH))
    assert moved(context) == {"complete.linear", "complete.second"}
    assert any(
        "never reached 'experts.second', which may read their inputs as well: 'experts.linear'" in reason
        for reason in reasons(context)
    )
    assert_same_function(model, context, data(7, WIDTH, seed=5)[0] + 20)


class FailsUnderGradients(Block):
    """Half of its forward runs where gradients are on."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        found = self.linear(y)
        if torch.is_grad_enabled():
            raise RuntimeError("no gradients")
        return torch.tanh(found + self.second(y))


def test_run_that_failed_under_gradients_counts_for_nothing() -> None:
    """Its readers are not those of a whole call."""
    model = FailsUnderGradients()
    context = context_of(model, data(7, WIDTH), algorithm=Weighing())
    assert "rows-not-weighed" in {finding.code for finding in context.findings}
    assert moved(context) == {"linear", "second"}
    assert_same_function(model, context, data(7, WIDTH, seed=5)[0])
