"""``monoquant demo``: see it work."""

from __future__ import annotations

from pathlib import Path

import click

from monoquant.cli.exits import EXIT_FINE
from monoquant.cli.session import Session, command
from monoquant.demo import DEFAULT_STEPS, run_demo


@command
@click.option("--steps", type=click.IntRange(1), default=DEFAULT_STEPS, show_default=True, help="Training steps.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep the float and the quantized file there.",
)
def demo(session: Session, steps: int, keep: Path | None) -> int:
    """Train a small language model, quantize it, and compare; under a minute."""
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        session.streams.write(text)

    with session.meter.paused():  # it tells how far it is by itself
        run_demo(tell, steps=steps, keep=keep, plugins=session.plugins())
    session.streams.put(text="".join(told))
    return EXIT_FINE
