"""torch's own transformer modules read weights past their Linears: packed ones must be neither missed nor bypassed."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import monoquant
from monoquant.modules.int4_linear import Int4Linear

FEATURES, HEADS = 64, 4
Mask = torch.Tensor | None
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")


def quantized(model: nn.Module, calibration: list[object] | None = None) -> nn.Module:
    result = monoquant.quantize(model, plugins=False, accuracy_warning="ignore", calibration_data=calibration)
    return result.model.eval()


def with_the_same_weights(model: nn.Module, packed: nn.Module) -> nn.Module:
    """The float model, holding what the packed layers stand for."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, layer in packed_layers(packed).items():
            twin.get_submodule(name).weight.copy_(layer.weight)
    return twin


def packed_layers(model: nn.Module) -> dict[str, Int4Linear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Int4Linear)}


def build_encoder(batch_first: bool = True, norm_first: bool = False, dropout: float = 0.1) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(FEATURES, HEADS, 96, dropout, batch_first=batch_first, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first and not norm_first)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1) if parameter.dim() > 1 else nn.init.normal_(parameter, 1, 0.1)
    return encoder.eval()


def source(batch_first: bool = True) -> torch.Tensor:
    tokens = torch.randn(3, 7, FEATURES, generator=torch.Generator().manual_seed(1))
    return tokens if batch_first else tokens.transpose(0, 1)


def padding() -> torch.Tensor:
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[0, 5:] = mask[2, 3:] = True
    return mask


@pytest.fixture
def fast_path_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry per layer that took torch's fused path: whether it ran on a nested tensor."""
    calls: list[bool] = []
    fused = torch._transformer_encoder_layer_fwd

    def counting(src: torch.Tensor, *rest: object) -> torch.Tensor:
        calls.append(src.is_nested)
        return fused(src, *rest)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", counting)
    return calls


def run_fast(model: nn.Module, mask: Mask = None) -> torch.Tensor:
    with torch.no_grad():
        return model(source(), src_key_padding_mask=mask)


def run_slow(model: nn.Module, mask: Mask = None) -> torch.Tensor:
    return model(source(), src_key_padding_mask=mask).detach()


def run_hooked(model: nn.Module, mask: Mask = None) -> torch.Tensor:
    handles = [layer.linear1.register_forward_hook(lambda *_: None) for layer in model.layers]
    try:
        return run_fast(model, mask)
    finally:
        for handle in handles:
            handle.remove()


ways = pytest.mark.parametrize("run", [run_fast, run_slow, run_hooked])
masks = pytest.mark.parametrize("mask", [None, padding()], ids=["full", "padded"])


@ways
@masks
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_equals_its_float_twin(run: Callable[..., torch.Tensor], mask: Mask, norm_first: bool) -> None:
    """On every path, with padding and without, a packed encoder computes what its dequantized weights compute."""
    encoder = build_encoder(norm_first=norm_first)
    packed = quantized(encoder)
    assert len(packed_layers(packed)) == 6
    twin = with_the_same_weights(encoder, packed)
    assert torch.equal(run(packed, mask), run(twin, mask))


@masks
def test_fast_path_is_still_taken(fast_path_calls: list[bool], mask: Mask) -> None:
    """Packing does not push an encoder off torch's fused path, on nested tensors where there is padding."""
    packed = quantized(build_encoder())
    fast = run_fast(packed, mask)
    assert fast_path_calls == [mask is not None] * 2
    slow = run_hooked(packed, mask)
    assert len(fast_path_calls) == 2
    valid = ~mask if mask is not None else torch.ones(3, 7, dtype=torch.bool)
    torch.testing.assert_close(fast[valid], slow[valid], rtol=1e-4, atol=1e-5)


