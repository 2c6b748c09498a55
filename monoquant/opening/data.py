"""Calibration data of a command line: tensors, an array, a text, or a factory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monoquant.disk.header import read_header
from monoquant.disk.kinds import FileKind, kind_of
from monoquant.disk.open_file import OpenFile
from monoquant.disk.tensors import read_tensors
from monoquant.errors import ConfigError, FileError, InputError, require_flag
from monoquant.opening.factory import is_factory, made_by
from monoquant.opening.npy import read_npy
from monoquant.opening.texts import token_batches

_WANTED = "a .safetensors or .npy file, a text with a tokenizer, or package.module:factory"


def open_data(
    given: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
    max_length: int = 128,
    samples: int | None = None,
    trust_code: bool = False,
) -> Iterable[Any]:
    """Batches for ``calibration_data``, from what a person names.

    Args:
        given: A safetensors file of tensors with one leading size, which counts samples: several are the parts of
            mapping batches, a lone one is the input itself. A ``.npy`` file of one array. A UTF-8 text with one sample
            per line, for which ``tokenizer`` is needed. Or ``package.module:factory``, which is called without
            arguments and returns batches as they are.
        tokenizer: The folder of a tokenizer, or its ``tokenizer.json``; for texts only.
        batch_size: Samples in a batch, the last of which may be smaller; default 8. A factory makes its own.
        max_length: Tokens that are kept of a line; default 128.
        samples: The first so many are used; default all. A factory's batches are all handed on.
        trust_code: Whether a factory, or code that lies beside a tokenizer, may run. Default False.

    Raises:
        ConfigError: For wrong numbers, and a tokenizer where there is nothing to tokenize.
        FileError: When a file is missing or damaged.
        InputError: When there is no data in it, or it cannot be cut into samples.
    """
    require_flag("trust_code", trust_code)
    for name, value in (("batch_size", batch_size), ("max_length", max_length), ("samples", samples)):
        _require_count(name, value)
    if not isinstance(given, (str, os.PathLike)) or not str(given):
        raise InputError(f"{given!r} names no data: give {_WANTED}")
    if is_factory(given):
        _refuse_tokenizer(tokenizer, given, "a factory")
        return _of_factory(str(given), trust_code)
    path, kind = Path(given), kind_of(Path(given))
    if kind in (FileKind.SAFETENSORS, FileKind.NPY):
        _refuse_tokenizer(tokenizer, given, kind.value)
        found = _tensors(path) if kind is FileKind.SAFETENSORS else _array(path)
        return _cut(path, found, batch_size, samples)
    if kind in (FileKind.JSON, FileKind.OTHER) and tokenizer is not None:
        return token_batches(path, str(tokenizer), batch_size, max_length, samples, trust_code=trust_code)
    if kind is FileKind.EMPTY:
        raise InputError(f"{path}: is empty; give {_WANTED}")
    hint = "; is it a text? Then give a --tokenizer, too" if kind in (FileKind.JSON, FileKind.OTHER) else ""
    raise FileError(f"{path}: is {kind.value}; give {_WANTED}{hint}")


def _require_count(name: str, value: int | None) -> None:
    if value is None and name == "samples":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}: give a whole number >= 1")


def _refuse_tokenizer(tokenizer: Any, given: Any, what: str) -> None:
    if tokenizer is not None:
        raise ConfigError(f"tokenizer={str(tokenizer)!r} has no text to work on, {given} is {what}: leave it out")


def _of_factory(given: str, trust_code: bool) -> Iterable[Any]:
    made: Any = made_by(given, trust_code=trust_code, what="data")
    if isinstance(made, (Mapping, Tensor, str, bytes)) or not isinstance(made, Iterable):
        raise InputError(f"{given}: the factory returned a {type(made).__name__}: return a list of batches")
    return made


def _tensors(path: Path) -> dict[str, Tensor]:
    with OpenFile(path) as file:
        found = read_tensors(file, read_header(file)[0])
        file.require_unchanged()
    return found


def _array(path: Path) -> dict[str, Tensor]:
    with OpenFile(path) as file:
        found = {path.name: read_npy(file)}
        file.require_unchanged()
    return found


def _cut(path: Path, found: Mapping[str, Tensor], batch_size: int, samples: int | None) -> list[Any]:
    _require_data(path, found)
    parts = {name: torch.split(tensor[:samples], batch_size) for name, tensor in found.items()}
    batches = [dict(zip(parts, pieces, strict=True)) for pieces in zip(*parts.values(), strict=True)]
    return [next(iter(batch.values())) for batch in batches] if len(found) == 1 else batches


def _require_data(path: Path, found: Mapping[str, Tensor]) -> None:
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in found.items())
    if not found or any(tensor.dim() > 0 and tensor.numel() == 0 for tensor in found.values()):
        raise InputError(f"{path}: holds no data ({shapes or 'no tensors'}); give at least one sample")
    if any(tensor.dim() == 0 for tensor in found.values()):
        raise InputError(f"{path}: a lone number is no sample ({shapes}); give tensors whose first size counts samples")
    if len({len(tensor) for tensor in found.values()}) > 1:
        raise InputError(f"{path}: tensors of different lengths ({shapes}); the first size must count the same samples")
    broken = [name for name, tensor in found.items() if tensor.is_floating_point() and bool(tensor.isnan().any())]
    if broken:
        raise InputError(f"{path}: NaN in {', '.join(broken)}; leave such samples out")
