"""transformers, and the gguf package, make of a GGUF file what the dequantized model is, without monoquant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import monoquant as mq
from monoquant.formats import gguf as exporter
from monoquant.formats import gguf_plan
from monoquant.numerics.affine import GroupCodes
from tests_interop.clients import difference, run
from tests_interop.models import IDS, SIZES, answer, build, quantized

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # where the models are built
from common.models import smollm2

pytestmark = pytest.mark.filterwarnings(
    "ignore:the GGUF file has no tokenizer"
)  # random models come from no folder with one
FILE = "model.gguf"
AUTO = "AutoModelForCausalLM"
INT4: dict[str, Any] = {"bits": 4, "group_size": 32, "symmetric": True}
INT8: dict[str, Any] = {**INT4, "bits": 8, "scale_dtype": torch.float16}
SCHEMES: dict[str, dict[str, Any]] = {
    "int4": INT4,
    "int8": INT8,
    "int8-float-embedding": {**INT8, "skip_layer_types": [nn.Embedding]},
    "half": {
        **INT4,
        "modules_to_not_convert": ["down_proj"],
        "rules": [
            mq.NameRule("q_proj", "lm_head", skip_to="float16"),
            mq.NameRule("v_proj", "embed_tokens", skip_to="bfloat16"),
        ],
    },
}


def assert_read_as_written(result: mq.QuantResult, path: Path) -> None:
    """The logits and every weight, to the last bit; and what the gguf package itself dequantizes."""
    expected = mq.dequantize(result.model)
    client = run(path.parent, AUTO, IDS, gguf=path.name)
    assert difference(client["answer"], answer(expected)) == 0
    weights = expected.state_dict()
    assert client["weights"].keys() == weights.keys()
    for name, tensor in client["weights"].items():
        assert torch.equal(tensor, weights[name].float()), name
    _, tensors = gguf_plan.planned(result.model)
    found = {one.name: one for one in gguf.GGUFReader(path).tensors}
    assert found.keys() == {one.name for one in tensors}
    for one in tensors:
        values = torch.tensor(gguf.dequantize(found[one.name].data, found[one.name].tensor_type))
        own = weights[one.source].float()
        order = gguf_plan.llama_order(len(own), one.heads) if one.heads else slice(None)
        assert torch.equal(values, own[order]), one.name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_llama(tmp_path: Path, scheme: str, tied: bool) -> None:
    """With heads whose keys are shared, which are reordered by their own number."""
    result = quantized(build("llama", tmp_path / "float", tie_word_embeddings=tied), **SCHEMES[scheme])
    mq.save(result, tmp_path / FILE, plugins=False)
    assert_read_as_written(result, tmp_path / FILE)


def test_mixed_schemes(tmp_path: Path) -> None:
    """INT8 as quantize(skip_to="int8") packs it has a scale per row, so passes say what GGUF has."""
    model, rule = build("llama", tmp_path / "float"), mq.NameRule("v_proj", "down_proj", skip_to="int8")
    with pytest.raises(mq.FileError, match="it has one scale for a row; quantize with group_size=32"):
        mq.save(quantized(model, **INT4, rules=[rule]), tmp_path / FILE, plugins=False)
    passes = [
        mq.SkipSelectionPass.from_options(extra_rules=[rule]),
        mq.Int4PackPass(group_size=32, symmetric=True),
        mq.Int8PackPass(group_size=32, scale_dtype=torch.float16),
    ]
    result = mq.Quantizer(passes).run(model)
    mq.save(result, tmp_path / FILE, plugins=False)
    assert {one.kind for one in gguf_plan.planned(result.model)[1]} == {"Q4_0", "Q8_0", "F32"}
    assert_read_as_written(result, tmp_path / FILE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(tmp_path: Path, dtype: torch.dtype) -> None:
    """Readers get weights in float32 before they are cast to the model's dtype; ours are that cast."""
    result = quantized(build("llama", tmp_path / "float", dtype), **INT4)
    mq.save(result, tmp_path / FILE, plugins=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=FILE, dtype=dtype).eval()
    expected = mq.dequantize(result.model)
    weights = expected.state_dict()
    assert all(torch.equal(one, weights[name]) for name, one in loaded.state_dict().items())
    assert difference(answer(loaded), answer(expected)) == 0


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_other_architectures(tmp_path: Path, kind: str) -> None:
    """Mistral is a Llama to readers; Qwen2 has biases, and keeps its order of rows."""
    own: dict[str, Any] = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (
            MistralForCausalLM(MistralConfig(**own, sliding_window=None))
            if kind == "mistral"
            else Qwen2ForCausalLM(Qwen2Config(**own))
        ).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / kind)  # a folder of this name
    result = quantized(type(model).from_pretrained(tmp_path / kind).eval(), **INT4)
    mq.save(result, tmp_path / FILE, plugins=False)
    assert_read_as_written(result, tmp_path / FILE)


