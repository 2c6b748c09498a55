"""The plugin at work: what is on the terminal, and what stays as it was."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import requires, version
from typing import Any

import attrs
import monoquant as mq
import pytest
import torch
from rich.live import _RefreshThread
from torch import nn

from monoquant_progress import PassProgress, plugin
from monoquant_progress.display import RunningPasses

ORIGIN = mq.Origin("monoquant-progress", version("monoquant-progress"))
QUIET: dict[str, Any] = {"exact": True, "accuracy_warning": "ignore"}
ALONE: dict[str, Any] = {**QUIET, "plugins": mq.PluginManager([plugin], discover=False)}
"""Other plugins that happen to be installed have findings of their own, and kernels that round have one too."""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What stays on the screen: without colours, moving lines, and times."""
        text = ESCAPES.sub("", self.getvalue()).replace("\r", "\n")
        return [re.sub(r" +\d+\.\d s *", "|", line) for line in text.split("\n") if re.search(r"\d\.\d s", line)]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capable terminal outside of CI, whatever the tests run on."""
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    """Stderr is a terminal for a while; no fixture, because pytest's own capturing begins after those."""
    with contextlib.redirect_stderr(Terminal()) as shown:
        yield shown


def build() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))


def quantizer(*more: mq.Pass, watcher: PassProgress = plugin) -> mq.Quantizer:
    registry = mq.PluginManager([watcher], discover=False).registry(mq.Scheme())
    return mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass(exact=True), *more], registry)


def test_every_pass_is_told() -> None:
    """With its time, the layers it packed, and the findings so far."""
    with terminal() as shown:
        result = mq.quantize(build(), **ALONE)
        assert len(result.report.findings) == 2  # rules without a match, and that all layers were quantized
        assert shown.lines == [
            "SkipSelectionPass|1 finding so far",
            "Int4PackPass|2 layers packed, 1 finding so far",
            "Int8PackPass|1 finding so far",
            "HalfCastPass|1 finding so far",
            "HalfCastPass|1 finding so far",
            "ValidationPass|1 finding so far",
            "AccuracyWarningPass|2 findings so far",
        ]


@attrs.frozen
class Look(mq.Pass):
    """Write down what is on the terminal while a pass works."""

    follows = (mq.PackPass,)
    seen: list[str] = attrs.field(factory=list, eq=False)

    def run(self, context: mq.QuantContext) -> None:
        assert isinstance(sys.stderr, Terminal)
        self.seen.append(ESCAPES.sub("", sys.stderr.getvalue()))
        context.report([mq.Finding("seen", mq.Severity.INFO, "It was seen.")])


def test_a_working_pass_is_on_the_terminal() -> None:
    """While it works, its name and a clock are there; afterwards the cursor is back, and what it reported counts."""
    with terminal() as shown:
        look = Look()
        quantizer(look).run(build())
        assert re.search(r"Look +0:00:0\d", look.seen[0])
        assert shown.lines[-1] == "Look|1 finding so far"
        assert shown.getvalue().rindex("\x1b[?25h") > shown.getvalue().rindex("\x1b[?25l")
        for thread in (one for one in threading.enumerate() if isinstance(one, _RefreshThread)):
            thread.join(5)
            assert not thread.is_alive()


@attrs.frozen
class Failing(mq.Pass):
    """Fail with a given error."""

    follows = (mq.PackPass,)
    error: BaseException

    def run(self, context: mq.QuantContext) -> None:
        raise self.error


@pytest.mark.parametrize("error", [KeyError("lost"), KeyboardInterrupt()])
def test_a_failed_pass_is_told(error: BaseException) -> None:
    """Ctrl-C included; the error reaches the caller, and the next run begins anew."""
    with terminal() as shown:
        with pytest.raises(type(error)):
            quantizer(Failing(error)).run(build())
        assert shown.lines[-1] == f"Failing|failed: {type(error).__name__}"
        assert "\x1b[1;31m" in shown.getvalue()
        quantizer().run(build())
        assert shown.lines[-1] == "Int4PackPass|2 layers packed"


def test_nothing_is_written_where_stderr_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Logs, pipes and tests stay as they were."""
    mq.quantize(build(), **QUIET)
    assert capfd.readouterr() == ("", "")


def test_without_any_stderr_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows programs without a console have none."""
    monkeypatch.setattr(sys, "stderr", None)
    assert mq.quantize(build(), **QUIET).info.selected_layers == ["0", "2"]


class ClosedTerminal(Terminal):
    """A terminal whose window was closed after some lines."""

    def write(self, text: str) -> int:
        if "Int4PackPass" in text:
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("moves", [False, True])
def test_a_closed_terminal_costs_no_run(monkeypatch: pytest.MonkeyPatch, moves: bool) -> None:
    """The run goes on, and the next one shows its passes again."""
    if not moves:
        monkeypatch.setenv("CI", "true")
    with contextlib.redirect_stderr(ClosedTerminal()) as shown:
        assert quantizer().run(build()).info.selected_layers == ["0", "2"]
    assert shown.lines == ["SkipSelectionPass|"]
    with terminal() as shown:
        quantizer().run(build())
    assert shown.lines == ["SkipSelectionPass|", "Int4PackPass|2 layers packed"]


