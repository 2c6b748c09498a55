"""Formats of models and of reports: by name, by the end of a path, or one's own."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.disk import replacing


@pytest.fixture(scope="module")
def result() -> mq.QuantResult:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    return mq.quantize(model, plugins=False, accuracy_warning="ignore")


class Own(mq.Exporter):
    """Writes a word."""

    name = "own"
    suffixes = (".own",)

    def __init__(self, word: str = "own") -> None:
        self._word = word

    def write(self, result: mq.QuantResult, path: Path) -> None:
        path.write_text(self._word)


class Rival(Own):
    """Another one for the same files."""

    name = "rival"


class Shadow(Own):
    """Would like to write monoquant's files."""

    name = "shadow"
    suffixes = (".safetensors",)


class Bad(Own):
    """Cannot write."""

    name = "bad"
    suffixes = ()

    def write(self, result: mq.QuantResult, path: Path) -> None:
        raise ValueError("no")


class Lines(mq.Reporter):
    """Counts lines."""

    name = "lines"
    suffixes = (".lines.txt",)

    def render(self, report: mq.QuantReport) -> Any:
        return str(len(str(report).splitlines()))


class Numbers(Lines):
    """Forgets to make text of it."""

    name = "numbers"
    suffixes = ()

    def render(self, report: mq.QuantReport) -> Any:
        return 3


def manager(exporters: list[mq.Exporter] = [], reporters: list[mq.Reporter] = []) -> mq.PluginManager:  # noqa: B006
    class Plugin:
        __version__ = "2.0"

        @mq.hookimpl
        def monoquant_register_exporters(self) -> list[mq.Exporter]:
            return exporters

        @mq.hookimpl
        def monoquant_register_reporters(self) -> list[mq.Reporter]:
            return reporters

    return mq.PluginManager([Plugin()], discover=False)


def test_an_exporter_of_ones_own_needs_no_plugin(result: mq.QuantResult, tmp_path: Path) -> None:
    """As an algorithm of one's own does not."""
    mq.save(result, tmp_path / "a", Own("mine"), plugins=False)
    assert (tmp_path / "a").read_text() == "mine"


def test_the_native_format_has_a_name(result: mq.QuantResult, tmp_path: Path) -> None:
    """It is what the end of the path gives, too."""
    mq.save(result, tmp_path / "a.safetensors", format="monoquant", plugins=False)
    mq.save(result, tmp_path / "b.safetensors", plugins=False)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_plugin_does_not_take_over_monoquants_own_files(result: mq.QuantResult, tmp_path: Path) -> None:
    """Only who names its format gets it."""
    plugins = manager([Shadow()])
    mq.save(result, tmp_path / "a.safetensors", plugins=plugins)
    assert mq.load_report(tmp_path / "a.safetensors") == result.report
    mq.save(result, tmp_path / "a.safetensors", "shadow", plugins=plugins)
    assert (tmp_path / "a.safetensors").read_text() == "own"


def test_two_plugins_for_one_end_are_told_apart_by_name(result: mq.QuantResult, tmp_path: Path) -> None:
    """Neither is silently preferred."""
    expected = (
        r"a\.own: several formats end so, 'own' of Plugin 2\.0, 'rival' of Plugin 2\.0; give one of them as format="
    )
    with pytest.raises(mq.ConfigError, match=expected):
        mq.save(result, tmp_path / "a.own", plugins=manager([Rival(), Own()]))
    mq.save(result, tmp_path / "a.own", "rival", plugins=manager([Rival(), Own()]))


def test_unknown_ends_and_names_are_refused_with_the_known_ones(result: mq.QuantResult, tmp_path: Path) -> None:
    """Formats of plugins included, and who was asked."""
    expected = (
        r"a\.bin: give a name that ends in \.safetensors \(monoquant\), \.gguf \(gguf\), \.own \(own\), "
        r"or a format="
    )
    with pytest.raises(mq.FileError, match=expected):
        mq.save(result, tmp_path / "a.bin", plugins=manager([Own()]))
    expected = (
        r"format='onnx': give one of 'monoquant', 'compressed-tensors', 'gptq', 'huggingface', 'gguf', 'own', or an "
        r"instance of an Exporter; plugins asked for more: Plugin 2\.0; blocked: none\. If a plugin brings it, install "
    )
    with pytest.raises(mq.ConfigError, match=expected):
        mq.save(result, tmp_path / "a", "onnx", plugins=manager([Own()]))
    with pytest.raises(
        mq.ConfigError, match=r"format=<class .*Own'>: give one of 'monoquant', .*, or an instance of an Expor"
    ):
        mq.save(result, tmp_path / "a", Own, plugins=False)  # type: ignore[arg-type]


