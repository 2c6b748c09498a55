"""Run as ``python -m monoquant``."""

import sys

from monoquant.cli import main

if __name__ == "__main__":
    sys.exit(main())
