"""Importing this makes `benchmarks/common` importable from a script that lies here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
