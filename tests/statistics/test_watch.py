"""ProductWatch: inputs of weights, whatever code multiplies them, against rows that the tests compute themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import monoquant as mq
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.statistics.watch import Block, ProductWatch, WatchedWeight
from tests.statistics.watching import FEATURES, Check, Collect, OneWeight, rows

WAYS: list[tuple[str, Callable[[Tensor, Tensor], Tensor]]] = [
    ("linear", functional.linear),
    ("linear with a bias", lambda x, w: functional.linear(x, w, torch.ones(48))),
    ("linear of three axes", lambda x, w: functional.linear(x.view(4, 10, FEATURES), w)),
    ("linear of one row", lambda x, w: torch.stack([functional.linear(row, w) for row in x])),
    ("matmul", lambda x, w: x @ w.T),
    ("matmul of three axes", lambda x, w: x.view(4, 10, FEATURES) @ w.T),
    ("weight first", lambda x, w: w @ x.T),
    ("vectors", lambda x, w: torch.stack([w @ row for row in x])),
    ("mv", lambda x, w: torch.stack([torch.mv(w, row) for row in x])),
    ("addmm", lambda x, w: torch.addmm(torch.zeros(48), x, w.t())),
    ("addmv", lambda x, w: torch.stack([torch.addmv(torch.zeros(48), w, row) for row in x])),
    ("baddbmm", lambda x, w: torch.baddbmm(torch.zeros(1, 1, 48), x[None], w.t()[None])),
    ("bmm", lambda x, w: torch.bmm(x.view(4, 10, FEATURES), w.t().expand(4, FEATURES, 48))),
    ("einsum", lambda x, w: torch.einsum("nk,ok->no", x, w)),
    ("einsum of three axes", lambda x, w: torch.einsum("ank,ok->ano", x.view(4, 10, FEATURES), w)),
    ("tensordot", lambda x, w: torch.tensordot(x, w, ([1], [1]))),
    ("in parts", lambda x, w: torch.cat([functional.linear(x, part) for part in w.chunk(3)], 1)),
    ("a view of it", lambda x, w: functional.linear(x, w.view(48, 8, 8).flatten(1))),
    ("detached", lambda x, w: functional.linear(x, w.detach())),
    ("data", lambda x, w: functional.linear(x, w.data)),
    ("in another dtype", lambda x, w: functional.linear(x.double(), w.double())),
    ("a clone", lambda x, w: functional.linear(x, w.clone())),
    ("without gradients", torch.no_grad()(functional.linear)),
    ("with gradients", torch.enable_grad()(functional.linear)),
]


@pytest.mark.parametrize("multiply", [way for _, way in WAYS], ids=[name for name, _ in WAYS])
@pytest.mark.parametrize("full", [True, False])
def test_a_weight_is_known_however_it_is_multiplied(
    collect: Collect, assert_moments: Check, multiply: Callable[[Tensor, Tensor], Tensor], full: bool
) -> None:
    """All rows of the weight have met all rows of the inputs."""
    x = rows()
    parts = collect(OneWeight(multiply), x, full=full)["", "matrix"]
    ends = [0, *(part.stop for part in parts)]
    assert [part.start for part in parts] == ends[:-1]
    assert ends[-1] == 48
    for part in parts:
        assert_moments(part, x)


def test_rows_that_take_no_part_are_in_none(collect: Collect, assert_moments: Check) -> None:
    """A forward that uses some rows of a weight teaches nothing of the others."""
    x = rows()
    [first, last] = collect(
        OneWeight(lambda x, w: functional.linear(x, w[:10]).sum() + functional.linear(2 * x, w[30:]).sum()), x
    )["", "matrix"]
    assert (first.start, first.stop, last.start, last.stop) == (0, 10, 30, 48)
    assert_moments(first, x)
    assert_moments(last, 2 * x)


@pytest.mark.parametrize(
    "multiply",
    [
        lambda x, w: functional.linear(x[:, :32], w[:, :32]),
        lambda x, w: functional.linear(x, w[::2]),
        lambda x, w: functional.linear(x, w.flip(0)),
        lambda x, w: functional.linear(x, w * 2),
        lambda x, w: x * w[:40],
        lambda x, w: functional.linear(x[:, :48], w.T),
    ],
    ids=["some columns", "every second row", "reversed", "scaled", "elementwise", "transposed"],
)
def test_what_is_not_a_product_with_its_rows_is_not_taken_for_one(
    collect: Collect, multiply: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Better to know nothing than something wrong."""
    assert list(collect(OneWeight(multiply), rows())["", "matrix"]) == []


