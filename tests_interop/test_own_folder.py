"""monoquant.hf: our own file through transformers' from_pretrained, packed as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.quantizers import auto

import monoquant as mq
from monoquant import hf
from tests_interop.clients import ClientError, run
from tests_interop.models import CLASSES, IDS, answer, build, quantized

DATA = [IDS, IDS.flip(0)]
SCHEMES: dict[str, dict[str, Any]] = {
    "int4": {"bits": 4, "group_size": 32},
    "int4-ragged": {"bits": 4, "group_size": 100, "symmetric": True},
    "int8-embeddings": {"bits": 8},
    "dynamic": {"bits": 8, "activations": "dynamic", "skip_layer_types": [nn.Embedding]},
    "static": {"bits": 8, "activations": "static", "calibration_data": DATA, "skip_layer_types": [nn.Embedding]},
    "half": {"dtype": torch.bfloat16},
    "mixed": {"bits": 4, "group_size": 64, "skip_to": "int8"},
}


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    """Each test begins and ends with a transformers that knows nothing."""
    yield
    auto.AUTO_QUANTIZER_MAPPING.pop("monoquant", None)
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.pop("monoquant", None)


def written(kind: str, folder: Path, scheme: str = "int4", **options: Any) -> mq.QuantResult:
    result = quantized(build(kind, folder.with_name("float"), **options), **SCHEMES[scheme])
    hf.save_pretrained(result, folder, plugins=False)
    return result


def assert_same(model: nn.Module, other: nn.Module) -> None:
    """Classes, buffers, kernels and answers."""
    for name, module in other.named_modules():
        found = model.get_submodule(name)
        assert type(found) is type(module), name
        assert getattr(found, "kernel", None) == getattr(module, "kernel", None), name
    state = model.state_dict()
    assert state.keys() == other.state_dict().keys()
    for name, tensor in other.state_dict().items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name
    assert torch.equal(answer(model), answer(other))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_packed_model_comes_back(tmp_path: Path, kind: str, scheme: str) -> None:
    """From one call; or from the plain Auto class, once registered."""
    result = written(kind, tmp_path / "m", scheme)
    assert_same(hf.from_pretrained(tmp_path / "m"), result.model)
    loaded = getattr(transformers, CLASSES[kind]).from_pretrained(tmp_path / "m")
    assert_same(loaded, result.model)
    assert not loaded.training


def test_save_knows_the_format(tmp_path: Path) -> None:
    """By its name, for command lines and recipes."""
    result = quantized(build("bert", tmp_path / "float"), bits=4)
    mq.save(result, tmp_path / "m", format="huggingface", plugins=False)
    assert_same(hf.from_pretrained(tmp_path / "m", AutoModel), result.model)


def test_ties_come_back(tmp_path: Path) -> None:
    """Float ones, which is what embeddings are by default."""
    result = written("llama", tmp_path / "m", tie_word_embeddings=True)
    model = hf.from_pretrained(tmp_path / "m")
    assert_same(model, result.model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_another_dtype_is_that_of_the_layers(tmp_path: Path) -> None:
    """As ``.to(dtype)`` of the result; codes and scales stay."""
    result = written("llama", tmp_path / "m")
    model = hf.from_pretrained(tmp_path / "m", AutoModelForCausalLM, dtype=torch.bfloat16)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.bfloat16
    assert layer.packed_weight.scale.dtype == torch.float16
    assert answer(model).dtype == torch.bfloat16
    assert (answer(model).float() - answer(result.model)).abs().max() < 0.1


@pytest.mark.parametrize("kind", CLASSES)
def test_a_client_without_monoquant_fails_and_is_told_why(tmp_path: Path, kind: str) -> None:
    """Random weights would be worse."""
    written(kind, tmp_path / "m")
    with pytest.raises(ClientError, match=r"monoquant.safetensors needs monoquant: pip install monoquant\[hf\]"):
        run(tmp_path / "m", CLASSES[kind], IDS)
    with pytest.raises(ValueError, match="needs monoquant"):
        AutoModel.from_pretrained(tmp_path / "m")


def test_an_older_client_that_knows_no_transformers_weights_fails_too(tmp_path: Path) -> None:
    """There is no file that it would look for."""
    written("bert", tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace("transformers_weights", "unknown_entry"))
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        AutoModel.from_pretrained(tmp_path / "m")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """By its hashes."""
    written("bert", tmp_path / "m")
    file = tmp_path / "m" / "monoquant.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(mq.FileError, match="damaged, tensors differ from their hashes"):
        hf.from_pretrained(tmp_path / "m")


def test_another_class_is_refused(tmp_path: Path) -> None:
    """Transformers would take half of it and draw the rest."""
    written("bert", tmp_path / "m")
    with pytest.raises(mq.FileError, match="does not fit a BertForSequenceClassification; load it into"):
        hf.from_pretrained(tmp_path / "m", AutoModelForSequenceClassification)


def test_another_file_is_refused(tmp_path: Path) -> None:
    """config.json is somebody's text."""
    written("bert", tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"weights": "monoquant', '"weights": "../monoquant'))
    with pytest.raises(mq.FileError, match=r"names the weights '\.\./monoquant\.safetensors', not 'mono"):
        hf.from_pretrained(tmp_path / "m")


def test_the_file_serves_load_and_load_report(tmp_path: Path) -> None:
    """It is monoquant's own."""
    result = written("bert", tmp_path / "m")
    fresh = type(result.model)(result.model.config).eval()
    file = tmp_path / "m" / "monoquant.safetensors"
    assert torch.equal(answer(mq.load(file, fresh, plugins=False)), answer(result.model))
    assert mq.load_report(file) == result.report


def test_save_pretrained_of_packed_models_fails_loudly(tmp_path: Path) -> None:
    """Of a result, of a loaded one and of a part; of the dequantized one it works."""
    result = written("llama", tmp_path / "m")
    for model in (result.model, result.model.model, hf.from_pretrained(tmp_path / "m")):
        with pytest.raises(ValueError, match=r"quantized with monoquant.* is not serializable"):
            model.save_pretrained(tmp_path / "again")
        assert not (tmp_path / "again").exists()
    expected = mq.dequantize(result.model)
    expected.save_pretrained(tmp_path / "float32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "float32").eval()
    assert torch.equal(answer(again), answer(expected))


def test_registering_twice_does_no_harm_and_another_owner_is_refused() -> None:
    """Of the name in transformers."""
    hf.register()
    hf.register()
    auto.AUTO_QUANTIZER_MAPPING["monoquant"] = object
    with pytest.raises(mq.ConfigError, match="knows a quantizer 'monoquant' already"):
        hf.register()


def test_an_old_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it can go wrong."""
    monkeypatch.delattr("transformers.quantizers.base.HfQuantizer.update_attn_implementation")
    with pytest.raises(mq.ConfigError, match=r"transformers 5\.\S+ cannot be taught"):
        hf.register()


def test_importing_registers_nothing() -> None:
    """Only the call does."""
    assert "monoquant" not in auto.AUTO_QUANTIZER_MAPPING
