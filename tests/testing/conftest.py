"""Settings of tests that fail on purpose."""

from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings


@pytest.fixture
def unshrunk() -> Iterator[None]:
    """Stop at the first failing example: finding the smallest takes time, and is not what is tested."""
    before = settings.default
    settings.register_profile("unshrunk", before, phases=[Phase.generate], database=None)
    settings.load_profile("unshrunk")
    yield
    settings.register_profile("unhurried", before)
    settings.load_profile("unhurried")
