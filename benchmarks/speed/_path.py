"""Importing this from a script that lies here makes `common` and `speed` importable, and the script's folder not.

Its files have names that other libraries look for: `kernels` is a package that transformers would import.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
