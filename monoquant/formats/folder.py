"""HuggingFace folders, as transformers 5 writes and reads them: configuration and side files beside the weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monoquant.container import replacement, write_container
from monoquant.errors import FileError, quoted
from monoquant.modules.packed_module import PackedModule, float_class
from monoquant.modules.pretrained import is_pretrained
from monoquant.source import own_tensors

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
LARGEST_SHARD = 5 * 10**9
"""Bytes; what transformers and its hub took for the largest handy file for years."""

_SIDE_FILES = (
    "tokenizer*.json",
    "tokenizer*.model",
    "spiece.model",
    "sentencepiece*.model",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
    "LICENSE*",
    "NOTICE*",
)
"""What tokenizers, processors and sentence-transformers read, and licences; never weights, never code."""


def require_pretrained(model: nn.Module) -> None:
    """Refuse what transformers cannot build from a configuration.

    Args:
        model: The model of a result.

    Raises:
        FileError: Unless it is a PreTrainedModel whose class needs no code of its own folder.
    """
    if not is_pretrained(model):
        raise FileError(
            f"a HuggingFace folder holds models of transformers, and this is a {type(model).__name__}: quantize a "
            "PreTrainedModel, or save to a name that ends in .safetensors"
        )
    if getattr(_config_of(model), "auto_map", None):
        raise FileError(
            f"{type(model).__name__} needs Python files of its own folder, which are not copied: save to a name that "
            "ends in .safetensors, and load that into the model"
        )


def refuse_meta(model: nn.Module) -> None:
    """Refuse a model without values.

    Args:
        model: The model of a result.

    Raises:
        FileError: With all layers that are on the meta device.
    """
    tensors = {name: own_tensors(module).values() for name, module in model.named_modules()}
    layers = [name for name, own in tensors.items() if any(one.is_meta for one in own)]
    if layers:
        raise FileError(f"on the meta device: {quoted(layers)}; quantize a model with weights", layers=layers)


def _config_of(model: Any) -> Any:
    return model.config


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype that transformers builds a model in: that of its first float parameter, packed ones included.

    Args:
        model: A model with at least one packed layer.
    """
    for module in model.modules():
        if isinstance(module, PackedModule):
            return next(iter(module.packed_weights().values())).dtype
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                return parameter.dtype
    return torch.get_default_dtype()


