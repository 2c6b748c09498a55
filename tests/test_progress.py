"""What readers tell of how far they are: it rises to all there is, and changes nothing of what is read."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import monoquant as mq
from monoquant.container import arranged, header_of, read_container, write_container
from monoquant.formats.native import read_dequantized, read_report
from monoquant.formats.weights_file import read_weights
from monoquant.numerics.memory import byte_view
from monoquant.opening import open_model
from monoquant.progress import part_of


class Seen:
    """Shares that were told."""

    def __init__(self) -> None:
        self.shares: list[Fraction] = []

    def __call__(self, done: int, total: int) -> None:
        self.shares.append(Fraction(done, total))

    def assert_rose_in(self, steps: int) -> None:
        """To the end, in that many steps at least."""
        assert self.shares == sorted(self.shares)
        assert self.shares[-1] == 1
        assert len({*self.shares} - {0}) >= steps


@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9), st.integers(0, 7), st.integers(1, 7))
def test_a_part_is_told_as_its_share_of_the_whole(first: int, size: int, rest: int, done: int, of: int) -> None:
    """From where it begins to where it ends, exactly."""
    seen, total = Seen(), first + size + rest
    part_of(seen, first, first + size, total)(done, of)
    assert seen.shares == [(first + size * Fraction(done, of)) / total]


@pytest.fixture
def float_folder(tmp_path: Path) -> Path:
    """Two shards of three tensors, of which one has hashes and the other has none."""
    folder = tmp_path / "float"
    folder.mkdir()
    names = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(names):
        write_container(folder / name, {f"{number}.{letter}.weight": torch.randn(64, 128) for letter in "abc"}, {})
    tensors = read_container(folder / names[1])[0]
    slots = arranged(tensors)
    content = b"".join(bytes(byte_view(tensors[name])) for name in slots)
    (folder / names[1]).write_bytes(header_of(slots, {}) + content)
    places = {f"{number}.{letter}.weight": name for number, name in enumerate(names) for letter in "abc"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.fixture
def quantized(float_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    mq.quantize_file(float_folder, path, plugins=False, accuracy_warning="ignore")
    return path


def test_reading_float_weights_is_told(float_folder: Path) -> None:
    """Of shards, with hashes and without."""
    seen = Seen()
    found = read_weights(float_folder, seen)
    seen.assert_rose_in(9)  # three tensors read, three verified, three read
    plain = read_weights(float_folder)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_reading_what_torch_saved_is_told_file_by_file(tmp_path: Path) -> None:
    """More is not known of it."""
    torch.save({"weight": torch.ones(3)}, tmp_path / "w.pt")
    seen = Seen()
    read_weights(tmp_path / "w.pt", seen)
    seen.assert_rose_in(1)


def test_reading_a_quantized_file_is_told(quantized: Path) -> None:
    """What is read, what is verified, and what is decoded."""
    tensors = len(read_container(quantized)[0])
    seen = Seen()
    assert read_report(quantized, seen) == read_report(quantized)
    seen.assert_rose_in(2 * tensors)
    seen = Seen()
    assert read_dequantized(quantized, seen).keys() == read_dequantized(quantized).keys()
    seen.assert_rose_in(2 * tensors + 6)


@pytest.mark.parametrize("method", ["state", "dequantized_state", "report"])
def test_what_is_opened_tells_it(float_folder: Path, quantized: Path, method: str) -> None:
    """Whatever is asked for."""
    seen = Seen()
    getattr(open_model(float_folder if method == "state" else quantized), method)(seen)
    seen.assert_rose_in(3)
