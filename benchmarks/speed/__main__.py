"""Run the benchmark that the first argument names, with the others: ``python benchmarks/speed kernels --quick``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

NAMES = ("kernels", "quantization", "models", "memory", "render")


def main() -> None:
    """Run a script that lies here as if it had been called."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in NAMES:
        raise SystemExit(f"give one of {', '.join(NAMES)}, and its options")
    script = Path(__file__).with_name(f"{name}.py")
    sys.argv[:2] = [str(script)]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
