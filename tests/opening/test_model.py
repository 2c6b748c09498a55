"""Models that a person names: found by what is in them, and told what they can give."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import monoquant as mq
from monoquant.container import write_container
from monoquant.opening import OpenedKind, OpenedModel, open_model

QUIET: dict[str, Any] = {"accuracy_warning": "ignore", "plugins": False}
GIVES = {
    OpenedKind.WEIGHTS: {"state"},
    OpenedKind.HUGGINGFACE: {"state", "module"},
    OpenedKind.FACTORY: {"state", "module"},
    OpenedKind.QUANTIZED: {"report", "dequantized_state"},
    OpenedKind.REPORT: {"report"},
}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 40))


@pytest.fixture
def state(model: nn.Module) -> Mapping[str, Tensor]:
    return model.state_dict()


def assert_gives(opened: OpenedModel, kind: OpenedKind, *given: str) -> None:
    """What it is, what it gives, and that it says of everything else what does."""
    assert opened.kind is kind
    for name in ("state", "module", "report", "dequantized_state"):
        if name in given:
            getattr(opened, name)()
            continue
        with pytest.raises(mq.InputError, match=r"^\S+ is no .*, but: ") as caught:
            getattr(opened, name)()
        assert opened.described in str(caught.value)
        able = [other.value for other, gives in GIVES.items() if name in gives]
        assert str(caught.value).endswith(" or ".join(able))
    assert opened.can_run == ("module" in given)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights"])
def test_a_safetensors_file(tmp_path: Path, state: Mapping[str, Tensor], name: str) -> None:
    """Under any name; it can be streamed."""
    path = tmp_path / name
    write_container(path, state, {})
    opened = open_model(path)
    assert_gives(opened, OpenedKind.WEIGHTS, "state")
    assert (opened.given, opened.path, opened.streamable) == (str(path), path, path)
    assert opened.described == "file of weights, 4 tensors, 7.8 KiB in 1 shard"
    assert_same(opened.state(), state)
    report = mq.quantize_file(path, tmp_path / "packed.safetensors", **QUIET)
    assert len(report.layers) == 2


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_what_torch_saves(tmp_path: Path, state: Mapping[str, Tensor], name: str, old: bool) -> None:
    """Archives and the pickles of old, under any name; they cannot be streamed."""
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=not old)
    opened = open_model(tmp_path / name)
    assert_gives(opened, OpenedKind.WEIGHTS, "state")
    assert opened.streamable is None
    assert "in 1 shard that torch.save wrote" in opened.described
    assert_same(opened.state(), state)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "w": torch.ones(2)}, "these do not: 'epoch'"),
        ({"model": {"w": torch.ones(2)}}, "one level deeper: 'model'"),
        ({}, "the state dict is empty"),
        (torch.ones(3), "holds a Tensor: give a file with a state dict"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, content: Any, said: str) -> None:
    """Checkpoints hold more; told when it is read."""
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(mq.InputError, match=said):
        open_model(tmp_path / "w.pt").state()


def write_shards(folder: Path, state: Mapping[str, Tensor], *, index: bool, count: int = 2) -> None:
    """A folder of shards, as ``save_pretrained`` names them."""
    names = [f"model-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    places = {name: names[number % count] for number, name in enumerate(state)}
    for shard in names:
        write_container(folder / shard, {name: state[name] for name in state if places[name] == shard}, {})
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("index", [False, True])
def test_a_folder_of_shards(tmp_path: Path, state: Mapping[str, Tensor], index: bool) -> None:
    """With and without an index; shards that are missing are all told."""
    write_shards(tmp_path, state, index=index, count=4)
    opened = open_model(str(tmp_path))
    assert_gives(opened, OpenedKind.WEIGHTS, "state")
    assert opened.described == "folder of weights, 4 tensors, 7.8 KiB in 4 shards"
    assert opened.streamable == tmp_path
    assert_same(opened.state(), state)
    mq.quantize_file(tmp_path, tmp_path.parent / "packed.safetensors", **QUIET)
    assert_same(mq.quantize(tmp_path, **QUIET).model.state_dict(), mq.quantize(state, **QUIET).model.state_dict())
    for number in (1, 3):
        (tmp_path / f"model-{number:05}-of-00004.safetensors").unlink()
    missing = "2 of 4 files are missing: model-00001-of-00004.safetensors, model-00003-of-00004.safetensors"
    for opener in (open_model, lambda path: mq.quantize_file(path, tmp_path.parent / "x.safetensors"), mq.quantize):
        with pytest.raises(mq.FileError, match=missing):
            opener(tmp_path)


def test_an_index(tmp_path: Path, state: Mapping[str, Tensor]) -> None:
    """Of safetensors files, and of what torch.save wrote."""
    write_shards(tmp_path, state, index=True)
    opened = open_model(tmp_path / "model.safetensors.index.json")
    assert opened.described.startswith("index of weights, 4 tensors")
    assert_same(opened.state(), state)
    for number, name in enumerate(state):
        torch.save({name: state[name]}, tmp_path / f"{number}.bin")
    places = {name: f"{number}.bin" for number, name in enumerate(state)}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    opened = open_model(index)
    assert opened.streamable is None
    assert_same(opened.state(), state)


def test_files_of_the_same_tensor_do_not_agree(tmp_path: Path, state: Mapping[str, Tensor]) -> None:
    """Without an index nobody knows which one is meant."""
    write_container(tmp_path / "a.safetensors", state, {})
    write_container(tmp_path / "b.safetensors", {"0.bias": torch.ones(2)}, {})
    with pytest.raises(mq.FileError, match=r"0\.bias is in a\.safetensors and in b\.safetensors"):
        open_model(tmp_path)


def test_a_folder_of_what_torch_saves(tmp_path: Path, state: Mapping[str, Tensor]) -> None:
    """Read where there are no safetensors files, which come first."""
    torch.save(dict(state), tmp_path / "pytorch_model.bin")
    (tmp_path / "training_args.bin").write_bytes(b"something else")
    opened = open_model(tmp_path)
    assert (opened.kind, opened.streamable) == (OpenedKind.WEIGHTS, None)
    assert_same(opened.state(), state)
    write_container(tmp_path / "model.safetensors", {"w": torch.ones(2)}, {})
    assert_same(open_model(tmp_path).state(), {"w": torch.ones(2)})


def test_a_huggingface_folder(tmp_path: Path, state: Mapping[str, Tensor]) -> None:
    """Told by its config; without transformers its weights are there all the same."""
    write_shards(tmp_path, state, index=True)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    opened = open_model(tmp_path)
    assert opened.kind is OpenedKind.HUGGINGFACE
    assert opened.described == "HuggingFace folder, BertModel, 4 tensors, 7.8 KiB in 2 shards"
    assert (opened.streamable, opened.path, opened.can_run) == (tmp_path, tmp_path, True)
    assert_same(opened.state(), state)


CONFIGS: list[tuple[str, str]] = [
    ("[]", "config.json: not a config"),
    ("{", "config.json: not a config"),
    ('{"model_type": 3}', "its model_type is 3"),
    ('{"auto_map": [1]}', "its auto_map"),
    ('{"architectures": "BertModel"}', "its architectures are 'BertModel'"),
    ('{"architectures": ["a", "a.b"]}', "its architectures are ['a', 'a.b']"),
]


@pytest.mark.parametrize(("config", "said"), CONFIGS)
def test_configs_that_are_wrong(tmp_path: Path, state: Mapping[str, Tensor], config: str, said: str) -> None:
    """Known before transformers sees them."""
    write_container(tmp_path / "model.safetensors", state, {})
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(mq.FileError) as caught:
        open_model(tmp_path)
    assert said in str(caught.value)


def test_models_that_cannot_be_built(tmp_path: Path, state: Mapping[str, Tensor]) -> None:
    """Quantized by others, adapters, links that lead out of the folder: known without transformers."""
    inner = tmp_path / "model"
    inner.mkdir()
    write_container(inner / "model.safetensors", state, {})
    config = inner / "config.json"
    config.write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}, "model_type": "llama"}))
    opened = open_model(inner)
    assert "llama quantized by gptq" in opened.described
    assert opened.streamable is None
    with pytest.raises(mq.InputError, match="quantized already, by 'gptq'"):
        opened.module()
    config.write_text("{}")
    (inner / "adapter_config.json").write_text("{}")
    with pytest.raises(mq.InputError, match="holds an adapter"):
        open_model(inner).module()
    (tmp_path / "secret").write_text("x")
    (inner / "generation_config.json").symlink_to("../secret")
    with pytest.raises(mq.FileError, match=r"generation_config\.json: leads out of its folder"):
        open_model(inner).module()


@pytest.mark.parametrize("in_folder", [False, True])
@pytest.mark.parametrize("options", [{}, {"bits": 8}, {"bits": 16}, {"skip_to": "int8", "skip_layer_names": ["2"]}])
def test_a_quantized_model(tmp_path: Path, model: nn.Module, options: dict[str, Any], in_folder: bool) -> None:
    """Its report, and its weights as the loaded model has them, in a file or in a folder that holds one."""
    result = mq.quantize(model, **options, **QUIET)
    file = tmp_path / "monoquant.safetensors"
    mq.save(result, file, plugins=False)
    if in_folder:
        (tmp_path / "config.json").write_text("{}")
    opened = open_model(tmp_path if in_folder else file)
    assert_gives(opened, OpenedKind.QUANTIZED, "report", "dequantized_state")
    assert opened.path == file
    assert opened.described.startswith("quantized model in a folder, " if in_folder else "quantized model, ")
    assert "2 of 2 layers packed" in opened.described
    assert opened.report() == result.report
    expected = {f"{at}.{name}": getattr(result.model[at], name) for at in (0, 2) for name in ("weight", "bias")}
    assert_same(opened.dequantized_state(), expected)


def test_a_quantized_model_with_tied_weights(tmp_path: Path) -> None:
    """Each under all its names, as in the file that was given."""
    torch.manual_seed(0)
    first = nn.Linear(30, 30)
    second = nn.Linear(30, 30)
    second.weight = first.weight
    result = mq.quantize(nn.Sequential(first, second), **QUIET)
    mq.save(result, tmp_path / "tied.safetensors", plugins=False)
    found = open_model(tmp_path / "tied.safetensors").dequantized_state()
    assert found.keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert torch.equal(found["0.weight"], found["1.weight"])


def test_a_quantized_model_beside_others(tmp_path: Path, model: nn.Module) -> None:
    """Which one is meant must be said."""
    mq.save(mq.quantize(model, **QUIET), tmp_path / "a.safetensors", plugins=False)
    write_container(tmp_path / "b.safetensors", {"w": torch.ones(3)}, {})
    with pytest.raises(mq.FileError, match=r"a\.safetensors is quantized and lies beside others; give one of the"):
        open_model(tmp_path)


def test_a_report(tmp_path: Path, model: nn.Module) -> None:
    """As JSON, under any name."""
    report = mq.quantize(model, **QUIET).report
    mq.save_report(report, tmp_path / "report.safetensors", "json", plugins=False)
    opened = open_model(tmp_path / "report.safetensors")
    assert_gives(opened, OpenedKind.REPORT, "report")
    assert opened.described == "report, int4 g128 asymmetric float16, 2 of 2 layers packed"
    assert opened.report() == report


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        ('{"version": 99, "layers": []}', mq.FileError, "a: report version 99"),
        ('{"version": 1}', mq.InputError, "neither a report nor an index; give a model"),
        ('{"model_type": "bert"}', mq.InputError, "neither a report nor an index; give its folder"),
        ('{"weight_map": 3}', mq.FileError, "maps no names to files"),
        ("{", mq.FileError, "not a report or an index"),
        ("", mq.FileError, "is an empty file; give a safetensors file"),
        ("words", mq.FileError, "is a file of another kind; give a safetensors file"),
        ("GGUF", mq.FileError, "is a GGUF file; give a safetensors file"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: str, kind: type[Exception], said: str) -> None:
    """Told what they are, and what is wanted."""
    (tmp_path / "a").write_text(content)
    with pytest.raises(kind) as caught:
        open_model(tmp_path / "a")
    assert said in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    """Nothing, a folder of nothing, and what names nothing."""
    with pytest.raises(mq.FileError, match="no such file"):
        open_model(tmp_path / "none")
    with pytest.raises(mq.FileError, match="a folder without weights"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(mq.FileError, match=r"holds neither model\.safetensors\.index\.json nor model\.safetensors"):
        open_model(tmp_path)
    for wrong in ("", None, 3):
        with pytest.raises(mq.InputError, match="names no model"):
            open_model(wrong)  # type: ignore[arg-type]
    with pytest.raises(mq.FileError, match="cannot be read"):
        open_model("a\0b")
    with pytest.raises(mq.ConfigError, match="trust_code"):
        open_model("a", trust_code="no")  # type: ignore[arg-type]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_told_as_such(tmp_path: Path, model: nn.Module, data: st.DataObject) -> None:
    """Bits that flip and ends that are cut: an error of ours, or something that can be read, whatever it was."""
    kept = tmp_path / "kept"
    if not kept.exists():
        kept.mkdir()
        result = mq.quantize(model, **QUIET)
        mq.save(result, kept / "a.safetensors", plugins=False)
        mq.save_report(result.report, kept / "a.json", plugins=False)
        write_container(kept / "b.safetensors", model.state_dict(), {})
        torch.save(model.state_dict(), kept / "b.pt")
        torch.save(model.state_dict(), kept / "c.pt", _use_new_zipfile_serialization=False)
    content = bytearray(data.draw(st.sampled_from(sorted(kept.iterdir()))).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for name in ("state", "report", "dequantized_state"):
        try:
            getattr(open_model(damaged), name)()
        except (mq.FileError, mq.InputError):
            continue


def test_a_model_of_transformers_without_transformers(
    tmp_path: Path, state: Mapping[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to install is told."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    write_container(tmp_path / "model.safetensors", state, {})
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(mq.InputError, match=r"which is not installed: pip install 'monoquant\[hf\]'"):
        open_model(tmp_path).module()
