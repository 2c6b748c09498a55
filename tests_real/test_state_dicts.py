"""State dicts as packages ship them, without their model classes: all of it reported, saved, and loaded to run."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from tests_real.published import PUBLISHED, Published

INT8_DB = 30.0


@attrs.frozen(eq=False)
class Case:
    """Published weights, quantized from nothing but the state dict and loaded into the architecture."""

    published: Published
    bits: int
    result: mq.QuantResult
    path: Path
    float_model: nn.Module
    loaded: nn.Module


@pytest.fixture(
    scope="module",
    params=[(one, bits) for one in PUBLISHED for bits in (4, 8)],
    ids=lambda param: f"{param[0].package}-{param[0].file}-int{param[1]}",
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Quantize, save and load."""
    published, bits = request.param
    result = mq.quantize(published.weights(), bits=bits, accuracy_warning="ignore")
    path = tmp_path_factory.mktemp("published") / f"{published.file}-int{bits}.safetensors"
    mq.save(result, path)
    loaded = mq.load(path, published.build().eval())
    return Case(published, bits, result, path, published.float_model(), loaded)


def test_the_report_covers_every_parameter(case: Case) -> None:
    """Each prefix of the state dict has one decision, and together they count what the float model counts."""
    layers = case.result.report.layers
    names = [record.name for record in layers]
    prefixes = {name.rpartition(".")[0] or "(root)" for name in case.published.state()}
    assert len(names) == len(set(names))
    assert set(names) == prefixes
    assert sum(record.parameters for record in layers) == sum(p.numel() for p in case.float_model.parameters())


def test_every_matrix_is_packed_or_a_rule_kept_it(case: Case) -> None:
    """What stays float holds no weight of two axes, or (for INT4, by its default) fewer than 512 parameters."""
    matrices = {name.rpartition(".")[0] for name, tensor in case.published.state().items() if tensor.dim() >= 2}
    kept = matrices - {record.name for record in case.result.report.by_action(mq.Action.QUANTIZE)}
    reasons = {record.name: record.reason for record in case.result.report.by_action(mq.Action.SKIP)}
    assert case.bits == 4 or not kept
    assert all("fewer than 512" in reasons[name] for name in kept)


def test_size_on_disk(case: Case) -> None:
    """Besides the packed tensors, the file takes at most 700 bytes a float tensor, for report and checksums."""
    before, after = case.published.path.stat().st_size, case.path.stat().st_size
    print(f"{case.published.file}: {before:,} -> {after:,} bytes on disk ({before / after:.2f}x)")  # noqa: T201
    assert after <= case.result.report.quantized_bytes + 700 * len(case.published.state())


def test_output(case: Case) -> None:
    """The loaded model's output keeps 30 dB with INT8, and with INT4 about what was measured once."""
    inputs = case.published.input()
    with torch.no_grad():
        decibels = sqnr_db(case.float_model(inputs), case.loaded(inputs))
    print(f"{case.published.file} INT{case.bits}: output {decibels:.2f} dB")  # noqa: T201
    assert decibels >= (INT8_DB if case.bits == 8 else case.published.int4_db)


def test_the_model_itself_gives_the_same(case: Case) -> None:
    """Quantizing the module instead of its state dict computes the same bits."""
    inputs = case.published.input()
    from_module = mq.quantize(case.float_model, bits=case.bits, accuracy_warning="ignore").model
    with torch.no_grad():
        assert torch.equal(from_module(inputs), case.loaded(inputs))


def test_a_checkpoint_is_refused_with_the_way_out() -> None:
    """Resemblyzer's file holds the state dict under a key, which the error names."""
    checkpoint = next(one for one in PUBLISHED if one.key is not None)
    with pytest.raises(mq.InputError, match=rf"quantize\(state\['{checkpoint.key}'\]\)"):
        mq.quantize(checkpoint.path)


def sqnr_db(reference: Tensor, output: Tensor) -> float:
    """Signal-to-noise ratio of an output."""
    signal, noise = reference.double().square().sum(), (reference.double() - output).square().sum()
    return 10 * math.log10(float(signal / noise))
