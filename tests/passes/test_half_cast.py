"""HalfCastPass: 16-bit storage, range checks, skip rules."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

import monoquant as mq


def build(largest: float = 1.0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)).to(dtype)
    with torch.no_grad():
        model[2].weight[1, 2] = largest
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_stored_in_16_bits_and_computed_with_in_the_models_dtype(dtype: torch.dtype) -> None:
    """Inputs, outputs, biases and norms stay float32, so that nothing else has to change."""
    model = build()
    result = mq.quantize(model, dtype=dtype)
    x = torch.randn(3, 8)
    assert isinstance(result.model[0], mq.HalfLinear)
    assert result.model[0].packed_weight.values.dtype == dtype
    assert torch.equal(result.model[0].weight, model[0].weight.to(dtype).float())
    assert result.model(x).dtype == torch.float32
    assert torch.allclose(result.model(x), model(x), atol=2e-2)
    assert (result.info.dtype, result.info.symmetric) == (dtype, True)


def test_a_weight_beyond_the_range_is_told_and_not_made_inf() -> None:
    """The layer stays as it is; the others are cast."""
    result = mq.quantize(build(1e5), dtype=torch.float16, accuracy_warning="ignore")
    decision = next(record for record in result.report.layers if record.layer == "2")
    assert decision.action is mq.Action.UNSUPPORTED
    assert decision.reason == "its weights reach 1e+05, more than torch.float16 can hold (6.55e+04)"
    assert "bfloat16" in decision.remedy
    (finding,) = [finding for finding in result.report.findings if finding.code == "half-overflow"]
    assert (finding.layer, finding.severity) == ("2", mq.Severity.WARNING)
    assert isinstance(result.model[0], mq.HalfLinear)
    assert bool(torch.isfinite(result.model[2].weight).all())


def test_bfloat16_reaches_as_far_as_float32() -> None:
    """The remedy that the finding names works."""
    result = mq.quantize(build(1e30), dtype=torch.bfloat16)
    assert {record.layer for record in result.report.by_action(mq.Action.QUANTIZE)} == {"0", "2"}


def test_nan_is_an_error_and_no_overflow() -> None:
    """Every layer concerned is named."""
    with pytest.raises(mq.InputError, match=r"weights with NaN or Inf: '2'"):
        mq.quantize(build(float("nan")), dtype=torch.float16)


def test_a_weight_replaced_by_one_too_large_is_refused() -> None:
    """Planning could not know of it."""

    @attrs.frozen
    class Enlarge(mq.Pass):
        follows = (mq.SkipSelectionPass,)

        def run(self, context: mq.QuantContext) -> None:
            context.replace_weight("0", context.weight("0") * 1e7)

    steps = [mq.SkipSelectionPass(), Enlarge(), mq.HalfCastPass()]
    with pytest.raises(mq.InputError, match=r"torch.float16 cannot hold: '0'"):
        mq.Quantizer(steps).run(build())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_has_16_bits_already_is_left_alone(dtype: torch.dtype) -> None:
    """Casting between the two would only lose."""
    with pytest.raises(mq.InputError, match="its weight has 16 bits already"):
        mq.quantize(build(dtype=dtype), dtype=torch.float16)


def test_skip_rules_are_honoured() -> None:
    """A skipped layer fits between cast ones, whatever its dtype."""
    result = mq.quantize(build(), dtype=torch.float16, modules_to_not_convert=["2"])
    assert type(result.model[2]) is nn.Linear
    assert result.model(torch.randn(2, 8)).shape == (2, 4)


def test_plans_on_the_meta_device_know_no_values() -> None:
    """They give the answer that finite weights get."""
    decisions = mq.Quantizer([mq.SkipSelectionPass(), mq.HalfCastPass()]).plan(build().to("meta"))
    assert [decision.action.value for decision in decisions] == ["quantize", "unsupported", "quantize"]


def test_options_of_codes_change_nothing_and_are_refused() -> None:
    """Rather than ignored."""
    with pytest.raises(mq.ConfigError, match="group_size change nothing in float16"):
        mq.quantize(build(), dtype=torch.float16, group_size=32)
    with pytest.raises(mq.ConfigError, match=r"dtype=torch.float64: give one of torch.float16, torch.bfloat16"):
        mq.HalfCastPass(torch.float64)