def test_a_square_weight_is_not_mistaken_for_its_transpose(collect: Collect, assert_moments: Check) -> None:
    """Where both factors would fit, it is the rows of the matrix that tell."""
    x = rows()
    assert collect(OneWeight(lambda x, w: x @ w, FEATURES, FEATURES), x)["", "matrix"] == []
    [part] = collect(OneWeight(lambda x, w: x @ w.T, FEATURES, FEATURES), x)["", "matrix"]
    assert_moments(part, x)


def test_weights_that_meet_each_other_are_both_seen(collect: Collect, assert_moments: Check) -> None:
    """In a product of two weights, as of low-rank factors, each is the other's input."""

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.randn(48, 64)), nn.Parameter(torch.randn(40, 64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.up @ self.down.T)

    model = Factors()
    found = collect(model, rows(features=48))
    assert_moments(found["", "up"][0], model.down.detach())
    assert_moments(found["", "down"][0], model.up.detach())


def test_experts_meet_inputs_of_their_own(collect: Collect, assert_moments: Check) -> None:
    """Items of a stack, one by one or in a batched product; one that is never asked is in none."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(4, 48, FEATURES))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([functional.linear(x * (i + 1), self.up[i]) for i in (0, 1, 3)])

    class Batched(Experts):
        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(torch.stack([x, 2 * x, 3 * x, 4 * x]), self.up.transpose(1, 2))

    x = rows()
    parts = collect(Experts(), x)["", "up"]
    assert [(part.start, part.stop) for part in parts] == [(0, 48), (48, 96), (144, 192)]
    for part, factor in zip(parts, (1, 2, 4), strict=True):
        assert_moments(part, factor * x)
    parts = collect(Batched(), x)["", "up"]
    assert [part.start for part in parts] == [0, 48, 96, 144]
    for part, factor in zip(parts, (1, 2, 3, 4), strict=True):
        assert_moments(part, factor * x)


def test_autocast_copies_are_followed(collect: Collect, assert_moments: Check) -> None:
    """Weights that autocast copies to bfloat16, and keeps copies of, meet inputs in bfloat16."""
    x, y = rows(), rows(seed=1)
    model = nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, 32))

    def run(model: nn.Module, calls: Any) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for call in calls:
                model(call)

    found = collect(model, x, y, run=run)
    both = torch.cat([x, y]).bfloat16()
    assert_moments(found["0", "weight"][0], both)
    with torch.no_grad():
        hidden = torch.relu(functional.linear(both, model[0].weight.bfloat16(), model[0].bias.bfloat16()))
    assert_moments(found["2", "weight"][0], hidden)


def test_copies_that_are_gone_mean_nothing(collect: Collect, assert_moments: Check) -> None:
    """A copy of a weight leaves memory behind, which is not taken for the weight when something else lies there."""

    def run(x: Tensor, w: Tensor) -> None:
        for _ in range(20):
            functional.linear(x, w.clone())
            others = [torch.full_like(w, 2.0) for _ in range(5)]  # one of them likely where the copy was
            for other in others:
                functional.linear(3 * x, other)

    x = rows()
    [part] = collect(OneWeight(run), x)["", "matrix"]
    assert_moments(part, x.repeat(20, 1))


@pytest.mark.parametrize("decorate", [torch.inference_mode(), torch.no_grad(), torch.enable_grad()])
def test_any_mode_of_gradients_will_do(collect: Collect, assert_moments: Check, decorate: Any) -> None:
    """A forward may choose its own."""

    class Own(nn.Sequential):
        @decorate
        def forward(self, x: Tensor) -> Tensor:
            return self[1](torch.relu(self[0](x)))

    model, x, y = Own(nn.Linear(FEATURES, 48), nn.Linear(48, 32)), rows(), rows(seed=1)
    found = collect(model, x, y)
    assert_moments(found["0", "weight"][0], torch.cat([x, y]))
    with torch.no_grad():
        assert_moments(found["1", "weight"][0], torch.relu(model[0](torch.cat([x, y]))))


def test_a_run_in_inference_mode_collects_the_same(collect: Collect, assert_moments: Check) -> None:
    """As people wrap everything in it that is no training."""
    x = rows()
    with torch.inference_mode():
        [part] = collect(nn.Sequential(nn.Linear(FEATURES, 48)), x)["0", "weight"]
    assert_moments(part, x)


def test_rows_with_nan_are_left_out_and_counted(collect: Collect, assert_moments: Check) -> None:
    """In every layer that they reach."""
    x = rows()
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    model = nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, 32))
    found = collect(model, x)
    good = torch.isfinite(x).all(1)
    assert [part.moments.broken_rows for parts in found.values() for part in parts] == [2, 2]
    assert_moments(found["0", "weight"][0], x[good])
    with torch.no_grad():
        assert_moments(found["2", "weight"][0], torch.relu(model[0](x[good])))


def test_all_rows_broken(collect: Collect) -> None:
    """Nothing is left but their number."""
    [part] = collect(nn.Sequential(nn.Linear(FEATURES, 48)), rows() * float("nan"))["0", "weight"]
    assert (part.moments.rows, part.moments.broken_rows) == (0, 40)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(collect: Collect, assert_moments: Check, dtype: torch.dtype) -> None:
    """Sums are in double precision where inputs are, and in single precision elsewhere."""
    x = rows().to(dtype)
    [part] = collect(nn.Sequential(nn.Linear(FEATURES, 48)).to(dtype), x)["0", "weight"]
    assert part.moments.hessian.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_moments(part, x)


def test_many_samples_in_vmap(collect: Collect, assert_moments: Check) -> None:
    """What torch.func batches is a product as well."""
    x = rows()
    [part] = collect(OneWeight(lambda x, w: torch.vmap(lambda row: w @ row)(x)), x)["", "matrix"]
    assert_moments(part, x)


class Remembering:
    """A receiver that writes down what it is told."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.changed = 0

    def receive(self, block: Block, inputs: Tensor, shared: bool, order: Any = None) -> None:
        self.blocks.append(block)

    def about_to_change(self, tensor: Tensor) -> None:
        self.changed += 1


def test_nothing_is_seen_outside_of_watching() -> None:
    """Neither before nor after, also if the block raised; and no hook stays."""
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8))
    plain = nn.Linear(8, 8)
    receiver = Remembering()
    form = MatrixForm.rows_first((8, 8))
    watched = [
        WatchedWeight("plain", "weight", plain.weight.detach(), form),
        WatchedWeight("computed", "weight", layer.weight.detach(), form, computed_by=layer),
    ]
    watch = ProductWatch(watched, receiver)
    x = torch.randn(3, 8)

    def run() -> list[Block]:
        receiver.blocks.clear()
        plain(x)
        layer(x)
        return list(receiver.blocks)

    modules = list(itertools.chain(layer.modules(), plain.modules()))
    hooks = [(len(one._forward_hooks), len(one._forward_pre_hooks)) for one in modules]
    assert run() == []
    with watch.watching(modules):
        assert run() == [Block("plain", "weight", 0, 8), Block("computed", "weight", 0, 8)]
    assert run() == []
    with pytest.raises(KeyError), watch.watching(modules):
        raise KeyError
    assert run() == []
    assert [(len(one._forward_hooks), len(one._forward_pre_hooks)) for one in modules] == hooks


