"""Layers that share a weight: who is packed along with whom, and who is not."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import torch

from monoquant.adapters.base import Obstacle
from monoquant.context import QuantContext
from monoquant.source import own_parameters, tensor_identity
from monoquant.values import Action, Decision, Finding, Layer, Severity


def followers(layers: Iterable[Layer], taken: Container[str], context: QuantContext) -> dict[str, str]:
    """Layers that share a weight with one that will not be packed along with them, each with that one.

    A follower is itself such a layer for others, so that all that hangs together by ties gets one answer.

    Args:
        layers: Layers that may be packed.
        taken: Names of those that can be.
        context: Shared state.

    Returns:
        Leaders by follower, each follower behind the follower that leads it.
    """
    candidates = [layer for layer in layers if layer.name in taken]
    held = {layer.name: _identities(layer.name, context) for layer in candidates}
    found_so_far: dict[str, str] = {}
    while True:
        packed = held.keys() - found_so_far.keys()
        found = {
            layer.name: leader
            for layer in candidates
            if layer.name in packed and (leader := _leader(layer, packed, held, context)) is not None
        }
        if not found:
            return found_so_far
        found_so_far.update(found)


def _identities(layer: str, context: QuantContext) -> set[tuple[object, ...]]:
    return {tensor_identity(weight) for weight in context.readable_weights(layer, context.packable(layer).forms)}


def _leader(
    layer: Layer, packed: Container[str], held: Mapping[str, set[tuple[object, ...]]], context: QuantContext
) -> str | None:
    for other in layer.ties:
        theirs = (tensor_identity(parameter) for parameter in own_parameters(context.module(other)).values())
        if other not in packed and not held[layer.name].isdisjoint(theirs):
            return other
    return None


def follow(layer: str, leader: str, context: QuantContext) -> None:
    """Give a layer the answer of the one that it is tied to.

    Args:
        layer: Its name.
        leader: Name of the other one, which is not packed.
        context: Shared state; the plan is open.
    """
    tie = f"its weight is tied to {leader!r}"
    decision = context.plan.get(leader)
    if decision is not None and decision.action is Action.SKIP:
        reason = f"{tie}, which stays in float: {decision.reason}"
        context.decide(Decision(layer, Action.SKIP, reason, decision.rule, decision.origin))
        return
    because = decision.reason if decision is not None else context.obstacles[leader].reason
    remedy = "untie them, at the price of a second copy"
    context.decline(layer, Obstacle(f"{tie}, which cannot be packed: {because}", remedy))


def sharing_in_another_layout(layers: list[str], context: QuantContext) -> list[str]:
    """Layers with a weight that is the same elements as another parameter, seen in another shape or order.

    Args:
        layers: Names of the layers to look at.
        context: Shared state; the plan is final.
    """
    views: dict[int, set[tuple[object, ...]]] = {}
    for parameter in context.model.parameters():
        if parameter.layout == torch.strided:
            views.setdefault(parameter.data_ptr(), set()).add(tensor_identity(parameter))
    weights = (
        (layer, context.original_weight(layer, name)) for layer in layers for name in context.weight_names(layer)
    )
    found = [layer for layer, weight in weights if len(views.get(weight.data_ptr(), ())) > 1]
    return list(dict.fromkeys(found))


def untied(layer: str) -> Finding:
    """What a person should know of a tie that ends.

    Args:
        layer: Name of a layer that :func:`sharing_in_another_layout` found.
    """
    message = f"Warning: the weight of layer {layer!r} shares memory with another parameter in another layout."
    remedy = "The packed weight is one of its own: the tie ends, and no memory is shared."
    return Finding("untied", Severity.WARNING, message, layer, remedy)
