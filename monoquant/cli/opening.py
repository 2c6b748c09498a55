"""Models that arguments name, opened while a person sees that something happens."""

from __future__ import annotations

from monoquant.cli.session import Session
from monoquant.opening import OpenedModel, open_model


def opened(session: Session, given: str) -> OpenedModel:
    """Open a model.

    Args:
        session: Of the command.
        given: As it was typed.
    """
    with session.stage(f"opening {given}"):
        model = open_model(given, trust_code=session.trust_code)
    session.streams.detail(f"{given}: {model.described}")
    return model
