"""Two models' weights side by side: SQNR per tensor and pooled, and what only one of them has."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import monoquant as mq
from monoquant.report import weight_difference

FIRST = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.ones(4), "steps": torch.tensor(7)}


def compare(**after: Tensor) -> mq.WeightDifference:
    return mq.compare_weights(FIRST, FIRST | after)


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=9),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    st.integers(1, 4),
)
def test_sqnr_is_that_of_its_definition(pairs: list[tuple[float, float]], dtype: torch.dtype, chunk: int) -> None:
    """Energies of float64 numbers, whatever the dtypes and however the tensor is cut."""
    one, other = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    stored = other.to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_difference, "_CHUNK", chunk)
        difference = mq.compare_weights({"w": one}, {"w": stored})
    (found,) = difference.tensors
    noise = (one - stored.double()).square().sum()
    assert found.energy is not None
    assert found.energy.signal == pytest.approx(float(one.square().sum()))
    assert found.energy.noise == pytest.approx(float(noise))
    assert found.equal == bool((one == stored).all())
    assert difference.energy == found.energy


def test_progress_is_told_of_every_tensor() -> None:
    """Of those that only one model has as well; the result is the same."""
    told: list[tuple[int, int]] = []
    after = {"a": FIRST["a"], "more": torch.ones(3)}
    found = mq.compare_weights(FIRST, after, lambda done, total: told.append((done, total)))
    assert told == [(2, 10), (6, 10), (7, 10), (10, 10)]
    assert found == mq.compare_weights(FIRST, after)


def test_pooled_sqnr_adds_energies() -> None:
    """Decibels are not averaged: 25 and 4 of signal, 1 and 1 of noise."""
    difference = compare(a=torch.tensor([[3.0, 5.0]]), b=torch.tensor([1.0, 1.0, 1.0, 2.0]))
    assert [one.sqnr_db for one in difference.tensors] == [pytest.approx(10 * math.log10(v)) for v in (25, 4)] + [None]
    assert difference.pooled_db == pytest.approx(10 * math.log10(29 / 2))


@pytest.mark.parametrize(
    ("name", "value", "status", "sqnr"),
    [
        ("a", FIRST["a"].clone(), "equal", math.inf),
        ("a", FIRST["a"].half(), "equal", math.inf),
        ("a", torch.tensor([[math.nan, 4.0]]), "differs", math.nan),
        ("a", torch.tensor([[math.inf, 4.0]]), "differs", -math.inf),
        ("a", torch.tensor([3.0, 4.0]), "shape-changed", None),
        ("new", torch.ones(1), "added", None),
        ("steps", torch.tensor(8), "differs", None),
        ("steps", torch.tensor(7.0), "equal", math.inf),
        ("steps", torch.tensor(7, dtype=torch.int32), "equal", None),
        ("a", torch.tensor([[3.0 + 0j, 4.0]]), "equal", None),
        ("a", torch.tensor([[3.0 + 1j, 4.0]]), "differs", None),
    ],
)
def test_what_became_of_a_tensor(name: str, value: Tensor, status: str, sqnr: float | None) -> None:
    """Floats are measured, everything else is equal or not."""
    found = next(one for one in compare(**{name: value}).tensors if one.name == name)
    assert found.status == status
    assert found.sqnr_db == (sqnr if sqnr is None else pytest.approx(sqnr, nan_ok=True))


def test_infinities_in_both_are_no_noise() -> None:
    """The masks of attention hold -inf, and are equal all the same; what is infinite in one only is noise."""
    mask = {"mask": torch.tensor([0.0, -math.inf, math.nan, 2.0])}
    same = mq.compare_weights(mask, {"mask": mask["mask"].clone()})
    assert (same.tensors[0].status, same.pooled_db, same.energy.signal) == ("equal", math.inf, 4.0)
    other = mq.compare_weights(mask, {"mask": torch.tensor([1.0, -math.inf, math.nan, 2.0])})
    assert other.pooled_db == pytest.approx(10 * math.log10(4))
    assert mq.compare_weights(mask, {"mask": mask["mask"].abs()}).pooled_db != math.inf


def test_tensors_that_only_one_model_has_come_first() -> None:
    """Then those that cannot be measured, then by rising SQNR, equal ones last."""
    before = {name: torch.full((2,), 4.0) for name in ("equal", "good", "bad", "broken", "gone")}
    after = before | {
        "good": torch.tensor([4.0, 4.1]),
        "bad": torch.tensor([4.0, 2.0]),
        "broken": torch.tensor([4.0, math.nan]),
        "new": torch.ones(2),
    }
    del after["gone"]
    difference = mq.compare_weights(before, after)
    assert [one.name for one in difference.worst_first()] == ["gone", "new", "broken", "bad", "good", "equal"]
    lines = str(difference).splitlines()
    assert lines[:2] == ["weights, pooled: nan dB", "tensors: 40 B -> 40 B"]
    assert [line.split()[0] for line in lines[5:]] == ["gone", "new", "broken", "bad", "good", "1"]
    assert lines[5].endswith("only in the first")
    assert lines[-3].split()[1:] == ["9.03", "8", "B", "8", "B"]
    assert lines[-1] == "1 other tensors: equal"


def test_dtypes_and_shapes_are_told() -> None:
    """What is equal in numbers and stored in another way is told as well."""
    text = str(compare(a=torch.ones(2), b=torch.ones(4).half(), steps=torch.tensor(8)))
    assert "1x2 float32 -> 2 float32: not compared" in text
    assert "4 float32 -> 4 float16" in text
    assert "other values" in text
    assert str(compare()).splitlines()[-1] == "3 tensors: equal"
    assert str(mq.compare_weights({}, {})) == "weights, pooled: - dB\ntensors: 0 B -> 0 B"


def test_the_dict_is_strict_json() -> None:
    """With a version."""
    data = json.loads(json.dumps(compare(a=torch.tensor([[math.nan, 4.0]])).to_dict(), allow_nan=False))
    assert (data["version"], data["pooled_db"], data["tensors"][0]["sqnr_db"]) == (1, "nan", "nan")
    assert data["tensors"][1] == {
        "name": "b",
        "status": "equal",
        "sqnr_db": "inf",
        "before": {"shape": [4], "dtype": "float32", "bytes": 16},
        "after": {"shape": [4], "dtype": "float32", "bytes": 16},
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(torch.ones(4, device="meta"), "'b' is on the meta device"), ([1.0], "'b' is a list: give tensors by name")],
)
def test_what_has_no_values_is_refused(value: Any, text: str) -> None:
    """The error names the tensor."""
    with pytest.raises(mq.InputError, match=text):
        compare(b=value)


def test_a_quantized_model_beside_its_float_one() -> None:
    """The figure is the one that the report has for the layer's weight."""
    model = nn.Sequential(nn.Linear(64, 32))
    result = mq.quantize(model, skip_param_threshold=0, accuracy_warning="ignore", plugins=False)
    difference = mq.compare_weights(model.state_dict(), mq.dequantize(result.model).state_dict())
    by_name = {one.name: one.sqnr_db for one in difference.tensors}
    assert by_name["0.weight"] == pytest.approx(result.report.layers[0].weight_sqnr_db, abs=1e-4)
    assert by_name["0.bias"] == math.inf
