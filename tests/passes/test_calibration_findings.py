"""What CalibrationPass tells of data it could not cut, mask or weigh; and that it says nothing where all is well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import monoquant as mq
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.algorithms.clip_search import ClipSearch
from monoquant.algorithms.gptq import Gptq
from monoquant.batches import HELD_OUT_OF
from monoquant.statistics.collector import RowStatistics

FEATURES = 64
UNWEIGHTED = Gptq(weigh_rows=False)


def rows(*shape: int, seed: int = 0) -> Tensor:
    """Vectors of unequal size, so that it is seen which of them count."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, FEATURES, generator=generator) * torch.rand(*shape, 1, generator=generator) + 0.3


def calibrate(
    model: nn.Module, data: Any, algorithm: WeightAlgorithm | str = "gptq", **options: Any
) -> tuple[mq.QuantResult, dict[str, RowStatistics]]:
    """The result, and what is known of the inputs of each layer."""
    found: dict[str, RowStatistics] = {}

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            for one in context.watched_weights():
                [found[one.layer]] = context.input_statistics(one.layer, one.name)

    pack = mq.Int4PackPass(32, algorithm=algorithm)
    steps = [mq.SkipSelectionPass(), mq.CalibrationPass(data, **options), pack, mq.ValidationPass(), Peek()]
    return mq.Quantizer(steps).run(model.eval()), found


def told(result: mq.QuantResult, code: str) -> list[mq.Finding]:
    return [finding for finding in result.report.findings if finding.code == code]


def fitted(count: int) -> int:
    """Of so many samples in one batch, those that are fitted to."""
    return count - (count + HELD_OUT_OF - 2) // HELD_OUT_OF


