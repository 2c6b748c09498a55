"""The file that is written block by block is the one that holds what quantizing in memory and saving would."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import monoquant as mq
from monoquant.container import write_container
from monoquant.disk import replacing
from monoquant.numerics import grouping
from monoquant.numerics.memory import byte_view
from monoquant.streaming import reading, run
from monoquant.streaming.target import TensorTarget

QUIET: dict[str, Any] = {"accuracy_warning": "ignore", "plugins": False}
FLOATS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
SHAPES = {
    "a.weight": st.tuples(st.integers(2, 9), st.integers(1, 300)),
    "b.c.weight": st.tuples(st.integers(2, 40), st.integers(100, 200)),
    "conv.weight": st.tuples(st.integers(2, 5), st.integers(1, 3), st.just(3), st.just(3)),
    "experts.up": st.tuples(st.integers(1, 3), st.just(64), st.just(66)),
    "token_embedding.weight": st.tuples(st.integers(2, 30), st.integers(1, 20)),
    "lm_head.weight": st.tuples(st.integers(2, 9), st.just(200)),
    "rnn.weight_ih_l0": st.tuples(st.just(12), st.integers(3, 80)),
    "norm.weight": st.tuples(st.integers(1, 40)),
    "a.bias": st.tuples(st.integers(0, 9)),
    "top": st.tuples(st.integers(2, 3), st.integers(300, 400)),
    "head.logit_scale": st.just(()),
}
SCHEMES = [
    {},
    {"group_size": 32},
    {"group_size": 5, "symmetric": True},
    {"group_size": 1000, "scale_dtype": torch.float32, "skip_param_threshold": 0},
    {"scale_dtype": torch.bfloat16, "modules_to_not_convert": []},
    {"bits": 8},
    {"bits": 8, "group_size": 16, "symmetric": False, "scale_dtype": torch.float16},
    {"bits": 16},
    {"dtype": torch.bfloat16},
    {"skip_to": "int8", "skip_layer_names": ["c"]},
    {"skip_to": "int8", "skip_layer_names": ["c"], "scale_dtype": torch.bfloat16},
    {"skip_to": "float16", "skip_layer_names": ["a"], "add_default_skips": True},
]


@st.composite
def states(draw: st.DrawFn) -> dict[str, Tensor]:
    """Small state dicts with tensors of many kinds, also some that no float16 holds."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    names = draw(st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, max_size=6, unique=True))
    state = {}
    for name in names:
        scale = draw(st.sampled_from([1.0, 1.0, 1e-6, 1e4, 0.0]))
        state[name] = (torch.randn(draw(SHAPES[name]), generator=generator) * scale).to(draw(FLOATS))
    if draw(st.booleans()):
        state["steps"] = torch.arange(draw(st.integers(0, 5)))
    return state


