"""INT8 on a real sentence-embedding model: weights only, and inputs too, quantized on each call or as calibrated."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from tests_real.minilm import build_model, calibration_and_held_out, embed, tokenized

# Least mean cosine to the float embeddings; what is asked of weight-only, and what was measured less .002.
COSINES = {None: 0.9995, "dynamic": 0.9955, "static": 0.991}
LEAST_DB = {None: 25.0, "dynamic": 25.0, "static": 24.0}
CLASSES = {None: mq.Int8Linear, "dynamic": mq.Int8DynamicLinear, "static": mq.Int8StaticLinear}


@attrs.frozen(eq=False)
class Float:
    """The float model, what to calibrate it with, what to measure on, and what it says there."""

    model: nn.Module
    calibration: list[dict[str, Tensor]]
    batches: list[dict[str, Tensor]]
    embeddings: Tensor


@attrs.frozen(eq=False)
class Case:
    """MiniLM quantized one way."""

    activations: str | None
    float: Float
    result: mq.QuantResult
    embeddings: Tensor


@pytest.fixture(scope="module")
def floats() -> Float:
    """150 sentences to calibrate with, 200 others to measure on."""
    calibration, held_out = calibration_and_held_out()
    model, batches = build_model(), tokenized(held_out, 50)
    return Float(model, tokenized(calibration, 16), batches, embed(model, batches))


@pytest.fixture(scope="module", params=COSINES, ids=lambda activations: activations or "weight-only")
def case(request: pytest.FixtureRequest, floats: Float) -> Case:
    """Quantize; with the calibration data, so that layer outputs are measured."""
    result = mq.quantize(
        floats.model,
        bits=8,
        activations=request.param,
        calibration_data=floats.calibration,
        accuracy_warning="error",
    )
    return Case(request.param, floats, result, embed(result.model, floats.batches))


def test_all_linears_and_embeddings_are_packed(case: Case) -> None:
    """37 Linears and 3 Embeddings are packed, each Linear computing as asked; norms hold no matrix, and are told."""
    records = {record.name: record for record in case.result.report.layers}
    floats = {name: type(module) for name, module in case.float.model.named_modules() if name in records}
    packed = set(case.result.info.selected_layers)
    assert packed == {name for name, kind in floats.items() if kind in (nn.Linear, nn.Embedding)}
    assert len(packed) == 40
    linears = {name for name, kind in floats.items() if kind is nn.Linear}
    assert {type(case.result.model.get_submodule(name)) for name in linears} == {CLASSES[case.activations]}
    assert {records[name].kind for name in records.keys() - packed} == {"LayerNorm"}
    parameters = sum(parameter.numel() for parameter in case.float.model.parameters())
    assert sum(record.parameters for record in records.values()) == parameters


def test_embeddings_that_compute_in_float_are_told(case: Case) -> None:
    """Where Linears multiply integers, a finding names what cannot."""
    told = {finding.layer for finding in case.result.report.findings if finding.code == "float-compute"}
    names = {name for name, module in case.float.model.named_modules() if isinstance(module, nn.Embedding)}
    assert told == (names if case.activations else set())


def test_every_measured_layer_output_keeps_most_of_its_signal(case: Case) -> None:
    """All 40 packed layers are measured, on real tokens only, and none is worse; fixed ranges cost a little."""
    outputs = {r.name: r.output_sqnr_db for r in case.result.report.by_action(mq.Action.QUANTIZE)}
    worst = min(outputs, key=lambda name: outputs[name] or 0.0)
    how = case.activations or "weight-only"
    print(f"{how}: median {case.result.info.sqnr_db:.2f} dB, worst {outputs[worst]:.2f} dB in {worst}")  # noqa: T201
    assert all(decibels is not None and decibels >= LEAST_DB[case.activations] for decibels in outputs.values())


def test_accuracy(case: Case) -> None:
    """The embeddings of 200 sentences keep their direction."""
    cosines = (case.float.embeddings * case.embeddings).sum(-1)
    mean, worst = float(cosines.mean()), float(cosines.min())
    print(f"{case.activations or 'weight-only'}: mean cosine {mean:.5f}, worst {worst:.5f}")  # noqa: T201
    assert mean >= COSINES[case.activations]


def test_a_loaded_file_embeds_the_same(case: Case, tmp_path: Path) -> None:
    """Saved and loaded, a quarter of the size, the model computes the same bits."""
    path = tmp_path / "minilm-int8.safetensors"
    mq.save(case.result, path)
    before, after = sum(4 * p.numel() for p in case.float.model.parameters()), path.stat().st_size
    how = case.activations or "weight-only"
    print(f"{how}: {before:,} -> {after:,} bytes on disk ({before / after:.2f}x)")  # noqa: T201
    loaded = mq.load(path, build_model())
    assert torch.equal(embed(loaded, case.float.batches), case.embeddings)
    assert before / after >= 3.9


def test_the_short_calls_do_the_same(floats: Float) -> None:
    """dynamic_quantize and static_quantize are quantize with other defaults."""
    dynamic, _ = mq.dynamic_quantize(floats.model, run_validation=False)
    static, info = mq.static_quantize(floats.model, floats.calibration, run_validation=False)
    for model, activations in ((dynamic, "dynamic"), (static, "static")):
        same = mq.quantize(
            floats.model,
            bits=8,
            activations=activations,
            calibration_data=floats.calibration,
            run_validation=False,
        )
        assert torch.equal(embed(model, floats.batches[:1]), embed(same.model, floats.batches[:1]))
    assert len(info.selected_layers) == 40
