"""BudgetPass in pipelines: plans, rankings without a goal, what is an option; and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch import nn

import monoquant as mq
from tests.passes.budgets import DATA, FINE, GOALS, Net, batches, pipeline


def test_a_measured_plan_is_what_the_run_does(unchanged: Any) -> None:
    """The plain one knows of no goal; neither touches the model."""
    model = Net().train()
    check = unchanged(model)
    quantizer = pipeline(mq.BudgetPass(target_bits_per_weight=6.5))
    plain, measured = quantizer.plan(model), quantizer.plan(model, measured=True)
    check()
    report = quantizer.run(model).report
    assert {one.scheme for one in plain} == {FINE}
    assert [(one.layer, one.scheme, one.reason, one.compute) for one in measured] == [
        (record.layer, record.scheme, record.reason, record.compute) for record in report.layers
    ]
    assert [one.scheme for one in measured] != [one.scheme for one in plain]


def test_weighing_without_a_goal_changes_nothing(unchanged: Any) -> None:
    """Neither the model nor the plan; the ranking is the one that a goal chooses from."""
    model = Net().train()
    check = unchanged(model)
    quantizer = pipeline(mq.BudgetPass())
    tradeoff = quantizer.weigh(model)
    check()
    assert [one.scheme for one in quantizer.plan(model, measured=True)] == [FINE] * 3
    assert tradeoff.bits_per_weight == tradeoff.curve[0].bits_per_weight
    goal = pipeline(mq.BudgetPass(target_bits_per_weight=6.5)).weigh(model)
    assert goal.curve == tradeoff.curve
    assert [one.options for one in goal.layers] == [one.options for one in tradeoff.layers]
    assert quantizer.run(model).report.tradeoff == tradeoff


def test_weighing_needs_a_pass_that_weighs() -> None:
    """The error says which."""
    with pytest.raises(mq.ConfigError, match=r"no pass of this pipeline weighs layers: add BudgetPass\(\)"):
        pipeline().weigh(Net())


def test_measured_is_a_flag() -> None:
    """Of two values."""
    with pytest.raises(mq.ConfigError, match="measured=1"):
        pipeline(mq.BudgetPass()).plan(Net(), measured=1)


def test_group_sizes_are_those_asked_for() -> None:
    """As far as they are smaller than the pass's own and than a row; the finest comes last."""
    model, data = nn.Sequential(nn.Linear(160, 96), nn.Linear(96, 48)), batches(32, 160)
    tradeoff = pipeline(mq.BudgetPass(group_sizes=[16, 100, 256, 48]), data=data).weigh(model)
    sizes = [[option.scheme.group_size for option in one.options if option.scheme.bits == 4] for one in tradeoff.layers]
    assert sizes == [[128, 100, 48, 16], [128, 48, 16]]
    alone = pipeline(mq.BudgetPass(group_sizes=()), data=data).weigh(model)
    assert [[option.scheme.bits for option in one.options] for one in alone.layers] == [[4, 8, 16]] * 2


def test_without_other_passes_groups_are_all_there_is() -> None:
    """What no pass packs to is no option."""
    steps = [mq.SkipSelectionPass.from_options(), mq.CalibrationPass(DATA), mq.BudgetPass(), mq.Int4PackPass()]
    assert [one.scheme.bits for one in mq.Quantizer(steps).weigh(Net()).layers[0].options] == [4, 4, 4]


def test_a_budget_behind_the_packing_pass_is_refused() -> None:
    """When the pipeline is built: there is nothing to choose any more."""
    head, pack = [mq.SkipSelectionPass.from_options(), mq.CalibrationPass(DATA)], [mq.Int4PackPass(), mq.HalfCastPass()]
    for steps in ([*head, *pack, mq.BudgetPass()], [*head, pack[0], mq.BudgetPass(), pack[1]]):
        with pytest.raises(mq.ConfigError, match="BudgetPass stands behind PackPass: move it before"):
            mq.Quantizer(steps)
    mq.Quantizer([*head, mq.BudgetPass(), *pack])


def test_a_budget_needs_a_calibration() -> None:
    """In the pipeline, before it."""
    with pytest.raises(mq.ConfigError, match="BudgetPass needs CalibrationPass"):
        mq.Quantizer([mq.SkipSelectionPass.from_options(), mq.BudgetPass(), mq.Int4PackPass()])


def judged(_model: nn.Module) -> float:
    return 0.0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"target_bits_per_weight": 5, "target_sqnr_db": 30}, "are different goals: give one of them"),
    ({"target_bits_per_weight": 5, "evaluate": judged, "tolerated_drop": 0}, "are different goals"),
    ({"target_sqnr_db": 30, "evaluate": judged, "tolerated_drop": 0}, "are different goals"),
    ({"evaluate": judged}, "evaluate and tolerated_drop belong together: give both"),
    ({"tolerated_drop": 0.1}, "belong together"),
    ({"tolerated_drop": 0.1, "target_sqnr_db": 30}, "belong together"),
    ({"evaluate": "accuracy", "tolerated_drop": 0.1}, "evaluate='accuracy': give a function"),
    ({"evaluate": judged, "tolerated_drop": -0.1}, "tolerated_drop=-0.1: give the drop"),
    ({"evaluate": judged, "tolerated_drop": math.nan}, "tolerated_drop=nan"),
    ({"evaluate": judged, "tolerated_drop": math.inf}, "tolerated_drop=inf"),
    ({"evaluate": judged, "tolerated_drop": "0.1"}, "tolerated_drop='0.1'"),
    ({"evaluate": judged, "tolerated_drop": True}, "tolerated_drop=True"),
    *[
        ({name: value}, f"{name}={value!r}: give a number above 0")
        for name in ("target_bits_per_weight", "target_sqnr_db")
        for value in (0, -4.5, math.nan, math.inf, "5", True)
    ],
]


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_wrong_goals_are_refused_before_anything_runs(options: dict[str, Any], text: str) -> None:
    """By quantize and by the pass alike."""
    with pytest.raises(mq.ConfigError, match=text.replace("(", r"\(")):
        mq.BudgetPass(**options)
    with pytest.raises(mq.ConfigError, match=text):
        mq.quantize(Net(), calibration_data=DATA, plugins=False, **options)


@pytest.mark.parametrize("most", [2, 0, -1, 8.0, True, None])
def test_fewer_evaluations_than_a_search_needs_are_refused(most: Any) -> None:
    """The float model's, the smallest's, and one more."""
    with pytest.raises(mq.ConfigError, match=r"max_evaluations=.*: give a whole number >= 3"):
        mq.BudgetPass(max_evaluations=most)


@pytest.mark.parametrize("sizes", [[0], [-32], [32.0], [True], ["32"]])
def test_wrong_group_sizes_are_refused(sizes: Any) -> None:
    """As Int4PackPass refuses its own."""
    with pytest.raises(mq.ConfigError, match="group_size="):
        mq.BudgetPass(group_sizes=sizes)


@pytest.mark.parametrize("goal", [goal for goal, _ in GOALS], ids=[next(iter(goal)) for goal, _ in GOALS])
def test_a_goal_needs_calibration_data(goal: dict[str, Any]) -> None:
    """The error names it."""
    with pytest.raises(mq.ConfigError, match="give calibration_data"):
        mq.quantize(Net(), plugins=False, **goal)
