"""HuggingFace folders and texts that a person names, opened with transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from torch import nn

import monoquant as mq
from monoquant.cli import main
from monoquant.opening import OpenedKind, open_data, open_model
from monoquant.source import inventory
from tests_interop.models import build

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from transformers import BertModel

class OwnModel(BertModel):
    pass
"""


@pytest.fixture
def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return transformers.BertModel(config).eval()


@pytest.fixture
def folder(bert: Any, tmp_path: Path) -> Path:
    bert.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def configured(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(10).view(2, 5)).last_hidden_state


@pytest.mark.parametrize("kind", ["single", "shards", "pickled"])
def test_a_folder_gives_its_model(bert: Any, tmp_path: Path, kind: str) -> None:
    """Its answers are those of the model that was saved; shards are those that were checked."""
    folder = tmp_path / "bert"
    bert.save_pretrained(folder, max_shard_size="30KB" if kind == "shards" else "1GB")
    if kind == "pickled":
        (folder / "model.safetensors").unlink()
        torch.save(bert.state_dict(), folder / "pytorch_model.bin")
    opened = open_model(folder)
    assert opened.kind is OpenedKind.HUGGINGFACE
    assert opened.described.startswith("HuggingFace folder, BertModel, ")
    assert (opened.streamable is None) == (kind == "pickled")
    model = opened.module()
    assert isinstance(model, transformers.BertModel)
    assert not model.training
    assert torch.equal(answer(model), answer(bert))
    assert opened.state().keys() == bert.state_dict().keys()
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_the_dtype_is_that_of_the_file(bert: Any, tmp_path: Path) -> None:
    """Not made larger in passing."""
    bert.bfloat16().save_pretrained(tmp_path / "bert")
    assert open_model(tmp_path / "bert").module().dtype == torch.bfloat16


def test_weights_that_are_missing_are_not_made_up(bert: Any, tmp_path: Path) -> None:
    """Transformers would draw them at random, with a warning."""
    state = {name: tensor for name, tensor in bert.state_dict().items() if "pooler" not in name}
    bert.save_pretrained(tmp_path / "bert", state_dict=state)
    with pytest.raises(mq.InputError, match=r"has no weights for pooler\.dense\.bias, pooler\.dense\.weight of BertM"):
        open_model(tmp_path / "bert").module()


def test_code_in_a_folder_runs_only_if_it_is_trusted(folder: Path) -> None:
    """And says that it is code."""
    (folder / "own.py").write_text(CODE)
    configured(folder, architectures=["OwnModel"], auto_map={"AutoModel": "own.OwnModel"})
    with pytest.raises(mq.InputError, match=r"OwnModel is code that lies in the folder \(own\.OwnModel\): --trust"):
        open_model(folder).module()
    assert "own" not in {name.rpartition(".")[2] for name in sys.modules}
    assert type(open_model(folder, trust_code=True).module()).__name__ == "OwnModel"


def test_code_in_a_folder_is_not_needed_for_a_class_of_transformers(folder: Path) -> None:
    """So it does not run, and nobody has to trust it."""
    (folder / "own.py").write_text("raise RuntimeError('ran')")
    configured(folder, auto_map={"AutoModel": "own.BertModel", "AutoConfig": "own.Config"})
    assert type(open_model(folder).module()) is transformers.BertModel


