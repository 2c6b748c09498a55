"""One Linear layer, multiplied by every way of a library, in turn with the float one."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from speed.stack import SPREAD, float_layer
from speed.timing import Clock
from speed.turns import BASELINE, Turns
from speed.ways import Product, Way, model_dtype

PATIENCE = 2.0
"""Seconds that one way may take for one shape and batch."""
COMPARED = 16
"""Rows of a product that are compared with the exact one."""


class Task:
    """Measures the products of one library.

    Args:
        ways: Of the library.
        clock: Tells seconds.
    """

    def __init__(self, ways: Sequence[Way], clock: Clock) -> None:
        self._ways = ways
        self._products: dict[str, tuple[Product, torch.dtype]] = {}
        self._clock = clock

    def prepare(self, columns: int, rows: int, baseline: str) -> dict[str, Any]:
        """Make the float layer and pack it by every way.

        Args:
            columns: Input features.
            rows: Output features.
            baseline: dtype of the float layer. Ways for it are measured; if it is float32, those for others as well.

        Returns:
            What is known of each way: its kernel, bits and dtype; or why it failed.
        """
        self._products = {}
        gc.collect()
        torch.manual_seed(rows)
        weight = nn.Parameter(torch.randn(rows, columns) * SPREAD, requires_grad=False)
        self._linear = float_layer(columns, rows)
        self._linear.weight = weight
        answers = {way.name: self._packed(way, baseline) for way in self._ways if _takes_part(way, baseline)}
        self._baseline = _converted(self._linear, model_dtype(baseline))
        return answers

    def _packed(self, way: Way, baseline: str) -> dict[str, Any]:
        dtype = baseline if baseline in way.dtypes else way.dtypes[0]
        try:
            product = way.product(_converted(self._linear, model_dtype(dtype)))
        except Exception as error:  # a library may fail in any way, and that is a result
            return {"failure": reason(error)}
        self._products[way.name] = product, model_dtype(dtype)
        return {"kernel": product.kernel, "bits": way.bits, "dtype": dtype, "integer": way.integer}

    def start(self, batch: int) -> dict[str, Any]:
        """Make inputs, call everything once, and compare the products with exact ones.

        Args:
            batch: Rows of the inputs.

        Returns:
            For each way the relative error, and which weight it is relative to; or why it failed.
        """
        torch.manual_seed(batch)
        inputs = torch.randn(batch, self._linear.in_features)
        self._turns = Turns(self._clock, PATIENCE)
        self._turns.add(BASELINE, partial(self._baseline, inputs.to(self._baseline.weight.dtype)))
        return {name: self._started(name, inputs) for name in self._products}

    def _started(self, name: str, inputs: Tensor) -> dict[str, Any]:
        product, dtype = self._products[name]
        try:
            own = inputs.to(dtype)
            weight = self._linear.weight if product.weight is None else product.weight
            error = relative_error(product.call(own), own, weight)
            self._turns.add(name, partial(product.call, own))
        except Exception as failure:  # as above
            return {"failure": reason(failure)}
        return {"error": error, "against": "float weight" if product.weight is None else "its own weight"}

    def round(self) -> list[dict[str, float]]:
        """Seconds of the float product and of each way, for each turn."""
        return self._turns.round()


def relative_error(product: Tensor, inputs: Tensor, weight: Tensor) -> float:
    """Frobenius norm of the error of some rows of a product, relative to the exact one in float64."""
    rows = torch.linspace(0, len(inputs) - 1, min(COMPARED, len(inputs))).long()
    exact = inputs[rows].double() @ weight.double().T
    return ((product[rows].double() - exact).norm() / exact.norm()).item()


def reason(error: Exception) -> str:
    """Why something failed, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _takes_part(way: Way, baseline: str) -> bool:
    return baseline in way.dtypes or (baseline == "float32" and bool(way.dtypes))


def _converted(linear: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    if linear.weight.dtype == dtype:
        return linear
    other = float_layer(linear.in_features, linear.out_features)
    other.weight = nn.Parameter(linear.weight.to(dtype), requires_grad=False)
    return other
