"""A language model in llama.cpp, through the functions that its shared library exports.

Two structures hold parameters, and change with every release. They are passed on as they come, but for the first
three numbers of one of them, so that nothing here knows the rest of their layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import POINTER, Structure, addressof, c_bool, c_byte, c_char_p, c_float, c_int8, c_int32, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import torch
from common.models.smollm2 import CHUNK
from torch import Tensor

ROOM = 512
"""Bytes for a structure of parameters: more than it has, which a callee does not see."""
CONTEXT = 256
"""Tokens that a context holds."""


class _ModelParameters(Structure):
    _fields_ = (("rest", c_byte * ROOM),)


class _ContextParameters(Structure):
    _fields_ = (("context", c_uint32), ("batch", c_uint32), ("micro_batch", c_uint32), ("rest", c_byte * ROOM))


class _Batch(Structure):
    _fields_ = (
        ("count", c_int32),
        ("tokens", POINTER(c_int32)),
        ("embeddings", c_void_p),
        ("positions", c_void_p),
        ("sequence_counts", c_void_p),
        ("sequences", c_void_p),
        ("outputs", POINTER(c_int8)),
    )


SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (_ModelParameters, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, _ModelParameters)),
    "llama_context_default_params": (_ContextParameters, ()),
    "llama_init_from_model": (c_void_p, (c_void_p, _ContextParameters)),
    "llama_set_n_threads": (None, (c_void_p, c_int32, c_int32)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_seq_rm": (c_bool, (c_void_p, c_int32, c_int32, c_int32)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_batch_get_one": (_Batch, (POINTER(c_int32), c_int32)),
    "llama_decode": (c_int32, (c_void_p, _Batch)),
    "llama_get_logits": (POINTER(c_float), (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
}


class Llama:
    """A loaded model and its context.

    Args:
        library: The shared library.
        path: Of a GGUF file, which is not needed any more after this.
        threads: Of each call.

    Raises:
        RuntimeError: When the file or the context cannot be loaded.
    """

    def __init__(self, library: Any, path: Path, threads: int) -> None:
        self._library = library
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        library.llama_backend_init()
        model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        if not model:
            raise RuntimeError("llama.cpp could not load the file")
        parameters = library.llama_context_default_params()
        parameters.context = parameters.batch = parameters.micro_batch = CONTEXT
        self._context = library.llama_init_from_model(model, parameters)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context")
        library.llama_set_n_threads(self._context, threads, threads)
        self._memory = library.llama_get_memory(self._context)
        self._words: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self._read = 0

    def read(self, tokens: Sequence[int], every: bool = False) -> None:
        """Forget everything, and read a prompt.

        Args:
            tokens: The prompt.
            every: Compute the logits after each token, not just after the last.
        """
        self._library.llama_memory_clear(self._memory, False)
        self._decode(tokens, every)
        self._read = len(tokens)

    def go_on(self, tokens: Sequence[int]) -> None:
        """Read tokens after the prompt one at a time, and forget them."""
        for token in tokens:
            self._decode([token], False)
        self._library.llama_memory_seq_rm(self._memory, 0, self._read, -1)

    def logits(self, windows: Tensor) -> Iterator[Tensor]:
        """Logits of windows `[n, length]`, some windows at a time."""
        for chunk in windows.split(CHUNK):
            yield torch.stack([self._logits(window.tolist()) for window in chunk])

    def _logits(self, tokens: list[int]) -> Tensor:
        self.read(tokens, every=True)
        found = self._library.llama_get_logits(self._context)
        memory = (c_float * (len(tokens) * self._words)).from_address(addressof(found.contents))
        return torch.frombuffer(memory, dtype=torch.float32).view(len(tokens), self._words).clone()

    def _decode(self, tokens: Sequence[int], every: bool) -> None:
        numbers = (c_int32 * len(tokens))(*tokens)  # the batch only points to them
        batch = self._library.llama_batch_get_one(numbers, len(tokens))
        if every:
            batch.outputs = (c_int8 * len(tokens))(*[1] * len(tokens))
        if self._library.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not decode")
