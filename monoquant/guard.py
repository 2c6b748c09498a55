"""What a pass, or somebody who watches passes, may change in the context; everything else is noticed and refused.

Changes are seen where that is cheap: which objects the context holds, and whether parameters were written to.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor, nn

from monoquant.context import QuantContext
from monoquant.values import Decision, Finding

WORKING = ("requires", "run", "ensures")
Parameters = Sequence[tuple[str, Tensor]]

_FIELDS = tuple(field.name for field in attrs.fields(QuantContext) if field.metadata.get("phase"))


def watchable(model: nn.Module) -> Parameters:
    """Parameters by name, without those that were made in inference mode: nothing counts what is written to them.

    Args:
        model: Any module.
    """
    return [(name, one) for name, one in model.named_parameters() if not one.is_inference()]


@attrs.frozen(eq=False)
class Guard:
    """The state of a context at some moment.

    Args:
        context: The context.
        parameters: Those of the model that can be watched, as :func:`watchable` finds them.
    """

    context: QuantContext
    parameters: Parameters
    _held: Mapping[str, Any] = attrs.field(init=False)
    _versions: tuple[int, ...] = attrs.field(init=False)

    @_held.default
    def _hold(self) -> Mapping[str, Any]:
        return {name: _shallow(getattr(self.context, name)) for name in _FIELDS}

    @_versions.default
    def _see_versions(self) -> tuple[int, ...]:
        return tuple(parameter._version for _, parameter in self.parameters)

    def written_by_watcher(self) -> str:
        """What was changed although nothing may be.

        Returns:
            A text; empty if nothing was.
        """
        changed = [f"context.{name}" for name in self._changed()]
        return ", ".join([*changed, *self._written_parameters()])

    def written_by_pass(self, kinds: Iterable[type], phase: str) -> str:
        """What was changed although a pass may not, in a phase.

        Args:
            kinds: The classes of the pass; a field that one of them writes may be written.
            phase: ``plan``, ``prepare``, ``requires``, ``run`` or ``ensures``.

        Returns:
            A text that says what would be right; empty if all is well.
        """
        names = {kind.__name__ for kind in kinds}
        runs_model = not names.isdisjoint(_field_named("model").metadata["writers"])
        problems = [_refusal(field, names, phase) for field in map(_field_named, self._changed())]
        if self._lost_findings():
            problems.append("took findings back, which stay once they are reported: only add some, by context.report()")
        problems += self._broken_decisions(phase)
        problems += [
            f"wrote to {name}: use context.replace_weight()" for name in self._written_parameters() if not runs_model
        ]
        return "; ".join(filter(None, problems))

    def _changed(self) -> Iterator[str]:
        for name, held in self._held.items():
            if not _same(held, _shallow(getattr(self.context, name))):
                yield name

    def _lost_findings(self) -> bool:
        before: tuple[Finding, ...] = self._held["findings"]
        return not _same(before, tuple(self.context.findings)[: len(before)])

    def _broken_decisions(self, phase: str) -> Iterator[str]:
        """Decisions stay; one on a layer that is not packed yet may be refined while passes work."""
        before: Mapping[str, Decision] = self._held["plan"]
        for layer, decision in before.items():
            now = self.context.plan.get(layer)
            if now is decision:
                continue
            if layer in self._held["packed"]:
                yield f"changed the decision on layer {layer!r}, which is packed already: decide in plan()"
            elif phase not in WORKING or now is None or not _is_refined(decision, now):
                yield f"changed the decision on layer {layer!r}: decide once, by context.decide() in plan()"
        added = [layer for layer in self.context.plan if layer not in before]
        if added and phase != "plan":
            yield f"decided on layer {added[0]!r} too late: decide in plan()"

    def _written_parameters(self) -> list[str]:
        pairs = zip(self.parameters, self._versions, strict=True)
        return [f"parameter {name!r} of the model" for (name, one), before in pairs if one._version != before]


def _field_named(name: str) -> attrs.Attribute[Any]:
    found: attrs.Attribute[Any] = getattr(attrs.fields(QuantContext), name)
    return found


def _refusal(field: attrs.Attribute[Any], kinds: set[str], phase: str) -> str:
    wanted, writers = field.metadata["phase"], field.metadata["writers"]
    if wanted == "any":
        return ""  # what may be added to is looked at piece by piece
    if wanted != phase:
        return f"changed context.{field.name}, which is written in {wanted}(): do that there"
    if writers and kinds.isdisjoint(writers):
        return f"changed context.{field.name}, which only {' and '.join(writers)} write: derive the pass from that"
    return ""


def _shallow(value: Any) -> Any:
    """The objects that a container holds now, those of lists in dicts included."""
    if isinstance(value, dict):
        lists = isinstance(next(iter(value.values()), None), list)  # the values of a field are all of one kind
        return {key: tuple(item) for key, item in value.items()} if lists else dict(value)
    if isinstance(value, list):
        return tuple(value)
    return frozenset(value) if isinstance(value, set) else value


def _same(one: Any, other: Any) -> bool:
    # Identity, because tensors have no plain equality; flags, texts and frozen sets of names have.
    if one is other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and _all_same(one.values(), other.values())
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and _all_same(one, other)
    return isinstance(one, (bool, str, int, frozenset)) and bool(one == other)


def _all_same(some: Collection[Any], others: Collection[Any]) -> bool:
    # Nearly always nothing has changed, which the first comparison finds fast.
    return all(map(operator.is_, some, others)) or all(map(_same, some, others))


def _is_refined(before: Decision, now: Decision) -> bool:
    kept = ("layer", "action", "rule", "origin", "remedy", "weights")
    return all(getattr(before, name) == getattr(now, name) for name in kept)