def test_an_exporter_that_raises_is_named(result: mq.QuantResult, tmp_path: Path) -> None:
    """Its own exception, with a note."""
    with pytest.raises(ValueError, match="no") as caught:
        mq.save(result, tmp_path / "a", "bad", plugins=manager([Bad()]))
    assert caught.value.__notes__ == ["raised by the exporter 'bad' of Plugin 2.0"]


class Sudden(mq.Exporter):
    """Writes a file, one beside it and a folder, and may fail after that."""

    name = "sudden"

    def __init__(self, text: str, error: BaseException | None = None, *, folder: bool = False) -> None:
        self.text, self.error, self.folder = text, error, folder

    def write(self, result: mq.QuantResult, path: Path) -> None:
        (path.parent / f"{path.name}.data").write_text(self.text)
        if self.folder:
            path.mkdir()
            (path / "inside").write_text(self.text)
        else:
            path.write_text(self.text)
        if self.error is not None:
            raise self.error


def content_of(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [ValueError("full"), KeyboardInterrupt()])
@pytest.mark.parametrize("folder", [False, True])
def test_an_exporter_that_fails_ruins_nothing(
    result: mq.QuantResult, tmp_path: Path, error: BaseException, folder: bool
) -> None:
    """What was there stays, and nothing is left beside it."""
    mq.save(result, tmp_path / "a", Sudden("old", folder=folder), plugins=False)
    before = content_of(tmp_path)
    assert set(before.values()) == {"old"}
    with pytest.raises(type(error)):
        mq.save(result, tmp_path / "a", Sudden("new", error, folder=not folder), plugins=False)
    assert content_of(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.data"]


@pytest.mark.parametrize("then", [False, True])
@pytest.mark.parametrize("now", [False, True])
def test_what_an_exporter_writes_takes_the_place_of_what_was_there(
    result: mq.QuantResult, tmp_path: Path, then: bool, now: bool
) -> None:
    """Files and folders of either kind, those beside the target included, and others are left alone."""
    (tmp_path / "other").write_text("mine")
    mq.save(result, tmp_path / "a", Sudden("old", folder=then), plugins=False)
    mq.save(result, tmp_path / "a", Sudden("new", folder=now), plugins=False)
    written = "a/inside" if now else "a"
    assert content_of(tmp_path) == {written: "new", "a.data": "new", "other": "mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.data", "other"]


def test_a_folder_that_cannot_be_replaced_is_put_back(
    result: mq.QuantResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was moved out of the way, and nothing came."""
    mq.save(result, tmp_path / "a", Sudden("old", folder=True), plugins=False)
    before, replace = content_of(tmp_path), Path.replace

    def refuse(source: Path, target: Path) -> Path:
        if target == tmp_path / "a" and "new" in content_of(source).values():
            raise PermissionError("locked")
        return replace(source, target)

    monkeypatch.setattr(replacing, "exchanged", lambda *_: False)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(mq.FileError, match=r"a: cannot be written \(locked\)"):
        mq.save(result, tmp_path / "a", Sudden("new", folder=True), plugins=False)
    assert content_of(tmp_path)["a/inside"] == before["a/inside"] == "old"


class Lazy(mq.Exporter):
    """Forgets to write."""

    name = "lazy"

    def write(self, result: mq.QuantResult, path: Path) -> None: ...


def test_an_exporter_that_writes_nothing_is_told(result: mq.QuantResult, tmp_path: Path) -> None:
    """Nobody believes that there is a file; one that was there stays."""
    (tmp_path / "a").write_text("old")
    with pytest.raises(mq.PluginError, match=r"^the exporter 'lazy' of Plugin 2\.0 wrote nothing to the path"):
        mq.save(result, tmp_path / "a", "lazy", plugins=manager([Lazy()]))
    assert content_of(tmp_path) == {"a": "old"}


def test_an_exporter_needs_a_folder(result: mq.QuantResult, tmp_path: Path) -> None:
    """One that can be written."""
    with pytest.raises(mq.FileError, match="no does not exist; create it first"):
        mq.save(result, tmp_path / "no" / "a", Own(), plugins=False)
    with pytest.raises(mq.FileError, match=r"cannot be written .*; it is as it was before"):
        mq.save(result, "a\0b", Own(), plugins=False)


def test_what_is_saved_must_be_a_result(result: mq.QuantResult, tmp_path: Path) -> None:
    """Whatever the format."""
    with pytest.raises(mq.FileError, match="save takes the QuantResult that quantize"):
        mq.save(result.model, tmp_path / "a", Own())  # type: ignore[arg-type]
    with pytest.raises(mq.FileError, match="3 is not a path"):
        mq.save(result, 3)  # type: ignore[arg-type]


def test_text_is_what_print_shows_and_what_it_has_no_room_for(result: mq.QuantResult, tmp_path: Path) -> None:
    """With a line end, in a file or not; also a plan's, which has packed nothing."""
    text = mq.render_report(result.report)
    assert text.startswith(f"{result.report}\n")
    lines = text.removeprefix(f"{result.report}\n").splitlines()
    named = [record.name for record in result.report.layers]
    assert [line.split()[0] for line in lines[4 : 4 + len(named)]] == named
    assert text.endswith("\n")
    mq.save_report(result.report, tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == mq.render_report(result.report, "text")
    layers = tuple(attrs.evolve(record, matrices=()) for record in result.report.layers)
    planned = mq.render_report(attrs.evolve(result.report, layers=layers))
    assert "  weight\n" in planned or "  weight " in planned


def test_json_comes_back(result: mq.QuantResult, tmp_path: Path) -> None:
    """By the end of the path or by name; a baseline for later runs."""
    assert json.loads(mq.render_report(result.report, "json")) == result.report.to_dict()
    mq.save_report(result.report, tmp_path / "a.json")
    assert mq.load_report(tmp_path / "a.json") == result.report
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_a_file_holds_decides_and_not_its_name(result: mq.QuantResult, tmp_path: Path) -> None:
    """A report and a saved model are read under any name."""
    mq.save(result, tmp_path / "saved.safetensors", plugins=False)
    written = {
        "report": mq.render_report(result.report, "json", plugins=False).encode(),
        "model": (tmp_path / "saved.safetensors").read_bytes(),
    }
    for name, content in itertools.product(("a", "a.JSON", "a.json", "a.safetensors"), written):
        (tmp_path / name).write_bytes(written[content])
        assert mq.load_report(tmp_path / name) == result.report


DAMAGED = {
    "": "not a report that save_report wrote as JSON, nor a model that save wrote",
    "{": "not a report that save_report wrote as JSON, nor a model that save wrote",
    "\ud800": "not a report that save_report wrote as JSON, nor a model that save wrote",
    "12345678{": "not a report that save_report wrote as JSON, nor a model that save wrote",
    "[" * 100_000: "not a report that save_report wrote as JSON, nor a model that save wrote",
    "[]": "[] is not a stored report",
    '{"version": 99}': "report version 99",
}


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_report_is_refused(tmp_path: Path, text: str) -> None:
    """Named, like any damaged file."""
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(mq.FileError, match=rf"a\.json: {re.escape(DAMAGED[text])}"):
        mq.load_report(tmp_path / "a.json")


CONTRADICTIONS = {
    "matrices": "layer 'up': 2 matrices of 1 packed weights; give one each, or none",
    "weights": "layer 'up': 1 matrices of 0 packed weights; give one each, or none",
    "parameters": "not a report that save_report wrote as JSON",
    "tradeoff": "layer 'up': chosen=1 is none of 1 options; give one",
}


@pytest.mark.parametrize("key", CONTRADICTIONS)
def test_a_report_that_contradicts_itself_is_refused(tmp_path: Path, key: str) -> None:
    """Before any form of it is made."""
    data = mq.quantize({"up.weight": torch.ones(64, 64)}, accuracy_warning="ignore", plugins=False).report.to_dict()
    layer = data["layers"][0]
    option = {"scheme": {}, "size": 1}
    wrong: dict[str, Any] = {
        "matrices": [[64, 64], [64, 64]],
        "weights": [],
        "parameters": 10**400,
        "tradeoff": {
            "criterion": "layer",
            "layers": [{"layer": "up", "weights": 1, "options": [option], "chosen": 1}],
            "curve": [],
            "bits_per_weight": 4.0,
        },
    }
    (data if key == "tradeoff" else layer)[key] = wrong[key]
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(mq.FileError, match=rf"a\.json: .*{re.escape(CONTRADICTIONS[key])}"):
        mq.load_report(tmp_path / "a.json")


@pytest.mark.parametrize("end", ["txt", "html", "json"])
def test_a_report_with_half_a_character_is_written(tmp_path: Path, end: str) -> None:
    """In every form: JSON can hold what UTF-8 cannot."""
    report = mq.quantize({"up.weight": torch.ones(64, 64)}, accuracy_warning="ignore", plugins=False).report
    strange = attrs.evolve(report, layers=(attrs.evolve(report.layers[0], layer="a\ud800"),))
    mq.save_report(strange, tmp_path / f"a.{end}", plugins=False)
    assert "ud800" in (tmp_path / f"a.{end}").read_text(encoding="utf-8").lower()


def test_a_report_that_is_not_there_is_told(tmp_path: Path) -> None:
    """A file that is missing, or a folder, or a name that no file can have, is no damaged report."""
    for name in ("b.json", "b.safetensors", "b"):
        with pytest.raises(mq.FileError, match=rf"{name}: no such file$"):
            mq.load_report(tmp_path / name)
    for path in (tmp_path, "a\0b"):
        with pytest.raises(mq.FileError, match="cannot be read"):
            mq.load_report(path)


def test_the_longer_end_of_a_plugin_must_be_asked_for(result: mq.QuantResult, tmp_path: Path) -> None:
    """``.lines.txt`` is a text file first of all."""
    plugins = manager(reporters=[Lines()])
    mq.save_report(result.report, tmp_path / "a.lines.txt", plugins=plugins)
    assert (tmp_path / "a.lines.txt").read_text(encoding="utf-8") == mq.render_report(
        result.report, "text", plugins=False
    )
    assert int(mq.render_report(result.report, Lines(), plugins=False)) > 5


WRONG: list[tuple[Callable[[mq.QuantResult, Path], Any], type[Exception], str]] = [
    (
        lambda result, _: mq.render_report(result.report, "junit", plugins=False),
        mq.ConfigError,
        "'text', 'json', 'html', or an",
    ),
    (lambda result, _: mq.render_report(result, plugins=False), mq.InputError, "a report is wanted, not a QuantResult"),
    (lambda result, path: mq.save_report(result.report, path / "a.md"), mq.FileError, r"in \.txt \(text\), \.json"),
    (lambda result, path: mq.save_report(result.report, path / "no" / "a.txt"), mq.FileError, "does not exist"),
    (
        lambda result, _: mq.render_report(result.report, "numbers", plugins=manager(reporters=[Numbers()])),
        mq.PluginError,
        r"the reporter 'numbers' of Plugin 2\.0 returned 3: return a str",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG)
def test_wrong_calls_are_refused(
    result: mq.QuantResult, tmp_path: Path, call: Callable[..., Any], kind: type[Exception], text: str
) -> None:
    """With what would be right."""
    with pytest.raises(kind, match=text):
        call(result, tmp_path)


def test_a_reporter_that_raises_is_named(result: mq.QuantResult) -> None:
    """Its own exception, with a note; nothing is written."""

    class Raising(Lines):
        def render(self, report: mq.QuantReport) -> str:
            raise KeyError("lost")

    with pytest.raises(KeyError) as caught:
        mq.render_report(result.report, "lines", plugins=manager(reporters=[Raising()]))
    assert caught.value.__notes__ == ["raised by the reporter 'lines' of Plugin 2.0"]


@pytest.mark.parametrize("suffixes", [".own", [".own"], (3,), None])
def test_ends_that_are_no_tuple_are_refused(result: mq.QuantResult, tmp_path: Path, suffixes: Any) -> None:
    """A text would be taken for its letters."""

    class Wrong(Own):
        pass

    Wrong.suffixes = suffixes
    with pytest.raises(mq.PluginError, match=r"^plugin Plugin 2\.0: its exporter Wrong\(\) has suffixes=.*a tuple"):
        mq.save(result, tmp_path / "a.own", plugins=manager([Wrong()]))


def test_formats_read_as_their_classes() -> None:
    """In errors and traces."""
    assert (repr(Own()), repr(Lines())) == ("Own()", "Lines()")
