"""``monoquant plugins``: who takes part."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from monoquant.cli.exits import EXIT_FINE, EXIT_INPUT
from monoquant.cli.session import Session, command
from monoquant.hooks import PluginInfo


@command
def plugins(session: Session) -> int:
    """List plugins, their hooks, and what is wrong with them.

    Exits with 3 if one is broken.
    """
    found = session.plugins(on_broken="leave out").describe()
    session.streams.show("\n".join(line for one in found for line in _lines(one)) or "no plugins")
    session.streams.put(plugins=[attrs.asdict(one) for one in found])
    return EXIT_INPUT if any(one.status == "broken" for one in found) else EXIT_FINE


def _lines(one: PluginInfo) -> Iterator[str]:
    yield f"{one.name} ({one.origin}): {one.status}"
    unknown = [f"{hook} (never called: this monoquant does not have it)" for hook in one.unknown_hooks]
    for text in (*one.hooks, *unknown, *one.problem.splitlines()):
        yield f"    {text}"
