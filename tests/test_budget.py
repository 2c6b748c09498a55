"""Choosing options under a budget: plain numbers, held against brute force and exact fractions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from monoquant.budget import Cost, Step, choose, efficient, steps

# Whole numbers, so that sums and slopes are exact and nothing has to be tolerated.
exact_costs = st.builds(Cost, st.integers(0, 40), st.integers(0, 60).map(float))
real_costs = st.builds(Cost, st.integers(0, 10**6), st.floats(0, 1e6))
Tables = Sequence[Sequence[Cost]]


def tables(costs: st.SearchStrategy[Cost], layers: int = 5, options: int = 5) -> st.SearchStrategy[Tables]:
    return st.lists(st.lists(costs, min_size=1, max_size=options), min_size=1, max_size=layers)


def size(layers: Tables, chosen: Sequence[int]) -> int:
    return sum(options[index].size for options, index in zip(layers, chosen, strict=True))


def noise(layers: Tables, chosen: Sequence[int]) -> float:
    return math.fsum(options[index].noise for options, index in zip(layers, chosen, strict=True))


def smallest(layers: Tables) -> int:
    return sum(min(option.size for option in options) for options in layers)


def worth(low: Cost, high: Cost) -> Fraction:
    return (Fraction(low.noise) - Fraction(high.noise)) / (high.size - low.size)


@given(st.lists(exact_costs, min_size=1, max_size=8))
def test_the_hull_begins_with_the_cheapest_and_ends_with_the_best(options: list[Cost]) -> None:
    """Of equally cheap ones the least noisy, of equally good ones the cheapest."""
    hull = [options[index] for index in efficient(options)]
    assert hull[0] == min(options, key=lambda one: (one.size, one.noise))
    assert hull[-1] == min(options, key=lambda one: (one.noise, one.size))


@given(st.lists(exact_costs, min_size=1, max_size=8))
def test_each_step_of_the_hull_is_worth_less_than_the_one_before(options: list[Cost]) -> None:
    """Bytes rise, noise falls, and ever more slowly: in exact fractions, not only in rounded ones."""
    hull = [options[index] for index in efficient(options)]
    assert all(low.size < high.size and low.noise > high.noise for low, high in itertools.pairwise(hull))
    worths = list(itertools.starmap(worth, itertools.pairwise(hull)))
    assert all(one > other for one, other in itertools.pairwise(worths))


@given(st.lists(exact_costs, min_size=1, max_size=8))
def test_no_option_lies_under_the_hull(options: list[Cost]) -> None:
    """Whatever is left out has at least the noise of the line between its neighbours that were kept."""
    hull = [options[index] for index in efficient(options)]
    for one in options:
        for low, high in itertools.pairwise(hull):
            if low.size <= one.size <= high.size:
                assert one.noise >= low.noise - worth(low, high) * (one.size - low.size)


def test_the_hull_of_a_small_table() -> None:
    """By hand: the second lies above the line, the third is dearer and noisier, the last ones are alike."""
    options = [Cost(0, 10.0), Cost(2, 9.0), Cost(3, 11.0), Cost(4, 2.0), Cost(9, 1.0), Cost(9, 1.0), Cost(7, 2.0)]
    assert efficient(options) == [0, 3, 4]


def test_options_on_one_line_are_one_step() -> None:
    """The one in the middle is no better than its neighbours."""
    assert efficient([Cost(0, 2.0), Cost(1, 1.0), Cost(2, 0.0)]) == [0, 2]


def test_one_good_option_makes_several_others_pointless() -> None:
    """All those above the line to it are left out, not only the last."""
    assert efficient([Cost(0, 10.0), Cost(1, 8.0), Cost(2, 7.0), Cost(3, 6.5), Cost(4, 0.0)]) == [0, 4]


@given(tables(real_costs))
def test_steps_come_by_what_they_save_per_byte(layers: Tables) -> None:
    """Those of one layer in the order in which they can be taken, from its cheapest option to its best."""
    found = steps(layers)
    assert all(one.worth >= other.worth for one, other in itertools.pairwise(found))
    for layer, options in enumerate(layers):
        own = [step for step in found if step.layer == layer]
        assert [(step.before, step.after) for step in own] == list(itertools.pairwise(efficient(options)))
        for step in own:
            assert step.size == options[step.after].size - options[step.before].size > 0
            assert step.gain == options[step.before].noise - options[step.after].noise > 0


def test_the_worth_of_a_step_is_noise_per_byte() -> None:
    """4 less for 8 bytes."""
    assert Step(0, 0, 1, 8, 4.0).worth == 0.5


@given(tables(real_costs), st.integers(0, 6 * 10**6))
def test_a_choice_fits_the_budget_or_there_is_none(layers: Tables, budget: int) -> None:
    """None exactly when even the smallest options take more."""
    chosen = choose(layers, budget)
    assert (chosen is None) == (smallest(layers) > budget)
    if chosen is not None:
        assert size(layers, chosen) <= budget
        assert all(index in efficient(options) for index, options in zip(chosen, layers, strict=True))


@given(tables(real_costs))
def test_the_smallest_budget_that_suffices_does(layers: Tables) -> None:
    """To the byte."""
    chosen = choose(layers, smallest(layers))
    assert chosen is not None
    assert size(layers, chosen) == smallest(layers)
    assert choose(layers, smallest(layers) - 1) is None


@given(tables(exact_costs), st.integers(0, 220), st.integers(0, 60))
def test_more_budget_never_gives_more_noise(layers: Tables, budget: int, more: int) -> None:
    """Of exact numbers exactly: passing over what does not fit must not let a smaller budget overtake."""
    small, large = choose(layers, budget), choose(layers, budget + more)
    if small is not None:
        assert large is not None
        assert noise(layers, large) <= noise(layers, small)


@given(tables(real_costs), st.floats(0, 1), st.floats(0, 1))
def test_more_budget_never_gives_more_noise_of_any_size(layers: Tables, one: float, other: float) -> None:
    """Of any numbers, up to what is lost in adding them."""
    most = sum(max(option.size for option in options) for options in layers) - smallest(layers)
    low, high = sorted([smallest(layers) + int(one * most), smallest(layers) + int(other * most)])
    small, large = choose(layers, low), choose(layers, high)
    assert small is not None
    assert large is not None
    assert noise(layers, large) <= noise(layers, small) + 1e-9 * sum(max(c.noise for c in row) for row in layers)


@given(tables(exact_costs, layers=4, options=4), st.integers(0, 160))
def test_a_choice_is_within_one_step_of_the_optimum(layers: Tables, budget: int) -> None:
    """Against all combinations: no more noise than the best, plus what the best step left out would save."""
    chosen = choose(layers, budget)
    assume(chosen is not None)
    every = itertools.product(*(range(len(options)) for options in layers))
    best = min(noise(layers, combination) for combination in every if size(layers, combination) <= budget)
    taken = {(layer, index) for layer, last in enumerate(chosen) for index in _up_to(efficient(layers[layer]), last)}
    left = [step.gain for step in steps(layers) if (step.layer, step.after) not in taken]
    assert best <= noise(layers, chosen) <= best + max(left, default=0.0)
    if left:
        assert noise(layers, chosen) < best + max(left)


def _up_to(hull: list[int], last: int) -> list[int]:
    return hull[: hull.index(last) + 1]


@given(tables(real_costs))
def test_a_budget_without_end_takes_the_best_of_each(layers: Tables) -> None:
    """Least noise everywhere."""
    chosen = choose(layers, 10**9)
    assert chosen is not None
    assert [options[index].noise for options, index in zip(layers, chosen, strict=True)] == [
        min(option.noise for option in options) for options in layers
    ]


def test_what_does_not_fit_is_passed_over_for_what_does() -> None:
    """The first layer's step is worth most and too large; its own later step must not be taken in its place."""
    layers = [[Cost(0, 100.0), Cost(10, 10.0), Cost(11, 8.0)], [Cost(0, 5.0), Cost(3, 0.0)]]
    assert choose(layers, 9) == [0, 1]
    assert choose(layers, 10) == [1, 0]
    assert choose(layers, 14) == [2, 1]


