"""CalibrationPass: data of any kind, samples that are counted, one pass over the data for all requests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import monoquant as mq
from monoquant.algorithms.gptq import Gptq
from monoquant.batches import HELD_OUT_OF
from monoquant.observers import InputSample, RowSampler
from monoquant.statistics.moments import Moments
from tests.passes.calibration_cases import Recorder, batches, calibrate, either

FAST = mq.Int4PackPass(algorithm="round_to_nearest")
"""Fits nothing to the data, so that all of it is measured on."""
KINDS: list[tuple[str, Callable[[], Any]]] = [
    ("list", lambda: batches()),
    ("generator", lambda: iter(batches())),
    ("DataLoader", lambda: DataLoader(torch.cat(batches()), batch_size=5)),
    ("tuples", lambda: [(batch, torch.ones(5, 1)) for batch in batches()]),
    ("lists", lambda: [[batch] for batch in batches()]),
    ("mappings", lambda: [{"x": batch, "scale": torch.ones(5, 1)} for batch in batches()]),
    ("ordered mappings", lambda: [OrderedDict(scale=torch.ones(5, 1), x=batch) for batch in batches()]),
]


@pytest.mark.parametrize(("kind", "build"), KINDS, ids=[kind for kind, _ in KINDS])
def test_kinds_of_data(kind: str, build: Callable[[], Any]) -> None:
    """Tensors are one argument, tuples and lists positional, mappings keywords; every batch arrives in order."""
    model, result = calibrate(build())
    assert [float(x[0, 0]) for x, _ in model.seen] == [1, 2, 3, 4]
    assert result.report.calibration == mq.CalibrationFacts(samples=20, batches=4)
    assert result.report.layers[0].sample_rows == 20


@pytest.mark.parametrize(("kind", "build"), KINDS, ids=[kind for kind, _ in KINDS])
def test_of_any_kind_some_samples_are_held_out(kind: str, build: Callable[[], Any]) -> None:
    """Where codes are fitted, batches are cut in two, each sample arrives once, and only held-out ones are measured."""
    model, result = calibrate(build(), algorithm="gptq")
    # The second sample is due, and every so many after it; each batch gives its last ones.
    due = [sum(sample % HELD_OUT_OF == 1 for sample in range(first, first + 5)) for first in (0, 5, 10, 15)]
    parts = [(batch, size) for batch, held in enumerate(due, 1) for size in (5 - held, held) if size]
    assert [(float(x[0, 0]), len(x)) for x, _ in model.seen] == parts
    assert result.report.calibration == mq.CalibrationFacts(samples=20, batches=4, held_out=sum(due))
    assert result.report.layers[0].sample_rows == sum(due) >= 2


def test_pairs_need_an_explicit_choice() -> None:
    """(input, label) batches fail with the way out, and work with select or forward."""
    pairs = DataLoader(TensorDataset(torch.randn(20, 32), torch.arange(20)), batch_size=5)
    labels_first = [{"label": torch.arange(5), "pixels": torch.ones(5, 32)}]

    class OneInput(nn.Linear):
        pass

    with pytest.raises(mq.InputError, match=r"batch 0 \(list of Tensor float32 \[5, 32\].*give select=0 or a forward"):
        calibrate(pairs, OneInput(32, 32))
    model, result = calibrate(pairs, select=0)
    assert [scale for _, scale in model.seen] == [None] * 4
    assert result.info.calibration_samples_used == 20
    assert calibrate(labels_first, select="pixels")[1].info.calibration_samples_used == 5
    called = []

    def forward(model: nn.Module, batch: Any) -> None:
        called.append(batch)
        model(batch[0])

    assert calibrate(pairs, forward=forward)[1].info.calibration_samples_used == 20
    assert len(called) == 4


@either
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), wanted=st.integers(1, 40))
def test_num_samples_counts_samples(algorithm: str, sizes: list[int], wanted: int) -> None:
    """Exactly min(wanted, available) samples are fed, whatever the batch sizes, and no later batch is drawn."""
    drawn = []

    def data() -> Iterator[Tensor]:
        for size in sizes:
            drawn.append(size)
            yield torch.ones(size, 32)

    model, result = calibrate(data(), algorithm=algorithm, num_samples=wanted)
    assert result.info.calibration_samples_used == min(wanted, sum(sizes))
    assert sum(len(x) for x, _ in model.seen) == min(wanted, sum(sizes))
    assert sum(drawn[:-1]) < wanted


def test_the_last_batch_is_cut_only_where_all_tensors_are_batched() -> None:
    """A batch with a tensor that has no sample dimension is used whole, and counted as it is."""
    model, result = calibrate([(torch.ones(8, 32), torch.ones(1, 32))], num_samples=3)
    assert result.info.calibration_samples_used == 8
    model, result = calibrate([{"x": torch.ones(8, 32), "scale": torch.ones(8, 1)}], num_samples=3)
    assert result.info.calibration_samples_used == 3
    assert model.seen[0][1].shape == (3, 1)


def test_one_data_pass_serves_all_requests() -> None:
    """Passes that want samples of different size get each its own, from a single run over the data."""

    class Wanting(mq.Pass):
        request = InputSample(7, 32)

        def prepare(self, context: mq.QuantContext) -> None:
            context.want("linear", self.request)

        def run(self, context: mq.QuantContext) -> None:
            rows.append(len(context.observer("linear", self.request).result()))

    rows: list[int] = []
    model = Recorder()
    head = [mq.SkipSelectionPass(), mq.CalibrationPass(batches()), FAST]
    result = mq.Quantizer([*head, mq.ValidationPass(sample_rows=11), Wanting()]).run(model)
    assert result.report.layers[0].sample_rows == 11
    mq.Quantizer([*head, Wanting(), Wanting()]).run(model)
    assert rows == [7, 7, 7]
    assert len(model.seen) == 2 * 4


def test_equal_requests_share_an_observer() -> None:
    """Two passes that want the same of a layer cost the memory of one."""
    found: list[Any] = []

    class Wanting(mq.Pass):
        def prepare(self, context: mq.QuantContext) -> None:
            context.want("linear", InputSample(7, 32))

        def run(self, context: mq.QuantContext) -> None:
            found.append(context.observer("linear", InputSample(7, 32)))

    passes = [mq.SkipSelectionPass(), mq.CalibrationPass(batches()), mq.Int4PackPass(), Wanting(), Wanting()]
    mq.Quantizer(passes).run(Recorder())
    assert found[0] is found[1]
    assert isinstance(found[0], RowSampler)


def test_nothing_is_remembered_unless_asked() -> None:
    """Without a pass that wants samples no layer is observed, and no product watched."""
    model = Recorder()
    observed = []

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            observed.append((context.wanted, context.observed))
            observed.append((context.wanted_moments, context.input_statistics("linear", "weight")))

    mq.Quantizer([mq.SkipSelectionPass(), mq.CalibrationPass(batches()), FAST, Peek()]).run(model)
    assert observed == [({}, {}), ({}, ())]


@pytest.mark.parametrize("weighs", [True, False])
def test_sums_are_made_once_in_any_number_of_waves(monkeypatch: pytest.MonkeyPatch, weighs: bool) -> None:
    """Each run of the data sums the inputs of its own wave; the others are only watched."""
    added: list[int] = []
    add = Moments.add

    def counting(self: Moments, rows: Tensor, *others: Any) -> None:
        added.append(len(rows))
        add(self, rows, *others)

    monkeypatch.setattr(Moments, "add", counting)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 32))
    once, waves = [], []
    for counts, limit in ((once, 1 << 30), (waves, 10_000)):
        added.clear()
        pack = mq.Int4PackPass(32, algorithm=Gptq(weigh_rows=weighs))
        data = mq.CalibrationPass([torch.randn(60, 32)], statistics_bytes=limit)
        report = mq.Quantizer([mq.SkipSelectionPass(), data, pack]).run(model).report
        assert ("calibrated-in-waves" in {finding.code for finding in report.findings}) == (counts is waves)
        counts.extend(added)
    assert sum(once) == 3 * 56
    assert sorted(waves) == sorted(once)
