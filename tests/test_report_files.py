"""Reports in files: what each form holds, what is refused, and reporters of one's own."""

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

import monoquant as mq
from tests.file_cases import Own, manager, quantized


@pytest.fixture(scope="module")
def result() -> mq.QuantResult:
    return quantized()


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
