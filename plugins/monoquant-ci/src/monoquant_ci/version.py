"""The version, in the one place that pyproject.toml reads as well."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
