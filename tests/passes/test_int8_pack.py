"""Int8PackPass: weights only, dynamic and static; what cannot multiply integers; bad settings and bad inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.modules.integer_compute import Int8Dynamic
from monoquant.numerics.affine import round_to_nearest
from monoquant.ranges import MinMaxObserver


class Scaled(nn.Linear):
    """Computes something that no integer product does."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Mixed(nn.Module):
    """A Linear, one with a forward of its own, a convolution, attention, and a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(48, 64)
        self.scaled = Scaled(64, 48)
        self.conv = nn.Conv1d(48, 48, 3, padding=1)
        self.attention = nn.MultiheadAttention(48, 4, batch_first=True)
        self.unused = nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaled(torch.relu(self.plain(x)))
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.attention(x, x, x)[0]


@pytest.fixture
def model() -> Mixed:
    """Gaussian weights."""
    generator = torch.Generator().manual_seed(0)
    mixed = Mixed().eval()
    with torch.no_grad():
        for parameter in mixed.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return mixed


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 5, 48, generator=generator) for _ in range(4)]


def run(model: nn.Module, *, skips: tuple[str, ...] = ("unused",), **settings: Any) -> mq.QuantResult:
    steps = [mq.SkipSelectionPass(mq.NameRule(*skips)), mq.CalibrationPass(batches()), mq.Int8PackPass(**settings)]
    return mq.Quantizer([*steps, mq.ValidationPass()]).run(model)


def test_weights_are_the_nearest_codes_of_their_channel(model: Mixed) -> None:
    """One scale per output channel, symmetric, float32, by default."""
    packed = run(model).model.plain.packed_weight
    expected = round_to_nearest(model.plain.weight, packed.scheme)
    assert str(packed.scheme) == "int8 per-channel symmetric float32"
    assert packed.scale.shape == (64, 1)
    assert torch.equal(packed.qweight.int() + 128, expected.codes.int())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 16, 20])
def test_groups_and_zero_points_are_options(model: Mixed, group_size: int | None, symmetric: bool) -> None:
    """Smaller groups and zero_points lose less, never more than half a scale."""
    result = run(model, group_size=group_size, symmetric=symmetric)
    packed = result.model.plain.packed_weight
    step = packed.scale.abs().repeat_interleave(packed.group_size, 1)[:, :48]
    assert bool(((model.plain.weight - packed.dequantize()).abs() <= step * 0.5001).all())
    assert all(record.weight_sqnr_db > 40 for record in result.report.layers if record.weight_sqnr_db is not None)


@pytest.mark.parametrize(
    ("activations", "kind"), [("dynamic", mq.Int8DynamicLinear), ("static", mq.Int8StaticLinear), (None, mq.Int8Linear)]
)
def test_plain_linears_multiply_integers_and_the_others_are_told(
    model: Mixed, activations: Any, kind: type[nn.Module]
) -> None:
    """Each kind of layer that computes in float has its reason in a finding."""
    result = run(model, activations=activations)
    assert type(result.model.plain) is kind
    told = {finding.layer: finding.message for finding in result.report.findings if finding.code == "float-compute"}
    if activations is None:
        assert told == {}
        return
    assert set(told) == {"scaled", "conv", "attention", "attention.out_proj"}
    assert "Scaled has a forward of its own" in told["scaled"]
    assert "Conv1d has no integer product" in told["conv"]
    assert "attention reads its weight without calling it" in told["attention.out_proj"]
    schemes = {record.layer: str(record.scheme) for record in result.report.layers if record.scheme}
    assert schemes.pop("plain") == f"int8 per-channel symmetric float32, {activations} int8 inputs"
    assert set(schemes.values()) == {"int8 per-channel symmetric float32"}


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_the_reported_output_is_that_of_the_integer_product(model: Mixed, activations: Any) -> None:
    """Not that of the dequantized weight, which would flatter it by several dB."""
    result = run(model, activations=activations)
    record = next(record for record in result.report.layers if record.layer == "plain")
    rows = torch.cat(batches()).flatten(0, 1)
    with torch.no_grad():
        reference = (rows @ model.plain.weight.T).double()
        noise = reference - (result.model.plain(rows) - model.plain.bias).double()
    expected = 10 * torch.log10(reference.square().sum() / noise.square().sum()).item()
    assert record.output_sqnr_db == pytest.approx(expected, abs=0.1)
    assert 30 < record.output_sqnr_db < record.weight_sqnr_db


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "histogram", "auto"])
def test_static_ranges_are_those_of_the_observer(model: Mixed, observer: str) -> None:
    """With the data in one go; the choice of ``auto`` and its reason are reported."""
    result = run(model, activations="static", observer=observer)
    known = result.model.plain.packed_input
    if observer == "minmax":
        expected = MinMaxObserver()
        expected.update(torch.cat(batches()))
        scale, zero_point = expected.range().affine(8)
        assert (known.scale, known.zero_point) == (scale, zero_point - 128)
    choices = [finding for finding in result.report.findings if finding.code == "observer-choice"]
    assert [finding.layer for finding in choices] == (["plain"] if observer == "auto" else [])
    assert all("experimental" in finding.message and "dB" in finding.message for finding in choices)


def test_static_layers_that_calibration_never_called_are_named(model: Mixed) -> None:
    """All of them, before anything is packed."""
    with pytest.raises(mq.InputError, match=r"never called these layers.*'unused'") as caught:
        run(model, skips=("nothing",), activations="static")
    assert caught.value.layers == ("unused",)


def test_inputs_that_are_not_finite_are_named(model: Mixed) -> None:
    """A range with an end at infinity would make every code the same."""
    broken = batches()
    broken[2][0, 0, 0] = float("nan")
    steps = [mq.SkipSelectionPass(mq.NameRule("unused")), mq.CalibrationPass(broken)]
    with pytest.raises(mq.InputError, match=r"gave NaN or Inf to these layers: 'plain'"):
        mq.Quantizer([*steps, mq.Int8PackPass(activations="static")]).run(model)


def test_static_needs_calibration_earlier(model: Mixed) -> None:
    """Known when the Quantizer is built."""
    steps = [mq.SkipSelectionPass(), mq.Int8PackPass(activations="static")]
    with pytest.raises(mq.ConfigError, match="Int8PackPass needs CalibrationPass"):
        mq.Quantizer(steps)
    mq.Quantizer([mq.SkipSelectionPass(), mq.Int8PackPass(activations="dynamic")])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"activations": "sometimes"}, "give None, 'dynamic' or 'static'"),
        ({"activations": "dynamic", "group_size": 32}, "one scale per output channel"),
        ({"activations": "static", "symmetric": False}, "symmetric 8-bit weights"),
        ({"observer": "histogram"}, "does nothing without activations='static'"),
        ({"observer": 3, "activations": "static"}, "observer=3: give a name, such as 'histogram', or an ObserverKind"),
        ({"group_size": 0}, "group_size=0"),
        ({"scale_dtype": torch.int8}, "scale_dtype=torch.int8"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    """When the pass is built."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.Int8PackPass(**settings)


