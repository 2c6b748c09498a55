"""ValidationPass: what it measures, and that planted faults are named by layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.batches import HELD_OUT_OF
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.numerics import affine
from monoquant.numerics.affine import GroupCodes


def pipeline(*between: mq.Pass, tokens: Any = None, algorithm: str = "auto", **settings: Any) -> mq.Quantizer:
    """Select, calibrate, pack, tamper, validate."""
    data = [mq.CalibrationPass(tokens)] if tokens is not None else []
    pack = mq.Int4PackPass(algorithm=algorithm)
    return mq.Quantizer([mq.SkipSelectionPass.from_options(), *data, pack, *between, mq.ValidationPass(**settings)])


def independent_sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    """SQNR written a second time, in Python numbers."""
    signal = math.fsum(x * x for x in reference.double().flatten().tolist())
    noise = math.fsum(x * x for x in (reference.double() - other.double()).flatten().tolist())
    return 10 * math.log10(signal / noise)


def test_weight_sqnr_is_that_of_the_weights(small: nn.Module) -> None:
    """Each record equals an independent computation, and the headline pools energies."""
    result = pipeline().run(small)
    pairs = []
    for record in result.report.by_action(mq.Action.QUANTIZE):
        pair = (small.get_submodule(record.layer).weight.detach(), result.model.get_submodule(record.layer).weight)
        assert record.weight_sqnr_db == pytest.approx(independent_sqnr(*pair), abs=1e-4)
        assert record.output_sqnr_db is None
        pairs.append(pair)
    pooled = independent_sqnr(torch.cat([a.flatten() for a, _ in pairs]), torch.cat([b.flatten() for _, b in pairs]))
    assert result.info.sqnr_kind == "weight"
    assert result.info.sqnr_db == pytest.approx(pooled, abs=1e-4)
    assert result.report.pooled_weight_sqnr_db == pytest.approx(pooled, abs=1e-4)


def held_out_of(batch: int) -> int:
    """Samples of a batch of twelve that are kept apart: the second one of all, and every so many after it."""
    return sum(sample % HELD_OUT_OF == 1 for sample in range(12 * batch, 12 * batch + 12))


@pytest.mark.parametrize("algorithm", ["round_to_nearest", "clip_search", "gptq"])
def test_output_sqnr_is_that_of_the_layer_outputs(small: nn.Module, tokens: Any, algorithm: str) -> None:
    """Each record equals the SQNR of the layer's real outputs, on what was not fitted to; the headline is the median.

    A corrected bias counts, since it makes up for the error of the weight.
    """
    seen: dict[str, list[torch.Tensor]] = {}
    model = small.eval()
    names = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]
    for name in names:
        hook = lambda _m, args, name=name: seen.setdefault(name, []).append(args[0].detach())  # noqa: E731
        model.get_submodule(name).register_forward_pre_hook(hook)
    for batch in tokens:
        model(batch)
    result = pipeline(tokens=tokens, sample_rows=10**6, algorithm=algorithm).run(small)
    records = {record.layer: record for record in result.report.by_action(mq.Action.QUANTIZE)}
    fitted = algorithm != "round_to_nearest"
    held_out = sum(map(held_out_of, range(10)))
    for name in names:
        calls = seen[name][: len(tokens)]
        if fitted:
            calls = [x[12 - held_out_of(batch) :] for batch, x in enumerate(calls)]
        inputs = torch.cat([x.flatten(0, -2) for x in calls])
        one, other = small.get_submodule(name), result.model.get_submodule(name)
        expected, found = inputs @ one.weight.T, inputs @ other.weight.T
        if one.bias is not None:
            assert torch.equal(other.bias, one.bias) != fitted
            found = found + (other.bias - one.bias)
        assert records[name].sample_rows == len(inputs) == 7 * (held_out if fitted else 120)
        assert records[name].output_sqnr_db == pytest.approx(
            independent_sqnr(expected.detach(), found.detach()), abs=1e-3
        )
    assert result.info.sqnr_kind == "output"
    assert result.info.sqnr_db == median(record.output_sqnr_db for record in records.values())


def test_a_sample_of_rows_estimates_the_output_sqnr(small: nn.Module, tokens: Any) -> None:
    """A bounded sample is within half a decibel of all rows, and its size is told."""
    few, everything = (
        pipeline(tokens=tokens, algorithm="round_to_nearest", sample_rows=rows)
        .run(small)
        .report.by_action(mq.Action.QUANTIZE)
        for rows in (64, 10**6)
    )
    for one, other in zip(few, everything, strict=True):
        assert one.sample_rows == 64
        assert one.output_sqnr_db == pytest.approx(other.output_sqnr_db, abs=0.5)


def test_sizes_are_bytes_of_real_buffers(small: nn.Module) -> None:
    """Before and after are what the two models' tensors occupy."""
    result = pipeline().run(small)

    def held(model: nn.Module) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())

    assert result.info.original_size_mb == held(small) / 2**20
    assert result.info.quantized_size_mb == held(result.model) / 2**20
    assert result.info.compression_ratio == pytest.approx(held(small) / held(result.model))
    assert result.report.validation.load_test_passed
    assert result.report.validation.weight_range_valid
    assert result.report.validation.errors == []