def test_nobody_is_asked_on_the_terminal_whether_code_may_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config of an unknown kind makes transformers ask, and "y" may come from a pipe."""
    (folder / "own.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n" + CODE)
    configured(folder, model_type="unheard-of", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.BertModel"})
    asked: list[Any] = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "y")
    assert type(open_model(folder).skeleton()) is transformers.BertModel
    assert type(open_model(folder).module()) is transformers.BertModel
    assert not asked
    assert not list(folder.rglob("ran"))


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config": {"auto_map": {"AutoModel": "somewhere--own.Model"}}},
        {"parts": [{"auto_map": {"AutoModel": "own.Model"}}]},
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "paged|someone/kernel"},
        {"attn_implementation_internal": "someone/kernel"},
        {"vision": {"attn_implementation": {"": "sdpa", "text_config": "someone/kernel@main"}}},
        {"experts_implementation": "someone/kernel"},
    ],
)
def test_code_that_lies_elsewhere_needs_trust(folder: Path, changes: dict[str, Any]) -> None:
    """Kernels are fetched from the hub and run; parts have code of their own."""
    configured(folder, **changes)
    for built in (open_model(folder).module, open_model(folder).skeleton):
        with pytest.raises(mq.InputError, match=r"names code, .*(auto_map|kernel).*: --trust-code"):
            built()


@pytest.mark.parametrize("shown", [False, True])
def test_how_much_transformers_has_loaded_is_told(folder: Path, shown: bool) -> None:
    """To the end; its own bars are as they were, and so is what others hooked in."""
    logging = transformers.utils.logging
    was_shown = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    hook = lambda bar, given, named: bar(*given, **named)  # noqa: E731
    before = logging.set_tqdm_hook(hook)
    told: list[tuple[int, int]] = []
    try:
        open_model(folder).module(lambda done, total: told.append((done, total)))
        assert logging.set_tqdm_hook(before) is hook
        assert logging.is_progress_bar_enabled() == shown
    finally:
        logging.set_tqdm_hook(before)
        (logging.enable_progress_bar if was_shown else logging.disable_progress_bar)()
    assert [done for done, _ in told] == list(range(len(told)))
    assert told[-1][0] == told[-1][1] > 20


def test_transformers_without_a_hook_loads_as_well(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told then."""
    monkeypatch.delattr(transformers.utils.logging, "set_tqdm_hook")
    told: list[int] = []
    assert isinstance(open_model(folder).module(lambda done, _: told.append(done)), nn.Module)
    assert told == []


@pytest.mark.parametrize("command", [("plan",), ("quantize", "-o", "out")])
def test_weights_that_bring_code_are_refused_by_every_command(
    bert: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Any
) -> None:
    """A plan reads no weights, and says so all the same."""
    monkeypatch.chdir(folder.parent)
    (folder / "model.safetensors").unlink()
    torch.save({**bert.state_dict(), "more": bert}, folder / "pytorch_model.bin")
    name, *options = command
    assert main([name, "bert", "--no-plugins", *options]) == 3
    assert "BertModel" in capsys.readouterr().err
    assert not (folder.parent / "out").exists()


def test_other_implementations_are_no_code(folder: Path) -> None:
    """They are those of transformers."""
    configured(folder, attn_implementation="eager")
    assert open_model(folder).module().config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": None}, "names no architectures"),
        ({"architectures": ["NoSuchModel"]}, "transformers .* has no NoSuchModel; use a version that has it"),
        ({"architectures": ["AutoModel"]}, "has no AutoModel"),
        ({"architectures": ["pipeline"]}, "has no pipeline"),
        ({"hidden_size": 48}, r"transformers cannot build BertModel \("),
    ],
)
def test_folders_that_cannot_be_built(folder: Path, changes: dict[str, Any], said: str) -> None:
    """An error of ours, with what transformers says where it says something."""
    configured(folder, **changes)
    with pytest.raises(mq.InputError, match=said):
        open_model(folder).module()


