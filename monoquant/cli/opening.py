"""Models that arguments name, opened while a person sees that something happens."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from monoquant.cli.session import Session
from monoquant.modules.tensor_holder import hold
from monoquant.opening import OpenedKind, OpenedModel, open_model
from monoquant.streaming.source import TensorSource


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


def skeleton(model: OpenedModel) -> nn.Module:
    """A float model for looking at: its weights may be on the meta device, where only their shapes are known.

    Args:
        model: The opened model.
    """
    if model.can_run:
        return model.module()
    if model.streamable is None:
        return hold(model.state())
    with TensorSource(model.streamable) as source:
        return hold(source.state())


def float_state(model: OpenedModel) -> Mapping[str, Tensor]:
    """The float weights of any model by the names that reports know.

    Args:
        model: The opened model; a quantized one is dequantized.
    """
    if model.kind is OpenedKind.QUANTIZED:
        return model.dequantized_state()
    # A checkpoint may name tensors otherwise than the modules that they are put into.
    return model.module().state_dict() if model.can_run else model.state()
