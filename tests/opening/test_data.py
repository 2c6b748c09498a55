"""Calibration data that a person names: cut into batches, or refused with what is wrong with it."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import monoquant as mq
from monoquant.container import write_container
from monoquant.numerics.memory import byte_view
from monoquant.opening import open_data

CODES = {torch.float32: "<f4", torch.float64: "<f8", torch.float16: "<f2", torch.int64: "<i8", torch.int32: "<i4"}
CODES |= {torch.int16: "<i2", torch.int8: "|i1", torch.uint8: "|u1", torch.bool: "|b1"}


def write_array(path: Path, array: Tensor, *, fortran: bool = False, version: int = 1) -> None:
    """A file as NumPy writes it."""
    stored = (array.permute(*reversed(range(array.dim()))) if fortran else array).contiguous()
    said = f"{{'descr': '{CODES[array.dtype]}', 'fortran_order': {fortran}, 'shape': {tuple(array.shape)}, }}"
    size = "<H" if version == 1 else "<L"
    text = said.encode() + b" " * (-(len(said) + 11 + (version > 1) * 2) % 64) + b"\n"
    path.write_bytes(
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack(size, len(text)) + text + bytes(byte_view(stored))
    )


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    dtype=st.sampled_from(list(CODES)),
    fortran=st.booleans(),
    version=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    samples=st.none() | st.integers(1, 5),
)
def test_an_array(
    tmp_path: Path,
    shape: list[int],
    dtype: torch.dtype,
    fortran: bool,
    version: int,
    batch_size: int,
    samples: int | None,
) -> None:
    """In either order of axes; batches are its first rows, all but the last of the size that is asked for."""
    array = torch.randint(0, 100, shape).to(dtype)
    write_array(tmp_path / "a.npy", array, fortran=fortran, version=version)
    batches = list(open_data(tmp_path / "a.npy", batch_size=batch_size, samples=samples))
    assert torch.equal(torch.cat(batches), array[:samples])
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert 1 <= len(batches[-1]) <= batch_size
    assert all(batch.is_contiguous() for batch in batches)


def test_tensors(tmp_path: Path) -> None:
    """Several are parts of mappings, a lone one is the input itself."""
    parts = {"input_ids": torch.arange(20).view(10, 2), "attention_mask": torch.ones(10, 2, dtype=torch.int64)}
    write_container(tmp_path / "a.safetensors", parts, {})
    batches = list(open_data(tmp_path / "a.safetensors", batch_size=4, samples=9))
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 1]
    assert all(batch.keys() == parts.keys() for batch in batches)
    for name, part in parts.items():
        assert torch.equal(torch.cat([batch[name] for batch in batches]), part[:9])
    write_container(tmp_path / "a.safetensors", {"x": torch.arange(10.0)}, {})
    assert [batch.tolist() for batch in open_data(tmp_path / "a.safetensors")] == [list(range(8)), [8, 9]]


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "holds no data (no tensors)"),
        ({"a": torch.ones(0, 3)}, "holds no data (a (0, 3))"),
        ({"a": torch.ones(())}, "a lone number is no sample (a ())"),
        ({"a": torch.ones(3), "b": torch.ones(4)}, "tensors of different lengths (a (3,), b (4,))"),
        ({"a": torch.full((2,), float("nan")), "b": torch.ones(2)}, "NaN in a; leave such samples out"),
    ],
)
def test_tensors_that_are_no_data(tmp_path: Path, tensors: dict[str, Tensor], said: str) -> None:
    """Nothing, no samples, samples that do not match, and values that are none."""
    write_container(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(mq.InputError) as caught:
        open_data(tmp_path / "a.safetensors")
    assert said in str(caught.value)


SOUND = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x93NUMPY\1\0\0", "not a .npy file"),
        (b"\x93NUMPY\4\0\0\0\0\0\0\0", "not a .npy file"),
        (SOUND.replace("<f4", ">f4"), "values of kind '>f4'; convert them to one of <f8"),
        (SOUND.replace("<f4", "<U5"), "values of kind '<U5'"),
        (SOUND.replace("(1,)", "(2,)"), "shape (2,) has 8 bytes and the file 4"),
        (SOUND.replace("(1,)", "()"), "a lone number is no sample"),
        (SOUND.replace("(1,)", "(" + "1," * 40 + ")"), "get it again"),
        (SOUND.replace("(1,)", f"({1 << 63},0)"), "get it again"),
        (SOUND.replace("(1,)", "(-1,)"), "not a .npy file of one array, its header says"),
        (SOUND.replace("'<f4'", "[('a', '<f4')]"), "not a .npy file of one array"),
        (SOUND + "evil()", "not a .npy file of one array"),
    ],
)
def test_arrays_that_are_none(tmp_path: Path, content: str | bytes, said: str) -> None:
    """Damaged, of other kinds, or larger than their files."""
    if isinstance(content, str):
        content = b"\x93NUMPY\1\0" + struct.pack("<H", len(content) + 1) + content.encode() + b"\n1234"
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises((mq.FileError, mq.InputError)) as caught:
        open_data(tmp_path / "a.npy")
    assert said in str(caught.value)


def test_what_is_no_data(tmp_path: Path) -> None:
    """Told what it is, and what would do."""
    torch.save({}, tmp_path / "a.pt")
    with pytest.raises(mq.FileError, match=r"is a zip archive.*; give a \.safetensors or \.npy file, a text with a"):
        open_data(tmp_path / "a.pt")
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(mq.FileError, match=r"is it a text\? Then give a --tokenizer"):
        open_data(tmp_path / "a.txt")
    (tmp_path / "empty").write_text("")
    with pytest.raises(mq.InputError, match="is empty; give"):
        open_data(tmp_path / "empty")
    with pytest.raises(mq.FileError, match="no such file"):
        open_data(tmp_path / "none")
    with pytest.raises(mq.InputError, match="names no data"):
        open_data("")
    write_array(tmp_path / "a.npy", torch.ones(3))
    with pytest.raises(mq.ConfigError, match=r"tokenizer='x' has no text to work on, .* is a NumPy array: leave"):
        open_data(tmp_path / "a.npy", tokenizer="x")


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"samples": 0}, {"max_length": -1}, {"batch_size": True}])
def test_wrong_numbers(wrong: dict[str, Any]) -> None:
    """Named, with what is allowed."""
    with pytest.raises(mq.ConfigError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}: give a whole number"):
        open_data("a", **wrong)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b" \n\t\n", "holds no line of text"),
        (b"caf\xe9", "is no UTF-8 text"),
        (b"a\0b", "is no text, it holds zeros"),
        (b"a" * (1 << 21), "a line of more than 1048576 bytes"),
    ],
)
def test_texts_that_are_none(tmp_path: Path, content: bytes, said: str) -> None:
    """Known before a tokenizer is looked for."""
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises((mq.FileError, mq.InputError), match=said):
        open_data(tmp_path / "a.txt", tokenizer=tmp_path)


def test_a_text_without_what_reads_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is told."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "tokenizer.json").write_text("{}")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(mq.InputError, match=r"which is not installed: pip install 'monoquant\[hf\]'"):
            open_data(tmp_path / "a.txt", tokenizer=place)