def assert_same_codes(result: mq.QuantResult, expected: mq.QuantResult) -> None:
    one, other = result.model.state_dict(), expected.model.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class Graph(nn.Module):
    """Its batch leads with nodes, which no part of the adjacency can do without."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(FEATURES, 48), nn.Linear(48, 32)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        return self.down(adjacency @ torch.relu(self.up(nodes)))


def graph(nodes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return rows(nodes, seed=seed), (torch.rand(nodes, nodes, generator=generator) < 0.3).float()


def whole(model: nn.Module, batch: Any) -> Any:
    return model(*batch)


UNCUT = mq.Finding(
    "batches-not-cut",
    mq.Severity.INFO,
    "The model cannot take a part of a batch, so batches are held out whole, and gone through backward at once.",
    remedy="Nothing to do where the batches are graphs, say; give several of them.",
)


@pytest.mark.parametrize("algorithm", [ClipSearch(), Gptq(), UNWEIGHTED], ids=["clip_search", "gptq", "alike"])
@pytest.mark.parametrize("kind", [list, iter, tuple])
def test_graphs_are_left_whole(kind: Callable[[Any], Any], algorithm: WeightAlgorithm) -> None:
    """As if a function took them, no batch is lost, and one finding says so."""
    graphs = [graph(nodes, seed) for seed, nodes in enumerate((20, 30, 24))]
    result, found = calibrate(Graph(), kind(graphs), algorithm)
    torch.manual_seed(0)
    expected, exact = calibrate(Graph(), graphs, algorithm, forward=whole)
    assert told(result, "batches-not-cut") == [UNCUT]
    assert told(expected, "batches-not-cut") == []
    assert result.report.calibration == mq.CalibrationFacts(samples=74, batches=3, held_out=30)
    assert {layer: one.moments.rows for layer, one in found.items()} == {"up": 44, "down": 44}
    assert all(one.moments.weighted == exact[layer].moments.weighted for layer, one in found.items())
    assert_same_codes(result, expected)
    assert result.report.layers == expected.report.layers


def test_what_was_heard_of_a_part_is_forgotten() -> None:
    """Outputs of the one graph are measured on each of its nodes once."""
    result, _ = calibrate(Graph(), [graph(40)])
    assert [record.sample_rows for record in result.report.layers] == [40, 40]


def test_graphs_are_left_whole_in_every_wave() -> None:
    """It is found out once, and the data is not at its end."""
    graphs = [graph(nodes, seed) for seed, nodes in enumerate((20, 30, 24))]
    result, _ = calibrate(Graph(), iter(graphs), statistics_bytes=4 * FEATURES * (FEATURES + 1))
    torch.manual_seed(0)
    expected, _ = calibrate(Graph(), graphs, forward=whole)
    assert len(told(result, "calibrated-in-waves")) == 1
    assert told(result, "batches-not-cut") == [UNCUT]
    assert_same_codes(result, expected)


def test_a_held_out_part_that_the_model_cannot_take_leaves_batches_whole() -> None:
    """Although it can take the other part."""

    class Wide(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) < 20:
                raise ValueError("too few")
            return super().forward(x)

    result, found = calibrate(Wide(nn.Linear(FEATURES, 32)), [rows(40), rows(30, seed=1)], UNWEIGHTED)
    assert told(result, "batches-not-cut") == [UNCUT]
    assert result.report.calibration == mq.CalibrationFacts(samples=70, batches=2, held_out=30)
    assert found["0"].moments.rows == 40


def test_what_was_heard_of_a_held_out_part_is_forgotten() -> None:
    """The batch that is fitted to whole is what outputs are measured on, for lack of another."""

    class Wide(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            answer = super().forward(x)
            if len(x) < 20:
                raise ValueError("too few")
            return answer

    result, _ = calibrate(Wide(nn.Linear(FEATURES, 32)), [rows(40)], UNWEIGHTED)
    assert [record.sample_rows for record in result.report.layers] == [40]
    assert [finding.layer for finding in told(result, "measured-on-fitted")] == ["0"]


def test_a_graph_of_more_nodes_than_samples_are_wanted_is_left_whole() -> None:
    """It is one batch, and used as it is; where nothing is fitted, too."""
    for algorithm in ("round_to_nearest", "gptq"):
        result, _ = calibrate(Graph(), [graph(40)], algorithm, num_samples=30)
        assert told(result, "batches-not-cut") == [UNCUT]
        assert result.report.calibration.samples == 40


def test_a_model_that_fails_on_whole_batches_too_is_told_what_it_said() -> None:
    """Leaving batches whole helps nobody here."""
    with pytest.raises(mq.InputError, match=r"failed on calibration batch 0 .*mat1 and mat2 shapes cannot be"):
        calibrate(Graph(), [(rows(20)[:, :40], torch.ones(20, 20))])


@pytest.mark.parametrize("kind", [list, iter])
def test_a_later_batch_that_cannot_be_cut_is_an_error(kind: Callable[[Any], Any]) -> None:
    """What came before it may be gone, so that nothing is started again without it."""
    with pytest.raises(mq.InputError, match="failed on calibration batch 1"):
        calibrate(Graph(), kind([graph(1), graph(20)]))


def test_a_failure_of_a_batch_that_was_not_cut_is_no_matter_of_cutting() -> None:
    """The model runs on it once, and not again."""
    calls: list[int] = []

    class Failing(Graph):
        def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
            calls.append(len(nodes))
            raise ValueError("planted")

    with pytest.raises(mq.InputError, match="planted"):
        calibrate(Failing(), [graph(20)], "round_to_nearest")
    assert calls == [20]


class Sequences(nn.Module):
    """Multiplies positions in their order, flattened, in a convolution, and what is left of them."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.flat, self.pooled = (nn.Linear(FEATURES, FEATURES) for _ in range(3))
        self.convolution = nn.Conv1d(FEATURES, FEATURES, 1)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.kept(x)
        hidden = self.flat(hidden.flatten(0, 1)).view(hidden.shape)
        hidden = self.convolution(hidden.mT).mT
        return self.pooled((hidden * attention_mask[..., None]).sum(1))


def padded_batch(padding: int) -> dict[str, Tensor]:
    mask = torch.ones(40, 6, dtype=torch.int64)
    mask[::3, 6 - padding :] = 0
    return {"x": rows(40, 6), "attention_mask": mask}


def padding_counted(layer: str) -> mq.Finding:
    return mq.Finding(
        "padding-counted",
        mq.Severity.INFO,
        f"Layer '{layer}' may be fitted to padding: nobody knows which of its rows the mask leaves out.",
        layer,
        "Give batches without padding.",
    )


