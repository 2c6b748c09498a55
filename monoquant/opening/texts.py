"""A text file and a tokenizer: one sample per line that is not empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monoquant.disk.open_file import OpenFile
from monoquant.disk.shards import members_of
from monoquant.disk.strict_json import read_json
from monoquant.errors import FileError, InputError

Encode = Callable[[str], list[int]]
_TOKENIZER = "tokenizer.json"
_MOST_LINE = 1 << 20
"""Bytes of a line: a file without ends of lines is no text of samples."""


def token_batches(
    path: Path, tokenizer: str, batch_size: int, max_length: int, samples: int | None, *, trust_code: bool
) -> list[dict[str, Tensor]]:
    """Lines as a transformer takes them.

    Args:
        path: The text, UTF-8.
        tokenizer: The folder of a tokenizer, or its ``tokenizer.json``.
        batch_size: Lines at once.
        max_length: Tokens that are kept of a line.
        samples: Lines that are used; None for all.
        trust_code: Whether code that lies beside the tokenizer may run.

    Returns:
        Batches of ``input_ids`` and ``attention_mask``, int64 ``[lines, tokens]``, padded at the end.

    Raises:
        FileError: When a file is missing, is no text, or no tokenizer.
        InputError: When there are no lines, or what reads tokenizers is not installed.
    """
    lines = list(islice(_lines(path), samples))
    if not lines:
        raise InputError(f"{path}: holds no line of text; give one sample per line")
    encode, padding = _encoder(Path(tokenizer), max_length, trust_code)
    rows = [row for row in map(encode, lines) if row]
    if not rows:
        raise InputError(f"{path}: the tokenizer {tokenizer} makes nothing of its {len(lines)} lines")
    return [_padded(rows[first : first + batch_size], padding) for first in range(0, len(rows), batch_size)]


def _lines(path: Path) -> Iterator[str]:
    with OpenFile(path) as file:
        rest, place = b"", 0
        while block := file.read(place, _MOST_LINE):
            place += len(block)
            *whole, rest = (rest + block).split(b"\n")
            if len(rest) > _MOST_LINE:
                raise FileError(f"{path}: a line of more than {_MOST_LINE} bytes; give one sample per line")
            yield from _texts(path, whole)
        yield from _texts(path, [rest])
        file.require_unchanged()


def _texts(path: Path, lines: list[bytes]) -> Iterator[str]:
    for line in lines:
        try:
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise FileError(f"{path}: is no UTF-8 text ({error.reason}); give a text, .safetensors or .npy") from error
        if "\0" in text:
            raise FileError(f"{path}: is no text, it holds zeros; give a text, .safetensors or .npy")
        if text:
            yield text


def _padded(rows: list[list[int]], padding: int) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows], dtype=torch.int64, device="cpu")
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=torch.int64, device="cpu")
    return {"input_ids": ids, "attention_mask": mask}


def _encoder(given: Path, max_length: int, trust_code: bool) -> tuple[Encode, int]:
    """What makes tokens of a text, and the token to pad with."""
    folder = given if given.is_dir() else given.parent
    names = [entry.name for entry in folder.iterdir() if entry.is_symlink()] if given.is_dir() else []
    members_of(folder, names)  # readers of tokenizers follow links out of the folder
    if given.is_dir():
        found = _of_transformers(given, max_length, trust_code)
        if found is not None:
            return found
    return _of_tokenizers(given / _TOKENIZER if given.is_dir() else given, max_length)


def _of_transformers(folder: Path, max_length: int, trust_code: bool) -> tuple[Encode, int] | None:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return None
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_code)
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(f"{folder}: transformers finds no tokenizer ({type(error).__name__}: {text})") from error
    padding = next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)
    return lambda text: list(tokenizer(text, truncation=True, max_length=max_length)["input_ids"]), padding


def _of_tokenizers(file: Path, max_length: int) -> tuple[Encode, int]:
    read_json(file, "a tokenizer")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError(
            f"{file}: a tokenizer is read by transformers, which is not installed: pip install 'monoquant[hf]'"
        ) from error
    try:
        tokenizer: Any = Tokenizer.from_file(str(file))
        padding = (tokenizer.padding or {}).get("pad_id", 0)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
    except Exception as error:
        raise FileError(
            f"{file}: cannot be read as a tokenizer ({error}); give tokenizer.json or its folder"
        ) from error
    return lambda text: list(tokenizer.encode(text).ids), padding
