"""GGUF: blocks, names, the order of rows, metadata, tokenizers and refusals; what readers make of it: tests_interop."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import monoquant as mq
from monoquant.formats import gguf_check
from monoquant.formats.gguf import GgufExporter
from monoquant.formats.gguf_blocks import read_blocks, to_blocks
from monoquant.formats.gguf_metadata import model_entries
from monoquant.formats.gguf_plan import GgufTensor, llama_order, planned
from monoquant.formats.gguf_tokenizer import tokenizer_of
from monoquant.modules.packed_matrix import PackedMatrix
from tests.formats.pretrained import small
from tests.formats.small_llama import WORDS, LlamaForCausalLM, Qwen2ForCausalLM, llama, quantized

INT8: dict[str, Any] = {"bits": 8}


def weights_of(block: bytes, bits: int) -> list[float]:
    """ggml's definition, one weight at a time."""
    (scale,) = struct.unpack("<e", block[:2])
    codes = block[2:]
    if bits == 8:
        return [scale * code for code in struct.unpack("32b", codes)]
    low, high = [byte & 15 for byte in codes], [byte >> 4 for byte in codes]
    return [scale * (code - 8) for code in low + high]


@given(rows=st.integers(1, 4), groups=st.integers(1, 3), bits=st.sampled_from([4, 8]), seed=st.integers(0, 99))
def test_blocks_are_what_ggml_defines(rows: int, groups: int, bits: int, seed: int) -> None:
    """18 or 34 bytes each, and the very weights of the packed matrix."""
    weight = torch.randn(rows, groups * 32, generator=torch.Generator().manual_seed(seed))
    matrix, _ = PackedMatrix.pack(weight, mq.Scheme(bits, 32, True))
    blocks = to_blocks(matrix.read_rows(slice(None)), bits)
    size = 2 + 4 * bits
    assert (blocks.dtype, tuple(blocks.shape)) == (torch.uint8, (rows, groups * size))
    whole = bytes(blocks.flatten().tolist())
    found = [weights_of(whole[start : start + size], bits) for start in range(0, len(whole), size)]
    assert torch.equal(torch.tensor(found).view(rows, -1), matrix.dequantize())


@given(data=st.data(), bits=st.sampled_from([4, 8]))
def test_any_blocks_are_read_by_the_definition(data: st.DataObject, bits: int) -> None:
    """Those that nobody writes included: the reader shares nothing with the writer."""
    scale = data.draw(st.floats(-60000, 60000, width=16))
    codes = data.draw(st.binary(min_size=4 * bits, max_size=4 * bits))
    block = struct.pack("<e", scale) + codes
    found = read_blocks(torch.tensor(list(block), dtype=torch.uint8).view(1, -1), bits)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == weights_of(block, bits)


@given(heads=st.integers(1, 5), half=st.integers(1, 6))
def test_rotated_features_become_neighbours(heads: int, half: int) -> None:
    """Features i and i + half of a head are rows 2i and 2i + 1 of it; the check finds them by another formula."""
    rows = 2 * half * heads
    order = llama_order(rows, heads)
    expected = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in (0, 1)]
    assert order.tolist() == expected
    assert gguf_check._places(torch.arange(rows), rows, heads).tolist() == expected


