"""Other libraries' ways to quantize, a module each, and what to install for them.

A module is imported in the environment of its library only; this file is imported everywhere. `torch` needs no
environment of its own. All versions are ones that ran together on CPU with torch 2.13.0 and CPython 3.11.
"""

from __future__ import annotations

from common.environments import Recipe

ONNX = ("onnx==1.23.2", "flatbuffers", "protobuf", "numpy", "packaging", "sympy")

PEERS = {
    "torchao": Recipe("torchao", "0.18.0"),
    "quanto": Recipe("optimum-quanto", "0.2.7"),
    "hqq": Recipe("hqq", "0.2.8.post1"),
    "bitsandbytes": Recipe("bitsandbytes", "0.50.2"),
    "onnxruntime": Recipe("onnxruntime", "1.32.0", dependencies=ONNX),
    "llamacpp": Recipe("xllamacpp", "2026.10.11549"),
    "monoquant1": Recipe("mono-quant", "1.1"),
}
"""By the name of the module here, and of the environment.

llama.cpp comes as the wheel of xllamacpp, whose shared library exports the functions of ggml and of llama.cpp.
llama-cpp-python ships no wheel, and takes a quarter of an hour to build on two cores.
"""
