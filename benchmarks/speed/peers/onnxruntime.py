"""onnxruntime: MatMulNBits with int4 in asymmetric blocks of 128, and activations rounded to int8 or kept."""

from __future__ import annotations

import io
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi._pybind_state import quantize_matmul_4bits
from torch import Tensor, nn

from speed.ways import GROUP, Product, Runner, Way

VERSION = f"onnxruntime {onnxruntime.__version__}"
DOMAIN = "com.microsoft"
OPSET = 21
Arrays = tuple[Any, Any, Any]


def packed(weight: Any) -> Arrays:
    """Codes `[out, groups, 64]`, scales and zero points, by the library's own quantizer.

    Args:
        weight: `[in, out]`, an array.
    """
    columns, rows = weight.shape
    groups = -(-columns // GROUP)
    codes = np.zeros((rows, groups, GROUP // 2), np.uint8)
    zeros = np.zeros((rows, (groups + 1) // 2), np.uint8)
    scales = np.zeros((rows, groups), np.float32)
    quantize_matmul_4bits(codes, np.ascontiguousarray(weight), scales, zeros, GROUP, rows, columns, False)
    return codes, scales.reshape(-1), zeros.reshape(-1)


def dequantized(arrays: Arrays, rows: int, columns: int) -> Tensor:
    """What the codes stand for; low nibbles are first."""
    codes, scales, zeros = (torch.from_numpy(array) for array in arrays)
    groups = codes.shape[1]
    values = torch.stack([codes & 15, codes >> 4], -1).view(rows, groups, GROUP).float()
    points = zeros.view(rows, -1)
    points = torch.stack([points & 15, points >> 4], -1).view(rows, -1)[:, :groups, None].float()
    return ((values - points) * scales.view(rows, groups, 1)).view(rows, -1)[:, :columns]


def node_of(weight: Any, level: int, inputs: str, outputs: str, name: str) -> tuple[Any, list[Any], Arrays]:
    """A node that multiplies with a packed weight, the tensors that it reads, and their arrays."""
    arrays = packed(weight)
    names = [f"{name}.{part}" for part in ("codes", "scales", "zeros")]
    node = helper.make_node(
        "MatMulNBits",
        [inputs, *names],
        [outputs],
        domain=DOMAIN,
        K=weight.shape[0],
        N=weight.shape[1],
        bits=4,
        block_size=GROUP,
        accuracy_level=level,
    )
    tensors = [numpy_helper.from_array(array, part) for array, part in zip(arrays, names, strict=True)]
    return node, tensors, arrays


def session_of(model: bytes) -> Any:
    """A session with as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options)


def multiply(level: int, linear: nn.Linear) -> Product:
    """Pack a layer, and start a session for a model of one node."""
    rows, columns = linear.weight.shape
    node, tensors, arrays = node_of(linear.weight.numpy().T, level, "inputs", "outputs", "weight")
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["M", columns])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["M", rows])],
        tensors,
    )
    versions = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=onnx.IR_VERSION_2024_3_25)
    return Product(partial(_run, session_of(model.SerializeToString())), dequantized(arrays, rows, columns))


def _run(session: Any, inputs: Tensor) -> Tensor:
    return torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])


class Encoder:
    """A sentence encoder that is called as the one it was exported from, but for the mask, which is all ones.

    Args:
        model: The exported one, serialized.
    """

    def __init__(self, model: bytes) -> None:
        self._session = session_of(model)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Hidden states."""
        hidden = self._session.run(None, {"input_ids": input_ids.numpy()})[0]
        return SimpleNamespace(last_hidden_state=torch.from_numpy(hidden))


class _Hidden(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.model(input_ids=input_ids).last_hidden_state
        return hidden


def exported(model: nn.Module) -> Any:
    """An encoder as a model of this library's format."""
    buffer = io.BytesIO()
    axes = {name: {0: "sentences", 1: "tokens"} for name in ("input_ids", "hidden")}
    example = torch.ones(1, 32, dtype=torch.int64)
    names: dict[str, Any] = {"input_names": ["input_ids"], "output_names": ["hidden"], "dynamic_axes": axes}
    torch.onnx.export(_Hidden(model).eval(), (example,), buffer, dynamo=False, opset_version=17, **names)
    return onnx.load_from_string(buffer.getvalue())


def pack_products(model: Any, level: int) -> None:
    """Replace every product with a constant matrix by one with a packed weight."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            constant = constants[node.input[1]]
            weight = numpy_helper.to_array(constant)
            new, tensors, _ = node_of(weight, level, node.input[0], node.output[0], constant.name)
            node.CopyFrom(new)
            graph.initializer.remove(constant)
            graph.initializer.extend(tensors)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def run(level: int | None, subject: Any) -> Runner:
    """An encoder with packed weights, or with float ones if no accuracy level is given."""
    model = exported(subject.build())
    if level is not None:
        pack_products(model, level)
    encoder: Any = Encoder(model.SerializeToString())
    return Runner(subject.calls(encoder), subject.loss(encoder))


MINILM = ("minilm",)
WAYS = [
    Way("onnxruntime fp32", 32, (), run=partial(run, None), subjects=MINILM),
    Way(
        "onnxruntime MatMulNBits, level 4",
        4.28125,
        integer=True,
        multiply=partial(multiply, 4),
        run=partial(run, 4),
        subjects=MINILM,
    ),
    Way(
        "onnxruntime MatMulNBits, level 1",
        4.28125,
        multiply=partial(multiply, 1),
        run=partial(run, 1),
        subjects=MINILM,
    ),
]