BLOCK_NAMES = {
    *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"),
    *("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
}


def plan(result: mq.QuantResult) -> dict[str, GgufTensor]:
    return {one.name: one for one in planned(result.model)[1]}


def test_every_tensor_has_its_name_kind_and_order() -> None:
    """Vectors are float32, the head is its own tensor; only queries and keys are reordered."""
    tensors = plan(
        quantized(rules=[mq.NameRule("v_proj", skip_to="bfloat16"), mq.NameRule("o_proj", skip_to="float16")])
    )
    blocks = {f"blk.{number}.{name}.weight" for number in (0, 1) for name in BLOCK_NAMES}
    assert tensors.keys() == blocks | {"token_embd.weight", "output_norm.weight", "output.weight"}
    kinds = {name: tensors[f"blk.1.{name}.weight"].kind for name in BLOCK_NAMES}
    packed = dict.fromkeys(BLOCK_NAMES, "Q4_0")
    assert kinds == {**packed, "attn_norm": "F32", "ffn_norm": "F32", "attn_v": "BF16", "attn_output": "F16"}
    assert tensors["blk.1.ffn_down.weight"].source == "model.layers.1.mlp.down_proj.weight"
    assert tensors["output.weight"].kind == "F32"
    heads = {name: one.heads for name, one in tensors.items() if one.heads}
    assert heads == {
        f"blk.{number}.attn_{one}.weight": count for number in (0, 1) for one, count in (("q", 4), ("k", 2))
    }


def test_codes_and_scales_move_together() -> None:
    """The file's rows are the model's in llama.cpp's order; floats as well."""
    for result in (quantized(), quantized(bits=8), quantized(rules=[mq.NameRule("q_proj", skip_to="float16")])):
        tensor = plan(result)["blk.0.attn_q.weight"]
        content, own = tensor.content(), result.model.get_submodule("model.layers.0.self_attn.q_proj").weight
        bits = {"Q4_0": 4, "Q8_0": 8}.get(tensor.kind)
        values = content.view(torch.float16).float() if bits is None else read_blocks(content, bits)
        assert torch.equal(values, own[llama_order(64, 4)])  # type: ignore[index]
        assert not torch.equal(values, own)  # type: ignore[arg-type]


def test_half_precision_norms_become_float32() -> None:
    """Which is exact; matrices stay as they are."""
    tensors = plan(quantized(llama().to(torch.bfloat16)))
    norm, embedding = tensors["output_norm.weight"], tensors["token_embd.weight"]
    assert (norm.kind, embedding.kind) == ("F32", "BF16")
    assert isinstance(norm.weight, Tensor)
    assert torch.equal(norm.content().view(torch.float32), norm.weight.float())


@pytest.mark.parametrize(
    "options", [{"bits": 4}, {"bits": 8}, {"bits": 4, "rules": [mq.NameRule("embed", skip_to="float16")]}]
)
def test_a_tied_head_is_left_out(options: dict[str, Any]) -> None:
    """Readers tie what is not there, packed or not."""
    tensors = plan(quantized(llama(tied=True), **options))
    assert "output.weight" not in tensors
    assert "token_embd.weight" in tensors


def test_a_packed_head_of_its_own_is_written() -> None:
    """Though the embedding is packed as well."""
    tensors = plan(quantized(bits=8))
    assert tensors["output.weight"].kind == tensors["token_embd.weight"].kind == "Q8_0"
    assert tensors["output.weight"].weight is not tensors["token_embd.weight"].weight


def test_qwen_keeps_its_order_and_biases() -> None:
    """As llama.cpp has it."""
    model = llama(kind=Qwen2ForCausalLM, bias=True)
    architecture, tensors = planned(quantized(model).model)
    assert architecture.name == "qwen2"
    assert not any(one.heads for one in tensors)
    assert {"blk.0.attn_q.bias", "blk.1.attn_k.bias", "blk.1.attn_v.bias"} <= {one.name for one in tensors}


def test_metadata() -> None:
    """Floats are those that float32 holds; the file type is what most weights are."""
    result = quantized(rules=[mq.NameRule("mlp", skip_to="bfloat16")])
    architecture, tensors = planned(result.model)
    result.model.name_or_path = "somewhere/tiny"  # type: ignore[assignment]
    entries = model_entries(result.model, architecture, tensors)
    assert entries == {
        "general.type": "model",
        "general.name": "tiny",
        "general.file_type": 32,
        "general.quantization_version": 2,
        "llama.vocab_size": WORDS,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
    }
    result.model.name_or_path = "mistral"  # type: ignore[assignment]  # which transformers would take for an architecture
    assert model_entries(result.model, architecture, tensors)["general.name"] == "Mistral"
    result.model.name_or_path = ""  # type: ignore[assignment]
    assert model_entries(result.model, architecture, tensors)["general.name"] == "LlamaForCausalLM"


def _convolution() -> LlamaForCausalLM:
    model = llama()
    model.model.extra = nn.Conv1d(32, 8, 1)
    return model


def _double() -> LlamaForCausalLM:
    model = llama()
    model.model.norm.double()
    return model


UNHELD: list[tuple[str, Callable[[], mq.QuantResult]]] = [
    ("its codes are asymmetric; quantize with symmetric=True", lambda: quantized(symmetric=False)),
    ("one scale for 64 input features; quantize with group_size=32", lambda: quantized(group_size=64)),
    ("one scale for a row; quantize with group_size=32", lambda: quantized(bits=8, group_size=None)),
    (
        r"its scales are torch.float32; quantize with scale_dtype=torch.float16",
        lambda: quantized(bits=8, scale_dtype=torch.float32),
    ),
    ("its 48 input features are no multiple of 32; skip it by", lambda: quantized(llama(48))),
    ("quantize with activations=None", lambda: quantized(bits=8, group_size=None, activations="dynamic")),
    ("q_proj'.*has no place for it; save with format='compressed", lambda: quantized(llama(bias=True))),
    (
        "only nn.Linear and nn.Embedding can be packed, not Conv1d; skip it by",
        lambda: quantized(_convolution(), bits=8),
    ),
    ("its dtype is torch.float64; call result.model.float", lambda: quantized(_double())),
]


@pytest.mark.parametrize(("message", "build"), UNHELD)
def test_what_cannot_be_held_is_refused_with_the_way_out(
    tmp_path: Path, message: str, build: Callable[[], mq.QuantResult]
) -> None:
    """Before anything is written, by save and before the work."""
    result = build()
    with pytest.raises(mq.FileError, match=message) as caught:
        mq.save(result, tmp_path / "a.gguf", plugins=False)
    assert caught.value.layers
    assert not list(tmp_path.iterdir())
    with pytest.raises(mq.FileError, match=message):
        GgufExporter().require_held(result.model.to("meta"))


def test_all_problems_are_told_at_once() -> None:
    """Each with its layers."""
    result = quantized(bits=8, symmetric=False, scale_dtype=None, modules_to_not_convert=["mlp"])
    with pytest.raises(mq.FileError) as caught:
        planned(result.model)
    lines = str(caught.value).splitlines()
    assert lines[0] == "GGUF cannot hold these layers exactly:"
    assert any(
        "'model.layers.0.self_attn.o_proj', 'model.layers.1.self_attn.q_proj' and 4 more: " in one for one in lines
    )
    assert any("asymmetric" in line for line in lines)
    assert any("scales are torch.float32" in line for line in lines)
    assert {"model.layers.0.self_attn.q_proj", "lm_head"} <= set(caught.value.layers)


UNLIKE: dict[str, dict[str, Any]] = {
    "rope_theta": {"rope_parameters": {"rope_type": "default"}},
    "no more than rope_theta": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
    "partial_rotary_factor": {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "hidden_act is 'gelu'": {"hidden_act": "gelu"},
    "sliding_window is 64; they attend to all 128 positions": {"sliding_window": 64},
}


@pytest.mark.parametrize("message", UNLIKE)
def test_what_readers_compute_otherwise_is_refused(message: str) -> None:
    """What the file has no field for that they read."""
    result = quantized(llama(**UNLIKE[message]))
    with pytest.raises(mq.FileError, match=message):
        GgufExporter().require_held(result.model)


def test_wide_windows_and_own_head_widths() -> None:
    """A window that never closes is none; Qwen's readers compute the width of heads."""
    planned(quantized(llama(sliding_window=128)).model)
    planned(quantized(llama(head_dim=32)).model)
    with pytest.raises(mq.FileError, match="head_dim is 32; they take hidden_size / num_attention_heads"):
        planned(quantized(llama(kind=Qwen2ForCausalLM, head_dim=32)).model)


def test_other_models_are_refused() -> None:
    """Those of transformers that nobody tested, and all others, were they called the same."""
    with pytest.raises(mq.FileError, match=r"written for LlamaForCausalLM, .* of transformers, and this is a Small"):
        planned(quantized(small()).model)
    other = type("LlamaForCausalLM", (nn.Sequential,), {})(nn.Linear(64, 64))
    with pytest.raises(mq.FileError, match="of transformers, and this is a LlamaForCausalLM"):
        planned(quantized(other).model)


def test_models_without_values_are_refused(tmp_path: Path) -> None:
    """By save only: commands ask for the shapes before there are values."""
    result = quantized()
    result.model.to("meta")
    with pytest.raises(mq.FileError, match="on the meta device"):
        mq.save(result, tmp_path / "a.gguf", plugins=False)


def test_a_missing_package_and_folders_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one with what to install, the other with what to change."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    result = quantized()
    with pytest.raises(mq.FileError, match=r"needs the gguf package .*pip install 'monoquant\[gguf\]'"):
        mq.save(result, tmp_path / "a.gguf", plugins=False)
    with pytest.raises(mq.FileError, match=r"pip install 'monoquant\[gguf\]'"):
        GgufExporter().require_held(result.model)
    assert not list(tmp_path.iterdir())
    with pytest.raises(mq.FileError, match="is a folder, and GGUF is one file"):
        mq.save(result, tmp_path, "gguf", plugins=False)


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+"
)
WORDS_OF_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = {**WORDS_OF_BYTES, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def tokenizer(**changes: Any) -> dict[str, Any]:
    added = [{"id": 2, "content": "<end>", "special": True}, {"id": 3, "content": "  ", "special": False}]
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "<end>": 2}, "merges": [], **changes.pop("model", {})}
    return {"added_tokens": added, "normalizer": None, "pre_tokenizer": WORDS_OF_BYTES, "model": model, **changes}


