from __future__ import annotations

import pytest

from monoquant_cpu import Library, Unavailable, load


@pytest.fixture(scope="session")
def library() -> Library:
    """The native library; without it, there is nothing to test."""
    found = load()
    if isinstance(found, Unavailable):
        pytest.skip(found.reason)
    return found