def write_folder(
    folder: Path, model: nn.Module, quantization: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a folder of safetensors for readers who find in config.json how the weights are packed.

    Args:
        folder: Where; there must not be anything.
        model: As :func:`require_pretrained` takes it.
        quantization: The ``quantization_config``.
        tensors: By name.
    """
    folder.mkdir()
    write_configuration(folder, model, {"quantization_config": quantization})
    copy_side_files(folder, model)
    write_weights(folder, tensors)


def write_configuration(folder: Path, model: nn.Module, added: Mapping[str, Any]) -> None:
    """Write what transformers builds the model from.

    Args:
        folder: Existing folder.
        model: As :func:`require_pretrained` takes it.
        added: Further entries of config.json, or other values of those that are there.
    """
    kind = float_class(model) if isinstance(model, PackedModule) else type(model)
    config = json.loads(_config_of(model).to_json_string())
    for stale in ("_name_or_path", "quantization_config", "transformers_weights"):
        config.pop(stale, None)
    config |= {"architectures": [kind.__name__], "dtype": str(dtype_of(model)).removeprefix("torch."), **added}
    write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        write_text(folder / GENERATION_CONFIG, generation.to_json_string())


def copy_side_files(folder: Path, model: nn.Module) -> None:
    """Copy what tokenizers and the like need from the folder that a model was loaded from, if there is one.

    Args:
        folder: Existing folder.
        model: As :func:`require_pretrained` takes it.

    Raises:
        FileError: For a link that leads out of the source, or modules of sentence-transformers with weights.
    """
    for name, source in side_files(model).items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        with replacement(target) as file:
            file.write(source.read_bytes())


def side_files(model: nn.Module) -> dict[str, Path]:
    """Side files by their place in the folder.

    Args:
        model: As :func:`require_pretrained` takes it.

    Raises:
        FileError: As :func:`copy_side_files`.
    """
    given = getattr(model, "name_or_path", "")
    source = Path(given)
    if not given or not source.is_dir():
        return {}
    _refuse_further_weights(source)
    found = {path.relative_to(source).as_posix(): path for pattern in _SIDE_FILES for path in source.glob(pattern)}
    return {name: _inside(path, source) for name, path in sorted(found.items()) if path.is_file()}


def _refuse_further_weights(source: Path) -> None:
    heavy = [path.parent.name for path in source.glob("[0-9]_*/*") if path.suffix in (".safetensors", ".bin")]
    if heavy and (source / "modules.json").is_file():
        raise FileError(
            f"{source}: the sentence-transformers modules {', '.join(sorted(set(heavy)))} have weights, which are not "
            "copied: without them its vectors would be others; save to a name that ends in .safetensors"
        )


def _inside(path: Path, source: Path) -> Path:
    """The file itself, if it lies in the folder, or beside it as in the cache of the HuggingFace hub."""
    real, root = path.resolve(), source.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not (real.is_relative_to(root) or real.is_relative_to(blobs)):
        raise FileError(f"{path} links to {real}, out of its folder: put the file itself there, or remove the link")
    return real


def folder_obstacle(target: Path, format: str, method: str) -> str:
    """Why a folder must not take the place of what is there: only empty folders and those of the same format give way.

    Args:
        target: Where a folder is to be.
        format: Name of the format.
        method: Its ``quant_method``.

    Returns:
        A text; empty where it may.
    """
    if not target.exists() and not target.is_symlink():
        return ""
    if target.is_dir() and (not any(target.iterdir()) or _method_of(target) == method):
        return ""
    return (
        f"is there already, and is no folder of the format {format!r}, which could be replaced; give another name, or "
        "remove it"
    )


def _method_of(folder: Path) -> object:
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``model.safetensors``, or shards of it with their index.

    Args:
        folder: Existing folder.
        tensors: By name.
    """
    parts = list(_shards(tensors))
    metadata = {"format": "pt"}  # what transformers looks for
    if len(parts) == 1:
        write_container(folder / "model.safetensors", parts[0], metadata)
        return
    places: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        write_container(folder / name, part, metadata)
        places |= dict.fromkeys(part, name)
    total = sum(map(_bytes, tensors.values()))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _shards(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + _bytes(tensor) > LARGEST_SHARD:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += _bytes(tensor)
    yield part


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def write_text(path: Path, text: str) -> None:
    """Write a text file, flushed to disk.

    Args:
        path: Target.
        text: Its content.
    """
    with replacement(path) as file:
        file.write(text.encode())


def lossy_casts(tensors: Mapping[str, Tensor], dtype: torch.dtype, kept: Collection[str]) -> list[str]:
    """Float tensors that do not survive being cast to the model's dtype, as transformers does when it loads.

    Args:
        tensors: By name.
        dtype: The model's.
        kept: Parts of names that transformers keeps in float32.
    """
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not any(part in name for part in kept) and not _survives(tensor, dtype)
    ]


def _survives(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.dtype == dtype or torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)


def kept_in_float32(model: nn.Module) -> list[str]:
    """Parts of names of parameters that transformers keeps in float32, whatever the model's dtype.

    Args:
        model: As :func:`require_pretrained` takes it.
    """
    lists: Iterable[Any] = (
        getattr(model, name, None) or () for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    )
    return [part for parts in lists for part in parts]


def tied_names(model: nn.Module) -> dict[str, str]:
    """Names of parameters that transformers ties by itself, with the name of what each is tied to.

    Args:
        model: As :func:`require_pretrained` takes it.
    """
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def renamed_names(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Names of tensors that transformers takes for other ones when it loads them, or puts together with others.

    Args:
        model: As :func:`require_pretrained` takes it.
        names: Names of its tensors.
    """
    mapping: Any = sys.modules.get("transformers.conversion_mapping")  # there wherever such a model is
    rules = [] if mapping is None else mapping.get_model_conversion_mapping(model)
    return [name for name in names if any(_changes(rule, name) for rule in rules)]


def _changes(rule: Any, name: str) -> bool:
    renamed, pattern = rule.rename_source_key(name)
    return bool(renamed != name or (pattern is not None and hasattr(rule, "operations")))


def unsaved_names(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Names of tensors that transformers neither saves nor looks for.

    Args:
        model: As :func:`require_pretrained` takes it.
        names: Names of its tensors.
    """
    patterns = getattr(model, "_keys_to_ignore_on_save", None) or ()
    return {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
