"""Models that arguments name, opened while a person sees that something happens."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from monoquant.cli.session import Session
from monoquant.opening import OpenedKind, OpenedModel, open_model
from monoquant.progress import Progress
from monoquant.report import QuantReport


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


def report_of(session: Session, model: OpenedModel) -> QuantReport:
    """The report of a quantized model, all that its file holds being verified, or of a stored report.

    Args:
        session: Of the command.
        model: The opened model.
    """
    with session.counted(f"reading {model.given}") as progress:
        return model.report(progress)


def float_state(session: Session, model: OpenedModel, like: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
    """The float weights of any model by the names that reports know.

    Args:
        session: Of the command.
        model: The opened model; a quantized one is dequantized.
        like: Weights to compare them with. If they have the names of the checkpoint rather than those of the modules,
            as after ``--as-weights``, so has the result. Default: nobody knows.
    """
    what = "decoding" if model.kind is OpenedKind.QUANTIZED else "reading"
    with session.counted(f"{what} {model.given}") as progress:
        return _float_state(model, like, progress)


def _float_state(model: OpenedModel, like: Mapping[str, Tensor] | None, progress: Progress) -> Mapping[str, Tensor]:
    if model.kind is OpenedKind.QUANTIZED:
        return model.dequantized_state(progress)
    # A checkpoint may name tensors otherwise than the modules that they are put into.
    if not model.can_run:
        return model.state(progress)
    found = model.module(progress).state_dict()
    if like is None or like.keys() == found.keys():
        return found
    stored = model.state(progress)
    return stored if like.keys() == stored.keys() else found
