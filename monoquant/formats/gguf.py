"""GGUF: one file that llama.cpp, and transformers without monoquant, read. INT4 becomes Q4_0 and INT8 Q8_0, exactly."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from monoquant.disk.replacing import require_space
from monoquant.errors import FileError
from monoquant.formats.base import Exporter
from monoquant.formats.folder import refuse_meta
from monoquant.formats.gguf_check import check_file
from monoquant.formats.gguf_metadata import model_entries
from monoquant.formats.gguf_names import Architecture
from monoquant.formats.gguf_plan import GgufTensor, planned
from monoquant.formats.gguf_tokenizer import GgufTokenizer, tokenizer_of
from monoquant.quantizer import QuantResult

_NO_TOKENIZER = (
    "the GGUF file has no tokenizer, as the model comes from no folder with a tokenizer.json: llama.cpp takes and "
    "gives numbers of tokens only"
)


class GgufExporter(Exporter):
    """Writes a file that llama.cpp reads, and ``from_pretrained(folder, gguf_file=...)``."""

    name: ClassVar[str] = "gguf"
    suffixes: ClassVar[tuple[str, ...]] = (".gguf",)

    def obstacle_at(self, path: Path) -> str:
        return "is a folder, and GGUF is one file; give another name" if path.is_dir() else ""

    def require_held(self, model: nn.Module) -> None:
        _held(model)
        _library()

    def write(self, result: QuantResult, path: Path) -> None:
        model = result.model
        architecture, tensors, tokenizer = _held(model)
        refuse_meta(model)
        library = _library()
        entries = {**model_entries(model, architecture, tensors), **tokenizer.entries}
        _write(library, path, architecture, tensors, entries, tokenizer)
        check_file(library, path, tensors, {"general.architecture": architecture.name, **entries})
        if tokenizer.folder is None:
            warnings.warn(_NO_TOKENIZER, stacklevel=2)


def _held(model: nn.Module) -> tuple[Architecture, list[GgufTensor], GgufTokenizer]:
    """What is written; refused before anything is."""
    architecture, tensors = planned(model)
    config: Any = model.config
    return architecture, tensors, tokenizer_of(model, int(config.vocab_size))


def _library() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise FileError(f"writing GGUF needs the gguf package ({error}): pip install 'monoquant[gguf]'") from error


def _write(
    library: Any,
    path: Path,
    architecture: Architecture,
    tensors: Sequence[GgufTensor],
    entries: Mapping[str, Any],
    tokenizer: GgufTokenizer,
) -> None:
    kinds = library.GGMLQuantizationType
    sizes = {one.name: _bytes_of(library.GGML_QUANT_SIZES[kinds[one.kind]], one.shape) for one in tensors}
    require_space(path, sum(sizes.values()))
    writer = library.GGUFWriter(path, architecture.name)
    try:
        for key, value in entries.items():
            _add(writer, key, value)
        if tokenizer.folder is not None:
            size = len(entries["tokenizer.ggml.tokens"])
            library.SpecialVocab(tokenizer.folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)
        for one in tensors:
            writer.add_tensor_info(one.name, one.shape, None, sizes[one.name], raw_dtype=kinds[one.kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in tensors:
            writer.write_tensor_data(one.content().numpy())
    except (OSError, ValueError) as error:  # a full disk, or broken files beside the tokenizer
        raise FileError(f"{path.name}: cannot be written ({error})") from error
    finally:
        writer.close()


def _bytes_of(sizes: tuple[int, int], shape: Sequence[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    weights, size = sizes
    return count // weights * size


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)
