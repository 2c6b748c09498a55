"""Comparing whole models: on what data, and how the models are run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import monoquant as mq
from tests.comparison_cases import DATA, Answer, Net, answers, compared, cosine, generator

KINDS: list[tuple[str, Callable[[], Any]]] = [
    ("list", lambda: DATA),
    ("generator", generator),
    ("loader", lambda: DataLoader(TensorDataset(torch.cat(DATA)), batch_size=8)),
    ("tuples", lambda: [(x,) for x in DATA]),
    ("mappings", lambda: [{"x": x} for x in DATA]),
    ("comparison", lambda: mq.Comparison(generator())),
]


@pytest.mark.parametrize(("_name", "build"), KINDS, ids=[name for name, _ in KINDS])
def test_data_of_any_kind(_name: str, build: Callable[[], Any]) -> None:
    """Both models see the same batches, also those of a generator."""
    expected = compared(Net()).report.comparison
    found = compared(Net(), build()).report.comparison
    assert attrs.astuple(found) == pytest.approx(attrs.astuple(expected)) or found == expected


@pytest.mark.parametrize("count", [1, 8, 11, 24, 100])
def test_a_number_of_samples_is_enough(count: int) -> None:
    """The last batch is cut; the mean is of those samples."""
    result = compared(Net(), mq.Comparison(DATA, num_samples=count), exact=True)  # approximate ones see batches
    found, model = result.report.comparison, result.model
    x = torch.cat(DATA)[:count]
    assert found.samples == found.rows == min(count, 24)
    assert found.value == pytest.approx(cosine(answers(Net(), x), answers(model, x)), abs=1e-7)


class Graph(nn.Module):
    """No part of its batch will do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(96, 64), nn.Linear(64, 48)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        return self.down(adjacency @ torch.relu(self.up(nodes)))


@pytest.mark.parametrize(("count", "samples", "told"), [(24, 24, 0), (3, 8, 1), (12, 16, 1)])
def test_graphs_are_compared_whole(count: int, samples: int, told: int) -> None:
    """As calibration leaves them; a finding says that there are more samples than were asked for."""
    graphs = [(nodes, torch.ones(8, 8)) for nodes in DATA]
    model = Graph()
    report = compared(model, mq.Comparison(graphs, num_samples=count)).report
    assert report.comparison == compared(model, mq.Comparison(graphs[: samples // 8])).report.comparison
    assert [finding.code for finding in report.findings].count("comparison-not-cut") == told


def test_model_that_fails_on_the_whole_batch_too_is_told_what_it_said() -> None:
    """Using it whole helps nobody here."""
    with pytest.raises(mq.InputError, match=r"failed on comparison batch 0 .*mat1 and mat2 shapes"):
        compared(Graph(), mq.Comparison([(DATA[0][:, :40], torch.ones(8, 8))], num_samples=3))


def test_no_more_data_is_taken_than_needed() -> None:
    """A generator without end will do."""

    def endless() -> Iterator[Tensor]:
        while True:
            yield DATA[0]

    assert compared(Net(), mq.Comparison(endless(), num_samples=20)).report.comparison.samples == 20


@pytest.mark.parametrize(
    ("select", "batch"), [(0, (DATA[0], torch.zeros(8))), ("pixels", {"pixels": DATA[0], "label": torch.zeros(8)})]
)
def test_the_input_is_selected(select: Any, batch: Any) -> None:
    """By position or key."""
    found = compared(Net(), mq.Comparison([batch], select=select)).report.comparison
    assert found == compared(Net(), DATA[:1]).report.comparison


def test_plain_batches_are_given_to_the_model_as_calibration_data_is() -> None:
    """With its select."""
    labelled = [(x, torch.zeros(8)) for x in DATA]
    found = compared(Net(), labelled, calibration_data=labelled, select=0).report.comparison
    assert found == compared(Net(), DATA, calibration_data=DATA).report.comparison


@pytest.mark.parametrize(
    "options", [{"select": 0}, {"forward": lambda model, batch: model(batch[0])}], ids=["select", "forward"]
)
def test_plain_batches_are_selected_without_calibration_too(options: dict[str, Any]) -> None:
    """The options say how data is given to the model; here there is some."""
    assert compared(Net(), [(x, torch.zeros(8)) for x in DATA], **options).report.comparison.samples == 24


def test_a_forward_of_ones_own_chooses_what_is_compared() -> None:
    """On batches of anything; what it returns is compared."""
    calls: list[nn.Module] = []

    def forward(model: nn.Module, texts: list[str]) -> Tensor:
        calls.append(model)
        return model(DATA[0][: len(texts)]).hidden

    original = Net(Answer)
    result = compared(original, mq.Comparison([["some", "texts"], ["more"]], forward=forward))
    found = result.report.comparison
    assert (found.measure, found.rows, found.samples) == ("cosine", 3, 3)
    assert len(calls) == 4
    assert sum(model is original for model in calls) == 2


REFUSED_DATA = [
    (torch.zeros(2, 96), "comparison data is one Tensor"),
    ({"x": torch.zeros(2, 96)}, "comparison data is one dict"),
    ("text", "comparison data is one str"),
    (TensorDataset(torch.zeros(2, 96)), "comparison data is a Dataset"),
    (3, "comparison data is 3"),
]


@pytest.mark.parametrize(("data", "text"), REFUSED_DATA, ids=[text for _, text in REFUSED_DATA])
def test_data_that_is_none_is_refused(data: Any, text: str) -> None:
    """By the comparison, by quantize, by the pass."""
    for build in (mq.Comparison, lambda one: mq.ValidationPass(compare=one), lambda one: compared(Net(), one)):
        with pytest.raises(mq.ConfigError, match=text):
            build(data)


REFUSED: list[tuple[dict[str, Any], str]] = [
    *[({"measure": value}, "give 'kl'") for value in ("mse", None, 3, [])],
    *[
        ({name: value}, f"{name}=.*: give a finite number, or None")
        for name in ("warning_threshold", "error_threshold")
        for value in (math.nan, math.inf, "low", True, [0.5])
    ],
    *[({"num_samples": value}, "num_samples=.*: give a whole number") for value in (0, -1, 1.5, True, "all")],
]


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_wrong_values_are_refused(options: dict[str, Any], text: str) -> None:
    """When the comparison is built, not when the model has been packed."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.Comparison(DATA, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"forward": 3}, r"forward=3: give a function forward\(model, batch\)"),
        ({"select": True}, "select=True: give the position or the key"),
        ({"select": 1.5}, r"select=1\.5: give the position or the key"),
        ({"select": 0, "forward": lambda m, b: m(b)}, "select and forward are both given"),
    ],
    ids=["forward", "flag", "float", "both"],
)
def test_wrong_ways_to_run_are_refused(options: dict[str, Any], text: str) -> None:
    """As CalibrationPass refuses them."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.Comparison(DATA, **options)


def test_comparing_is_a_part_of_validation() -> None:
    """Without it, there is nothing to put it into."""
    with pytest.raises(mq.ConfigError, match="compare is a part of validation"):
        compared(Net(), run_validation=False)