def test_lines_that_were_given_up_do_not_count() -> None:
    """A run that began before the terminal was lost takes no line of one that began after."""
    with terminal():
        running = RunningPasses()
        lost = running.add(running.console(), "lost")
        running.give_up()
        kept = running.add(running.console(), "kept")
        assert lost is not None
        assert kept is not None
        assert not lost.progress.live.is_started
        running.remove(lost)
        assert [task.description for task in kept.progress.tasks] == ["kept"]
        running.remove(kept)
        assert not kept.progress.live.is_started


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_nothing_moves_in_ci_and_on_dumb_terminals(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """One line for each pass, and no moving of the cursor."""
    with terminal() as shown:
        monkeypatch.setenv(name, value)
        quantizer().run(build())
        assert shown.lines == ["SkipSelectionPass|", "Int4PackPass|2 layers packed"]
        assert not re.search(r"\x1b\[[0-9;?]*[A-HJKhl]|\r", shown.getvalue())


def test_no_colours_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR is respected."""
    with terminal() as shown:
        quantizer().run(build())
        assert "\x1b[36m" in shown.getvalue()
        shown.truncate(0)
        monkeypatch.setenv("NO_COLOR", "1")
        quantizer().run(build())
        assert "\x1b[36m" not in shown.getvalue()
        assert shown.lines[-1] == "Int4PackPass|2 layers packed"


@attrs.frozen
class Nested(mq.Pass):
    """Quantize another model."""

    follows = (mq.PackPass,)
    inner: mq.Quantizer

    def run(self, context: mq.QuantContext) -> None:
        self.inner.run(build())


def test_a_run_within_a_run_is_indented() -> None:
    """Each has its own counts and times."""
    with terminal() as shown:
        quantizer(Nested(quantizer())).run(build())
        assert shown.lines == [
            "SkipSelectionPass|",
            "Int4PackPass|2 layers packed",
            "  SkipSelectionPass|",
            "  Int4PackPass|2 layers packed",
            "Nested|",
        ]


@attrs.frozen
class Meet(mq.Pass):
    """Wait until another run is here as well."""

    follows = (mq.PackPass,)
    barrier: threading.Barrier

    def run(self, context: mq.QuantContext) -> None:
        self.barrier.wait(20)


def test_runs_in_threads_do_not_disturb_each_other() -> None:
    """Passes that work at the same time are told one by one, none of them as if within the other."""
    with terminal() as shown:
        meet, failures = Meet(threading.Barrier(3)), []

        def run() -> None:
            try:
                quantizer(meet).run(build())
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert sorted(shown.lines) == sorted(["SkipSelectionPass|", "Int4PackPass|2 layers packed", "Meet|"] * 3)


def test_calibration_that_shows_its_own_progress_has_the_line() -> None:
    """CalibrationPass(progress=True) writes where the moving line would be; without it that line is there."""
    with terminal() as shown:
        data = [torch.randn(4, 64, generator=torch.Generator().manual_seed(0))]
        drawn = []
        for progress in (False, True):
            shown.truncate(0)
            passes = [mq.CalibrationPass(data, progress=progress), mq.SkipSelectionPass(), mq.Int4PackPass()]
            registry = mq.PluginManager([plugin], discover=False).registry(mq.Scheme())
            mq.Quantizer(passes, registry).run(build())
            assert "CalibrationPass|" in {line.partition("|")[0] + "|" for line in shown.lines}
            drawn.append(re.search(r"CalibrationPass +0:00:0\d", ESCAPES.sub("", shown.getvalue())) is not None)
        assert drawn == [True, False]


def test_results_are_the_same() -> None:
    """Codes, findings and streams are those of a run without the plugin; nothing of the model is kept alive."""
    with terminal():
        stream = sys.stderr
        watched = mq.quantize(build(), **ALONE)
        assert sys.stderr is stream
        bare = mq.quantize(build(), plugins=False, **QUIET)
        for name, held in watched.model.state_dict().items():
            assert torch.equal(held, bare.model.state_dict()[name])
        assert watched.report.findings == bare.report.findings
        assert len(plugin._begun) == 0


def test_it_is_listed_and_monoquant_does_not_need_rich() -> None:
    """Found through its entry point; rich is this plugin's dependency, and that of the command line."""
    (info,) = [info for info in mq.list_plugins() if info.origin == ORIGIN]
    assert info.status == "active"
    assert info.hooks == ("monoquant_after_pass", "monoquant_before_pass")
    assert any(line.startswith("rich") for line in requires("monoquant-progress") or ())
    assert not any("rich" in line and "extra ==" not in line for line in requires("monoquant") or ())
