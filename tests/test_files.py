"""Files in formats of one's own: exporters, and what becomes of files where they fail."""

from __future__ import annotations

from pathlib import Path

import pytest

import monoquant as mq
from monoquant.disk import replacing
from tests.file_cases import Own, manager, quantized


@pytest.fixture(scope="module")
def result() -> mq.QuantResult:
    return quantized()


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
