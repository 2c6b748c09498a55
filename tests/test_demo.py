"""The embedded example: what it tells is true, and it leaves nothing changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import monoquant as mq
from monoquant import demo


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a run with few training steps wrote, and the folder of its files."""
    folder = tmp_path_factory.mktemp("demo") / "made" / "on the way"
    written: list[str] = []
    demo.run_demo(written.append, steps=2, keep=folder)
    return "".join(written), folder


def test_the_sizes_told_are_those_of_the_files(told: tuple[str, Path]) -> None:
    """The last table quotes the bytes on disk."""
    text, folder = told
    found = re.search(r"file on disk, bytes +([\d,]+) +([\d,]+)", text)
    assert found
    sizes = [int(number.replace(",", "")) for number in found.groups()]
    assert sizes == [(folder / name).stat().st_size for name in (demo.FLOAT_FILE, demo.INT4_FILE)]
    assert sizes[0] > 4 * sizes[1]


def test_the_metric_told_is_that_of_the_file(told: tuple[str, Path]) -> None:
    """Loading the kept file gives the quantized figure that was told."""
    text, folder = told
    model = mq.load(folder / demo.INT4_FILE, demo.ByteTransformer())
    found = re.search(r"bits per byte +([\d.]+) +([\d.]+)", text)
    assert found
    assert f"{demo.bits_per_byte(model, demo.read_text().held_out):.4f}" == found[2]
    assert found[1] != found[2]


def test_plan_and_report_are_told(told: tuple[str, Path]) -> None:
    """Every layer appears in the plan and in the report."""
    text, folder = told
    plan, report = text.split("5. Quantize")
    for record in mq.load_report(folder / demo.INT4_FILE).layers:
        assert re.search(rf"{record.action.value} +{re.escape(record.layer)}: ", plan)
        assert re.search(rf"\n{re.escape(record.layer)} +{record.action.value} ", report)


def test_no_paragraph_serves_two_purposes() -> None:
    """Training, calibration and held-out text share no paragraph and together are the whole."""
    text = demo.read_text()
    parts = [bytes(part.tolist()).decode().split("\n\n") for part in (text.train, text.calibration, text.held_out)]
    paragraphs = demo.read_paragraphs()
    assert sum(map(len, parts)) == len(paragraphs)
    assert set().union(*parts) == set(paragraphs)
    assert len(paragraphs) == len(set(paragraphs))


def test_the_caller_is_left_as_it_was() -> None:
    """Random state, threads and gradient mode are those of before, and no file stays behind."""
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    written: list[str] = []
    demo.run_demo(written.append, steps=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert "the files are in" not in "".join(written)


def test_training_learns() -> None:
    """A few steps lower the loss: the example trains for real."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = demo.ByteTransformer()
        losses = list(demo.train(model, demo.read_text().train, 12))
    assert losses[-1] < losses[0] - 1


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file in place of the folder is refused before anything is trained."""
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(mq.FileError, match="cannot be used as a folder"):
        demo.run_demo(lambda _: None, steps=1, keep=blocked)


def test_files_of_somebody_elses_stay(tmp_path: Path) -> None:
    """A folder that holds one of the two names is refused before anything is trained."""
    (tmp_path / demo.FLOAT_FILE).write_text("precious")
    with pytest.raises(mq.FileError, match=r"holds float\.safetensors, which would be replaced; give another folder"):
        demo.run_demo(lambda _: None, steps=1, keep=tmp_path)
    assert (tmp_path / demo.FLOAT_FILE).read_text() == "precious"


def test_a_python_without_its_topics_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some distributions leave pydoc_data out."""
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(mq.InputError, match=r"no pydoc_data\.topics"):
        demo.read_text()
