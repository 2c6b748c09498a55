"""onnxruntime: MatMulNBits with int4 in asymmetric blocks of 128, and activations rounded to int8 or kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi._pybind_state import quantize_matmul_4bits
from torch import Tensor, nn

from speed.ways import GROUP, Product, Way

VERSION = f"onnxruntime {onnxruntime.__version__}"
Arrays = tuple[Any, Any, Any]


def packed(linear: nn.Linear) -> Arrays:
    """Codes `[out, groups, 64]`, scales `[out, groups]` and zero points, by the library's own quantizer."""
    rows, columns = linear.weight.shape
    groups = -(-columns // GROUP)
    codes = np.zeros((rows, groups, GROUP // 2), np.uint8)
    zeros = np.zeros((rows, (groups + 1) // 2), np.uint8)
    scales = np.zeros((rows, groups), np.float32)
    weight = np.ascontiguousarray(linear.weight.numpy().T)
    quantize_matmul_4bits(codes, weight, scales, zeros, GROUP, rows, columns, False)
    return codes, scales.reshape(-1), zeros.reshape(-1)


def dequantized(arrays: Arrays, rows: int, columns: int) -> Tensor:
    """What the codes stand for; low nibbles are first."""
    codes, scales, zeros = (torch.from_numpy(array) for array in arrays)
    groups = codes.shape[1]
    values = torch.stack([codes & 15, codes >> 4], -1).view(rows, groups, GROUP).float()
    points = zeros.view(rows, -1)
    points = torch.stack([points & 15, points >> 4], -1).view(rows, -1)[:, :groups, None].float()
    return ((values - points) * scales.view(rows, groups, 1)).view(rows, -1)[:, :columns]


def model_of(arrays: Arrays, rows: int, columns: int, level: int) -> bytes:
    """A model of one node."""
    names = ("codes", "scales", "zeros")
    node = helper.make_node(
        "MatMulNBits",
        ["inputs", *names],
        ["outputs"],
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=4,
        block_size=GROUP,
        accuracy_level=level,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["M", columns])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["M", rows])],
        [numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)],
    )
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = helper.make_model(
        graph, opset_imports=versions, ir_version=onnx.IR_VERSION_2024_3_25
    ).SerializeToString()
    return model


def multiply(level: int, linear: nn.Linear) -> Product:
    """Pack a layer and start a session for it."""
    rows, columns = linear.weight.shape
    arrays = packed(linear)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model_of(arrays, rows, columns, level), options)
    return Product(partial(_run, session), dequantized(arrays, rows, columns))


def _run(session: Any, inputs: Tensor) -> Tensor:
    return torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])


WAYS = [
    Way("onnxruntime MatMulNBits, level 4", 4.28125, integer=True, multiply=partial(multiply, 4)),
    Way("onnxruntime MatMulNBits, level 1", 4.28125, multiply=partial(multiply, 1)),
]