def test_too_many_features_for_a_32_bit_sum_compute_in_float() -> None:
    """A stated limit, and a finding."""
    model = nn.Sequential(nn.Linear(70_000, 2, bias=False))
    result = mq.quantize(model, bits=8, activations="dynamic", accuracy_warning="ignore")
    (told,) = [finding.message for finding in result.report.findings if finding.code == "float-compute"]
    assert "70000 features may not fit 32-bit integers" in told
    assert type(result.model[0]) is mq.Int8Linear


def test_many_outputs_are_no_obstacle() -> None:
    """The limit is on what is summed, and vocabularies are larger than it."""
    result = mq.quantize(nn.Sequential(nn.Linear(8, 70_000)), bits=8, activations="dynamic", accuracy_warning="ignore")
    assert type(result.model[0]) is mq.Int8DynamicLinear


def test_the_fused_transformer_kernel_is_kept_off_integer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would read the weights of linear1 and linear2 and compute in float; dequantize lets it back."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    quantized, _ = mq.dynamic_quantize(encoder, accuracy_warning="ignore")
    called, real = [], Int8Dynamic.integer_rows
    # No hooks: they alone would keep torch from its fused kernel.
    monkeypatch.setattr(Int8Dynamic, "integer_rows", lambda self, *args: called.append(self) or real(self, *args))
    with torch.no_grad():
        quantized(torch.randn(2, 5, 32))
    assert called == [part for layer in quantized.layers for part in (layer.linear1, layer.linear2)]
    assert [layer.activation_relu_or_gelu for layer in encoder.layers] == [1, 1]
    assert [layer.activation_relu_or_gelu for layer in mq.dequantize(encoder_of(encoder)).layers] == [1, 1]


def encoder_of(model: nn.Module) -> nn.Module:
    return mq.dynamic_quantize(model, accuracy_warning="ignore")[0]


class Forgetful(MinMaxObserver):
    """Has no idea of channels or counts."""

    def __init__(self) -> None:
        self.calls = 0


def test_an_observer_that_fails_is_not_taken_for_the_model(model: Mixed) -> None:
    """The error names it, and nobody is sent to look at the data."""
    kind = mq.ObserverKind("forgetful", Forgetful)
    expected = r"^observer 'forgetful' \(Forgetful\) raised AttributeError: .*channel_axis.*; repair it, and call super"
    with pytest.raises(mq.PluginError, match=expected):
        run(model, activations="static", observer=kind)
