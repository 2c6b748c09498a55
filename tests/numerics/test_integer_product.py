"""Products of integers: exact sums, quantized rows, and what may not pass in silence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monoquant.numerics.integer_product import (
    _METHODS,
    MAX_FEATURES,
    exact_method,
    integer_product,
    quantize_rows,
    quantize_to_range,
)
from monoquant.testing.strategies import weights


@given(weights(max_rows=12, max_columns=70))
def test_rows_are_reproduced_to_half_a_step(inputs: torch.Tensor) -> None:
    """Each value, up to the rounding of the division."""
    values = inputs.to(torch.float32)
    codes, scale = quantize_rows(values)
    resolved = (values.abs().amax(-1, keepdim=True) / 127) >= torch.finfo(torch.float32).tiny
    error = (values - codes * scale).abs()
    assert codes.int().abs().max() <= 127
    assert bool(((error <= scale * 0.5001) | ~resolved).all())


@given(weights(max_rows=8, max_columns=40), st.integers(0, 7))
def test_a_row_does_not_depend_on_the_others(inputs: torch.Tensor, row: int) -> None:
    """The same sample gives the same codes, whatever batch it is in."""
    row = row % len(inputs)
    codes, scale = quantize_rows(inputs.float())
    alone, own_scale = quantize_rows(inputs.float()[row : row + 1])
    assert torch.equal(codes[row : row + 1], alone)
    assert torch.equal(scale[row : row + 1], own_scale)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_rows_get_a_nan_scale_and_others_do_not(broken: float) -> None:
    """What is computed from such a row is nan, and never a plausible number."""
    inputs = torch.randn(3, 8)
    inputs[1, 2] = broken
    for scale in (quantize_rows(inputs)[1], quantize_to_range(inputs, torch.tensor(0.1), torch.tensor(3))[1]):
        assert scale.isnan().flatten().tolist() == [False, True, False]


def test_rows_of_zeros_are_exact() -> None:
    """Their scale is the smallest normal number, not zero or nan."""
    codes, scale = quantize_rows(torch.zeros(2, 5))
    assert codes.tolist() == [[0] * 5] * 2
    assert scale.tolist() == [[torch.finfo(torch.float32).tiny]] * 2


@given(st.floats(0.01, 10), st.integers(-128, 127), st.integers(0, 2**32 - 1))
def test_inputs_within_the_range_are_reproduced_and_others_clipped(scale: float, zero: int, seed: int) -> None:
    """Zero is exact; the codes are those of an affine map that ends at -128 and 127."""
    step, zero_point = torch.tensor(scale), torch.tensor(zero, dtype=torch.int32)
    inputs = torch.randn(4, 30, generator=torch.Generator().manual_seed(seed)) * scale * 100
    codes, _ = quantize_to_range(inputs, step, zero_point)
    values = (codes.float() - zero) * scale
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    assert torch.allclose(values, inputs.clamp(low, high), atol=scale * 0.501)
    assert quantize_to_range(torch.zeros(1, 1), step, zero_point)[0].item() == zero


def any_codes(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (rows, columns), generator=generator).to(torch.int8)


@given(st.integers(0, 20), st.integers(1, 70), st.integers(1, 20), st.integers(0, 2**16))
def test_sums_are_exact(rows: int, columns: int, out: int, seed: int) -> None:
    """As 64-bit integers give them; one column included, where torch's kernel alone reads past the end."""
    codes, weight = any_codes(rows, columns, seed), any_codes(out, columns, seed + 1)
    assert torch.equal(integer_product(codes, weight).long(), codes.long() @ weight.long().T)


@pytest.mark.parametrize("method", ["halves", "float64"])
@pytest.mark.parametrize("columns", [2, 33, 512])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_the_other_ways_give_the_same_sums(method: str, columns: int, rows: int) -> None:
    """Those that this machine may not need."""
    codes, weight = any_codes(rows, columns), any_codes(7, columns, 1)
    assert torch.equal(_METHODS[method](codes, weight).long(), codes.long() @ weight.long().T)


_ON_ANOTHER_MACHINE = """
import torch
from monoquant.numerics.integer_product import exact_method, integer_product
codes = torch.full((5, 96), 127, dtype=torch.int8)
weight = torch.full((16, 96), 127, dtype=torch.int8)
naive_is_exact = bool((torch._int_mm(codes, weight.t()) == 127 * 127 * 96).all())
exact = bool((integer_product(codes, weight) == 127 * 127 * 96).all())
print(exact_method(), naive_is_exact, exact)
"""


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "SSE41", "ALL"])
def test_sums_are_exact_without_vnni(instructions: str) -> None:
    """With fewer instructions torch's kernel saturates, and the choice of method must notice."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ON_ANOTHER_MACHINE],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    method, naive_is_exact, exact = done.stdout.split()
    assert exact == "True"
    assert (method == "direct") == (naive_is_exact == "True")


def test_the_longest_sum_fits() -> None:
    """The largest sums that codes and a zero_point can make."""
    weight = torch.full((2, MAX_FEATURES), -128, dtype=torch.int8)
    lowest, highest = (torch.full((1, MAX_FEATURES), code, dtype=torch.int8) for code in (-128, 127))
    assert integer_product(lowest, weight).tolist() == [[128 * 128 * MAX_FEATURES] * 2]
    for codes, zero in ((lowest, 127), (highest, -128)):
        correction = weight.sum(1, dtype=torch.int32) * zero
        expected = (int(codes[0, 0]) - zero) * -128 * MAX_FEATURES
        assert integer_product(codes, weight).sub_(correction).tolist() == [[expected] * 2]


def test_compiled_graphs_do_not_rely_on_this_machine() -> None:
    """They may be exported to one where the direct product saturates: the sums come from halves."""

    class Product(torch.nn.Module):
        def forward(self, codes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return integer_product(codes, weight)

    codes, weight = any_codes(4, 32), any_codes(6, 32, 1)
    program = torch.export.export(Product(), (codes, weight))
    assert any(
        "bitwise_right_shift" in str(node.target) or "rshift" in str(node.target) for node in program.graph.nodes
    )
    assert torch.equal(program.module()(codes, weight), integer_product(codes, weight))
    assert exact_method() in _METHODS


def test_no_rows_give_no_rows() -> None:
    """An empty batch is no special case."""
    codes, scale = quantize_rows(torch.zeros(0, 16))
    assert integer_product(codes, torch.ones(3, 16, dtype=torch.int8)).shape == (0, 3)
    assert scale.shape == (0, 1)