def test_own_widths_of_heads_and_rotations(tmp_path: Path) -> None:
    """What the file says of them is read."""
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    model = build("llama", tmp_path / "float", head_dim=64, rope_parameters=rope, rms_norm_eps=1e-5)
    result = quantized(model, **INT4)
    mq.save(result, tmp_path / FILE, plugins=False)
    assert_read_as_written(result, tmp_path / FILE)


def _swapped(codes: GroupCodes, bits: int) -> Tensor:
    return ORIGINAL(GroupCodes(codes.codes.roll(1, -1), codes.scale, codes.zero_point), bits)


ORIGINAL = gguf_plan.to_blocks


@pytest.mark.parametrize("trap", ["codes", "order", "entry", "tensor", "kind"])
def test_a_wrong_file_is_found_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    """By reading it again: codes, rows, metadata, names and kinds."""
    result = quantized(build("llama", tmp_path / "float"), **INT4)
    write = exporter._write
    if trap == "codes":
        monkeypatch.setattr(gguf_plan, "to_blocks", _swapped)
    elif trap == "order":
        monkeypatch.setattr(gguf_plan, "llama_order", lambda rows, _: torch.arange(rows))
    else:

        def other(library: Any, path: Path, known: Any, tensors: Any, entries: Any, tokenizer: Any) -> None:
            if trap == "entry":
                entries = {**entries, "llama.rope.freq_base": 10001.0}
            elif trap == "tensor":
                tensors = tensors[1:]
            else:
                tensors = [*tensors[:-1], _halved(tensors[-1])]
            write(library, path, known, tensors, entries, tokenizer)

        monkeypatch.setattr(exporter, "_write", other)
    with pytest.raises(mq.FileError, match="what was written is not what it should be, and is removed again"):
        mq.save(result, tmp_path / FILE, plugins=False)
    assert {one.name for one in tmp_path.iterdir()} == {"float"}


def test_what_stops_the_writer_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, and a broken file beside the tokenizer."""
    result = quantized(build("llama", tmp_path / "float"), **INT4)
    source = tmp_path / "source"
    source.mkdir()
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (source / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (source / "tokenizer_config.json").write_text("{")
    wide = build("llama", tmp_path / "wide", vocab_size=smollm2.tokenizer().get_vocab_size())
    wide.name_or_path = str(source)  # type: ignore[assignment]
    with pytest.raises(mq.FileError, match=r"cannot be written \(Expecting property name"):
        mq.save(quantized(wide, **INT4), tmp_path / FILE, plugins=False)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(mq.FileError, match=r"model\.gguf: cannot be written \(No space left on device\)"):
        mq.save(result, tmp_path / FILE, plugins=False)
    assert {one.name for one in tmp_path.iterdir()} == {"float", "source", "wide"}


def _halved(tensor: gguf_plan.GgufTensor) -> gguf_plan.GgufTensor:
    assert isinstance(tensor.weight, Tensor)
    return gguf_plan.GgufTensor(tensor.name, tensor.source, tensor.weight.half()[None], tensor.heads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a user has it: with a tokenizer."""
    place = tmp_path_factory.mktemp("smollm2")
    smollm2.build().save_pretrained(place)
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    PreTrainedTokenizerFast(tokenizer_object=smollm2.tokenizer(), **special).save_pretrained(place)
    return place


@pytest.mark.parametrize("options", [INT4, INT8])
def test_smollm2_writes_the_same_tokens(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Greedily, from text to text: the tokenizer is in the file."""
    result = quantized(AutoModelForCausalLM.from_pretrained(folder).eval(), **options)
    mq.save(result, tmp_path / FILE, plugins=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=FILE).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=FILE)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    assert inputs.input_ids.tolist() == [smollm2.tokenizer().encode("The capital of France is").ids]
    more: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 2, "eos_token_id": 2}
    tokens = loaded.generate(**inputs, **more)
    assert torch.equal(tokens, mq.dequantize(result.model).generate(**inputs, **more))
    assert torch.equal(tokens, result.model.generate(**inputs, **more))
    assert "Paris" in tokenizer.decode(tokens[0])
    text = "Hello World 123, it's 2026!\n\n  x = foo(bar)  ünï <|im_end|>"
    assert tokenizer(text).input_ids == smollm2.tokenizer().encode(text).ids
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")


def test_a_file_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    """Few who write one mean it."""
    result = quantized(build("llama", tmp_path / "float"), **INT4)
    with pytest.warns(UserWarning, match="the GGUF file has no tokenizer, as the model comes from no folder"):
        mq.save(result, tmp_path / FILE, plugins=False)
