"""llama.cpp: ggml's product of a matrix in Q4_0 or Q4_K, in the layout that llama.cpp would give it on this CPU.

The functions are called in the shared library of the wheel, so that nothing has to be built.
"""

from __future__ import annotations

from ctypes import (
    CDLL,
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int64,
    c_size_t,
    c_void_p,
    memmove,
)
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from common.models import smollm2
from gguf import GGMLQuantizationType as Kind
from torch import Tensor, nn

from speed.peers.llamacpp_model import Llama
from speed.subjects import PROMPT
from speed.ways import Product, Runner, Way

VERSION = f"llama.cpp (xllamacpp {version('xllamacpp')})"
GRAPH_BYTES = 1 << 20
FLOAT = 0
"""ggml's number for float32."""


class _Parameters(Structure):
    _fields_ = (("size", c_size_t), ("buffer", c_void_p), ("no_alloc", c_bool))


SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_init": (c_void_p, (_Parameters,)),
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_nbytes": (c_size_t, (c_void_p,)),
    "ggml_get_data": (c_void_p, (c_void_p,)),
    "ggml_quantize_chunk": (c_size_t, (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, POINTER(c_float))),
    "ggml_mul_mat": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "ggml_new_graph": (c_void_p, (c_void_p,)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_backend_cpu_init": (c_void_p, ()),
    "ggml_backend_cpu_reg": (c_void_p, ()),
    "ggml_backend_cpu_set_n_threads": (None, (c_void_p, c_int)),
    "ggml_backend_cpu_buffer_type": (c_void_p, ()),
    "ggml_backend_reg_dev_get": (c_void_p, (c_void_p, c_size_t)),
    "ggml_backend_reg_get_proc_address": (c_void_p, (c_void_p, c_char_p)),
    "ggml_backend_buft_name": (c_char_p, (c_void_p,)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, (c_void_p, c_void_p)),
    "ggml_backend_tensor_set": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_graph_compute": (c_int, (c_void_p, c_void_p)),
}


@cache
def library() -> Any:
    """The wheel's shared library with the types of the functions that are called."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("xllamacpp is not installed")
    found = CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


@cache
def backend() -> int:
    """The CPU backend with as many threads as torch has."""
    found: int = library().ggml_backend_cpu_init()
    library().ggml_backend_cpu_set_n_threads(found, torch.get_num_threads())
    return found


@cache
def repacking_buffers() -> int:
    """The kind of buffers that reorder weights for this CPU, as llama.cpp uses them by default; else plain ones."""
    ggml = library()
    registry = ggml.ggml_backend_cpu_reg()
    address = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    kinds = CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(ggml.ggml_backend_reg_dev_get(registry, 0))
    found: int = kinds[0] or ggml.ggml_backend_cpu_buffer_type()
    return found


class Matrix:
    """A quantized weight, and the graphs of its products.

    Args:
        kind: Its format.
        weight: float32 `[out, in]`.
    """

    def __init__(self, kind: Kind, weight: Tensor) -> None:
        self._ggml = library()
        self._rows, self._columns = weight.shape
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if self._columns % block:
            raise ValueError(f"{kind.name} needs a multiple of {block} columns")
        codes = np.empty((self._rows, self._columns // block * size), np.uint8)
        pointer = codes.ctypes.data
        self._ggml.ggml_quantize_chunk(kind, weight.data_ptr(), pointer, 0, self._rows, self._columns, None)
        self.weight = torch.from_numpy(gguf.dequantize(codes, kind))
        context = self._context()
        self._tensor = self._ggml.ggml_new_tensor_2d(context, kind, self._columns, self._rows)
        self._ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, repacking_buffers())
        self._ggml.ggml_backend_tensor_set(self._tensor, pointer, 0, codes.nbytes)
        self._graphs: dict[int, tuple[int, int, Tensor]] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """`inputs` `[M, in]`, which are copied, times the weight; the next call overwrites the result."""
        if len(inputs) not in self._graphs:
            self._graphs[len(inputs)] = self._graph(len(inputs))
        graph, source, outputs = self._graphs[len(inputs)]
        memmove(source, inputs.data_ptr(), inputs.nbytes)
        if self._ggml.ggml_backend_graph_compute(backend(), graph):
            raise RuntimeError("ggml could not compute the product")
        return outputs

    def _context(self) -> int:
        context: int = self._ggml.ggml_init(_Parameters(GRAPH_BYTES, None, True))
        return context

    def _graph(self, batch: int) -> tuple[int, int, Tensor]:
        ggml, context = self._ggml, self._context()
        inputs = ggml.ggml_new_tensor_2d(context, FLOAT, self._columns, batch)
        product = ggml.ggml_mul_mat(context, self._tensor, inputs)
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, product)
        ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, ggml.ggml_backend_cpu_buffer_type())
        memory = (c_float * (batch * self._rows)).from_address(ggml.ggml_get_data(product))
        outputs = torch.frombuffer(memory, dtype=torch.float32).view(batch, self._rows)
        return graph, ggml.ggml_get_data(inputs), outputs


def multiply(kind: Kind, linear: nn.Linear) -> Product:
    """Pack a layer."""
    matrix = Matrix(kind, linear.weight.detach().contiguous())
    return Product(matrix, matrix.weight, library().ggml_backend_buft_name(repacking_buffers()).decode())


def run(subject: Any) -> Runner:
    """SmolLM2 with its matrices in Q4_0 and its embedding in Q8_0, in a context of its own."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        smollm2.write(subject.build(), path, Kind.Q4_0)
        model = Llama(library(), path, torch.get_num_threads())
    loss = smollm2.compare(model.logits(subject.windows), subject.windows, subject.reference).divergence
    prompt, answer = subject.ids[0, :PROMPT].tolist(), subject.ids[0, PROMPT:].tolist()
    model.read(prompt)
    return Runner({"prefill": partial(model.read, prompt), "decode": partial(model.go_on, answer)}, loss)


WAYS = [
    Way(
        "llama.cpp Q4_0",
        4.5,
        integer=True,
        multiply=partial(multiply, Kind.Q4_0),
        run=run,
        subjects=("smollm2",),
    ),
    Way("llama.cpp Q4_K", 4.5, integer=True, multiply=partial(multiply, Kind.Q4_K), models=False),
]