@pytest.mark.parametrize("algorithm", [ClipSearch(), Gptq(), UNWEIGHTED], ids=["clip_search", "gptq", "alike"])
def test_layers_that_may_be_fitted_to_padding_are_named(algorithm: WeightAlgorithm) -> None:
    """Those that are given as many rows as there are positions, in an order that nobody knows; no others."""
    batch = padded_batch(2)
    result, found = calibrate(Sequences(), [batch], algorithm)
    assert told(result, "padding-counted") == [padding_counted("convolution"), padding_counted("flat")]
    real = int(batch["attention_mask"][: fitted(40)].sum())
    positions = fitted(40) * 6
    counts = {"kept": real, "flat": positions, "convolution": positions, "pooled": fitted(40)}
    assert {layer: one.moments.rows for layer, one in found.items()} == counts


class Stepping(nn.Module):
    """Multiplies hidden states step by step, once in a module of torch, once in a loop; and a summary once."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.whole, self.cell = kind(FEATURES, 32, batch_first=True), nn.GRUCell(32, 32)
        self.pooled = nn.Linear(32, 16)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        hidden, state = self.whole(x)[0], x.new_zeros(len(x), 32)
        for step in hidden.unbind(1):
            state = self.cell(step, state)
        return self.pooled(state)


def quantized(model: nn.Module, batch: Any, algorithm: WeightAlgorithm) -> mq.QuantResult:
    return mq.quantize(model, calibration_data=[batch], algorithm=algorithm, accuracy_warning="ignore", plugins=False)


@pytest.mark.parametrize("algorithm", [ClipSearch(), Gptq()], ids=["clip_search", "gptq"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_states_at_padded_steps_are_told(kind: type[nn.Module], algorithm: WeightAlgorithm) -> None:
    """Where steps are multiplied one after the other nobody knows which is which; one product tells of no steps."""
    result = quantized(Stepping(kind), padded_batch(2), algorithm)
    assert told(result, "padding-counted") == [padding_counted("cell"), padding_counted("whole")]
    assert not told(quantized(Stepping(kind), padded_batch(0), algorithm), "padding-counted")


def test_run_that_failed_under_gradients_is_no_step() -> None:
    """The same rows come again, without."""

    class Once(Sequences):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            found = self.pooled(self.kept(x)[:, 0])
            if torch.is_grad_enabled():
                raise RuntimeError("planted")
            return found

    result = quantized(Once(), padded_batch(2), Gptq())
    assert told(result, "rows-not-weighed")
    assert not told(result, "padding-counted")


def test_a_forward_of_ones_own_may_take_rows_in_another_order() -> None:
    """A mask over rows in the wrong order would leave data out and padding in."""

    class StepsFirst(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.transpose(0, 1)).transpose(0, 1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = StepsFirst(FEATURES, 48)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.up(x)

    batch = padded_batch(2)
    result, found = calibrate(Model(), [batch])
    assert told(result, "padding-counted") == [padding_counted("up")]
    everything = batch["x"][: fitted(40)].flatten(0, 1).square().mean(0)
    assert not found["up"].moments.weighted
    torch.testing.assert_close(found["up"].moments.importance, everything)


def test_without_padding_nobody_is_warned_of_it() -> None:
    """Whatever the model does with positions."""
    assert told(calibrate(Sequences(), [padded_batch(0)])[0], "padding-counted") == []


def test_without_fitting_there_is_nothing_to_be_fitted_to_padding() -> None:
    """Who rounds to nearest needs no rows."""
    assert told(calibrate(Sequences(), [padded_batch(2)], "round_to_nearest")[0], "padding-counted") == []


def test_layers_are_named_once_in_any_number_of_waves() -> None:
    """Although the data is run again for each."""
    result, _ = calibrate(Sequences(), [padded_batch(2)], statistics_bytes=4 * FEATURES * (FEATURES + 1))
    assert len(told(result, "calibrated-in-waves")) == 1
    assert told(result, "padding-counted") == [padding_counted("convolution"), padding_counted("flat")]


UNWEIGHED = mq.Finding(
    "rows-not-weighed",
    mq.Severity.INFO,
    "The model cannot be gone through backward on calibration data, so input rows count alike.",
    remedy="Make its forward differentiable for somewhat better codes.",
)


class Chain(nn.Module):
    """Two Linears; what is between them, each test says."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.up, self.down, self.between = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, 32), between

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.between(self.up(x)))


