"""The router rule, layer by layer."""

from __future__ import annotations

from importlib.metadata import version

import attrs
import monoquant as mq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monoquant.testing import SkipRuleConformance
from monoquant.testing.strategies import layers
from torch import nn

from monoquant_moe import RouterRule

PROJECTIONS = ("gate_proj", "up_gate_proj", "gate_up_proj", "up_proj", "down_proj")
CONTAINERS = ("MixtralSparseMoeBlock", "DeepseekV3MoE", "MOELayer", "DbrxRouter", "TopKGate", "Block")


def linear(name: str, shape: tuple[int, int], *containers: str) -> mq.Layer:
    """A Linear whose ancestors, the root first, have the given type names."""
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(len(parts))]
    kinds = [*["Model"] * (len(names) - len(containers)), *containers]
    ancestors = [mq.Ancestor(inner, type(kind, (nn.Module,), {})) for inner, kind in zip(names, kinds, strict=True)]
    return mq.Layer(name, nn.Linear, shape, ancestors=tuple(ancestors))


class TestContract(SkipRuleConformance):
    rule = RouterRule()


ROUTERS = {
    "Mixtral": linear("model.layers.0.block_sparse_moe.gate", (8, 4096), "MixtralSparseMoeBlock"),
    "Qwen2-MoE": linear("model.layers.0.mlp.gate", (60, 2048), "Qwen2MoeSparseMoeBlock"),
    "Qwen2-MoE, shared expert": linear("model.layers.0.mlp.shared_expert_gate", (1, 2048), "Qwen2MoeSparseMoeBlock"),
    "DeepSeek-V2": linear("model.layers.1.mlp.gate", (160, 5120), "DeepseekV2Moe"),
    "OLMoE": linear("model.layers.0.mlp.gate", (64, 2048), "OlmoeSparseMoeBlock"),
    "DBRX": linear("transformer.blocks.0.ffn.router.layer", (16, 6144), "DbrxFFN", "DbrxRouter"),
    "Switch": linear("encoder.block.1.layer.1.mlp.router.classifier", (256, 768), "SwitchTransformersTop1Router"),
    "DeepSpeed": linear("layers.0.mlp.deepspeed_moe.gate.wg", (8, 1024), "MOELayer", "TopKGate"),
    "Llama 4": linear("language_model.layers.0.feed_forward.router", (16, 5120), "Llama4TextMoe"),
    "named container": linear("blocks.0.moe.gate", (4, 64), "Block"),
}


def own_kind(name: str, shape: tuple[int, int], kind: str) -> mq.Layer:
    """A module of a class of its own that holds a bare weight."""
    return mq.Layer(name, type(kind, (nn.Module,), {}), shape)


ROUTER_MODULES = {
    "Mixtral, transformers 5": own_kind("model.layers.0.mlp.gate", (8, 4096), "MixtralTopKRouter"),
    "GPT-OSS": own_kind("model.layers.0.mlp.router", (32, 2880), "GptOssTopKRouter"),
    "DeepSeek-V3": own_kind("model.layers.3.mlp.gate", (256, 7168), "DeepseekV3TopkRouter"),
}


@pytest.mark.parametrize("layer", ROUTER_MODULES.values(), ids=ROUTER_MODULES)
def test_routers_with_a_class_of_their_own_are_kept(layer: mq.Layer) -> None:
    """Since transformers 5 most routers are no Linear any more, but a module with a bare weight."""
    assert RouterRule().reason(layer) == (
        f"mixture-of-experts router: {layer.shape[0]} outputs for {layer.shape[1]} inputs, "
        f"its class is {layer.type.__name__}"
    )


def test_other_modules_with_a_bare_weight_are_left_to_others() -> None:
    """Neither experts nor a wide layer of a routing class are routers."""
    assert RouterRule().reason(own_kind("layers.0.mlp.gate", (8, 4096), "MixtralExperts")) is None
    assert RouterRule().reason(own_kind("layers.0.mlp.router", (4096, 4096), "RouterMixer")) is None


OTHERS = {
    "a projection of an expert": linear(
        "layers.0.moe.experts.0.gate_proj", (14, 64), "MixtralSparseMoeBlock", "E", "E"
    ),
    "a wide gate in a block of experts": linear("layers.0.moe.gate", (64, 64), "MixtralSparseMoeBlock"),
    "a wide layer called router": linear("layers.0.router", (4096, 1024), "Block"),
    "a gate of an attention": linear("layers.0.self_attn.gate", (16, 1024), "SparseAttention"),
    "a gate of a model named after experts": linear("layers.0.attn.gate", (16, 1024), "MyMoeModel", "L", "L", "Attn"),
    "the layer of something else": linear("encoder.layer", (8, 64), "Encoder"),
    "a classifier": linear("classifier", (2, 768)),
}