def test_a_failing_call_does_not_confuse_the_next(collect: Collect, assert_moments: Check) -> None:
    """A module whose forward raises, caught by the model, has ended all the same."""

    class Failing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if input.shape[0] == 1:
                raise ValueError
            return super().forward(input)

    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.risky = nn.utils.parametrizations.weight_norm(Failing(FEATURES, 48))
            self.plain = nn.Parameter(torch.randn(48, FEATURES))

        def forward(self, x: Tensor) -> Tensor:
            try:
                self.risky(x[:1])
            except ValueError:
                functional.linear(3 * x, torch.zeros(48, FEATURES))
            return self.risky(x) + functional.linear(2 * x, self.plain)

    x = rows()
    found = collect(Careful(), x)
    assert_moments(found["risky", "weight"][0], x)
    assert_moments(found["", "plain"][0], 2 * x)


def test_the_model_computes_what_it_always_did(collect: Collect) -> None:
    """Watching changes no result, bit for bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 48), nn.GELU(), nn.Linear(48, FEATURES), nn.LayerNorm(FEATURES)).eval()
    x, answers = rows(), []
    with torch.no_grad():
        expected = model(x)
    collect(model, x, run=lambda model, calls: answers.append(model(calls[0])))
    assert torch.equal(answers[0], expected)


def test_skip_rules_keep_layers_from_being_watched() -> None:
    """What stays in float costs no memory."""
    found = []

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            found.extend(one.layer for one in context.watched_weights())

    model = nn.Sequential(nn.Linear(FEATURES, 48), nn.Linear(48, 32), nn.Embedding(50, 64))
    passes = [mq.SkipSelectionPass(mq.NameRule("1")), mq.CalibrationPass([rows()], forward=lambda m, x: m[0](x))]
    mq.Quantizer([*passes, mq.Int4PackPass(), Peek()]).run(model)
    assert found == ["0"]  # an embedding multiplies nothing
