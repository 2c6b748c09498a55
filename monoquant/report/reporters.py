"""What a reporter is: it turns a report into text for people or machines; and monoquant's own."""

from __future__ import annotations

import abc
import json
from typing import ClassVar

from monoquant.report.details import detail_lines
from monoquant.report.html.page import render_page
from monoquant.report.quant_report import QuantReport


class Reporter(abc.ABC):
    """Base of all reporters: a value without state that turns a report into text."""

    name: ClassVar[str]
    """What ``render_report(report, format=...)`` calls it."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Ends of file names by which ``save_report`` chooses it where no format is given; default none."""

    @abc.abstractmethod
    def render(self, report: QuantReport) -> str:
        """Turn a report into text.

        Args:
            report: Of a run; frozen.

        Returns:
            The text, as it is to be printed or stored.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class TextReporter(Reporter):
    """What ``print(report)`` shows, and what it has no room for: kinds, shapes, rules and what was measured on."""

    name: ClassVar[str] = "text"
    suffixes: ClassVar[tuple[str, ...]] = (".txt",)

    def render(self, report: QuantReport) -> str:
        return "\n".join([str(report), *detail_lines(report), ""])


class JsonReporter(Reporter):
    """The whole report as versioned JSON, which ``QuantReport.from_dict`` reads."""

    name: ClassVar[str] = "json"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    def render(self, report: QuantReport) -> str:
        return f"{json.dumps(report.to_dict(), indent=1)}\n"


class HtmlReporter(Reporter):
    """One file for a browser, with plots and a table that sorts and filters; it loads nothing."""

    name: ClassVar[str] = "html"
    suffixes: ClassVar[tuple[str, ...]] = (".html",)

    def render(self, report: QuantReport) -> str:
        return render_page(report)


BUILT_IN_REPORTERS: tuple[Reporter, ...] = (TextReporter(), JsonReporter(), HtmlReporter())