@contextmanager
def small_blocks(chunk: int, block: int, room: int = 4096) -> Iterator[None]:
    """Even small tensors are many blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "CHUNK_ELEMENTS", chunk)
        patch.setattr(grouping, "BLOCK_ELEMENTS", block)
        patch.setattr(reading, "BLOCK_BYTES", 8 * block)
        patch.setattr(replacing, "_flush", lambda file: file.flush())  # rather than wait for the disk each time
        patch.setattr(run, "_ROOM", room)
        patch.setattr(run, "_ROOM_PER_WEIGHT", room // 8)
        yield


def contents(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file, read without any library."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def outcome(work: Any, path: Path) -> Any:
    """What a file holds, or why there is none."""
    path.unlink(missing_ok=True)
    try:
        work()
    except mq.MonoquantError as error:
        assert not path.exists()
        return type(error), str(error), error.layers
    return contents(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    state=states(),
    options=st.sampled_from(SCHEMES),
    chunk=st.integers(100, 3000),
    blocks=st.integers(1, 3),
    room=st.sampled_from([0, 4096]),
)
def test_the_file_is_that_of_quantizing_in_memory(
    tmp_path: Path, state: dict[str, Tensor], options: dict[str, Any], chunk: int, blocks: int, room: int
) -> None:
    """Every tensor, hash and text, and every error; also where the report needs more room than was left for it."""
    source, target = tmp_path / "float.safetensors", tmp_path / "packed.safetensors"
    write_container(source, {name: tensor.contiguous() for name, tensor in state.items()}, {})
    with small_blocks(chunk, chunk * blocks, room):
        expected = outcome(lambda: mq.save(mq.quantize(source, **options, **QUIET), target, plugins=False), target)
        reports = []
        found = outcome(lambda: reports.append(mq.quantize_file(source, target, **options, **QUIET)), target)
    assert found == expected
    if reports:
        assert reports[0] == mq.load_report(target)
    assert {path.name for path in tmp_path.iterdir()} <= {source.name, target.name}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(200, 64), nn.LayerNorm(64), nn.Linear(64, 200, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(self.norm(self.up(x)))
        return found


def model(seed: int = 0) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Model()


def test_the_file_loads_into_a_model(tmp_path: Path) -> None:
    """As one that save() wrote does, and it computes the same."""
    original, target = model(), tmp_path / "packed.safetensors"
    write_container(tmp_path / "float.safetensors", original.state_dict(), {})
    report = mq.quantize_file(tmp_path / "float.safetensors", target, **QUIET)
    loaded, expected = mq.load(target, model(1)), mq.quantize(original, **QUIET).model
    inputs = torch.randn(3, 200)
    assert torch.equal(loaded(inputs), expected(inputs))
    assert report.validation is not None
    assert report.validation.load_test_passed
    assert [one.layer for one in report.layers] == ["down", "norm", "up"]


def test_a_folder_of_files_becomes_one_file(tmp_path: Path) -> None:
    """However tensors are shared out among the files, and by folder or by index."""
    state = dict(sorted(model().state_dict().items()))
    whole, folder = tmp_path / "float.safetensors", tmp_path / "folder"
    folder.mkdir()
    write_container(whole, state, {})
    places = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(state)}
    for place in set(places.values()):
        write_container(folder / place, {name: state[name] for name in places if places[name] == place}, {})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    targets = [tmp_path / f"{name}.safetensors" for name in ("whole", "folder", "index")]
    for source, target in zip((whole, folder, index), targets, strict=True):
        mq.quantize_file(source, target, **QUIET)
    assert contents(targets[0]) == contents(targets[1]) == contents(targets[2])


def test_a_folder_may_hold_a_single_file(tmp_path: Path) -> None:
    write_container(tmp_path / "model.safetensors", model().state_dict(), {})
    mq.quantize_file(tmp_path, tmp_path / "packed.safetensors", **QUIET)
    assert mq.load_report(tmp_path / "packed.safetensors").layers


class Crosswise(mq.ModuleAdapter):
    """Input features down, output features across."""

    def claims(self, module: nn.Module) -> bool:
        return "weight" in module._parameters and module._parameters["weight"].dim() == 2

    def forms(self, module: nn.Module, weights: Any) -> Any:
        return {"weight": mq.MatrixForm.along(weights["weight"].shape, 0)}


def test_rows_that_do_not_follow_one_another_are_told(tmp_path: Path) -> None:
    """Such a weight is read whole, and is the same in the end; its report differs in that finding only."""
    source, target, plain = (tmp_path / f"{name}.safetensors" for name in ("float", "packed", "plain"))
    write_container(source, {"a.weight": torch.randn(200, 300)}, {})
    report = mq.quantize_file(source, target, adapters=[Crosswise()], **QUIET)
    result = mq.quantize(source, adapters=[Crosswise()], **QUIET)
    mq.save(result, plain)
    assert contents(target)[1] == contents(plain)[1]
    extra = [finding for finding in report.findings if finding not in result.report.findings]
    assert [(finding.code, finding.layer) for finding in extra] == [("not-streamed", "a")]
    assert report.layers == result.report.layers


def test_very_long_rows_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows are in memory at a time, so that long ones take some."""
    from monoquant.streaming import planning

    write_container(tmp_path / "float.safetensors", {"a.weight": torch.randn(4, 3000)}, {})
    monkeypatch.setattr(grouping, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(planning, "BLOCK_BYTES", 20_000)
    report = mq.quantize_file(tmp_path / "float.safetensors", tmp_path / "packed.safetensors", **QUIET)
    assert [finding.message for finding in report.findings if finding.code == "not-streamed"] == [
        "Weight 'a.weight' needed more memory than others: its rows have 11.7 KiB each, and were read two at a time."
    ]


def test_progress_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In bytes of what is read: everything once, and weights for float16 twice."""
    source, target = tmp_path / "float.safetensors", tmp_path / "packed.safetensors"
    write_container(source, model().state_dict(), {})
    size = sum(len(byte_view(tensor)) for tensor in model().state_dict().values())
    weights = 2 * 200 * 64 * 4
    for options, total in (({}, size), ({"bits": 16}, size + weights)):
        seen: list[tuple[int, int]] = []
        mq.quantize_file(source, target, progress=lambda *told, seen=seen: seen.append(told), **options, **QUIET)
        assert seen == sorted(seen)
        assert seen[-1] == (total, total)
    assert not capsys.readouterr().err
    mq.quantize_file(source, target, progress=True, **QUIET)
    assert "quantizing: 0 of 0 MiB" in capsys.readouterr().err


def test_a_slow_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is overwritten in memory that is still to be written to the disk."""
    source, target = tmp_path / "float.safetensors", tmp_path / "packed.safetensors"
    kept = torch.randn(64, 100)
    write_container(source, {"a.weight": torch.randn(64, 100), "embed.weight": kept}, {})
    write = TensorTarget._write

    def slowly(self: TensorTarget, pieces: Any) -> None:
        time.sleep(0.01)
        write(self, pieces)

    with small_blocks(400, 800):
        expected = outcome(lambda: mq.save(mq.quantize(source, **QUIET), target, plugins=False), target)
        monkeypatch.setattr(TensorTarget, "_write", slowly)
        assert outcome(lambda: mq.quantize_file(source, target, **QUIET), target) == expected
