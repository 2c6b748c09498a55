"""What tells a router from other layers: its name, its shape, and the module around it."""

from __future__ import annotations

import re
from typing import Any, Final

import attrs
from monoquant import Ancestor, ConfigError, Layer, SkipRule
from torch import nn

ROUTER_ENDINGS: Final = (
    ("router",),
    ("router", "layer"),
    ("router", "classifier"),
    ("gate", "wg"),
    ("shared_expert_gate",),
)
"""Ends of names that only routers have: Llama 4, DBRX, Switch Transformers, DeepSpeed, Qwen-MoE."""

AMBIGUOUS_NAME: Final = "gate"
"""Mixtral, DeepSeek and OLMoE call their router this, and other models call anything this."""

_SPEAKS_OF_EXPERTS: Final = re.compile(r"moe|sparse_?mlp|router|expert|topk_?gat", re.IGNORECASE)

_ROUTER_CLASS: Final = re.compile(r"router|topk_?gat", re.IGNORECASE)


def _check_share(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ConfigError(f"max_outputs_per_input={value!r}: give a number above 0 and up to 1")


@attrs.frozen
class RouterRule(SkipRule):
    """Skip the layers that pick the experts of a mixture-of-experts model.

    They are Linear layers, or modules of their own whose class name speaks of a router and whose ``weight`` has the
    shape of one, such as MixtralTopKRouter.

    Args:
        max_outputs_per_input: A router has at most this many outputs per input feature; default 0.5. Real ones have
            0.002 (Mixtral) to 0.33 (Switch Transformers with 256 experts), projections have 1 and more.
    """

    max_outputs_per_input: float = attrs.field(default=0.5, validator=_check_share)

    def reason(self, layer: Layer) -> str | None:
        if not self._has_few_outputs(layer):
            return None
        if _ROUTER_CLASS.search(layer.type.__name__):
            evidence: str | None = f"its class is {layer.type.__name__}"
        elif issubclass(layer.type, nn.Linear):
            evidence = next(filter(None, (_evidence(name, layer) for name in layer.names)), None)
        else:
            return None
        if evidence is None:
            return None
        outputs, inputs = layer.shape
        return f"mixture-of-experts router: {outputs} outputs for {inputs} inputs, {evidence}"

    def _has_few_outputs(self, layer: Layer) -> bool:
        if len(layer.shape) != 2:
            return False
        outputs, inputs = layer.shape
        return outputs <= inputs * self.max_outputs_per_input


def _evidence(name: str, layer: Layer) -> str | None:
    parts = tuple(name.split("."))
    for ending in ROUTER_ENDINGS:
        if parts[-len(ending) :] == ending:
            return f"its name ends in {'.'.join(ending)!r}"
    if parts[-1] != AMBIGUOUS_NAME:
        return None
    container = _container(name, layer)
    if container is None or not _holds_experts(container):
        return None
    return f"a {AMBIGUOUS_NAME!r} inside {container.type.__name__} {container.name!r}"


def _container(name: str, layer: Layer) -> Ancestor | None:
    # Only the module right around the layer counts: the root of Qwen2MoeForCausalLM says "Moe" about every layer.
    wanted = name.rpartition(".")[0]
    return next((ancestor for ancestor in layer.ancestors if ancestor.name == wanted), None)


def _holds_experts(container: Ancestor) -> bool:
    own_name = container.name.rpartition(".")[2]
    return any(map(_SPEAKS_OF_EXPERTS.search, (container.type.__name__, own_name)))
