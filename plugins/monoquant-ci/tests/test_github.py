"""GitHub's workflow commands: what the runner reads is what was found."""

from __future__ import annotations

import re

import monoquant as mq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoquant_ci.github import GitHubReporter, command

ORIGIN = mq.Origin("monoquant-ci", "0.1.0")


def report_of(*findings: mq.Finding) -> mq.QuantReport:
    return mq.QuantReport(mq.Scheme(), (), findings, 0, 0)


def read(line: str) -> tuple[str, str, str]:
    """A command as the runner takes it apart (ActionCommand.cs): split first, unescape afterwards, ``%25`` last."""
    matched = re.fullmatch(r"::([a-z]+) ([^:]*)::(.*)", line, re.DOTALL)
    assert matched is not None
    properties = dict(pair.split("=", 1) for pair in matched[2].split(","))
    title = properties.pop("title")
    assert not properties
    return (
        matched[1],
        _unescaped(title, ("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")),
        _unescaped(matched[3]),
    )


def _unescaped(text: str, *pairs: tuple[str, str]) -> str:
    for code, character in (*(pairs or (("%0D", "\r"), ("%0A", "\n"))), ("%25", "%")):
        text = text.replace(code, character)
    return text


NASTY = st.text() | st.text(alphabet="%\r\n:,02ACD53a=")


@given(title=NASTY, message=NASTY)
def test_the_runner_reads_what_was_written(title: str, message: str) -> None:
    """Any text survives, and takes one line."""
    line = command("error", title, message)
    assert not {"\r", "\n"} & set(line)
    assert read(line) == ("error", title, message)


def test_escapes_are_those_of_the_toolkit() -> None:
    """Colons and commas stay in messages and are escaped in properties."""
    assert command("notice", "a:b,c%\r\n", "a:b,c%\r\n") == "::notice title=a%3Ab%2Cc%25%0D%0A::a:b,c%25%0D%0A"


def test_half_a_surrogate_pair_can_be_printed() -> None:
    """No such text can be encoded; it is shown escaped."""
    assert command("error", "\ud800", "x\udfff").encode() == rb"::error title=\ud800::x\udfff"


def test_severities_are_levels_and_the_worst_comes_first() -> None:
    """Each command has code and layer as its title, and message, remedy and origin as its text."""
    found = [
        mq.Finding("fine", mq.Severity.INFO, "All is well.", origin=ORIGIN),
        mq.Finding("low", mq.Severity.WARNING, "Low.", "", "Look."),
        mq.Finding("bad", mq.Severity.CRITICAL, "Bad.", "a.0", "Act.", ORIGIN),
    ]
    assert GitHubReporter().render(report_of(*found)).splitlines() == [
        "::error title=bad%3A a.0::Bad. Act. [monoquant-ci 0.1.0]",
        "::warning title=low%3A (root)::Low. Look. [monoquant]",
        "::notice title=fine::All is well. [monoquant-ci 0.1.0]",
    ]
    assert GitHubReporter().render(report_of()) == ""


@pytest.mark.parametrize(("count", "lines"), [(9, 9), (10, 10), (11, 10), (50, 10)])
def test_what_github_would_drop_is_named_in_the_last_command(count: int, lines: int) -> None:
    """GitHub shows ten of a level; every finding is in one of them."""
    findings = [mq.Finding("bad", mq.Severity.CRITICAL, "Bad.", f"layer{index}") for index in range(count)]
    other = mq.Finding("low", mq.Severity.WARNING, "Low.")
    shown = [read(line) for line in GitHubReporter().render(report_of(*findings, other)).splitlines()]
    errors = [one for one in shown if one[0] == "error"]
    assert len(errors) == lines
    assert len(shown) == lines + 1
    named = "\n".join(f"{title}\n{message}" for _, title, message in errors).splitlines()
    assert [f"bad: layer{index}" in named for index in range(count)] == [True] * count
    if count > lines:
        assert errors[-1][1] == f"{count - 9} more findings"
