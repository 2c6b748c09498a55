"""Which rows count when codes are fitted: padding does not, and those that matter more count more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.algorithms.gptq import Gptq
from tests.fitting_cases import FEATURES, UNWEIGHTED, assert_finite, by_forward, fit, fitted_part, rows


class Padded(nn.Module):
    """A model of sequences with padding, and an attention that moves the axes of positions and samples."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(FEATURES, FEATURES)
        self.attention = nn.MultiheadAttention(FEATURES, 4, batch_first=True)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.up(x)
        return self.attention(hidden, hidden, hidden, key_padding_mask=attention_mask == 0)[0]


def padded_batch() -> dict[str, Tensor]:
    """Sequences of different lengths; what stands in padded positions is large."""
    x, mask = rows(600).view(60, 10, FEATURES).clone(), torch.ones(60, 10, dtype=torch.int64)
    for sample in range(60):
        mask[sample, 4 + sample % 7 :] = 0
    x[mask == 0] = 1000.0
    return {"x": x, "attention_mask": mask}


def importances(model: nn.Module, batch: Any) -> dict[tuple[str, str], Tensor]:
    """Mean squares of what weights were fitted to."""
    found: dict[tuple[str, str], Tensor] = {}

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            for one in context.watched_weights():
                [part] = context.input_statistics(one.layer, one.name)
                found[one.layer, one.name] = part.moments.importance

    pack = mq.Int4PackPass(32, algorithm=UNWEIGHTED)
    mq.Quantizer([mq.SkipSelectionPass(), mq.CalibrationPass([batch]), pack, Peek()]).run(model)
    return found


def test_padding_is_not_fitted_to() -> None:
    """Positions that an attention mask leaves out do not count, in layers that keep the order of positions."""
    batch = padded_batch()
    samples = fitted_part(batch["x"])
    expected = samples[fitted_part(batch["attention_mask"]) != 0].square().mean(0)
    torch.testing.assert_close(importances(Padded().eval(), batch)["up", "weight"], expected, rtol=1e-3, atol=1e-3)


def test_padding_is_not_fitted_to_in_attention() -> None:
    """nn.MultiheadAttention puts positions before samples, whatever order it was given."""
    model, batch = Padded().eval(), padded_batch()
    with torch.no_grad():
        hidden = model.up(fitted_part(batch["x"]))
    expected = hidden[fitted_part(batch["attention_mask"]) != 0].square().mean(0)
    found = importances(model, batch)["attention", "in_proj_weight"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


class OnlyFirst(nn.Module):
    """A model whose answer depends on the first position of what a layer computes, and on no other."""

    def __init__(self, layer: nn.Module, take: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.take = layer, take

    def forward(self, x: Tensor) -> Tensor:
        return self.take(self.layer, x)


def attend(attention: nn.Module, x: Tensor) -> Tensor:
    return attention(x, x, x, need_weights=False)[0]


def positions(count: int, batch_first: bool = True) -> Tensor:
    """Sequences whose first position is ten times as large as the others."""
    x = rows(24 * count).view(24, count, FEATURES).clone()
    x[:, 0] *= 10
    return x if batch_first else x.transpose(0, 1)


MATTERING = {
    "Linear": (nn.Linear(FEATURES, 32), lambda layer, x: layer(x)[:, 0], positions(8)),
    "Linear of rows": (nn.Linear(FEATURES, 32), lambda layer, x: layer(x.flatten(0, 1))[::8], positions(8)),
    "Conv1d": (nn.Conv1d(FEATURES, 32, 1), lambda layer, x: layer(x.mT)[..., 0], positions(8)),
    "attention, positions first": (
        nn.MultiheadAttention(FEATURES, 4),
        lambda layer, x: attend(layer, x)[0],
        positions(8, batch_first=False),
    ),
    "Conv1d of as many channels as positions": (
        nn.Conv1d(FEATURES, 32, 1),
        lambda layer, x: layer(x.mT)[..., 0],
        positions(32),
    ),
    "attention, samples first": (
        nn.MultiheadAttention(FEATURES, 4, batch_first=True),
        lambda layer, x: attend(layer, x)[:, 0],
        positions(8),
    ),
}


@pytest.mark.parametrize("kind", MATTERING)
def test_rows_that_matter_count_more_or_all_alike(kind: str) -> None:
    """What is fitted to is either weighed by what moves the answer, or not at all; never by the gradients of others."""
    layer, take, x = MATTERING[kind]
    model = OnlyFirst(layer, take).eval()
    found: list[tuple[bool, float]] = []

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            one = context.watched_weights()[0]
            [part] = context.input_statistics(one.layer, one.name)
            found.append((part.moments.weighted, float(part.moments.importance.mean())))

    calibration = mq.CalibrationPass([x], forward=by_forward)
    mq.Quantizer([mq.SkipSelectionPass(), calibration, mq.Int4PackPass(32, algorithm=Gptq()), Peek()]).run(model)
    [(weighted, importance)] = found
    alike = float(x.square().mean())
    axis = 1 if len(x) == 24 else 0
    first = float(x.select(axis, 0).square().mean())
    assert importance == pytest.approx(first if weighted else alike, rel=0.15)


def test_rows_without_inputs_that_matter_break_nothing() -> None:
    """Where all that moves the answer is NaN, what is left counts nothing, and cannot be fitted to."""
    model = OnlyFirst(nn.Linear(FEATURES, 32), lambda layer, x: layer(x)[:, 0]).eval()
    x = positions(8)
    x[:, 0] = float("nan")
    assert_finite(fit(model, [x]).model)
