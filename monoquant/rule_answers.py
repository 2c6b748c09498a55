"""What rules answer, held to their contract."""

from __future__ import annotations

from collections.abc import Sequence

from monoquant.errors import PluginError
from monoquant.rules import SkipRule
from monoquant.values import TARGETS, Layer, Origin


def ask(rule: SkipRule, layer: Layer, origin: Origin) -> str | None:
    """Ask a rule about a layer, and hold it to its contract.

    Args:
        rule: The rule.
        layer: The layer.
        origin: Whose rule it is, for the error.

    Returns:
        The rule's answer.

    Raises:
        PluginError: When the answer is neither a non-empty string nor None.
        Exception: What the rule raises, with a note that names rule, origin and layer.
    """
    try:
        answer = rule.reason(layer)
    except Exception as error:
        error.add_note(f"raised by the skip rule {rule!r} of {origin}, asked about layer {layer.name!r}")
        raise
    if answer is None or (isinstance(answer, str) and answer):
        return answer
    raise PluginError(
        f"the skip rule {rule!r} of {origin} answered {answer!r} for layer {layer.name!r}: "
        "return a reason (a non-empty str) to skip the layer, or None",
        layers=[layer.name],
    )


def ask_target(rule: SkipRule, layer: Layer, origin: Origin) -> str | None:
    """Ask a rule what a layer is to be reduced to, and hold it to its contract.

    Args:
        rule: The rule.
        layer: A layer for which it has a reason.
        origin: Whose rule it is, for the error.

    Returns:
        One of the known targets, or None to stay in float.

    Raises:
        PluginError: For anything else.
        Exception: What the rule raises, with a note that names rule, origin and layer.
    """
    try:
        target = rule.target(layer)
    except Exception as error:
        error.add_note(f"raised by the skip rule {rule!r} of {origin}, asked what to reduce layer {layer.name!r} to")
        raise
    if target is None or target in TARGETS:
        return target
    raise PluginError(
        f"the skip rule {rule!r} of {origin} wants layer {layer.name!r} reduced to {target!r}: "
        f"give skip_to as one of {', '.join(map(repr, TARGETS))}, or None",
        layers=[layer.name],
    )


def ask_unmatched(rule: SkipRule, layers: Sequence[Layer], origin: Origin) -> list[str]:
    """Ask a rule which of its entries match no layer, and hold it to its contract.

    Args:
        rule: The rule.
        layers: All layers.
        origin: Whose rule it is, for the error.

    Returns:
        Its entries as text.

    Raises:
        PluginError: When the answer is no list of texts.
        Exception: What the rule raises, with a note that names rule and origin.
    """
    try:
        answer: object = rule.unmatched(layers)
    except Exception as error:
        error.add_note(f"raised by the skip rule {rule!r} of {origin}, asked which of its entries match no layer")
        raise
    if isinstance(answer, list) and all(isinstance(entry, str) for entry in answer):
        return answer
    raise PluginError(f"the skip rule {rule!r} of {origin} says that {answer!r} matched no layer: return a list of str")
