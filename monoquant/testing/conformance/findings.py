"""The contract of findings, whoever reports them."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from monoquant.testing.conformance.base import require
from monoquant.values import Finding, Severity

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def check_finding(finding: Any, layers: Collection[str], who: str) -> None:
    """Fail unless a finding is one that people and machines can act on.

    Args:
        finding: What was reported.
        layers: Names of the model's layers.
        who: Who reported it.
    """
    broken = f"{who} reported {finding!r}"
    require(isinstance(finding, Finding), f"{broken}, which is no Finding.", "report Finding(code, severity, message)")
    require(
        isinstance(finding.code, str) and _CODE.fullmatch(finding.code) is not None,
        f"{broken}: its code {finding.code!r} cannot be filtered for.",
        "give a stable code in lower case with hyphens, such as 'router-quantized', without names and figures",
    )
    require(
        isinstance(finding.severity, Severity),
        f"{broken}: its severity is {finding.severity!r}.",
        "give Severity.INFO, Severity.WARNING or Severity.CRITICAL",
    )
    require(
        isinstance(finding.message, str) and bool(finding.message.strip()),
        f"{broken}: its message is {finding.message!r}.",
        "say what was found, with the figures",
    )
    require(
        str(finding).endswith((".", "!", "?")),
        f"{broken}: its text ends in {str(finding)[-20:]!r}, in the middle of a sentence.",
        "end message and remedy with a full stop",
    )
    acted = finding.severity is Severity.INFO or bool(finding.remedy.strip())
    require(acted, f"{broken}: a {finding.severity.name} without a way out.", "say in remedy what to do about it")
    named = finding.layer is None or finding.layer in layers
    require(
        named, f"{broken}: the model has no layer {finding.layer!r}.", "give layer=record.layer, or None for the whole"
    )