def swap_nibbles(packed: PackedMatrix) -> None:
    """Exchange even and odd columns in storage."""
    packed.qweight.copy_((packed.qweight << 4) | (packed.qweight >> 4))


def shift_zero_points(packed: PackedMatrix) -> None:
    """Make every zero_point one too large (15 wraps to 0)."""
    low, high = packed.zero_point & 15, packed.zero_point >> 4
    packed.zero_point.copy_(((low + 1) & 15) | (((high + 1) & 15) << 4))


def one_scale(packed: PackedMatrix) -> None:
    """Overwrite all scales with the first one."""
    packed.scale.fill_(float(packed.scale[0, 0]))


FAULTS = [swap_nibbles, shift_zero_points, one_scale]


@attrs.frozen
class Tampering(mq.Pass):
    """Damages the packed weight of one layer."""

    follows = (mq.Int4PackPass,)
    layer: str
    fault: Callable[[PackedMatrix], None]
    weight: str = "weight"

    def run(self, context: mq.QuantContext) -> None:
        self.fault(context.packed[self.layer].weights[self.weight])


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_storage_faults_are_named(small: nn.Module, unchanged: Any, fault: Any) -> None:
    """Damage to one packed layer fails the run with exactly that layer's name; the model stays as it was."""
    check = unchanged(small)
    with pytest.raises(mq.ValidationError) as caught:
        pipeline(Tampering("blocks.1.up", fault)).run(small)
    assert caught.value.layers == ("blocks.1.up",)
    assert "layer 'blocks.1.up': the packed weight does not unpack to the codes" in str(caught.value)
    assert len(caught.value.result.errors) == 1
    check()


@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0"])
def test_each_of_several_weights_is_checked(weight: str) -> None:
    """A layer fails with any one of its weights, during the run and afterwards."""
    model = nn.Sequential(nn.LSTM(64, 64), nn.Linear(64, 64))
    with pytest.raises(mq.ValidationError) as caught:
        pipeline(Tampering("0", swap_nibbles, weight)).run(model)
    assert caught.value.layers == ("0",)
    result = pipeline().run(model)
    swap_nibbles(result.model[0].packed_weights()[weight])
    with pytest.raises(mq.ValidationError) as caught:
        mq.validate_quantization(model, result.model)
    assert caught.value.layers == ("0",)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_storage_faults_are_named_by_validate_quantization(small: nn.Module, fault: Any) -> None:
    """The same damage in a finished model is found by comparing it with the float model."""
    result = pipeline().run(small)
    fault(result.model.blocks[0].down.packed_weight)
    found = mq.validate_quantization(small, result.model, on_failure="ignore")
    assert any("'blocks.0.down'" in text for text in found.warnings)
    assert not any("'blocks.0.up'" in text for text in found.warnings)


def broken_zero_point(weight: torch.Tensor, scheme: mq.Scheme) -> GroupCodes:
    """Round to nearest, but one zero_point off: a bug in the algorithm rather than in storage."""
    good = affine.round_to_nearest(weight, scheme)
    return GroupCodes(good.codes, good.scale, (good.zero_point + 1).clamp(0, 15))


