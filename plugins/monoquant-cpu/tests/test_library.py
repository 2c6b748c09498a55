"""The binding: what it computes, what it refuses, and what it says where there is no library."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import attrs
import pytest
import torch
from monoquant import Scheme
from monoquant.errors import ConfigError, InputError, PluginError
from monoquant.modules.packed_matrix import PackedMatrix
from torch import Tensor

from monoquant_cpu import Library, Unavailable, load
from monoquant_cpu.interface import ISAS, MATRIX, VERSION, QuantizeTask
from monoquant_cpu.library import open_library

ROWS, COLUMNS, GROUP, COUNT = 5, 70, 32, 3


@pytest.fixture
def matrix() -> PackedMatrix:
    values = torch.linspace(-1, 2, ROWS * COLUMNS).view(ROWS, COLUMNS)
    return PackedMatrix.pack(values, Scheme(4, GROUP))[0]


@pytest.fixture
def arguments(matrix: PackedMatrix) -> dict[str, Any]:
    """What product takes."""
    return {
        "kind": "float",
        "x": torch.linspace(-3, 1, COUNT * COLUMNS).view(COUNT, COLUMNS),
        "qweight": matrix.qweight,
        "scale": matrix.scale,
        "zero_point": matrix.zero_point,
        "columns": COLUMNS,
        "group_size": GROUP,
        "bias": torch.linspace(0, 1, ROWS),
    }


@pytest.fixture
def quantizing(matrix: PackedMatrix) -> dict[str, Any]:
    """What quantize_rows takes."""
    return {
        "values": torch.zeros(ROWS, COLUMNS),
        "group_size": GROUP,
        "qweight": matrix.qweight,
        "scale": matrix.scale,
        "zero_point": matrix.zero_point,
        "energies": torch.zeros(2, dtype=torch.float64),
    }


def test_it_is_loaded_once() -> None:
    assert load() is load()


def test_instruction_sets_are_named_the_fastest_first(library: Library) -> None:
    assert library.isas
    assert list(library.isas) == sorted(library.isas, key=ISAS.index, reverse=True)


def test_structs_are_those_of_c() -> None:
    assert MATRIX.size == 56
    assert (ctypes.sizeof(QuantizeTask), QuantizeTask.qweight.offset) == (88, 56)


@pytest.mark.parametrize("kind", ["int8", "float"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_product(library: Library, kind: Literal["int8", "float"], symmetric: bool, with_bias: bool) -> None:
    values = torch.linspace(-1, 2, ROWS * COLUMNS).view(ROWS, COLUMNS)
    matrix, _ = PackedMatrix.pack(values, Scheme(4, GROUP, symmetric))
    x = torch.linspace(-3, 1, COUNT * COLUMNS).view(COUNT, COLUMNS)
    bias = torch.linspace(0, 1, ROWS) if with_bias else None
    expected = torch.nn.functional.linear(x, matrix.dequantized_rows(slice(None)), bias)
    for isa in (None, *library.isas):
        found = library.product(
            kind, x, matrix.qweight, matrix.scale, matrix.zero_point, COLUMNS, GROUP, bias, threads=2, isa=isa
        )
        torch.testing.assert_close(
            found, expected, rtol=2e-2 if kind == "int8" else 1e-4, atol=0.5 if kind == "int8" else 1e-4
        )


def test_product_of_no_rows(library: Library, arguments: dict[str, Any]) -> None:
    found = library.product(**{**arguments, "x": torch.empty(0, COLUMNS)})
    assert found.shape == (0, ROWS)


def test_product_does_not_depend_on_the_default_dtype(library: Library, arguments: dict[str, Any]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert library.product(**arguments).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def strided(tensor: Tensor) -> Tensor:
    """The same values with gaps between all elements."""
    return torch.stack((tensor, tensor), -1)[..., 0]


WRONG_LENGTH: list[Callable[[Tensor], Tensor]] = [
    lambda tensor: tensor[:-1],
    lambda tensor: torch.cat((tensor, tensor)),
]
WRONG: list[Callable[[Tensor], Tensor]] = [
    lambda tensor: tensor.double() if tensor.dtype != torch.float64 else tensor.float(),
    lambda tensor: tensor[..., :-2],
    lambda tensor: tensor.unsqueeze(0),
    lambda tensor: tensor.flatten()[0],
    lambda tensor: tensor.to("meta"),
    strided,
]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *[(name, wrong) for name in ("x", "qweight", "scale", "zero_point", "bias") for wrong in WRONG],
        *[(name, wrong) for name in ("qweight", "scale", "zero_point", "bias") for wrong in WRONG_LENGTH],
    ],
)
def test_product_refuses_tensors_that_c_would_misread(
    library: Library, arguments: dict[str, Any], name: str, wrong: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(InputError, match=r"is torch\.\w+.*: give ") as error:
        library.product(**{**arguments, name: wrong(arguments[name])})
    assert name in str(error.value) or name == "qweight"  # with another number of rows, the other tensors are wrong


@pytest.mark.parametrize("name", ["values", "qweight", "scale", "zero_point", "energies"])
@pytest.mark.parametrize("wrong", [*WRONG, *WRONG_LENGTH])
def test_quantize_refuses_tensors_that_c_would_misuse(
    library: Library, quantizing: dict[str, Any], name: str, wrong: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(InputError, match=r": give "):
        library.quantize_rows(**{**quantizing, name: wrong(quantizing[name])})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"isa": "sse"}, "isa='sse': this CPU and library have "),
        ({"group_size": 0}, "group_size=0 for 70 columns: give a whole number from 1 to 70"),
        ({"group_size": 71}, "group_size=71 for 70 columns: give a whole number from 1 to 70"),
        ({"threads": 0}, "threads=0: give a whole number from 1 to 1024"),
        ({"threads": 2**32 + 1}, "threads=4294967297: give a whole number from 1 to 1024"),
    ],
)
def test_wrong_settings(
    library: Library, arguments: dict[str, Any], quantizing: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        library.product(**{**arguments, **changes})
    with pytest.raises(ConfigError, match=re.escape(message)):
        library.quantize_rows(**{**quantizing, **changes})


def test_wrong_settings_of_product(library: Library, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=re.escape("kind='int4': give 'int8' or 'float'")):
        library.product(**{**arguments, "kind": "int4"})
    with pytest.raises(ConfigError, match=re.escape("columns=0: give a whole number >= 1")):
        library.product(**{**arguments, "columns": 0})
    with pytest.raises(InputError, match="the matrix has 0 rows: give at least 1"):
        library.product(**{**arguments, "qweight": arguments["qweight"][:0]})


def test_values_with_gaps_within_rows(library: Library, quantizing: dict[str, Any]) -> None:
    message = f"the columns of values are {ROWS} elements apart: give values whose rows are dense"
    with pytest.raises(InputError, match=message):
        library.quantize_rows(**{**quantizing, "values": torch.zeros(COLUMNS, ROWS).T})


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [(2, MemoryError, "got no memory"), (3, PluginError, r"refused a call \(status 3\); this is a bug")],
)
def test_failures_in_c(
    library: Library,
    arguments: dict[str, Any],
    quantizing: dict[str, Any],
    status: int,
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "_products", {"float": lambda *_: status})
    monkeypatch.setattr(library, "_quantize", lambda *_: status)
    with pytest.raises(error, match=message):
        library.product(**arguments)
    with pytest.raises(error, match=message):
        library.quantize_rows(**quantizing)


def native(version: int = VERSION, *, supported: bool = True) -> SimpleNamespace:
    """What ctypes gives for a library."""
    function = SimpleNamespace()
    return SimpleNamespace(
        mq_version=lambda: version,
        mq_supports=lambda _: supported,
        mq_product_int8=function,
        mq_product_float=function,
        mq_quantize=function,
    )


def test_no_library(tmp_path: Path) -> None:
    path = re.escape(str(tmp_path / "_native.so"))
    found = open_library(tmp_path)
    assert isinstance(found, Unavailable)
    assert re.fullmatch(f"the native library was not built: there is no {path}; reinstall .*", found.reason)


def test_a_library_that_was_not_built(tmp_path: Path) -> None:
    (tmp_path / "_native.missing").write_text("it rained", encoding="utf-8")
    found = open_library(tmp_path)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("the native library was not built: it rained; reinstall ")


def test_a_library_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "_native.so").write_text("no ELF file")
    found = open_library(tmp_path)
    assert isinstance(found, Unavailable)
    assert re.match("the native library cannot be loaded: .*_native.so.*; reinstall ", found.reason)


@attrs.frozen
class Broken:
    """A library without the functions that it should have."""

    def mq_version(self) -> int:
        return VERSION


@pytest.mark.parametrize(
    ("loaded", "reason"),
    [
        (
            native(VERSION + 1),
            f"the native library has version {VERSION + 1}, this package needs {VERSION}; reinstall ",
        ),
        (native(supported=False), "this CPU has none of the instruction sets that the native library was compiled for"),
        (Broken(), "the native library cannot be loaded: .*mq_product_int8.*; reinstall "),
    ],
)
def test_libraries_that_do_not_fit(
    tmp_path: Path, loaded: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_native.so").touch()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: loaded)
    found = open_library(tmp_path)
    assert isinstance(found, Unavailable)
    assert re.match(reason, found.reason)


def test_the_fastest_instruction_set_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_native.so").touch()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: native())
    found = open_library(tmp_path)
    assert isinstance(found, Library)
    assert found.isas == tuple(reversed(ISAS))
