"""Strategies of what happens in a run: models, their data, statistics of inputs, and what checks are asked about."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

import monoquant as mq
from monoquant.algorithms.clean import InputStatistics
from monoquant.testing import strategies as offered
from monoquant.testing.strategies import (
    activations,
    calibration_data,
    gates,
    infos,
    input_statistics,
    layer_reports,
    models,
    models_with_data,
)
from monoquant.testing.zoo import specimen, specimens

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
normal = settings(deadline=None, max_examples=60)
search = settings(deadline=None, max_examples=3000, database=None, derandomize=True, phases=[Phase.generate])
shrink = settings(search, phases=[Phase.generate, Phase.shrink])
strict = settings(search, max_examples=50, suppress_health_check=[])


def anything(_drawn: object) -> bool:
    return True


ALL: dict[str, SearchStrategy[Any]] = {
    "activations": activations(),
    "calibration_data": calibration_data(specimen("Linear")),
    "gates": gates(),
    "half_schemes": offered.half_schemes(),
    "infos": infos(),
    "input_statistics": input_statistics(140),
    "layer_reports": layer_reports(),
    "layers": offered.layers(),
    "models": models(),
    "models_with_data": models_with_data(),
    "schemes": offered.schemes(),
    "skip_rules": offered.skip_rules(),
    "weights": offered.weights(),
}


def test_every_strategy_is_in_this_file() -> None:
    """A new strategy has to be fast and documented as well."""
    assert set(ALL) | {"statistics_of"} == set(offered.__all__)


@pytest.mark.parametrize("name", ALL)
def test_strategies_pass_hypothesis_own_health_checks(name: str) -> None:
    """Drawing is fast, filters little and needs little data, so that nobody has to suppress a check."""
    assert HealthCheck.too_slow not in strict.suppress_health_check

    @strict
    @given(ALL[name])
    def drawn(_value: object) -> None:
        """Drawing is all."""

    drawn()


@pytest.mark.parametrize("name", offered.__all__)
def test_strategies_say_what_they_cover(name: str) -> None:
    """Each docstring tells what comes up, and what a strategy shrinks towards."""
    doc = getattr(offered, name).__doc__
    assert name == "statistics_of" or "Returns:\n        A strategy" in doc
    assert name in ("statistics_of", "models_with_data") or "shrinks towards" in doc


@normal
@given(model=models())
def test_models_can_be_planned_and_are_in_eval_mode(model: nn.Module) -> None:
    """Each has a layer to quantize, and none is in training mode."""
    assert not any(module.training for module in model.modules())
    decisions = mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass()]).plan(model)
    assert mq.Action.QUANTIZE in {decision.action for decision in decisions}


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("one", specimens(), ids=str)
def test_every_specimen_comes_up(one: Any) -> None:
    """The zoo is small enough for all of it to be drawn."""
    wanted = shapes(one.build())
    find(models(), lambda model: shapes(model) == wanted, settings=search)


def test_models_are_nobody_elses() -> None:
    """Changing one leaves the next alone; one specimen can be asked for."""
    first = find(models([specimen("Linear")]), anything, settings=shrink)
    kept = first.weight.detach().clone()
    nn.init.zeros_(first.weight)
    assert torch.equal(find(models([specimen("Linear")]), anything, settings=shrink).weight, kept)


@normal
@given(pair=models_with_data())
def test_data_goes_into_its_model(pair: tuple[nn.Module, list[Any]]) -> None:
    """A model can be calibrated with its data as it is."""
    model, batches = pair
    assert 1 <= len(batches) <= 4
    with torch.no_grad():
        for batch in batches:
            model(batch) if isinstance(batch, Tensor) else model(*batch)


@pytest.mark.parametrize("kind", [Tensor, tuple, list])
def test_batches_come_in_every_form(kind: type) -> None:
    """The tensor itself, a tuple, a list; several batches."""
    data = models_with_data()
    find(data, lambda pair: isinstance(pair[1][0], kind) and len(pair[1]) > 2, settings=search)


STATISTICS: dict[str, Callable[[InputStatistics], bool]] = {
    "singular": lambda known: 1 < known.samples < 10,
    "one row": lambda known: known.samples == 1,
    "dead columns": lambda known: 0 < int((known.importance == 0).sum()) < 20,
    "one outweighs all": lambda known: bool(known.importance.max() > 1e6 * known.importance.median()),
    "alike": lambda known: bool((known.importance == known.importance[0]).all()),
    "tiny": lambda known: bool(known.importance.max() < 1e-20),
    "huge": lambda known: bool(known.importance.min() > 1e18),
    "correlated": lambda known: (
        known.samples > 25 and float(known.hessian.fill_diagonal_(0).abs().max()) > 0.9 * float(known.importance.max())
    ),
}


@pytest.mark.parametrize("trait", STATISTICS)
def test_input_statistics_have_every_trait(trait: str) -> None:
    """Each of the promised kinds comes up."""
    find(input_statistics(20), STATISTICS[trait], settings=search)


@normal
@given(known=input_statistics(20))
def test_input_statistics_are_what_calibration_could_have_seen(known: InputStatistics) -> None:
    """The Hessian is finite and symmetric, importance is its diagonal, and something was seen."""
    assert torch.isfinite(known.hessian).all()
    torch.testing.assert_close(known.hessian, known.hessian.T)
    assert torch.equal(known.importance, known.hessian.diagonal())
    assert known.importance.sum() > 0


@normal
@given(updates=activations())
def test_activations_fit_together(updates: list[Tensor]) -> None:
    """Finite pieces with the same channels, one value at least."""
    together = torch.cat(updates, dim=1)
    assert together.dtype == torch.float64
    assert together.numel() > 0
    assert torch.isfinite(together).all()


def test_activations_have_every_trait() -> None:
    """Empty pieces, many, and magnitudes far apart."""
    find(activations(), lambda updates: any(part.numel() == 0 for part in updates), settings=search)
    find(activations(), lambda updates: len(updates) == 6, settings=search)

    def spread(updates: list[Tensor]) -> bool:
        sizes = [float(part.abs().max()) for part in updates if part.numel()]
        return min(sizes) > 0 and max(sizes) > 1e9 * min(sizes)

    find(activations(), spread, settings=search)


INFOS: dict[str, Callable[[mq.QuantizationInfo], bool]] = {
    "by hand": lambda info: bool(info.selected_layers) and not info.layers,
    "of nothing": lambda info: not info.selected_layers and not info.skipped_layers,
    "of records": lambda info: len(info.layers) > 3,
    "everything was quantized": lambda info: len(info.selected_layers) > 2 and not info.skipped_layers,
    "few samples": lambda info: 0 < info.calibration_samples_used < 50,
    "not measured": lambda info: info.sqnr_db is None,
    "16 bits": lambda info: info.dtype == torch.bfloat16,
    **{
        f"{value} dB": lambda info, value=value: any(str(record.sqnr_db) == value for record in info.layers)
        for value in ("nan", "inf", "-inf", "None")
    },
    "unsupported": lambda info: bool(info.unsupported_layers),
    "critical output": lambda info: any((record.output_sqnr_db or 99) < 10 for record in info.layers),
}


@pytest.mark.parametrize("trait", INFOS)
def test_infos_have_every_trait(trait: str) -> None:
    """Each of the promised kinds of summary comes up."""
    find(infos(), INFOS[trait], settings=search)


@normal
@given(info=infos())
def test_infos_agree_with_their_records(info: mq.QuantizationInfo) -> None:
    """Names of layers are those of the records, each once; and a record is packed if it has a scheme."""
    by_action = {record.layer: record.action for record in info.layers}
    if info.layers:
        assert [name for name, action in by_action.items() if action is mq.Action.QUANTIZE] == info.selected_layers
        assert len(by_action) == len(info.layers)
    for record in info.layers:
        assert (record.scheme is not None) == (record.action is mq.Action.QUANTIZE) == bool(record.matrices)
        assert all(math.prod(matrix) == math.prod(record.shape) for matrix in record.matrices)


@normal
@given(gate=gates())
def test_gates_are_in_order(gate: mq.AccuracyGate) -> None:
    """The error threshold is the lower one."""
    assert gate.sqnr_error_threshold <= gate.sqnr_warning_threshold


SIMPLEST: dict[str, Callable[[Any], bool]] = {
    "activations": lambda parts: len(parts) == 1 and parts[0].shape == (1, 1),
    "calibration_data": lambda batches: len(batches) == 1 and isinstance(batches[0], Tensor),
    "gates": lambda gate: gate == mq.AccuracyGate(),
    "half_schemes": lambda scheme: scheme == mq.HalfScheme(torch.float16),
    "infos": lambda info: not (info.layers or info.selected_layers or info.skipped_layers) and info.sqnr_db is None,
    "input_statistics": lambda known: known.samples == 1,
    "layer_reports": lambda record: record.layer == "lm_head" and record.action is mq.Action.SKIP,
    "layers": lambda layer: layer.name == "lm_head" and layer.shape == (1, 1),
    "models": lambda model: shapes(model) == shapes(specimens()[0].build()),
    "models_with_data": lambda pair: shapes(pair[0]) == shapes(specimens()[0].build()) and len(pair[1]) == 1,
    "schemes": lambda scheme: scheme == mq.Scheme(),
    "skip_rules": lambda rule: isinstance(rule, mq.NameRule) and len(rule.patterns) == 1 and rule.skip_to is None,
    "weights": lambda weight: weight.shape == (1, 1) and weight.dtype == torch.float32,
}


@pytest.mark.parametrize("name", ALL)
def test_strategies_shrink_to_the_simplest(name: str) -> None:
    """A test that always fails is shown what is easiest to understand."""
    simplest = find(ALL[name], anything, settings=shrink)
    assert SIMPLEST[name](simplest), simplest


def test_a_failing_test_names_specimen_and_seed() -> None:
    """A repr of a model says little: the note says how to build it again."""

    @settings(database=None, max_examples=5)
    @given(models())
    def fails(_model: nn.Module) -> None:
        raise AssertionError

    with pytest.raises(AssertionError) as failure:
        fails()
    assert any("models: Linear, seed 0" in note for note in failure.value.__notes__)
