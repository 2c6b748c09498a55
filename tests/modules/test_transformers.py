"""torch's own transformer modules read weights without calling layers: packed ones are neither missed nor bypassed."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import monoquant
from monoquant.modules.packed_module import PackedModule
from monoquant.modules.packed_weight import PackedWeight
from tests.closeness import assert_same_sums

FEATURES, HEADS = 64, 4
Mask = torch.Tensor | None
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")


def quantized(model: nn.Module) -> nn.Module:
    return monoquant.quantize(model, plugins=False, accuracy_warning="ignore", exact=True).model.eval()


def with_the_same_weights(model: nn.Module, packed: nn.Module) -> nn.Module:
    """The float model, holding what the packed layers stand for; frozen as they are, which decides torch's kernels."""
    twin = copy.deepcopy(model).eval()
    for name, weight in packed_weights(packed).items():
        twin.get_parameter(name).requires_grad_(False).copy_(weight.dequantize())
    with torch.no_grad():
        for name, bias in packed.named_parameters():
            twin.get_parameter(name).copy_(bias)  # which may make up for errors of the weights
    return twin


def packed_weights(model: nn.Module) -> dict[str, PackedWeight]:
    """Packed weights by the name that the float model has for them."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PackedModule)]
    return {f"{name}.{key}".lstrip("."): one for name, layer in layers for key, one in layer.packed_weights().items()}


IN_ONE_LAYER = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]


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
    return padding_of(3)


def padding_of(samples: int) -> torch.Tensor:
    mask = torch.zeros(samples, 7, dtype=torch.bool)
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


def of_tokens(output: torch.Tensor, mask: Mask) -> torch.Tensor:
    """What is not padding, which is zero on the nested path and any number on others."""
    return output if mask is None else output[~mask]


@ways
@masks
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_equals_its_float_twin(run: Callable[..., torch.Tensor], mask: Mask, norm_first: bool) -> None:
    """On every path, with padding and without, a packed encoder computes what its dequantized weights compute."""
    encoder = build_encoder(norm_first=norm_first)
    packed = quantized(encoder)
    assert list(packed_weights(packed)) == [f"layers.{index}.{name}" for index in range(2) for name in IN_ONE_LAYER]
    twin = with_the_same_weights(encoder, packed)
    assert_same_sums(of_tokens(run(packed, mask), mask), of_tokens(run(twin, mask), mask))


@masks
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_fast_path_is_taken_where_it_bypasses_no_kernel(fast_path_calls: list[bool], mask: Mask, bits: int) -> None:
    """Also on nested tensors, where there is padding: weights of 16 bits are dequantized for it as for all else."""
    options: dict[str, object] = {"bits": bits, "plugins": False, "accuracy_warning": "ignore"}
    packed = monoquant.quantize(build_encoder(), **options).model.eval()
    fast = run_fast(packed, mask)
    assert fast_path_calls == ([mask is not None] * 2 if bits == 16 else [])
    slow = run_hooked(packed, mask)
    assert len(fast_path_calls) == (2 if bits == 16 else 0)
    torch.testing.assert_close(of_tokens(fast, mask), of_tokens(slow, mask), rtol=1e-4, atol=1e-5)


@ways
@masks
def test_no_weight_is_bypassed(run: Callable[..., torch.Tensor], mask: Mask) -> None:
    """Changing the codes of any one packed weight changes the output, whichever path reads them."""
    packed = quantized(build_encoder())
    before = run(packed, mask)
    for name, weight in packed_weights(packed).items():
        held = weight.qweight.clone()
        weight.qweight.bitwise_xor_(0x77)
        assert not torch.allclose(run(packed, mask), before), name
        weight.qweight.copy_(held)
    assert torch.equal(run(packed, mask), before)


@masks
@pytest.mark.parametrize("training", [False, True])
def test_encoder_calibrates(mask: Mask, training: bool) -> None:
    """Calibration reaches every layer, on nested tensors too; if nothing is fitted, it leaves the codes as they are."""
    encoder = build_encoder().train(training)
    batch: dict[str, object] = {"src": source(), "src_key_padding_mask": mask}
    quiet: dict[str, object] = {"plugins": False, "accuracy_warning": "ignore"}
    result = monoquant.quantize(encoder, quality="fast", exact=True, calibration_data=[batch], **quiet)
    assert result.report.calibration.unseen_layers == ()
    tokens = 21 if mask is None else int((~mask).sum())
    records = {layer.layer: layer for layer in result.report.by_action(monoquant.Action.QUANTIZE)}
    seen = {"self_attn": 3, "self_attn.out_proj": 3, "linear1": tokens, "linear2": tokens}  # attention: sequences
    rows = {f"layers.{index}.{name}": count for index in range(2) for name, count in seen.items()}
    assert {name: record.sample_rows for name, record in records.items()} == rows
    assert all(15 < record.output_sqnr_db < 40 for record in records.values())
    for name, weight in packed_weights(quantized(encoder)).items():
        assert packed_weights(result.model)[name].digest() == weight.digest()
    twin = with_the_same_weights(encoder, result.model)
    assert_same_sums(of_tokens(run_fast(result.model.eval(), mask), mask), of_tokens(run_fast(twin, mask), mask))


@ways
@masks
def test_a_fitted_encoder_equals_its_float_twin(run: Callable[..., torch.Tensor], mask: Mask) -> None:
    """Codes are fitted to what every layer multiplies, biases are corrected, and all paths compute with both."""
    encoder = build_encoder()
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(64, 7, 24, generator=generator) @ torch.randn(24, FEATURES, generator=generator) / 5
    batch = {"src": tokens, "src_key_padding_mask": None if mask is None else padding_of(64)}
    options: dict[str, object] = {"plugins": False, "accuracy_warning": "ignore", "exact": True}
    result = monoquant.quantize(encoder, calibration_data=[batch], **options)
    assert {record.algorithm for record in result.report.by_action(monoquant.Action.QUANTIZE)} == {"gptq"}
    packed, plain = result.model.eval(), quantized(encoder)
    digests = {name: weight.digest() for name, weight in packed_weights(plain).items()}
    assert all(weight.digest() != digests[name] for name, weight in packed_weights(packed).items())
    for name in ("self_attn.in_proj_bias", "self_attn.out_proj.bias", "linear1.bias", "linear2.bias"):
        assert not torch.equal(packed.layers[1].get_parameter(name), encoder.layers[1].get_parameter(name)), name
    twin = with_the_same_weights(encoder, packed)
    assert_same_sums(of_tokens(run(packed, mask), mask), of_tokens(run(twin, mask), mask))


@ways
@masks
def test_single_layer_equals_its_float_twin(run: Callable[..., torch.Tensor], mask: Mask) -> None:
    """An encoder layer used on its own takes the fused path as well."""
    layer = build_encoder().layers[0]
    packed = quantized(layer)
    assert list(packed_weights(packed)) == IN_ONE_LAYER
    if run is run_hooked:
        packed.linear1.register_forward_hook(lambda *_: None)
    chosen = run_slow if run is run_slow else run_fast
    twin = with_the_same_weights(layer, packed)
    if run is run_hooked:
        twin.linear1.register_forward_hook(lambda *_: None)
    assert_same_sums(of_tokens(chosen(packed, mask), mask), of_tokens(chosen(twin, mask), mask))


def test_encoder_with_the_sequence_first() -> None:
    """The other order of dimensions, which torch never fuses, gives the same exactness."""
    encoder = build_encoder(batch_first=False)
    packed = quantized(encoder)
    twin = with_the_same_weights(encoder, packed)
    x = source(batch_first=False)
    found, expected = (model(x, src_key_padding_mask=padding()) for model in (packed, twin))
    assert_same_sums(found, expected)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@masks
def test_attention_equals_its_float_twin(batch_first: bool, gradients: bool, need_weights: bool, mask: Mask) -> None:
    """MultiheadAttention, which calls neither of its projections, reads the packed weights on all of its paths."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(FEATURES, HEADS, batch_first=batch_first).eval()
    packed = quantized(attention)
    assert list(packed_weights(packed)) == ["in_proj_weight", "out_proj.weight"]
    twin = with_the_same_weights(attention, packed)
    x = source(batch_first)

    def attend(model: nn.Module) -> torch.Tensor:
        with torch.set_grad_enabled(gradients):
            return model(x, x, x, key_padding_mask=mask, need_weights=need_weights)[0].detach()

    before = attend(packed)
    assert torch.equal(before, attend(twin))
    for weight in packed_weights(packed).values():
        weight.qweight.bitwise_xor_(0x77)
        assert not torch.allclose(attend(packed), before)
        weight.qweight.bitwise_xor_(0x77)


def test_gradients_pass_through_a_packed_encoder() -> None:
    """What is left in float can be trained around packed layers, with the gradients of the float twin."""
    encoder = build_encoder(dropout=0.0)
    packed = quantized(encoder)
    twin = with_the_same_weights(encoder, packed)
    for model in (packed, twin):
        model.train()(source()).square().mean().backward()
    trained = dict(packed.named_parameters())
    assert trained.keys() == dict(encoder.named_parameters()).keys() - packed_weights(packed).keys()
    assert "layers.0.self_attn.in_proj_bias" in trained
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, twin.get_parameter(name).grad)
