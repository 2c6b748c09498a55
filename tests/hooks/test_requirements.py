"""Whether this monoquant is one that a distribution asks for."""

from __future__ import annotations

import pytest

from monoquant.hooks.requirements import unmet_requirement


@pytest.mark.parametrize(
    ("requirement", "version", "met"),
    [
        ("monoquant", "0.1.0", True),
        ("monoquant>=0.1", "0.1.0", True),
        ("monoquant>=0.1.0", "0.1", True),
        ("monoquant>=0.2", "0.1.9", False),
        ("monoquant>0.1", "0.1.0", False),
        ("monoquant>0.1", "0.1.1", True),
        ("monoquant<1", "0.9", True),
        ("monoquant<1", "1.0", False),
        ("monoquant<=1", "1.0.0", True),
        ("monoquant<=1", "1.0.1", False),
        ("monoquant==1.*", "1.7", True),
        ("monoquant==1.*", "10.0", False),
        ("monoquant==1.0", "1.0.0", True),
        ("monoquant==1.0", "1.0.1", False),
        ("monoquant!=1.0", "1.0.0", False),
        ("monoquant!=1.*", "1.5", False),
        ("monoquant!=1.*", "2.5", True),
        ("monoquant~=1.4", "1.9", True),
        ("monoquant~=1.4", "1.3", False),
        ("monoquant~=1.4.2", "1.5", False),
        ("monoquant (>=2,<3)", "1.0", False),
        ("Monoquant[testing] >= 2", "1.0", False),
        ("monoquant>=0.1,<0.2", "0.2.0", False),
        ("monoquant>=10", "9.9", False),
        ("monoquant>=2; extra == 'testing'", "1.0", True),
        ("monoquant>=2; python_version >= '3.8'", "1.0", False),
        ("monoquant-moe>=2", "1.0", True),
        ("torch>=2", "1.0", True),
        ("monoquant>=2", "2.0.0+local", True),
        ("monoquant===odd", "1.0", True),
    ],
)
def test_versions_are_compared_number_by_number(requirement: str, version: str, met: bool) -> None:
    """As pip compares released versions; what cannot be read is left to pip."""
    unmet = unmet_requirement(["torch>=2.10", requirement], version)
    assert (unmet is None) == met
    if unmet is not None:
        assert unmet.replace(",", "").replace(" ", "") in requirement.replace(",", "").replace(" ", "")


def test_a_distribution_may_ask_for_nothing() -> None:
    assert unmet_requirement(None, "1.0") is None
    assert unmet_requirement([], "1.0") is None
