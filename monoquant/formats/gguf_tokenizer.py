"""A byte-level BPE tokenizer of a HuggingFace folder, as llama.cpp describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from torch import nn

from monoquant.disk.strict_json import read_json
from monoquant.errors import FileError
from monoquant.formats.folder import side_files

FILE = "tokenizer.json"
NO_VOCABULARY: dict[str, Any] = {"tokenizer.ggml.model": "no_vocab"}
"""What llama.cpp takes for a model that gets and gives numbers of tokens."""
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_3 = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_WORDS = ("ByteLevel", True)
_BYTES = ("ByteLevel", False)
_SPLITTERS: dict[tuple[Any, ...], str] = {
    (_WORDS,): "gpt-2",
    (("Digits", True), _WORDS): "smollm",
    (("Split", r"\p{N}", "Isolated"), _WORDS): "smollm",
    (("Split", _QWEN, "Isolated"), _BYTES): "qwen2",
    (("Split", _LLAMA_3, "Isolated"), _BYTES): "llama-bpe",
}
"""llama.cpp's names of ways to split text into words."""


@attrs.frozen
class GgufTokenizer:
    """What a GGUF file says of a tokenizer.

    Args:
        folder: Where it comes from; None: there is none.
        entries: Metadata by key, special tokens and merges excepted.
    """

    folder: Path | None
    entries: dict[str, Any]


def tokenizer_of(model: nn.Module, size: int) -> GgufTokenizer:
    """The tokenizer in the folder that a model was loaded from.

    Args:
        model: A PreTrainedModel.
        size: Rows of its embedding.

    Raises:
        FileError: For a tokenizer that cannot be described.
    """
    file = side_files(model).get(FILE)
    if file is None:
        return GgufTokenizer(None, NO_VOCABULARY)
    found = read_json(file, "a tokenizer of the tokenizers library")
    try:
        splitter, tokens, kinds = _splitter(found), *_vocabulary(found, size)
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{file}: not a tokenizer of the tokenizers library ({error!r}); get it again") from error
    except _UnknownError as error:
        raise FileError(
            f"{file}: {error}, which is not translated to llama.cpp's terms; set result.model.name_or_path = '' to "
            "write a file without a tokenizer, and keep the folder's own beside it"
        ) from error
    entries = {"model": "gpt2", "pre": splitter, "tokens": tokens, "token_type": kinds}
    # Not where the file lies that it may be a link to, but where its neighbours are.
    folder = Path(str(getattr(model, "name_or_path", "")))
    return GgufTokenizer(folder, {f"tokenizer.ggml.{key}": value for key, value in entries.items()})


class _UnknownError(Exception):
    """What a tokenizer does that is none of the known ways."""


def _splitter(found: Any) -> str:
    kind = found["model"]["type"]
    if kind != "BPE" or found["model"].get("byte_fallback"):
        raise _UnknownError(f"it is no byte-level BPE ({kind}, byte_fallback={found['model'].get('byte_fallback')})")
    normalizer = found.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _UnknownError(f"it changes text before it splits it ({normalizer['type']})")
    given = found.get("pre_tokenizer")
    parts = [] if given is None else given["pretokenizers"] if given["type"] == "Sequence" else [given]
    facts = tuple(map(_facts, parts))
    name = _SPLITTERS.get(facts)
    if name is None or bool(found["model"].get("ignore_merges")) != (name == "llama-bpe"):
        raise _UnknownError(f"it splits text in its own way ({facts})")
    return name


def _facts(part: Any) -> tuple[Any, ...]:
    kind = part["type"]
    if kind == "ByteLevel":
        return (kind, part.get("use_regex", True), *(["add_prefix_space"] if part["add_prefix_space"] else []))
    if kind == "Digits":
        return (kind, part["individual_digits"])
    if kind == "Split":
        inverted = ["invert"] if part["invert"] else []
        return (kind, part["pattern"].get("Regex"), part["behavior"], *inverted)
    return (kind,)


def _vocabulary(found: Any, size: int) -> tuple[list[str], list[int]]:
    """All tokens up to the size of the embedding, and what they are."""
    numbered = {number: (token, _NORMAL) for token, number in found["model"]["vocab"].items()}
    for one in found.get("added_tokens") or []:
        numbered[one["id"]] = (one["content"], _CONTROL if one["special"] else _USER_DEFINED)
    if max(numbered, default=-1) >= size:
        raise _UnknownError(f"it has token {max(numbered)}, and the embedding {size} rows")
    every = [numbered.get(number, (f"[PAD{number}]", _UNUSED)) for number in range(size)]
    return [token for token, _ in every], [kind for _, kind in every]
