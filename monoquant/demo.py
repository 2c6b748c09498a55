"""The embedded example: train a small model on Python's own documentation, quantize it, and compare."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from monoquant.api import load, save
from monoquant.container import write_container
from monoquant.errors import FileError, InputError
from monoquant.hooks import PluginManager, Plugins, manager_of
from monoquant.passes.accuracy_warning import AccuracyWarningPass
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.int4_pack import Int4PackPass
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.passes.validation import ValidationPass
from monoquant.quantizer import Quantizer, QuantResult

DEFAULT_STEPS = 360
FLOAT_FILE = "float.safetensors"
INT4_FILE = "int4.safetensors"

CONTEXT = 64
_BYTES = 256
_WIDTH = 192  # one whole group of 128 and a ragged one of 64
_HEADS = 3
_BLOCKS = 2
_BATCH = 16
_CALIBRATION_SAMPLES = 128
_SEED = 0

Write = Callable[[str], None]


@attrs.frozen(eq=False)
class Text:
    """Bytes for three purposes; no paragraph serves two of them.

    Args:
        train: What the model learns from.
        calibration: What the Quantizer measures layer outputs on.
        held_out: What the model is judged on.
    """

    train: Tensor
    calibration: Tensor
    held_out: Tensor


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, each behind a norm and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_WIDTH)
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)
        self.norm2 = nn.LayerNorm(_WIDTH)
        self.up = nn.Linear(_WIDTH, 4 * _WIDTH)
        self.down = nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return torch.add(x, self.down(functional.gelu(self.up(self.norm2(x)))))


class ByteTransformer(nn.Module):
    """Predicts the next byte of a text from up to 64 bytes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(_BYTES, _WIDTH)
        self.positions = nn.Embedding(CONTEXT, _WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(_BLOCKS))
        self.norm = nn.LayerNorm(_WIDTH)
        self.lm_head = nn.Linear(_WIDTH, _BYTES, bias=False)
        for embedding in (self.bytes, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)  # with torch's default of 1 it learns slower

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bytes(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def run_demo(write: Write, *, steps: int = DEFAULT_STEPS, keep: Path | None = None, plugins: Plugins = True) -> None:
    """Train, quantize, save, load and compare a small language model, telling every step.

    Numbers repeat from run to run on one machine. The caller's random state is left as it was.

    Args:
        write: Receives the text, piece by piece.
        steps: Training steps, >= 1; default 360, about half a minute on two cores.
        keep: Folder for the two files, created if need be; default: a temporary folder, removed at the end.
        plugins: Whether installed plugins take part; default True; see :func:`quantize`.

    Raises:
        InputError: When this Python ships without its documentation topics.
        FileError: When a file cannot be written or would replace another one, or does not give back the model that was
            saved.
        AccuracyError: When quantization damages a layer badly.
        PluginError: When a plugin is wrong.
    """
    manager = manager_of(plugins)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder(keep))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.default_generator.manual_seed(_SEED)
        text = read_text()
        _tell_text(text, write)
        model = ByteTransformer()
        _tell_training(model, text, steps, write)
        before = bits_per_byte(model, text.held_out)
        write(f"\n3. On the held-out text, the float model needs {_metric(before)}\n")
        result = _quantize(model, text, manager, write)
        loaded = _save_and_load(model, result, folder, text, manager, write)
        after = bits_per_byte(loaded, text.held_out)
        _tell_outcome(before, after, folder, write)
        if keep is not None:
            write(f"   the files are in {folder}\n")


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="monoquant-demo-") as name:
            yield Path(name)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{keep}: cannot be used as a folder ({error}); give another one") from error
    there = [name for name in (FLOAT_FILE, INT4_FILE) if (keep / name).exists()]
    if there:
        raise FileError(f"{keep}: holds {' and '.join(there)}, which would be replaced; give another folder")
    yield keep


