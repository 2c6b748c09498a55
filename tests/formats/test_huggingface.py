"""monoquant's own file in a HuggingFace folder, without transformers; tests_interop reads it with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant import hf
from monoquant.adapters.choice import BUILT_IN_ADAPTERS
from monoquant.api.kernels import offered
from monoquant.container import read_container, write_container
from monoquant.formats.skeleton import prepare
from monoquant.hooks import PluginManager
from monoquant.modules.kernel_compute import choose_kernels
from tests.formats.pretrained import Small, quantized, small

IDS = torch.arange(12).view(3, 4)


def saved(result: mq.QuantResult, path: Path) -> Path:
    mq.save(result, path, "huggingface", plugins=False)
    return path / "monoquant.safetensors"


def filled(model: nn.Module, file: Path) -> nn.Module:
    """A model as transformers fills it: skeleton first, then tensors by name."""
    prepare(model, file, BUILT_IN_ADAPTERS)
    model.load_state_dict(read_container(file)[0], strict=True, assign=True)
    choose_kernels(model, offered(PluginManager(discover=False), exact=False))
    return model


def test_readers_without_monoquant_are_told_what_to_do(tmp_path: Path) -> None:
    """In the place of a file name, and in a note; and there is no file of the usual name."""
    saved(quantized(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "monoquant"
    assert config["quantization_config"]["weights"] == "monoquant.safetensors"
    assert "pip install monoquant[hf]" in config["transformers_weights"]
    assert not config["transformers_weights"].endswith((".safetensors", ".json", ".bin"))
    assert "monoquant.hf.register()" in (tmp_path / "m" / "README.md").read_text()
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_the_file_is_one_that_load_reads(tmp_path: Path) -> None:
    """Bit by bit, report included."""
    result = quantized(symmetric=False)
    file = saved(result, tmp_path / "m")
    model = mq.load(file, small(), plugins=False)
    assert torch.equal(model(IDS), result.model(IDS))
    assert mq.load_report(file) == result.report


@pytest.mark.parametrize(
    "result",
    [
        quantized(symmetric=False),
        quantized(bits=8, skip_layer_types=[]),
        quantized(bits=8, activations="dynamic"),
        quantized(bits=8, activations="static", calibration_data=[IDS]),
        quantized(rules=[mq.NameRule("block.2", "embed", skip_to="float16")], skip_layer_types=[]),
    ],
    ids=["int4", "int8", "dynamic", "static", "half"],
)
def test_a_model_without_weights_takes_the_packed_layers_of_a_file(tmp_path: Path, result: mq.QuantResult) -> None:
    """It then holds what the result holds, in the same classes."""
    file = saved(result, tmp_path / "m")
    with torch.device("meta"):
        empty = Small()
    model = filled(empty, file).eval()
    assert torch.equal(model(IDS), result.model(IDS))
    for name, module in result.model.named_modules():
        assert type(model.get_submodule(name)) is type(module)


def test_layers_take_the_dtype_that_a_model_is_built_in(tmp_path: Path) -> None:
    """Scales stay what they are."""
    file = saved(quantized(), tmp_path / "m")
    with torch.device("meta"):
        model = Small().to(torch.bfloat16)
    prepare(model, file, BUILT_IN_ADAPTERS)
    assert model.block[0].weight.dtype == torch.bfloat16
    assert model.block[0].packed_weight.scale.dtype == torch.float16


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    """With everything that does not fit."""
    file = saved(quantized(), tmp_path / "m")
    with torch.device("meta"):
        narrow, other, headless = Small(32), nn.Sequential(nn.Linear(4, 4)), Small()
        headless.lm_head = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 40))
        headless.block[0] = nn.ReLU()
    with pytest.raises(
        mq.FileError, match=r"(?s)does not fit a Small; load it into the class that .*norm.weight has sh"
    ):
        prepare(narrow, file, BUILT_IN_ADAPTERS)
    with pytest.raises(mq.FileError, match=r"does not fit a Sequential; .*\n- no layer 'block.0' in the model\n- no"):
        prepare(other, file, BUILT_IN_ADAPTERS)
    with pytest.raises(mq.FileError, match=r"layer 'block.0' cannot be packed"):
        prepare(headless, file, BUILT_IN_ADAPTERS)


def test_missing_and_further_tensors_are_refused(tmp_path: Path) -> None:
    """By name."""
    file = saved(quantized(), tmp_path / "m")
    tensors, metadata = read_container(file)
    tensors["more"] = tensors.pop("norm.bias")
    write_container(file, tensors, {key: text for key, text in metadata.items() if "sha256" not in key})
    with torch.device("meta"):
        model = Small()
    with pytest.raises(mq.FileError, match=r"(?s)missing in the file: norm.bias.*not in the model: more"):
        prepare(model, file, BUILT_IN_ADAPTERS)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Before anything of it is used."""
    file = saved(quantized(), tmp_path / "m")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with torch.device("meta"):
        model = Small()
    with pytest.raises(mq.FileError, match="damaged"):
        prepare(model, file, BUILT_IN_ADAPTERS)


def test_shared_packed_weights_are_refused(tmp_path: Path) -> None:
    """transformers would untie them."""
    model = small(tied=True)
    result = quantized(model, bits=8, skip_layer_types=[])
    with pytest.raises(mq.FileError, match=r"layers 'embed', 'lm_head' share a packed weight") as caught:
        mq.save(result, tmp_path / "m", "huggingface", plugins=False)
    assert caught.value.layers == ("embed", "lm_head")
    assert not list(tmp_path.iterdir())


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    """As for every folder."""
    with pytest.raises(mq.FileError, match="holds models of transformers"):
        hf.save_pretrained(quantized(nn.Sequential(nn.Linear(64, 64))), tmp_path / "m", plugins=False)


def test_without_transformers_nothing_can_be_registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(mq.ConfigError, match=r"transformers is not installed: pip install monoquant\[hf\]"):
        hf.register()
    with pytest.raises(mq.ConfigError, match="transformers is not installed"):
        hf.from_pretrained(tmp_path)


def test_a_packed_model_cannot_be_saved_by_transformers_itself() -> None:
    """They look for ``hf_quantizer``; dequantizing removes it again."""
    result = quantized(nn.Sequential(small()))
    packed = result.model[0]  # type: ignore[index]
    assert "format='huggingface'" in packed.hf_quantizer.quantization_config.quant_method
    with pytest.raises(mq.InputError, match=r"packed by monoquant: call monoquant.dequantize\(model\)"):
        packed.hf_quantizer.dequantize(packed)
    assert not hasattr(mq.dequantize(result.model)[0], "hf_quantizer")
    assert not hasattr(result.model, "hf_quantizer")


def test_what_stands_there_already_stays() -> None:
    """Whoever put it there, knows."""
    model = small()
    model.hf_quantizer = "own"
    result = quantized(model)
    assert result.model.hf_quantizer == "own"
    assert mq.dequantize(result.model).hf_quantizer == "own"