def test_shards_that_lead_out_are_refused_before_transformers_follows_them(folder: Path, bert: Any) -> None:
    """It would read them."""
    secret = folder.parent / "secret.safetensors"
    (folder / "model.safetensors").rename(secret)
    places = dict.fromkeys(bert.state_dict(), "../secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert torch.equal(answer(transformers.BertModel.from_pretrained(folder)), answer(bert))
    with pytest.raises(mq.FileError, match="files must lie in it"):
        open_model(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").symlink_to(secret)
    with pytest.raises(mq.FileError, match="leads out of its folder"):
        open_model(folder)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "one", "two", "three"], 7)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=SPECIAL["unk_token"]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_padding(pad_id=7, pad_token=SPECIAL["pad_token"])
    folder = tmp_path / "tokenizer"
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("given", ["folder", "folder without transformers", "file"])
def test_a_text(tmp_path: Path, tokenizer: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample per line that is not empty, cut to length, padded to the longest of its batch, and masked."""
    (tmp_path / "a.txt").write_text("one two\n\n  three three three three\nfour\none\n")
    if given == "folder without transformers":
        monkeypatch.setitem(sys.modules, "transformers", None)
    place = tokenizer / "tokenizer.json" if given == "file" else tokenizer
    batches = list(open_data(tmp_path / "a.txt", tokenizer=place, batch_size=2, max_length=3, samples=3))
    assert [batch["input_ids"].tolist() for batch in batches] == [[[9, 10, 7], [11, 11, 11]], [[8]]]
    assert [batch["attention_mask"].tolist() for batch in batches] == [[[1, 1, 0], [1, 1, 1]], [[1]]]
    assert all(part.dtype == torch.int64 for batch in batches for part in batch.values())


def test_a_model_is_calibrated_on_a_text(tmp_path: Path, tokenizer: Path, folder: Path) -> None:
    """All that a command line does."""
    (tmp_path / "a.txt").write_text("one two\nthree\ntwo two\n" * 4)
    data = open_data(tmp_path / "a.txt", tokenizer=tokenizer)
    result = mq.quantize(
        open_model(folder).module(), calibration_data=data, skip_param_threshold=0, accuracy_warning="ignore"
    )
    assert result.report.calibration.samples == 12


def test_tokenizers_that_are_none(tmp_path: Path, tokenizer: Path) -> None:
    """Nothing there, something else, links that lead out, and code."""
    (tmp_path / "a.txt").write_text("one two\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.json").write_text("{}")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "tokenizer.json").symlink_to(tokenizer / "tokenizer.json")
    for given, kind, said in (
        ("empty", mq.InputError, "transformers finds no tokenizer"),
        ("none", mq.FileError, "no such file"),
        ("wrong.json", mq.FileError, "cannot be read as a tokenizer"),
        ("a.txt", mq.FileError, "not a tokenizer"),
        ("linked", mq.FileError, "leads out of its folder"),
    ):
        with pytest.raises(kind, match=said):
            open_data(tmp_path / "a.txt", tokenizer=tmp_path / given)
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "own.py").write_text("raise RuntimeError('ran')")
    auto = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**config, **auto}))
    with pytest.raises(mq.InputError, match="finds no tokenizer"):
        open_data(tmp_path / "a.txt", tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_skeleton_is_the_model_without_its_values(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    """The same layers, shapes, dtypes and ties, so that a plan says the same of it, without reading a weight."""
    options = {"tie_word_embeddings": True} if kind == "llama" else {}
    build(kind, tmp_path / "float", **options).to(dtype).save_pretrained(tmp_path / "model")
    found = open_model(tmp_path / "model")
    skeleton, model = found.skeleton(), found.module()
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert inventory(skeleton) == inventory(model)
    passes = [mq.SkipSelectionPass.from_options(), mq.Int4PackPass(group_size=32)]
    assert mq.Quantizer(passes).forecast(skeleton) == mq.Quantizer(passes).forecast(model)


def test_a_model_taken_for_weights_is_validated_against_its_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose model has buffers that no file holds, or files buffers that no model has."""
    path = folder / "model.safetensors"
    state = {**safetensors.torch.load_file(path), "embeddings.position_ids": torch.arange(512).view(1, -1)}
    safetensors.torch.save_file(state, path, {"format": "pt"})
    small = str(folder.with_name("small.safetensors"))
    options = ["--no-plugins", "--set", "gate.accuracy_warning=ignore"]
    assert main(["quantize", str(folder), "-o", small, "--as-weights", *options]) == 0
    assert main(["validate", small, str(folder), "--no-plugins"]) == 0, capsys.readouterr().out