def broken_scale(weight: torch.Tensor, scheme: mq.Scheme) -> GroupCodes:
    """One scale and zero_point per tensor in place of one per group."""
    whole = affine.round_to_nearest(weight.reshape(1, -1), mq.Scheme(group_size=weight.numel()))
    shape = (weight.shape[0], -(-weight.shape[1] // scheme.group_size))
    return GroupCodes(whole.codes.reshape(weight.shape), whole.scale.expand(shape), whole.zero_point.expand(shape))


@attrs.frozen
class Sometimes(mq.WeightAlgorithm):
    """Broken on weights with 200 columns, which are two groups of 128."""

    name: ClassVar[str] = "sometimes"
    broken: Callable[[torch.Tensor, mq.Scheme], GroupCodes]

    def solve(self, problem: mq.WeightProblem) -> mq.Solution:
        chosen = self.broken if problem.weight.shape[1] == 256 else affine.round_to_nearest
        return mq.Solution(chosen(problem.weight, mq.Scheme(group_size=problem.width)))


@pytest.mark.parametrize(
    ("broken", "code"), [(broken_zero_point, "sqnr-critical"), (broken_scale, "sqnr-below-format")]
)
def test_planted_algorithm_faults_are_named(small: nn.Module, broken: Any, code: str) -> None:
    """Codes that were chosen wrongly unpack rightly, and still show as findings with the layer's name."""
    with torch.no_grad():
        for block in small.blocks:
            block.down.weight[0, 0] = 1.0  # a realistic outlier, which one scale per tensor cannot afford
    result = mq.quantize(small, algorithm=Sometimes(broken), accuracy_warning="ignore", plugins=False)
    named = {finding.layer for finding in result.report.findings if finding.code == code}
    assert named == {"blocks.0.down", "blocks.1.down"}


@pytest.mark.parametrize("policy", ["warn", "ignore"])
def test_failures_can_be_left_to_the_report(small: nn.Module, policy: str) -> None:
    """With another policy the run ends, and the failure is in errors and in a CRITICAL finding."""
    result = pipeline(Tampering("blocks.1.up", swap_nibbles), on_failure=policy).run(small)
    assert result.report.validation.errors == [
        "layer 'blocks.1.up': the packed weight does not unpack to the codes that were chosen for it"
    ]
    critical = [finding for finding in result.report.findings if finding.severity is mq.Severity.CRITICAL]
    assert [(finding.code, finding.layer) for finding in critical] == [("codes-differ", "blocks.1.up")]


def test_every_failing_layer_is_told_at_once(small: nn.Module) -> None:
    """Two damaged layers give one error with both names."""
    tampering = [Tampering("blocks.1.up", swap_nibbles), Tampering("blocks.0.down", one_scale)]
    with pytest.raises(mq.ValidationError) as caught:
        pipeline(*tampering).run(small)
    assert caught.value.layers == ("blocks.0.down", "blocks.1.up")


def test_infinite_dequantized_weights_are_named(small: nn.Module) -> None:
    """A weight that overflows its dtype when dequantized is a failed range check."""

    def overflow(packed: PackedMatrix) -> None:
        packed.scale.fill_(float("inf"))

    with pytest.raises(mq.ValidationError, match=r"'blocks\.1\.up': the dequantized weight is not finite") as caught:
        pipeline(Tampering("blocks.1.up", overflow)).run(small)
    assert not caught.value.result.weight_range_valid
    assert math.isnan(caught.value.result.sqnr_db)


def test_a_layer_that_does_not_load_back_is_named(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """If saving writes other bits than it was given, the round trip finds out."""
    from monoquant import measurement

    real = measurement.read_container

    def flipped(path: Any) -> Any:
        tensors, metadata = real(path)
        tensors["qweight"][0, 0] ^= 1
        return tensors, metadata

    monkeypatch.setattr(measurement, "read_container", flipped)
    with pytest.raises(mq.ValidationError, match="does not survive saving and loading") as caught:
        pipeline().run(small)
    assert len(caught.value.layers) == 4
    assert not caught.value.result.load_test_passed


def test_validation_needs_packed_layers(small: nn.Module) -> None:
    """A pass that takes packed weights away is caught before anything is measured."""

    class Thief(mq.PackPass):
        scheme = mq.Scheme(8)

        def run(self, context: mq.QuantContext) -> None:
            del context.packed["blocks.0.up"]

    with pytest.raises(mq.PassError, match=r"not packed: 'blocks\.0\.up'"):
        pipeline(Thief()).run(small)


@pytest.mark.parametrize(
    "settings",
    [
        {"on_failure": "raise"},
        {"sample_rows": 0},
        {"sample_rows": True},
        {"sample_rows": 1.5},
        {"sample_bytes": 0},
        {"sample_bytes": True},
        {"sample_bytes": 1.5},
    ],
)
def test_bad_settings_are_refused_when_built(settings: dict[str, Any]) -> None:
    """Each wrong setting is a ConfigError that names it."""
    with pytest.raises(mq.ConfigError, match=next(iter(settings))):
        mq.ValidationPass(**settings)


def test_validate_quantization_of_a_good_result(small: nn.Module) -> None:
    """The public function agrees with the pass."""
    result = pipeline().run(small)
    found = mq.validate_quantization(small, result.model)
    assert found.sqnr_db == result.info.sqnr_db
    assert found.compression_ratio == result.info.compression_ratio
    assert found.load_test_passed
    assert found.weight_range_valid
    assert found.errors == []


def test_validate_quantization_policies(small: nn.Module) -> None:
    """A critically damaged layer raises, warns or is only told."""
    result = pipeline().run(small)
    swap_nibbles(result.model.blocks[0].up.packed_weight)
    with pytest.raises(mq.ValidationError, match="CRITICAL") as caught:
        mq.validate_quantization(small, result.model)
    assert caught.value.layers == ("blocks.0.up",)
    with pytest.warns(mq.AccuracyWarning, match=r"'blocks\.0\.up'") as record:
        mq.validate_quantization(small, result.model, on_failure="warn")
    assert record[0].filename == __file__
    assert mq.validate_quantization(small, result.model, on_failure="ignore").errors
    with pytest.raises(mq.ConfigError, match="on_failure='maybe'"):
        mq.validate_quantization(small, result.model, on_failure="maybe")


def test_validate_quantization_refuses_strangers(small: nn.Module) -> None:
    """A float model, or two that do not correspond, are refused with all layers."""
    result = pipeline().run(small)
    with pytest.raises(mq.InputError, match="no packed layer"):
        mq.validate_quantization(small, small)
    with pytest.raises(mq.InputError, match="without a float layer of that name and shape") as caught:
        mq.validate_quantization(nn.Linear(3, 3), result.model)
    assert len(caught.value.layers) == 4
    small.blocks[1].up = nn.Linear(96, 201)
    with pytest.raises(mq.InputError, match="without a float layer of that name and shape") as caught:
        mq.validate_quantization(small, result.model)
    assert caught.value.layers == ("blocks.1.up",)


def test_a_missing_temporary_folder_is_no_fault_of_the_model(
    small: nn.Module, monkeypatch: pytest.MonkeyPatch, unchanged: Any
) -> None:
    """Without a place to write to, the check of saving says so instead of blaming a layer."""
    from monoquant import measurement

    def nowhere(**_: Any) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(measurement, "TemporaryDirectory", nowhere)
    check = unchanged(small)
    with pytest.raises(mq.FileError, match="set TMPDIR"):
        pipeline().run(small)
    check()


def test_a_full_disk_is_no_fault_of_the_model(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be written is a FileError, not a failed layer."""
    from monoquant.disk import replacing

    def full(_file: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(replacing, "_flush", full)
    with pytest.raises(mq.FileError, match="No space left"):
        pipeline().run(small)


def test_outputs_are_what_counts_where_they_are_known(small: nn.Module, tokens: Any) -> None:
    """A weight far below its format is worth a warning only while the outputs are unknown."""
    with torch.no_grad():
        small.blocks[0].up.weight[:, ::100] = 1.5
        small.blocks[0].up.weight[:, 1::100] = -1.5
    options: dict[str, Any] = {"accuracy_warning": "ignore", "plugins": False}
    codes = {finding.code for finding in mq.quantize(small, **options).report.findings}
    assert "sqnr-below-format" in codes
    codes = {finding.code for finding in mq.quantize(small, calibration_data=tokens, **options).report.findings}
    assert "sqnr-below-format" not in codes


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_outputs_are_held_against_the_weight_that_the_next_call_computes(norm: Any, unchanged: Any) -> None:
    """A weight that a hook computes is stale after loading; it is neither measured against nor changed."""
    torch.manual_seed(0)
    model, trained = (nn.Sequential(norm(nn.Conv1d(16, 32, 3))) for _ in range(2))
    model.load_state_dict(trained.state_dict())
    inputs, stale = torch.randn(60, 16, 9), model[0].weight.detach().clone()
    check = unchanged(model)
    result = mq.quantize(model, bits=8, calibration_data=[inputs], accuracy_warning="ignore", plugins=False)
    check()
    assert torch.equal(model[0].weight, stale)
    with torch.no_grad():
        expected = independent_sqnr(trained.eval()(inputs), result.model.eval()(inputs))
    [record] = result.report.layers
    assert record.output_sqnr_db == pytest.approx(expected, abs=1e-3)
    assert expected > 40
