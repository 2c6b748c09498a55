"""Real distributions on the import path, for tests of discovery."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with one module and one or more entry points on the import path."""
    counter = itertools.count()

    def install(
        name: str,
        source: str,
        version: str = "1.2",
        entry_points: dict[str, str] | None = None,
        attribute: str = "",
        requires: str = "",
    ) -> None:
        folder = tmp_path / f"site{next(counter)}"
        module = name.replace("-", "_")
        metadata = folder / f"{module}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        lines = [f"Name: {name}", f"Version: {version}", *([f"Requires-Dist: {requires}"] if requires else [])]
        (metadata / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))
        points = entry_points or {name: module + attribute}
        lines = [f"{point} = {target}" for point, target in points.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[monoquant]", *lines, ""]))
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install
