"""Other libraries' cases, a module each, and what to install for them.

A module is imported in the environment of its library only; this file is imported everywhere. All versions are ones
that ran together on CPU with torch 2.13.0 and CPython 3.11.
"""

from __future__ import annotations

from common.environments import Recipe

GPTQMODEL_NEEDS = (
    "datasets==5.2.0",
    "defuser==0.0.28",
    "device-smi==0.5.7",
    "logbar==0.4.15",
    "maturin",
    "pillow",
    "protobuf",
    "pypcre==0.6.4",
    "threadpoolctl",
    "tokenicer==0.0.14",
    "torchao==0.18.0",
)
"""It asks for a newer torch, which it turns out not to need: pip must not resolve it."""

PEERS = {
    "hqq": Recipe("hqq", "0.2.8.post1"),
    "quanto": Recipe("optimum-quanto", "0.2.7"),
    "nncf": Recipe("nncf", "3.4.0"),
    "llmcompressor": Recipe("llmcompressor", "0.14.0.1", transformers="5.17.0"),
    "gptqmodel": Recipe("gptqmodel", "7.7.0", dependencies=GPTQMODEL_NEEDS),
    "autoround": Recipe("auto-round", "0.16.1"),
    "torchao": Recipe("torchao", "0.18.0"),
}
"""By the name of the module here, and of the environment. Left out: autoawq 0.2.9, which runs on CPU, but refuses
groups of 128 in 576 columns and had done 11 of 30 blocks in groups of 64 after nine CPU minutes."""
