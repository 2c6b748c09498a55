"""The automatic choice: clipping only where it is predicted to pay, and a reason with the figures."""

import re

import pytest
import torch

from monoquant.errors import InputError
from monoquant.ranges import AutoObserver, HistogramObserver, MinMaxObserver, RangeObserver


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def with_outlier(values: torch.Tensor, outlier: float) -> torch.Tensor:
    return torch.cat([values.flatten(), torch.tensor([outlier])])


def limits(observer: RangeObserver) -> tuple[list[float] | float, list[float] | float]:
    span = observer.range()
    return span.low.tolist(), span.high.tolist()


def shown(observer: RangeObserver, values: torch.Tensor) -> RangeObserver:
    observer.update(values)
    return observer


def test_min_and_max_are_kept_where_clipping_does_not_pay() -> None:
    values = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    observer = AutoObserver()
    observer.update(values)
    assert observer.choice == "minmax"
    assert limits(observer) == limits(shown(MinMaxObserver(), values))


def test_the_histogram_is_chosen_where_clipping_pays() -> None:
    values = with_outlier(normal(20_000), 30.0)
    observer = AutoObserver(4)
    observer.update(values)
    assert observer.choice == "histogram"
    assert limits(observer) == limits(shown(HistogramObserver(4), values))
    assert limits(observer)[1] < 10


@pytest.mark.parametrize(("n", "choice"), [(30_000, "minmax"), (1_000_000, "histogram")])
def test_a_gain_of_half_a_decibel_is_needed(n: int, choice: str) -> None:
    values = normal(n)
    observer, histogram = AutoObserver(), HistogramObserver()
    observer.update(values)
    histogram.update(values)
    widest = shown(MinMaxObserver(), values).range()
    gain = histogram.predicted_energy(histogram.range()).sqnr_db - histogram.predicted_energy(widest).sqnr_db
    assert 0 < gain < 1.2
    assert (gain > 0.5) == (choice == "histogram")
    assert observer.choice == choice
    assert limits(observer) == limits(histogram if choice == "histogram" else shown(MinMaxObserver(), values))


@pytest.mark.parametrize("outlier", [1.0, 30.0])
def test_the_reason_gives_both_figures(outlier: float) -> None:
    values = with_outlier(normal(20_000), outlier)
    observer = AutoObserver(4)
    observer.update(values)
    widest = shown(MinMaxObserver(), values).range()
    histogram = shown(HistogramObserver(4), values)
    predicted = {round(observer.predicted_energy(span).sqnr_db, 2) for span in (histogram.range(), widest)}
    assert {float(figure) for figure in re.findall(r"([\d.]+) dB for", observer.reason)} == predicted


def test_the_choice_follows_new_data() -> None:
    observer = AutoObserver(4)
    observer.update(torch.ones(10))
    assert observer.choice == "minmax"
    observer.update(with_outlier(normal(20_000), 30.0))
    assert observer.choice == "histogram"
    spread_out = AutoObserver(4)
    spread_out.update(torch.arange(-30, 30, 1e-4))
    assert observer.merge(spread_out).choice == "minmax"
    assert observer.choice == "histogram"


def test_one_choice_is_made_for_all_channels() -> None:
    quiet, loud = normal(20_000, 1), normal(20_000, 1)
    loud[0] = 30.0
    observer = AutoObserver(4, channel_axis=-1)
    observer.update(torch.cat([quiet, loud], dim=1))
    assert observer.choice == "histogram"
    assert observer.range().high.shape == (2,)
    assert float(observer.range().high[1]) < 10


def test_zeros_alone_have_a_choice_and_a_reason() -> None:
    observer = AutoObserver()
    observer.update(torch.zeros(5))
    assert (observer.choice, limits(observer)) == ("minmax", (0, 0))
    assert "dB" in observer.reason


@pytest.mark.parametrize("values", [torch.empty(0), torch.tensor([1.0, torch.nan])], ids=["nothing", "nan"])
def test_without_usable_values_there_is_no_choice(values: torch.Tensor) -> None:
    observer = AutoObserver()
    observer.update(values)
    for ask in (lambda: observer.choice, lambda: observer.reason, observer.range):
        with pytest.raises(InputError):
            ask()
