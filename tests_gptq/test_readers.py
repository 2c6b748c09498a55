"""Readers of GPTQ folders get the weights of the dequantized model bit by bit, and its answers but for rounding.

Readers and monoquant multiply the same matrices. They sum in another order, each product in the model's dtype: logits
differ by a few units in its last place. The default kernel of transformers on a CPU computes in bfloat16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.formats import gptq
from tests_gptq.readers import read
from tests_interop.clients import ClientError, difference
from tests_interop.models import CLASSES, answer, build, quantized

FORMAT = "gptq"
HALF = torch.float16
INT8: dict[str, Any] = {"bits": 8, "skip_layer_types": [nn.Embedding], "scale_dtype": HALF}
SCHEMES: dict[str, dict[str, Any]] = {
    "int4": {"bits": 4, "group_size": 32, "symmetric": True},
    "int4-asymmetric": {"bits": 4, "group_size": 32},
    "int4-g128": {"bits": 4, "group_size": 128},
    "int4-row": {"bits": 4, "group_size": 1024, "symmetric": True},
    "int8-row": INT8,
    "int8-asymmetric": {**INT8, "group_size": 64, "symmetric": False},
    "head": {"bits": 4, "group_size": 32, "symmetric": True, "modules_to_not_convert": []},
    "skipped": {"bits": 4, "group_size": 32, "modules_to_not_convert": ["lm_head", "layers.1", "down_proj"]},
    "16-bit": {"bits": 4, "group_size": 32, "rules": [mq.NameRule("v_proj", skip_to="float16")]},
}
_UNITS = 8
"""In the last place of the largest logit; 2 were seen."""


def llama(folder: Path, dtype: torch.dtype = HALF, **options: Any) -> nn.Module:
    """With biases that are not zero, where there are any."""
    model = build("llama", folder, dtype, **options)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


def same_weights(client: dict[str, Any], result: mq.QuantResult, dtype: torch.dtype = HALF) -> None:
    """Packed ones after dequantizing, and all others, each by its bits."""
    expected = mq.dequantize(result.model).state_dict()
    packed = {
        f"{name}.weight" for name, one in result.model.named_modules() if isinstance(one, mq.Int4Linear | mq.Int8Linear)
    }
    assert client["packed"].keys() == packed
    found = {**client["weights"], **client["packed"]}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == dtype, name
        assert torch.equal(tensor, expected[name]), name


def close(client: dict[str, Any], result: mq.QuantResult, computed: torch.dtype = HALF) -> None:
    """Within some units in the last place of the dtype that was computed in."""
    logits = answer(mq.dequantize(result.model))
    assert difference(client["answer"], logits) <= _UNITS * torch.finfo(computed).eps * logits.abs().max().item()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("reader", ["gptqmodel", "transformers"])
def test_one_scheme(tmp_path: Path, scheme: str, reader: str) -> None:
    """Symmetric and not, groups and whole rows, a packed head, and layers that are skipped."""
    result = quantized(llama(tmp_path / "float"), **SCHEMES[scheme])
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    client = read(tmp_path / "m", CLASSES["llama"], reader)
    same_weights(client, result)
    close(client, result)


@pytest.mark.parametrize("reader", ["gptqmodel", "transformers"])
def test_biases_ties_and_zero_points_of_zero(tmp_path: Path, reader: str) -> None:
    """Weights of one sign have the first or the last code for a zero point; the first version would garble those."""
    model: Any = llama(tmp_path / "float", attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.abs_()
        model.model.layers[1].mlp.up_proj.weight.abs_().neg_()
    result = quantized(model, bits=4, group_size=32)
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    client = read(tmp_path / "m", CLASSES["llama"], reader)
    same_weights(client, result)
    close(client, result)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mixed_schemes_are_for_gptqmodel(tmp_path: Path, symmetric: bool) -> None:
    """Transformers knows one scheme, and says that sizes do not match."""
    options = {"group_size": 32, "symmetric": symmetric, "scale_dtype": HALF}
    rules = [mq.NameRule("down_proj", skip_to="int8")]
    result = quantized(llama(tmp_path / "float"), bits=4, rules=rules, **options)
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    client = read(tmp_path / "m", CLASSES["llama"], "gptqmodel")
    same_weights(client, result)
    close(client, result)
    with pytest.raises(ClientError, match="ignore_mismatched_sizes"):
        read(tmp_path / "m", CLASSES["llama"], "transformers")


def test_bfloat16_is_for_gptqmodel(tmp_path: Path) -> None:
    """It takes scales in bfloat16; transformers multiplies in float16 and rounds twice."""
    result = quantized(llama(tmp_path / "float", torch.bfloat16), bits=4, group_size=32, scale_dtype=torch.bfloat16)
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    client = read(tmp_path / "m", CLASSES["llama"], "gptqmodel", torch.bfloat16)
    same_weights(client, result, torch.bfloat16)
    close(client, result, torch.bfloat16)
    other = read(tmp_path / "m", CLASSES["llama"], "transformers")
    close(other, result, torch.bfloat16)
    expected = mq.dequantize(result.model).state_dict()
    for name, tensor in other["packed"].items():
        assert tensor.dtype == HALF
        torch.testing.assert_close(tensor.float(), expected[name].float(), rtol=torch.finfo(torch.bfloat16).eps, atol=0)


def test_bert_is_for_transformers(tmp_path: Path) -> None:
    """Gptqmodel knows no encoders, and says so."""
    result = quantized(build("bert", tmp_path / "float", HALF), bits=4, group_size=32)
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    client = read(tmp_path / "m", CLASSES["bert"], "transformers")
    same_weights(client, result)
    close(client, result)
    with pytest.raises(ClientError, match="Unsupport model_type bert"):
        read(tmp_path / "m", CLASSES["bert"], "gptqmodel")


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_default_kernel_of_transformers(tmp_path: Path, symmetric: bool) -> None:
    """It has the same weights, and computes in bfloat16."""
    result = quantized(llama(tmp_path / "float"), bits=4, group_size=32, symmetric=symmetric)
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    client = read(tmp_path / "m", CLASSES["llama"], "transformers-default")
    same_weights(client, result)
    close(client, result, torch.bfloat16)


@pytest.mark.parametrize("reader", ["gptqmodel", "transformers"])
def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    """Found by their index."""
    monkeypatch.setattr("monoquant.formats.folder.LARGEST_SHARD", 100_000)
    result = quantized(llama(tmp_path / "float"), **SCHEMES["int4"])
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    same_weights(read(tmp_path / "m", CLASSES["llama"], reader), result)


def _unchecked(monkeypatch: pytest.MonkeyPatch, **broken: Any) -> None:
    for name, value in {"check_folder": lambda *_: None, **broken}.items():
        monkeypatch.setattr(gptq, name, value)


def test_why_asymmetric_codes_take_the_second_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one of somebody else is refused by gptqmodel, and read by transformers with other weights."""
    model: Any = llama(tmp_path / "float")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.abs_()
    result = quantized(model, bits=4, group_size=32)
    _unchecked(monkeypatch, _offset=lambda _: 1)
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    with pytest.raises(ClientError, match="sym=False model with format"):
        read(tmp_path / "m", CLASSES["llama"], "gptqmodel")
    client = read(tmp_path / "m", CLASSES["llama"], "transformers")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(client["packed"][name], mq.dequantize(result.model).state_dict()[name])


def test_why_the_head_needs_an_empty_block_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimum looks in the usual blocks otherwise, and transformers draws the head at random."""
    result = quantized(llama(tmp_path / "float"), **SCHEMES["head"])
    original = gptq.GptqExporter.config_of

    def without(*given: Any) -> dict[str, Any]:
        return {key: value for key, value in original(*given).items() if key != "block_name_to_quantize"}

    _unchecked(monkeypatch)
    monkeypatch.setattr(gptq.GptqExporter, "config_of", without)
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    client = read(tmp_path / "m", CLASSES["llama"], "transformers")
    assert "lm_head.weight" not in client["packed"]
    assert (
        difference(client["weights"]["lm_head.weight"], mq.dequantize(result.model).state_dict()["lm_head.weight"]) > 0
    )
