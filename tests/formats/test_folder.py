"""HuggingFace folders: what is copied from where, and what a folder may take the place of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import monoquant as mq
from tests.formats.pretrained import Config, Small, quantized, small

FORMATS = ("compressed-tensors", "gptq", "huggingface")


def source(folder: Path, *names: str) -> Path:
    """A folder with files that hold their names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def loaded_from(folder: Path) -> Small:
    model = small().half()  # what all of the formats hold
    model.name_or_path = str(folder)
    return model


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", FORMATS)
def test_side_files_are_copied_and_nothing_else(tmp_path: Path, format: str) -> None:
    """Tokenizers, processors, sentence-transformers, licences; no weights, no code, no notes of other people."""
    wanted = {
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt"),
        *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "preprocessor_config.json"),
        *("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json", "sentence_bert_config.json"),
        *("additional_chat_templates/tools.jinja", "LICENSE", "spiece.model"),
    }
    others = ("model.safetensors", "pytorch_model.bin", "modeling.py", "config.json", "onnx/model.onnx", "notes.json")
    model = loaded_from(source(tmp_path / "source", *wanted, *others))
    mq.save(quantized(model), tmp_path / "m", format, plugins=False)
    written = files(tmp_path / "m")
    own = {"config.json", "model.safetensors"} if format != "huggingface" else {"config.json", "monoquant.safetensors"}
    assert written - {"README.md"} == wanted | own
    assert all((tmp_path / "m" / name).read_text() == name for name in wanted)


@pytest.mark.parametrize("given", ["", "somebody/a-model-of-the-hub"])
def test_a_model_of_no_folder_has_no_side_files(tmp_path: Path, given: str) -> None:
    """A name on the hub is none."""
    model = loaded_from(Path())
    model.name_or_path = given
    mq.save(quantized(model), tmp_path / "m", FORMATS[0], plugins=False)
    assert files(tmp_path / "m") == {"config.json", "model.safetensors"}


def test_the_generation_config_is_written(tmp_path: Path) -> None:
    """As the model has it."""
    model = small()
    model.generation_config = Config(temperature=0.5)
    mq.save(quantized(model), tmp_path / "m", FORMATS[0], plugins=False)
    assert json.loads((tmp_path / "m" / "generation_config.json").read_text())["temperature"] == 0.5


@pytest.mark.parametrize("format", FORMATS)
def test_links_out_of_the_source_are_refused(tmp_path: Path, format: str) -> None:
    """Before anything is written; links within are followed."""
    (tmp_path / "secret").write_text("secret")
    folder = source(tmp_path / "source", "vocab.txt")
    (folder / "vocab.json").symlink_to("vocab.txt")
    result = quantized(loaded_from(folder))
    mq.save(result, tmp_path / "m", format, plugins=False)
    assert (tmp_path / "m" / "vocab.json").read_text() == "vocab.txt"
    (folder / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(mq.FileError, match=r"merges.txt links to .*secret, out of its folder: put the file itself"):
        mq.save(result, tmp_path / "n", format, plugins=False)
    assert not (tmp_path / "n").exists()


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    """Its snapshots consist of links to blobs beside them."""
    cache = source(tmp_path / "models--x", "blobs/1234")
    snapshot = cache / "snapshots" / "abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "vocab.txt").symlink_to("../../blobs/1234")
    mq.save(quantized(loaded_from(snapshot)), tmp_path / "m", FORMATS[0], plugins=False)
    assert (tmp_path / "m" / "vocab.txt").read_text() == "blobs/1234"
    assert not (tmp_path / "m" / "vocab.txt").is_symlink()


def test_modules_of_sentence_transformers_with_weights_are_refused(tmp_path: Path) -> None:
    """Leaving them out would change the vectors."""
    folder = source(tmp_path / "source", "modules.json", "2_Dense/config.json", "2_Dense/model.safetensors")
    with pytest.raises(mq.FileError, match="the sentence-transformers modules 2_Dense have weights"):
        mq.save(quantized(loaded_from(folder)), tmp_path / "m", FORMATS[0], plugins=False)
    (folder / "modules.json").unlink()
    mq.save(quantized(loaded_from(folder)), tmp_path / "m", FORMATS[0], plugins=False)


@pytest.mark.parametrize("format", FORMATS)
def test_only_empty_folders_and_those_of_the_same_format_are_replaced(tmp_path: Path, format: str) -> None:
    """Everything else stays as it is: a whole folder would be gone."""
    result, target = quantized(small().half()), tmp_path / "m"
    target.mkdir()
    mq.save(result, target, format, plugins=False)
    (target / "more").write_text("x")
    mq.save(result, target, format, plugins=False)
    assert not (target / "more").exists()
    other = next(one for one in FORMATS if one != format)
    before = files(target)
    with pytest.raises(mq.FileError, match=f"m: is there already, and is no folder of the format '{other}', which"):
        mq.save(result, target, other, plugins=False)
    assert files(target) == before
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


@pytest.mark.parametrize("content", [None, "", "[]", '{"quantization_config": []}', "[" * 100_000])
def test_folders_of_anything_else_are_kept(tmp_path: Path, content: Any) -> None:
    """Files, and folders whose config.json says nothing of the format."""
    target = tmp_path / "m"
    if content is None:
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "config.json").write_text(content)
    with pytest.raises(mq.FileError, match="is there already"):
        mq.save(quantized(), target, FORMATS[0], plugins=False)


def test_a_missing_parent_is_refused(tmp_path: Path) -> None:
    """As for files."""
    with pytest.raises(mq.FileError, match=r"the folder .*none does not exist; create it first"):
        mq.save(quantized(), tmp_path / "none" / "m", FORMATS[0], plugins=False)