@ways
@masks
def test_no_layer_is_bypassed(run: Callable[..., torch.Tensor], mask: Mask) -> None:
    """Changing the codes of any one packed layer changes the output, whichever path reads them."""
    packed = quantized(build_encoder())
    before = run(packed, mask)
    for name, layer in packed_layers(packed).items():
        held = layer.packed_weight.qweight.clone()
        layer.packed_weight.qweight.bitwise_xor_(0x77)
        assert not torch.allclose(run(packed, mask), before), name
        layer.packed_weight.qweight.copy_(held)
    assert torch.equal(run(packed, mask), before)


@masks
@pytest.mark.parametrize("training", [False, True])
def test_encoder_calibrates(mask: Mask, training: bool) -> None:
    """Calibration reaches the feed-forward layers, on nested tensors too, and leaves the same codes as without."""
    encoder = build_encoder().train(training)
    batch: dict[str, object] = {"src": source(), "src_key_padding_mask": mask}
    result = monoquant.quantize(encoder, plugins=False, accuracy_warning="ignore", calibration_data=[batch])
    assert set(result.report.calibration.unseen_layers) == {f"layers.{index}.self_attn.out_proj" for index in range(2)}
    tokens = 21 if mask is None else int((~mask).sum())
    rows = {layer.layer: layer.sample_rows for layer in result.report.layers if "linear" in layer.layer}
    assert rows == {f"layers.{index}.linear{which}": tokens for index in range(2) for which in (1, 2)}
    for name, layer in packed_layers(quantized(encoder)).items():
        assert result.model.get_submodule(name).packed_weight.digest() == layer.packed_weight.digest()
    twin = with_the_same_weights(encoder, result.model)
    assert torch.equal(run_fast(result.model.eval(), mask), run_fast(twin, mask))


@ways
@masks
def test_single_layer_equals_its_float_twin(run: Callable[..., torch.Tensor], mask: Mask) -> None:
    """An encoder layer used on its own takes the fused path as well."""
    layer = build_encoder().layers[0]
    packed = quantized(layer)
    assert set(packed_layers(packed)) == {"self_attn.out_proj", "linear1", "linear2"}
    if run is run_hooked:
        packed.linear1.register_forward_hook(lambda *_: None)
    chosen = run_slow if run is run_slow else run_fast
    twin = with_the_same_weights(layer, packed)
    if run is run_hooked:
        twin.linear1.register_forward_hook(lambda *_: None)
    assert torch.equal(chosen(packed, mask), chosen(twin, mask))


def test_encoder_with_the_sequence_first() -> None:
    """The other order of dimensions, which torch never fuses, gives the same exactness."""
    encoder = build_encoder(batch_first=False)
    packed = quantized(encoder)
    twin = with_the_same_weights(encoder, packed)
    x = source(batch_first=False)
    assert torch.equal(packed(x, src_key_padding_mask=padding()), twin(x, src_key_padding_mask=padding()))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@masks
def test_attention_equals_its_float_twin(batch_first: bool, gradients: bool, need_weights: bool, mask: Mask) -> None:
    """MultiheadAttention, which never calls its output projection, reads the packed weight on all of its paths."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(FEATURES, HEADS, batch_first=batch_first).eval()
    packed = quantized(attention)
    assert set(packed_layers(packed)) == {"out_proj"}
    twin = with_the_same_weights(attention, packed)
    x = source(batch_first)

    def attend(model: nn.Module) -> torch.Tensor:
        with torch.set_grad_enabled(gradients):
            return model(x, x, x, key_padding_mask=mask, need_weights=need_weights)[0].detach()

    before = attend(packed)
    assert torch.equal(before, attend(twin))
    packed.out_proj.packed_weight.qweight.bitwise_xor_(0x77)
    assert not torch.allclose(attend(packed), before)


def test_gradients_pass_through_a_packed_encoder() -> None:
    """What is left in float can be trained around packed layers, with the gradients of the float twin."""
    encoder = build_encoder(dropout=0.0)
    packed = quantized(encoder)
    twin = with_the_same_weights(encoder, packed)
    for model in (packed, twin):
        model.train()(source()).square().mean().backward()
    trained = dict(packed.named_parameters())
    assert "layers.0.self_attn.in_proj_weight" in trained
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, twin.get_parameter(name).grad)
