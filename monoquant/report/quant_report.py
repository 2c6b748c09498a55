"""The whole report of a run."""

from __future__ import annotations

from typing import Any

import attrs

from monoquant.errors import FileError
from monoquant.report.plain import from_plain, to_plain
from monoquant.report.records import ReportData
from monoquant.report.table import render

REPORT_VERSION = 1


@attrs.frozen
class QuantReport(ReportData):
    """Everything that was decided and measured in one run; ``print`` it for a table, worst layers first."""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values.

        Returns:
            A dict with a ``version`` key; fields that hold their default are left out, inf and nan are strings.
        """
        return {"version": REPORT_VERSION, **to_plain(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QuantReport:
        """Undo :meth:`to_dict`.

        Args:
            data: What :meth:`to_dict` returned, possibly through JSON.

        Raises:
            FileError: For another version, a missing or unknown field, or a value of the wrong kind.
        """
        if not isinstance(data, dict):
            raise FileError(f"{data!r} is not a stored report: give what to_dict() returned")
        fields = dict(data)
        version = fields.pop("version", None)
        if version != REPORT_VERSION:
            raise FileError(f"report version {version!r}: this monoquant reads version {REPORT_VERSION}")
        return from_plain(cls, fields)

    def __str__(self) -> str:
        return render(self)
