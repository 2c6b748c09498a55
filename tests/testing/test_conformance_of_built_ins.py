"""All that the library brings keeps the contracts that it asks of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.algorithms.choice import ALGORITHMS, NamedAlgorithm
from monoquant.checks import BUILT_IN_CHECKS
from monoquant.gates.baseline import BaselineCheck
from monoquant.gates.limits import BitsPerWeightCheck, CompressionCheck, LayerSqnrCheck, ModelSqnrCheck
from monoquant.ranges import AutoObserver, HistogramObserver, MinMaxObserver, MovingAverageObserver
from monoquant.recipes import SelectTable, SkipEntry
from monoquant.recipes.entry_rules import EntryRule, SelectRule
from monoquant.testing import (
    AlgorithmConformance,
    ObserverConformance,
    PassConformance,
    SkipRuleConformance,
    WarningCheckConformance,
    zoo,
)

LINEAR = mq.Layer("lm_head", nn.Linear, (64, 576))
NORM = mq.Layer("norm", nn.LayerNorm, (64,))
RULES: list[mq.SkipRule] = [
    mq.TypeRule(nn.LayerNorm),
    mq.TypeRule(nn.LayerNorm, nn.Embedding, skip_to="int8"),
    mq.TypeNameRule("LayerNorm", "torch.nn.Embedding", "*RMSNorm", skip_to="int8"),
    mq.NameRule("norm", "re:.*v_proj", "*.gate"),
    mq.NameRule("norm", skip_to="bfloat16"),
    mq.ThresholdRule(512),
    mq.ThresholdRule(512, skip_to="float16"),
    mq.TypeRule(nn.LayerNorm) | mq.NameRule("v_proj"),
    mq.TypeRule(nn.LayerNorm) & mq.ThresholdRule(2**20),
    ~mq.NameRule("lm_head"),
    EntryRule(2, SkipEntry(names=["norm", "*.gate"], types=["LayerNorm"], smaller_than=512, to="int8", reason="small")),
    EntryRule(3, SkipEntry(smaller_than=512)),
    SelectRule(SelectTable(names=["lm_head"], types=["Conv2d"])),
    ~(mq.NameRule("lm_head") | mq.TypeRule(nn.Conv2d) & ~mq.ThresholdRule(512)),
]


class TestRules(SkipRuleConformance):
    """Every kind of rule, and combinations of them."""

    skips = (NORM,)
    keeps = (LINEAR,)

    @pytest.fixture(autouse=True, params=RULES, ids=repr)
    def _each(self, request: pytest.FixtureRequest) -> None:
        self.rule = request.param


RECORD = mq.LayerReport(
    "layer", "Linear", (64, 64), 4096, mq.Action.QUANTIZE, "", 16384, 2432, scheme=mq.Scheme(), weight_sqnr_db=20.0
)
REPORT = mq.QuantReport(mq.Scheme(), (RECORD,), (), 16384, 2432, validation=mq.ValidationResult())
CHECKS: list[mq.WarningCheck] = [
    *BUILT_IN_CHECKS,
    BaselineCheck(mq.Baseline(REPORT)),
    LayerSqnrCheck(20.0),
    ModelSqnrCheck(20.0),
    BitsPerWeightCheck(4.5),
    CompressionCheck(4.0),
]


class TestChecks(WarningCheckConformance):
    """Every built-in check, and those of a gate."""

    @pytest.fixture(autouse=True, params=CHECKS, ids=repr)
    def _each(self, request: pytest.FixtureRequest) -> None:
        self.check = request.param


class TestAlgorithms(AlgorithmConformance):
    """Every built-in algorithm, and GPTQ without its sweeps."""

    @pytest.fixture(autouse=True, params=[*ALGORITHMS, mq.Gptq(sweeps=0, damping=0.01)], ids=repr)
    def _each(self, request: pytest.FixtureRequest) -> None:
        self.algorithm = request.param


class TestMinMax(ObserverConformance):
    observer = MinMaxObserver


class TestMovingAverage(ObserverConformance):
    observer = MovingAverageObserver
    order_matters = True


class TestFastMovingAverage(TestMovingAverage):
    def fresh(self, channel_axis: int | None = None) -> MovingAverageObserver:
        return MovingAverageObserver(0.5, channel_axis=channel_axis)


class TestHistogram(ObserverConformance):
    observer = HistogramObserver


class TestAuto(ObserverConformance):
    observer = AutoObserver
    channels_are_separate = False


ROWS = ("Linear with a forward of its own", "experts", "matrix beside a Linear")
BATCHES = [zoo.specimen("experts").inputs(seed) for seed in range(8)]
SKIPPING = [mq.SkipSelectionPass(mq.TypeRule(nn.LayerNorm), on_unmatched="report"), mq.SkipSelectionPass()]
PASSES: list[mq.Pass] = [
    *SKIPPING,
    mq.SkipSelectionPass.from_options(),
    mq.Int4PackPass(),
    mq.Int4PackPass(group_size=None, symmetric=True, scale_dtype=torch.float32),
    mq.Int8PackPass(),
    mq.Int8PackPass(activations="dynamic"),
    mq.HalfCastPass(),
    mq.HalfCastPass(torch.bfloat16),
    mq.ValidationPass(),
    mq.AccuracyWarningPass(),
    mq.BudgetPass(),
    mq.BudgetPass(target_bits_per_weight=6.0),
]


class TestPasses(PassConformance):
    """Every built-in pass whose data does not belong to one model."""

    @pytest.fixture(autouse=True, params=PASSES, ids=repr)
    def _each(self, request: pytest.FixtureRequest) -> None:
        self.pass_ = request.param


class TestPassesWithData(PassConformance):
    """Passes that hold data of one model or need it, on models that take it."""

    specimens = ROWS

    @pytest.fixture(
        autouse=True,
        params=[
            (mq.CalibrationPass(BATCHES), ()),
            (mq.CalibrationPass(BATCHES), (mq.Int4PackPass(algorithm="gptq"),)),
            (mq.Int4PackPass(algorithm="gptq"), (mq.CalibrationPass(BATCHES),)),
            (mq.Int4PackPass(algorithm="clip_search"), (mq.CalibrationPass(BATCHES),)),
            (mq.Int8PackPass(activations="static"), (mq.CalibrationPass(BATCHES),)),
            (mq.ValidationPass(compare=BATCHES), (mq.CalibrationPass(BATCHES),)),
        ],
        ids=repr,
    )
    def _each(self, request: pytest.FixtureRequest) -> None:
        self.pass_, self.passes = request.param


@pytest.mark.parametrize(
    ("kind", "tested"),
    [
        (mq.SkipRule, [type(rule) for rule in RULES]),
        (mq.WarningCheck, [type(check) for check in CHECKS]),
        (mq.WeightAlgorithm, [type(algorithm) for algorithm in ALGORITHMS]),
        (mq.Pass, [mq.CalibrationPass, *(type(pass_) for pass_ in PASSES)]),
    ],
)
def test_nothing_built_in_is_left_out(kind: type, tested: list[type]) -> None:
    """A new rule, check, algorithm or pass of the library has to be added here."""

    def below(parent: Any) -> set[Any]:
        return {parent}.union(*map(below, parent.__subclasses__()))

    own = {one for one in below(kind) if one.__module__.startswith("monoquant.") and ".testing" not in one.__module__}
    assert own - {kind, mq.PackPass, NamedAlgorithm} == set(tested)