@given(st.lists(exact_costs, min_size=1, max_size=5), st.integers(1, 5), st.integers(0, 220))
def test_of_equal_layers_the_first_ones_come_first(options: list[Cost], count: int, budget: int) -> None:
    """Ties are broken by position, so that a plan does not change from run to run."""
    chosen = choose([options] * count, budget)
    assert chosen == choose([list(options) for _ in range(count)], budget)
    if chosen is not None:
        places = [efficient(options).index(index) for index in chosen]
        assert places == sorted(places, reverse=True)


@given(tables(exact_costs), st.integers(0, 220), st.randoms(use_true_random=False))
def test_the_order_of_layers_does_not_matter_where_no_steps_tie(layers: Tables, budget: int, random: object) -> None:
    """Reordered layers take the same options."""
    worths = [step.worth for step in steps(layers)]
    assume(len(set(worths)) == len(worths))
    order = list(range(len(layers)))
    random.shuffle(order)
    chosen, again = choose(layers, budget), choose([layers[index] for index in order], budget)
    assert again == (None if chosen is None else [chosen[index] for index in order])


@pytest.mark.parametrize("budget", [-1, 0, 5])
def test_no_layers_take_nothing(budget: int) -> None:
    """Nothing is chosen, unless even nothing is too much."""
    assert choose([], budget) == ([] if budget >= 0 else None)