@pytest.mark.parametrize("layer", ROUTERS.values(), ids=ROUTERS)
def test_routers_of_known_models_are_kept(layer: mq.Layer) -> None:
    """Each known architecture's router is kept, and the reason tells its size."""
    reason = RouterRule().reason(layer)
    assert reason is not None
    assert f"{layer.shape[0]} outputs for {layer.shape[1]} inputs" in reason


@pytest.mark.parametrize("layer", OTHERS.values(), ids=OTHERS)
def test_other_layers_are_left_to_others(layer: mq.Layer) -> None:
    """What only looks like a router gets no reason."""
    assert RouterRule().reason(layer) is None


def test_reason_names_the_evidence() -> None:
    """A reader learns which name or which container made the layer a router."""
    rule = RouterRule()
    assert "a 'gate' inside MixtralSparseMoeBlock 'model.layers.0.block_sparse_moe'" in str(
        rule.reason(ROUTERS["Mixtral"])
    )
    assert "its name ends in 'gate.wg'" in str(rule.reason(ROUTERS["DeepSpeed"]))


def test_only_linears_are_kept() -> None:
    """A module that is no Linear is not the rule's business, whatever its name."""
    assert RouterRule().reason(attrs.evolve(ROUTERS["Mixtral"], type=nn.Embedding)) is None


def test_subclasses_of_linear_are_kept() -> None:
    """Llama 4 derives its router from nn.Linear."""
    derived = type("Llama4Router", (nn.Linear,), {})
    assert RouterRule().reason(attrs.evolve(ROUTERS["Llama 4"], type=derived)) is not None


def test_any_name_of_a_shared_router_counts() -> None:
    """A router that is used under two names is kept by either."""
    layer = attrs.evolve(ROUTERS["Mixtral"], name="shared", aliases=(ROUTERS["Mixtral"].name,))
    assert RouterRule().reason(layer) is not None


def test_the_limit_is_inclusive_and_adjustable() -> None:
    """Exactly the allowed number of outputs is a router, one more is not."""
    rule = RouterRule(max_outputs_per_input=0.25)
    assert rule.reason(linear("moe.router", (16, 64), "Model", "Moe")) is not None
    assert rule.reason(linear("moe.router", (17, 64), "Model", "Moe")) is None


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan"), True, "0.5", None])
def test_a_senseless_limit_is_refused(share: object) -> None:
    """A limit that keeps nothing, keeps everything or is no number is refused by name."""
    with pytest.raises(mq.ConfigError, match="max_outputs_per_input"):
        RouterRule(max_outputs_per_input=share)  # type: ignore[arg-type]


def test_rules_are_frozen_values() -> None:
    """Equal settings make equal rules, and none changes after it was built."""
    assert RouterRule() == RouterRule(0.5)
    assert len({RouterRule(), RouterRule(0.5), RouterRule(0.25)}) == 2
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        RouterRule().max_outputs_per_input = 1.0  # type: ignore[misc]


@settings(deadline=None)
@given(
    layer=layers(),
    ending=st.sampled_from(PROJECTIONS),
    outputs=st.integers(1, 64),
    container=st.sampled_from(CONTAINERS),
)
def test_projections_are_never_kept(layer: mq.Layer, ending: str, outputs: int, container: str) -> None:
    """No shape and no container makes gate_proj, or another projection of an expert, a router."""
    parent = layer.name or "moe"
    inside = mq.Ancestor(parent, type(container, (nn.Module,), {}))
    projection = mq.Layer(f"{parent}.{ending}", nn.Linear, (outputs, 4096), ancestors=(*layer.ancestors, inside))
    assert RouterRule().reason(projection) is None


@settings(deadline=None)
@given(layers())
def test_no_other_layer_is_called_a_router(layer: mq.Layer) -> None:
    """Whatever is kept is a Linear with few outputs and a router's name."""
    if RouterRule().reason(layer) is None:
        return
    assert issubclass(layer.type, nn.Linear)
    assert layer.shape[0] <= layer.shape[1] / 2
    assert any(name.split(".")[-1] in {"gate", "router", "wg", "classifier", "layer"} for name in layer.names)


def test_the_rule_is_registered_with_the_installed_version() -> None:
    """The plugin manager finds the rule through the entry point and knows where it comes from."""
    registered = mq.PluginManager().registry(mq.Scheme()).skip_rules
    assert mq.Registered(RouterRule(), mq.Origin("monoquant-moe", version("monoquant-moe"))) in registered