class OneWay(torch.autograd.Function):
    """A function that knows no way back; where ``harmless`` says so, it does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, harmless: Callable[[Tensor], bool]) -> Tensor:
        ctx.harmless = harmless(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if not ctx.harmless:
            raise RuntimeError("there is no way back")
        return gradient, None


def assert_alike(found: dict[str, RowStatistics], exact: dict[str, RowStatistics]) -> None:
    """All rows count, each once, and nobody weighs them."""
    for layer, one in found.items():
        assert not one.moments.weighted
        assert one.moments.rows == exact[layer].moments.rows == fitted(60)
        torch.testing.assert_close(one.moments.hessian, exact[layer].moments.hessian)


def one_way(x: Tensor) -> Tensor:
    return torch.relu(OneWay.apply(x, lambda _: False))


DARK: dict[str, Callable[[Callable[[nn.Module, Tensor], Tensor]], Any]] = {
    "no_grad": torch.no_grad(),
    "inference_mode": torch.inference_mode(),
}


@pytest.mark.parametrize("mode", DARK)
def test_a_model_without_gradients_has_rows_that_count_alike(mode: str) -> None:
    """One finding says so; who wants no weights is told nothing."""
    model = Chain()
    model.__class__ = type("Dark", (Chain,), {"forward": DARK[mode](Chain.forward)})
    result, found = calibrate(model, [rows(60)])
    expected, exact = calibrate(model, [rows(60)], UNWEIGHTED)
    assert told(result, "rows-not-weighed") == [UNWEIGHED]
    assert_alike(found, exact)
    assert told(expected, "rows-not-weighed") == []


def test_a_model_that_cannot_go_backward_has_rows_that_count_alike() -> None:
    """Each once, although the model runs twice on them."""
    result, found = calibrate(Chain(one_way), [rows(60)])
    torch.manual_seed(0)
    _, exact = calibrate(Chain(), [rows(60)], UNWEIGHTED)
    assert told(result, "rows-not-weighed") == [UNWEIGHED]
    assert_alike(found, exact)


def test_a_failure_in_between_leaves_other_rows_their_weights() -> None:
    """No row is counted twice or lost."""
    x = rows(60)

    def sometimes(hidden: Tensor) -> Tensor:
        return torch.relu(OneWay.apply(hidden, lambda seen: not bool((seen.mean(1) < -100).any())))

    model = Chain(sometimes)
    with torch.no_grad():
        model.up.weight.abs_()
        model.up.bias[:] = 0.0
        x[9] = -500.0  # in the second piece of eight
    result, found = calibrate(model, [x])
    assert told(result, "rows-not-weighed") == [UNWEIGHED]
    assert {one.moments.rows for one in found.values()} == {fitted(60)}
    assert all(one.moments.weighted for one in found.values())
    # Of one piece, rows count alike; their mean is theirs, and the large row has not lost or doubled its part.
    share = float(x[9].square().mean()) / fitted(60)
    assert float(found["up"].moments.importance.mean()) == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize("algorithm", [ClipSearch(), Gptq(), UNWEIGHTED], ids=["clip_search", "gptq", "alike"])
def test_a_healthy_model_is_told_nothing(algorithm: WeightAlgorithm) -> None:
    """Neither of cutting, nor of padding, nor of weights; rows are weighed where the algorithm wants it."""
    result, found = calibrate(Chain(), [rows(60), rows(60, seed=1)], algorithm)
    for code in ("batches-not-cut", "padding-counted", "rows-not-weighed"):
        assert told(result, code) == []
    assert {one.moments.weighted for one in found.values()} == {algorithm == Gptq()}


def test_functional_products_have_no_order() -> None:
    """A weight that no module's call multiplies is fitted to whatever rows come, and named where there is padding."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(48, FEATURES))

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return functional.linear(x, self.matrix)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bare = Bare()

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.bare(x, attention_mask)

    result, found = calibrate(Outer(), [padded_batch(2)])
    assert told(result, "padding-counted") == [padding_counted("bare")]
    assert found["bare"].moments.rows == fitted(40) * 6


def endless(batch: Any) -> Iterator[Any]:
    while True:
        yield batch


def test_a_generator_without_end_is_started_again_only_in_its_first_batch() -> None:
    """Of graphs, too, no more are drawn than are used."""
    result, _ = calibrate(Graph(), endless(graph(20)), num_samples=70)
    assert result.report.calibration == mq.CalibrationFacts(samples=80, batches=4, held_out=20)