def read_paragraphs() -> list[str]:
    """Python's documentation topics as paragraphs in a fixed order, each text once.

    Topics quote each other, so only paragraphs that differ may be split into train and held-out text.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError("this Python has no pydoc_data.topics to train on: use a complete installation") from error
    paragraphs = (paragraph for name in sorted(topics) for paragraph in topics[name].split("\n\n"))
    return list(dict.fromkeys(paragraph.strip("\n") for paragraph in paragraphs))


def read_text() -> Text:
    """Split the documentation: of every ten paragraphs, eight to train, one to calibrate, one held out.

    Raises:
        InputError: When this Python ships without its documentation topics.
    """
    paragraphs = read_paragraphs()
    train = [paragraph for index, paragraph in enumerate(paragraphs) if index % 10 not in (4, 9)]
    return Text(_as_bytes(train), _as_bytes(paragraphs[4::10]), _as_bytes(paragraphs[9::10]))


def _as_bytes(paragraphs: list[str]) -> Tensor:
    return torch.tensor(list("\n\n".join(paragraphs).encode()))


def _tell_text(text: Text, write: Write) -> None:
    write("1. Text: the documentation topics that ship with Python (pydoc_data), every paragraph once\n")
    sizes = (
        f"{len(text.train):,} bytes to train, {len(text.calibration):,} to calibrate, {len(text.held_out):,} held out"
    )
    write(f"   {sizes}; no paragraph is in two parts\n")


def _tell_training(model: ByteTransformer, text: Text, steps: int, write: Write) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    write(f"\n2. Train a transformer of {parameters:,} float32 parameters to predict the next byte\n")
    told = {1, steps, *range(0, steps + 1, max(steps // 5, 1))}
    for step, loss in enumerate(train(model, text.train, steps), 1):
        if step in told:
            write(f"   step {step:>4} of {steps}: {loss / math.log(2):.2f} bits per byte on its training batch\n")


def train(model: nn.Module, text: Tensor, steps: int) -> Iterator[float]:
    """Train on random windows of a text, with a seed of its own.

    Args:
        model: Gives logits for the next byte at each position; trained in place.
        text: Bytes.
        steps: How many batches.

    Yields:
        The loss of each batch, in nats per byte.
    """
    generator = torch.Generator().manual_seed(_SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(steps))
    offsets = torch.arange(CONTEXT + 1)
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT, (_BATCH, 1), generator=generator)
        windows = text[starts + offsets]
        loss = _loss(model, windows)
        model.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        yield loss.item()


def _schedule(steps: int) -> Callable[[int], float]:
    """Warm up over a tenth of the steps, and come down over the second half."""
    return lambda step: min(1.0, (step + 1) / (0.1 * steps), 2 * (1 - step / steps))


def _loss(model: nn.Module, windows: Tensor) -> Tensor:
    return functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def _windows(text: Tensor) -> Tensor:
    """Windows of CONTEXT + 1 bytes; each but the first byte is predicted, and every byte of the text once."""
    return text.unfold(0, CONTEXT + 1, CONTEXT)


def bits_per_byte(model: nn.Module, text: Tensor) -> float:
    """How many bits the model needs for a byte of the text, each predicted from what stands before it in its window.

    Args:
        model: Gives logits for the next byte at each position.
        text: Bytes.
    """
    with torch.no_grad():
        return _loss(model, _windows(text)).item() / math.log(2)


def _metric(bits: float) -> str:
    return f"{bits:.3f} bits per byte (perplexity {2**bits:.3f} per byte)"


def _quantize(model: nn.Module, text: Text, manager: PluginManager, write: Write) -> QuantResult:
    pack = Int4PackPass(group_size=128)
    calibration = CalibrationPass([_windows(text.calibration)[:_CALIBRATION_SAMPLES, :-1]], _CALIBRATION_SAMPLES)
    gate = AccuracyWarningPass(on_failure="error")
    passes = [SkipSelectionPass.from_options(), calibration, pack, ValidationPass(), gate]
    quantizer = Quantizer(passes, manager.registry(pack.scheme))
    write("\n4. Plan: what 4-bit quantization would do to each layer, and why\n")
    for decision in quantizer.plan(model):
        write(f"   {decision}\n")
    write(f"\n5. Quantize, and measure layer outputs on {_CALIBRATION_SAMPLES} windows of the calibration text\n\n")
    result = quantizer.run(model)
    write(f"{result.report}\n")
    return result


def _save_and_load(
    model: nn.Module, result: QuantResult, folder: Path, text: Text, manager: PluginManager, write: Write
) -> nn.Module:
    write_container(folder / FLOAT_FILE, model.state_dict(), {})
    save(result, folder / INT4_FILE, plugins=manager)
    loaded = load(folder / INT4_FILE, ByteTransformer(), plugins=manager)
    write("\n6. Save both, and load the quantized file into a freshly built model\n")
    tokens = _windows(text.held_out)[:8, :-1]
    with torch.no_grad():
        if not torch.equal(loaded(tokens), result.model(tokens)):
            raise FileError(f"{folder / INT4_FILE}: the loaded model differs from the saved one")
    write("   the loaded model's outputs are bit-equal to those of the quantized one\n")
    return loaded


def _tell_outcome(before: float, after: float, folder: Path, write: Write) -> None:
    sizes = [(folder / name).stat().st_size for name in (FLOAT_FILE, INT4_FILE)]
    write("\n7. Before and after, with the model as loaded from disk\n")
    write(f"   {'':<22}{'float32':>12}{'int4':>12}\n")
    write(f"   {'file on disk, bytes':<22}{sizes[0]:>12,}{sizes[1]:>12,}   {sizes[0] / sizes[1]:.2f}x smaller\n")
    write(f"   {'bits per byte':<22}{before:>12.4f}{after:>12.4f}   {after - before:+.4f} on held-out text\n")
    write(f"   {'perplexity per byte':<22}{2**before:>12.3f}{2**after:>12.3f}\n")
