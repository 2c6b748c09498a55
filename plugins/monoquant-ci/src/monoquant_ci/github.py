"""Annotations: findings as workflow commands, which GitHub Actions shows beside the build.

Source: the commands and how they are escaped, github.com/actions/toolkit, packages/core/src/command.ts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from monoquant import Finding, QuantReport, Reporter, Severity

COMMANDS: Final = {Severity.CRITICAL: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}

SHOWN_PER_COMMAND: Final = 10
"""GitHub shows as many errors, warnings and notices of a step, and drops the rest without a word."""

_IN_MESSAGES: Final = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_IN_PROPERTIES: Final = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})


class GitHubReporter(Reporter):
    """One workflow command per finding, worst first; print them in a step of GitHub Actions.

    CRITICAL findings are errors, warnings are warnings, INFO are notices. Where there are more of a kind than GitHub
    shows, the last command names the rest.
    """

    name: ClassVar[str] = "github"

    def render(self, report: QuantReport) -> str:
        lines = []
        for severity in sorted(COMMANDS, reverse=True):
            found = [finding for finding in report.findings if finding.severity is severity]
            lines += [command(COMMANDS[severity], *pair) for pair in _within_limit(found)]
        return "".join(f"{line}\n" for line in lines)


def command(name: str, title: str, message: str) -> str:
    """A workflow command.

    Args:
        name: ``"error"``, ``"warning"`` or ``"notice"``.
        title: Any text.
        message: Any text.

    Returns:
        One line, without its end.
    """
    return (
        f"::{name} title={_printable(title).translate(_IN_PROPERTIES)}::{_printable(message).translate(_IN_MESSAGES)}"
    )


def _within_limit(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    alone = len(findings) if len(findings) <= SHOWN_PER_COMMAND else SHOWN_PER_COMMAND - 1
    shown = [(_title(finding), f"{finding} [{finding.origin}]") for finding in findings[:alone]]
    rest = [_title(finding) for finding in findings[alone:]]
    return [*shown, (f"{len(rest)} more findings", "\n".join(rest))] if rest else shown


def _title(finding: Finding) -> str:
    return finding.code if finding.layer is None else f"{finding.code}: {finding.layer or '(root)'}"


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()  # half a surrogate pair can be neither printed nor stored
