"""Files that are damaged, or whose content contradicts itself: refused before the model is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import monoquant as mq
from monoquant.container import read_container, write_container


def saved(folder: Path) -> Path:
    """A saved model with one packed layer."""
    result = mq.quantize(nn.Sequential(nn.Linear(40, 24)), accuracy_warning="ignore", plugins=False)
    path = folder / "model.safetensors"
    mq.save(result, path)
    return path


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """The bytes of one saved model, and a folder for damaged copies."""
    folder = tmp_path_factory.mktemp("damage")
    torch.manual_seed(0)
    return saved(folder).read_bytes(), folder


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_refused(small_file: tuple[bytes, Path], data: st.DataObject) -> None:
    """Wherever a bit flips, in header, metadata or tensors, loading refuses before it touches the model."""
    content, folder = small_file
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << (bit % 8)
    path = folder / "flipped.safetensors"
    path.write_bytes(damaged)
    model = nn.Sequential(nn.Linear(40, 24))
    before = model[0].weight
    with pytest.raises(mq.FileError):
        mq.load(path, model)
    assert type(model[0]) is nn.Linear
    assert model[0].weight is before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_truncation_is_refused(small_file: tuple[bytes, Path], data: st.DataObject) -> None:
    """A file cut short anywhere is refused."""
    content, folder = small_file
    path = folder / "cut.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(mq.FileError):
        mq.load(path, nn.Sequential(nn.Linear(40, 24)))


def rewritten(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    """Change a file's content and give it valid hashes again."""
    tensors, metadata = read_container(path)
    metadata = {key: text for key, text in metadata.items() if "sha256" not in key}
    change(tensors, metadata)
    write_container(path, tensors, metadata)


def set_text(key: str, text: str) -> Callable[[dict[str, Tensor], dict[str, str]], None]:
    """A change of one metadata text."""
    return lambda _tensors, metadata: metadata.update({key: text})


def a_form(**fields: Any) -> str:
    """A form of the only weight, as the metadata holds it."""
    return json.dumps({"0.weight": {**fields, "row_axes": 1}})


CHANGES = [
    (set_text("format", "gguf"), "not written by monoquant.save"),
    (set_text("format_version", "99"), "format version 99, this monoquant reads version 1"),
    (set_text("report", "{}"), "report version None"),
    (set_text("report", "not json"), "metadata cannot be read"),
    (set_text("report", '{"version": 1, "scheme": {"bits": 3}}'), "cannot be read"),
    (set_text("aliases", "[1"), "metadata cannot be read"),
    (set_text("dtypes", '{"0": "float3"}'), "metadata cannot be read"),
    (set_text("dtypes", '{"0": "int8"}'), "metadata cannot be read"),
    (set_text("dtypes", "[]"), "metadata cannot be read"),
    (set_text("aliases", "[]"), "metadata cannot be read"),
    (set_text("aliases", '{"0.bias": 3}'), "metadata cannot be read"),
    (set_text("forms", "[1"), "metadata cannot be read"),
    (set_text("forms", "[]"), "metadata cannot be read"),
    (set_text("forms", '{"0.weight": 3}'), "metadata cannot be read"),
    (set_text("forms", '{"0.weight": {}}'), "metadata cannot be read"),
    (set_text("forms", a_form(shape=[24, 40], split=[3, 3], order=[0, 1])), "metadata cannot be read"),
    (set_text("forms", a_form(shape=[24, 40], split=[24, 40], order=[0, 7])), "metadata cannot be read"),
    (set_text("forms", a_form(shape=[24, 40], split=[24, 40], order=[1, 0])), "layout"),
    (set_text("forms", a_form(shape=[40, 24], split=[40, 24], order=[1, 0])), "'0' of shape .* does not fit"),
    (set_text("aliases", '{"0.bias2": "nope"}'), "names tensors that it does not hold: nope"),
    (lambda tensors, _: tensors.pop("0.packed_weight.scale"), 'Missing key.*"scale"'),
    (lambda tensors, _: tensors.pop("0.packed_weight.layout"), "Missing key.*layout"),
    (lambda tensors, _: tensors.pop("0.bias"), "missing in the file: 0.bias"),
    (lambda tensors, _: tensors.update(more=torch.ones(1)), "not in the model: more"),
    (lambda tensors, _: tensors["0.packed_weight.layout"].add_(1), "format version"),
    (lambda tensors, _: tensors["0.packed_weight.layout"][4].add_(1), "layout"),
]


@pytest.mark.parametrize(("change", "text"), CHANGES, ids=[text for _, text in CHANGES])
def test_inconsistent_content_is_refused(tmp_path: Path, unchanged: Any, change: Any, text: str) -> None:
    """Files with valid hashes but wrong content are refused too, and the model stays as it was."""
    path = saved(tmp_path)
    rewritten(path, change)
    model = nn.Sequential(nn.Linear(40, 24))
    check = unchanged(model)
    with pytest.raises(mq.FileError, match=text):
        mq.load(path, model)
    check()


def test_metadata_that_no_parser_can_nest_is_refused(tmp_path: Path) -> None:
    """It may have been written to break readers."""
    metadata = {"format": "monoquant", "format_version": "1", "report": "[" * 100_000}
    write_container(tmp_path / "deep.safetensors", {}, metadata)
    with pytest.raises(mq.FileError, match=r"deep\.safetensors: its metadata cannot be read"):
        mq.load_report(tmp_path / "deep.safetensors")
