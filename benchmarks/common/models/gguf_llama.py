"""A LlamaForCausalLM and its tokenizer out of a GGUF file, as llama.cpp writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

CONTROL_TOKEN = 3
"""What `tokenizer.ggml.token_type` says of tokens that text never contains."""

MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""What transformers calls the tensors of a block."""


class GgufLlama:
    """One GGUF file of the llama architecture whose head is tied to its embedding.

    Args:
        path: Where the file is.
    """

    def __init__(self, path: Path) -> None:
        self._reader = gguf.GGUFReader(path)

    def config(self) -> LlamaConfig:
        """The model's shape, from the file's metadata."""
        return LlamaConfig(
            vocab_size=self._field("llama.vocab_size"),
            hidden_size=self._field("llama.embedding_length"),
            intermediate_size=self._field("llama.feed_forward_length"),
            num_hidden_layers=self._field("llama.block_count"),
            num_attention_heads=self._field("llama.attention.head_count"),
            num_key_value_heads=self._field("llama.attention.head_count_kv"),
            max_position_embeddings=self._field("llama.context_length"),
            rms_norm_eps=self._field("llama.attention.layer_norm_rms_epsilon"),
            rope_parameters={"rope_type": "default", "rope_theta": self._field("llama.rope.freq_base")},
            tie_word_embeddings=True,
            bos_token_id=self._field("tokenizer.ggml.bos_token_id"),
            eos_token_id=self._field("tokenizer.ggml.eos_token_id"),
            pad_token_id=self._field("tokenizer.ggml.padding_token_id"),
        )

    def model(self) -> LlamaForCausalLM:
        """The model in float32 and eval mode."""
        config, heads, state = self.config(), self._heads(), {}
        for tensor in self._reader.tensors:
            kind = tensor.name.split(".")[-2]
            weight = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
            state[_name(tensor.name)] = _unpermuted(weight, heads[kind]) if kind in heads else weight
        model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
        missing, unexpected = model.load_state_dict(state, strict=False)
        if set(missing) != {"lm_head.weight"} or unexpected:
            raise RuntimeError(f"The file and the architecture differ: missing {missing}, unexpected {unexpected}.")
        model.tie_weights()
        return model

    def write(self, model: LlamaForCausalLM, path: Path, kind: GGMLQuantizationType) -> None:
        """Write the file once more, with other weights; the embedding and the norms stay in the format they have.

        Args:
            model: What has the weights; of the same architecture.
            path: Where to.
            kind: The format of the matrices that were quantized.
        """
        writer = gguf.GGUFWriter(path, "llama")
        for field in self._reader.fields.values():
            if field.name != "general.architecture" and not field.name.startswith("GGUF."):
                inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
        state, heads = model.state_dict(), self._heads()
        for tensor in self._reader.tensors:
            part = tensor.name.split(".")[-2]
            weight = state[_name(tensor.name)].float()
            weight = _permuted(weight, heads[part]) if part in heads else weight
            own = tensor.tensor_type
            wanted = own if part == "token_embd" or own == GGMLQuantizationType.F32 else kind
            writer.add_tensor(tensor.name, gguf.quantize(weight.contiguous().numpy(), wanted), raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def tokenizer(self) -> Tokenizer:
        """The byte-level BPE that the file's metadata describes; digits are split one by one."""
        tokens = self._field("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        kinds = self._field("tokenizer.ggml.token_type")
        control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
        tokenizer.add_special_tokens(control)
        return tokenizer

    def _heads(self) -> dict[str, int]:
        """How many heads the matrices have whose rows llama.cpp reorders."""
        return {
            "attn_q": self._field("llama.attention.head_count"),
            "attn_k": self._field("llama.attention.head_count_kv"),
        }

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        if field is None:
            raise RuntimeError(f"The GGUF file has no {name!r}.")
        return field.contents()


def _name(name: str) -> str:
    """What transformers calls the tensor that GGUF calls `name`."""
    outside = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in outside:
        return outside[name]
    _, layer, kind, parameter = name.split(".")
    return f"model.layers.{layer}.{MODULES[kind]}.{parameter}"


def _unpermuted(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of query and key rows, which pairs rotated features as neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _permuted(weight: Tensor, heads: int) -> Tensor:
    """The order of query and key rows that llama.cpp wants."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
