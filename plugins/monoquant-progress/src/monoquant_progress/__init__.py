"""Show on a terminal which pass runs, for how long, and what it did.

monoquant finds ``plugin`` through its entry point.
"""

from __future__ import annotations

from typing import Final

from monoquant_progress.watching import PassProgress

__all__ = ["PassProgress", "plugin"]

plugin: Final = PassProgress()
"""One for all runs of a process, because they share its terminal."""
