"""transformers with compressed-tensors, and without monoquant, computes what the dequantized model computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.formats import compressed_tensors, compressed_tensors_check
from tests_interop.clients import ClientError, difference, run
from tests_interop.models import CLASSES, IDS, answer, build, quantized

FORMAT = "compressed-tensors"
INT8: dict[str, Any] = {"bits": 8, "skip_layer_types": [nn.Embedding]}
SCHEMES: dict[str, dict[str, Any]] = {
    "int4-g32": {"bits": 4, "group_size": 32, "symmetric": True},
    "int4-g64": {"bits": 4, "group_size": 64, "symmetric": True},
    "int4-g128": {"bits": 4, "group_size": 128, "symmetric": True},
    "int4-g384": {"bits": 4, "group_size": 384, "symmetric": True},
    "int4-float32-scales": {"bits": 4, "group_size": 32, "symmetric": True, "scale_dtype": torch.float32},
    "int8-channel": INT8,
    "int8-g64": {**INT8, "group_size": 64, "symmetric": True},
    "half": {
        **{"bits": 4, "group_size": 32, "symmetric": True, "modules_to_not_convert": []},
        "rules": [mq.NameRule("v_proj", "value", "lm_head", skip_to="float16")],
    },
}
MIXED: dict[str, Any] = {
    **{"bits": 4, "group_size": 32, "symmetric": True, "modules_to_not_convert": ["pooler", "down_proj"]},
    "rules": [mq.NameRule("v_proj", "value", "lm_head", skip_to="int8")],
}
"""INT4, INT8 and float Linears in one model."""


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dequantize", [False, True])
def test_one_scheme(tmp_path: Path, kind: str, scheme: str, dequantize: bool) -> None:
    """Decompressed in the first forward, which is the default, or while loading: the very same numbers in float32."""
    result = quantized(build(kind, tmp_path / "float"), **SCHEMES[scheme])
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    groups = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert len(groups) == (2 if scheme == "int4-g384" else 1)
    expected = mq.dequantize(result.model)
    client = run(tmp_path / "m", CLASSES[kind], IDS, dequantize=dequantize)
    assert difference(client["answer"], answer(expected)) == 0
    weights = expected.state_dict()
    for name, tensor in client["weights"].items():
        if name in weights:
            assert torch.equal(tensor, weights[name]), name
    assert {name for name in weights if name.endswith("weight")} <= client["weights"].keys()


@pytest.mark.parametrize("kind", CLASSES)
def test_mixed_schemes(tmp_path: Path, kind: str) -> None:
    """As above; with dequantize=True transformers confuses groups, but says so."""
    result = quantized(build(kind, tmp_path / "float"), **MIXED)
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    client = run(tmp_path / "m", CLASSES[kind], IDS)
    assert difference(client["answer"], answer(mq.dequantize(result.model))) == 0
    with pytest.raises(ClientError, match="RuntimeError"):
        run(tmp_path / "m", CLASSES[kind], IDS, dequantize=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_with_scales_of_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    """The product is then rounded once, as ours is."""
    model = build("llama", tmp_path / "float", dtype)
    result = quantized(model, bits=4, group_size=32, symmetric=True, scale_dtype=dtype)
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    client = run(tmp_path / "m", CLASSES["llama"], IDS)
    assert client["answer"].dtype == dtype
    assert difference(client["answer"], answer(mq.dequantize(result.model))) == 0


def test_tied_embeddings(tmp_path: Path) -> None:
    """Stored once, tied again by transformers."""
    model = build("llama", tmp_path / "float", tie_word_embeddings=True)
    result = quantized(model, bits=4, group_size=32, symmetric=True)
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    client = run(tmp_path / "m", CLASSES["llama"], IDS)
    assert difference(client["answer"], answer(mq.dequantize(result.model))) == 0


def test_awq_and_gptq_results(tmp_path: Path) -> None:
    """What algorithms folded into norms and biases is written along."""
    model = build("llama", tmp_path / "float")
    data = [torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    for algorithm in ("awq", "gptq"):
        options = {"group_size": 32, "symmetric": True, "algorithm": algorithm, "calibration_data": data}
        result = quantized(model, bits=4, **options)
        mq.save(result, tmp_path / algorithm, FORMAT, plugins=False)
        client = run(tmp_path / algorithm, CLASSES["llama"], IDS)
        assert difference(client["answer"], answer(mq.dequantize(result.model))) == 0


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by their index."""
    monkeypatch.setattr("monoquant.formats.folder.LARGEST_SHARD", 100_000)
    result = quantized(build("bert", tmp_path / "float"), **SCHEMES["int4-g32"])
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    client = run(tmp_path / "m", CLASSES["bert"], IDS)
    assert difference(client["answer"], answer(mq.dequantize(result.model))) == 0


@pytest.mark.parametrize("trap", ["status", "ignore"])
def test_why_the_written_folder_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    """A float Linear that is not listed, or no status, and transformers answers otherwise, or not at all."""
    result = quantized(build("llama", tmp_path / "float"), **SCHEMES["int4-g32"])
    exporter = compressed_tensors.CompressedTensorsExporter
    original = exporter.config_of

    def broken(*given: Any) -> dict[str, Any]:
        config = original(*given)
        return {**config, "ignore": []} if trap == "ignore" else {**config, "quantization_status": "initialized"}

    monkeypatch.setattr(exporter, "config_of", broken)
    with pytest.raises(mq.FileError, match="what was written is not what it should be"):
        mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    assert not (tmp_path / "m").exists()
    monkeypatch.setattr(compressed_tensors_check, "check_folder", lambda *_: None)
    monkeypatch.setattr(compressed_tensors, "check_folder", lambda *_: None)
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    try:
        client = run(tmp_path / "m", CLASSES["llama"], IDS)
    except ClientError:
        return
    assert difference(client["answer"], answer(mq.dequantize(result.model))) != 0  # nan is not either


def test_asymmetric_codes_are_refused_because_transformers_fails(tmp_path: Path) -> None:
    """With the way out."""
    result = quantized(build("bert", tmp_path / "float"), bits=4, group_size=32)
    with pytest.raises(mq.FileError, match="asymmetric, which transformers fails to load"):
        mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    assert not (tmp_path / "m").exists()
