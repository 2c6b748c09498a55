"""MiniLM and SmolLM2 with the weights that people use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant import hf
from tests_interop.clients import difference, run
from tests_interop.models import answer, quantized

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # where the models are built
from common.models import minilm, smollm2

SENTENCES = ["A cat sleeps on the warm windowsill.", "Interest rates were left as they are.", "Yes."]


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    (batch,) = minilm.batches(SENTENCES)
    return {name: tensor for name, tensor in batch.items() if isinstance(tensor, torch.Tensor)}


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g128", "int8", "mixed"])
def test_minilm_in_compressed_tensors(tmp_path: Path, inputs: dict[str, torch.Tensor], scheme: str) -> None:
    """The same hidden states without monoquant, and the tokenizer comes along."""
    options = {
        "int4-g32": {"bits": 4, "group_size": 32, "symmetric": True},
        "int4-g128": {"bits": 4, "group_size": 128, "symmetric": True},
        "int8": {"bits": 8, "skip_layer_types": [nn.Embedding]},
        "mixed": {"bits": 4, "symmetric": True, "rules": [mq.NameRule("value", "pooler", skip_to="int8")]},
    }[scheme]
    result = quantized(minilm.build(), **options)
    mq.save(result, tmp_path / "m", "compressed-tensors", plugins=False)
    client = run(tmp_path / "m", "AutoModel", inputs)
    assert difference(client["answer"], answer(mq.dequantize(result.model), inputs)) == 0
    assert {"tokenizer.json", "vocab.txt", "modules.json", "1_Pooling"} <= {
        one.name for one in (tmp_path / "m").iterdir()
    }


def test_minilm_in_its_own_folder(tmp_path: Path, inputs: dict[str, torch.Tensor]) -> None:
    """Packed as it was, with its own kernels."""
    result = quantized(minilm.build(), bits=4)
    hf.save_pretrained(result, tmp_path / "m", plugins=False)
    model = hf.from_pretrained(tmp_path / "m")
    assert torch.equal(answer(model, inputs), answer(result.model, inputs))
    assert isinstance(model.encoder.layer[0].output.dense, mq.Int4Linear)


def test_smollm2_writes_the_same_tokens_after_a_reload(tmp_path: Path) -> None:
    """Greedily, with a cache."""
    result = quantized(smollm2.build(), bits=4)
    hf.save_pretrained(result, tmp_path / "m", plugins=False)
    model = hf.from_pretrained(tmp_path / "m")
    ids = torch.tensor([smollm2.tokenizer().encode("The capital of France is").ids])
    options = {"max_new_tokens": 24, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    tokens = result.model.generate(ids, **options)
    assert tokens.shape[1] > ids.shape[1] + 4
    assert torch.equal(model.generate(ids, **options), tokens)


def test_smollm2_in_compressed_tensors(tmp_path: Path) -> None:
    """Its 576 features are whole groups of 64; the head is tied to the embedding."""
    result = quantized(smollm2.build(), bits=4, group_size=64, symmetric=True)
    mq.save(result, tmp_path / "m", "compressed-tensors", plugins=False)
    ids = torch.tensor([smollm2.tokenizer().encode("The capital of France is").ids])
    client = run(tmp_path / "m", "AutoModelForCausalLM", ids)
    assert difference(client["answer"], answer(mq.dequantize(result.model), ids)) == 0