def described(folder: Path, found: Any, size: int = 5) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(found))
    model = llama()
    model.name_or_path = str(folder)
    return tokenizer_of(model, size).entries


def test_tokens_and_what_they_are(tmp_path: Path) -> None:
    """Added ones may be in the vocabulary already; rows of the embedding that no token has are filled up."""
    assert described(tmp_path / "t", tokenizer()) == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "<end>", "  ", "[PAD4]"],
        "tokenizer.ggml.token_type": [1, 1, 3, 4, 5],
    }


def test_no_tokenizer(tmp_path: Path) -> None:
    """llama.cpp's own word for it."""
    model = llama()
    assert tokenizer_of(model, 5).entries == {"tokenizer.ggml.model": "no_vocab"}
    model.name_or_path = str(tmp_path)
    assert tokenizer_of(model, 5).folder is None


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt-2", {}),
        ("smollm", {"pre_tokenizer": sequence(DIGITS, WORDS_OF_BYTES)}),
        ("smollm", {"pre_tokenizer": sequence(split(r"\p{N}"), WORDS_OF_BYTES)}),
        ("qwen2", {"pre_tokenizer": sequence(split(QWEN), BYTES), "normalizer": {"type": "NFC"}}),
        ("llama-bpe", {"pre_tokenizer": sequence(split(LLAMA_3), BYTES), "model": {"ignore_merges": True}}),
    ],
)
def test_ways_to_split_text(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    """By what they do, not by whose they are."""
    assert described(tmp_path / "t", tokenizer(**changes))["tokenizer.ggml.pre"] == name


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("no byte-level BPE", {"model": {"type": "Unigram"}}),
        ("no byte-level BPE", {"model": {"byte_fallback": True}}),
        ("changes text before it splits it", {"normalizer": {"type": "Lowercase"}}),
        ("in its own way", {"pre_tokenizer": None}),
        ("in its own way", {"pre_tokenizer": {"type": "Whitespace"}}),
        ("in its own way", {"pre_tokenizer": {**WORDS_OF_BYTES, "add_prefix_space": True}}),
        ("in its own way", {"pre_tokenizer": sequence({**DIGITS, "individual_digits": False}, WORDS_OF_BYTES)}),
        ("in its own way", {"pre_tokenizer": sequence(split("x"), BYTES)}),
        ("in its own way", {"pre_tokenizer": sequence({**split(QWEN), "invert": True}, BYTES)}),
        ("in its own way", {"model": {"ignore_merges": True}}),
        ("token 9, and the embedding 5 rows", {"model": {"vocab": {"a": 9}}}),
    ],
)
def test_tokenizers_that_are_not_translated(tmp_path: Path, message: str, changes: dict[str, Any]) -> None:
    """With the way out."""
    with pytest.raises(mq.FileError, match=f"{message}.*set result.model.name_or_path = ''"):
        described(tmp_path / "t", tokenizer(**changes))


@pytest.mark.parametrize("found", [[], {}, tokenizer(model={"vocab": []}), tokenizer(added_tokens=[{}])])
def test_files_that_are_no_tokenizers(tmp_path: Path, found: Any) -> None:
    """Named, and refused before anything is written."""
    with pytest.raises(mq.FileError, match=r"tokenizer\.json: not a tokenizer of the tokenizers library"):
        described(tmp_path / "t", found)
