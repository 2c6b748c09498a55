"""INT4 on a real sentence-embedding model: size on disk, accuracy, gate, and a reload in another process."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import monoquant as mq
from tests_real.minilm import build_model, calibration_and_held_out, embed, tokenized


@attrs.frozen(eq=False)
class Case:
    """One quantized MiniLM with all that the tests look at."""

    model: nn.Module
    result: mq.QuantResult
    path: Path
    texts: list[str]
    reference: Tensor
    embeddings: Tensor


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Quantize with 150 calibration sentences; measure on 200 others."""
    calibration, held_out = calibration_and_held_out()
    model = build_model()
    result = mq.quantize(
        model, bits=4, group_size=128, calibration_data=tokenized(calibration, 16), accuracy_warning="ignore"
    )
    path = tmp_path_factory.mktemp("minilm") / "minilm-int4.safetensors"
    mq.save(result, path)
    batches = tokenized(held_out, 50)
    return Case(model, result, path, held_out, embed(model, batches), embed(result.model, batches))


def test_all_encoder_linears_are_packed_and_the_rest_is_told(case: Case) -> None:
    """36 Linears in the encoder (and the pooler's) are packed; embeddings and norms stay float by rule."""
    packed = set(case.result.info.selected_layers)
    assert {name for name, module in case.model.named_modules() if isinstance(module, nn.Linear)} == packed
    assert sum(name.startswith("encoder.") for name in packed) == 36
    assert {record.kind for record in case.result.report.by_action(mq.Action.SKIP)} == {"Embedding", "LayerNorm"}
    assert case.result.info.unsupported_layers == []
    parameters = sum(parameter.numel() for parameter in case.model.parameters())
    assert sum(record.parameters for record in case.result.report.layers) == parameters


def test_size_on_disk(case: Case) -> None:
    """At most 4.16 bits per packed weight, scales and zero_points included, and 0.06 for the metadata."""
    with safe_open(case.path, framework="pt") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118 - a safe_open is no mapping
    weights = sum(record.shape[0] * record.shape[1] for record in case.result.report.by_action(mq.Action.QUANTIZE))
    packed_bits = 8 * sum(size for name, size in sizes.items() if ".packed_weight." in name) / weights
    metadata_bits = 8 * (case.path.stat().st_size - sum(sizes.values())) / weights
    print(f"{packed_bits:.4f} bits per packed weight, {metadata_bits:.4f} of metadata")  # noqa: T201 - a figure to quote
    assert packed_bits <= 4.16
    assert metadata_bits <= 0.06


def test_accuracy(case: Case) -> None:
    """The embeddings of 200 sentences keep a mean cosine of at least 0.955 to those of the float model."""
    cosine = float((case.reference * case.embeddings).sum(-1).mean())
    print(f"mean cosine {cosine:.4f}, median layer output {case.result.info.sqnr_db:.2f} dB")  # noqa: T201
    assert cosine >= 0.955


def test_the_gate_passes(case: Case) -> None:
    """A healthy model has no CRITICAL finding, and passes a build that fails on one."""
    assert not [f for f in case.result.report.findings if f.severity is mq.Severity.CRITICAL]
    mq.check_accuracy_warnings(case.result.info, sqnr_warning_threshold=15.0, on_failure="error")


RELOAD = """
import hashlib, json, sys
import monoquant as mq
from tests_real.minilm import build_model, embed, tokenized
model = mq.load(sys.argv[1], build_model())
embeddings = embed(model, tokenized(json.load(sys.stdin), 50))
print(hashlib.sha256(str(embeddings.tolist()).encode()).hexdigest())
"""


def test_reload_in_another_process_is_bit_equal(case: Case) -> None:
    """The file gives the same embeddings, bit for bit, in a process of its own."""
    command = [sys.executable, "-c", RELOAD, str(case.path)]
    texts, root = json.dumps(case.texts), Path(__file__).parents[1]
    done = subprocess.run(command, input=texts, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split()[-1] == hashlib.sha256(str(case.embeddings.tolist()).encode()).hexdigest()


def test_planted_fault_is_found(case: Case) -> None:
    """Swapped nibbles in one layer of the real model are named."""
    packed = case.result.model.encoder.layer[3].output.dense.packed_weight
    intact = packed.qweight.clone()
    packed.qweight.copy_((packed.qweight << 4) | (packed.qweight >> 4))
    try:
        with pytest.raises(mq.ValidationError) as caught:
            mq.validate_quantization(case.model, case.result.model)
    finally:
        packed.qweight.copy_(intact)
    assert caught.value.layers == ("encoder.layer.3.output.dense",)
    assert torch.equal(packed.qweight, intact)
