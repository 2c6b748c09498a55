"""The functions most people call; each builds a Quantizer and runs it, or keeps what it gave."""

from monoquant.api.files import load, load_report, render_report, save, save_report
from monoquant.api.gate import Gate
from monoquant.api.judging import check_accuracy_warnings, get_layers_to_skip
from monoquant.api.kernels import choose_kernels
from monoquant.api.quantizing import quantize
from monoquant.api.streaming import quantize_file
from monoquant.api.with_inputs import dynamic_quantize, static_quantize

__all__ = [
    "Gate",
    "check_accuracy_warnings",
    "choose_kernels",
    "dynamic_quantize",
    "get_layers_to_skip",
    "load",
    "load_report",
    "quantize",
    "quantize_file",
    "render_report",
    "save",
    "save_report",
    "static_quantize",
]
