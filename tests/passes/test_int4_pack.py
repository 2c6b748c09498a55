"""Int4PackPass: settings, what it refuses before any work, what it reports."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.numerics.affine import dequantize, round_to_nearest


def run(model: nn.Module, *passes: mq.Pass, **settings: Any) -> mq.QuantResult:
    """Select nothing to skip, then pack."""
    return mq.Quantizer([mq.SkipSelectionPass(), *passes, mq.Int4PackPass(**settings)]).run(model)


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [1, 7, 64, 96, 4096])
def test_settings_decide_the_packed_weight(group_size: int, symmetric: bool, scale_dtype: torch.dtype) -> None:
    """The packed layer holds exactly the numerics' result for the same scheme."""
    linear = nn.Linear(96, 40)
    scheme = mq.Scheme(4, group_size, symmetric, scale_dtype)
    packed = run(linear, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype).model
    codes = round_to_nearest(linear.weight.detach(), scheme)
    assert torch.equal(packed.weight, dequantize(codes.codes, codes.scale, codes.zero_point, group_size))
    assert packed.packed_weight.scale.dtype == scale_dtype
    assert (packed.packed_weight.zero_point is None) == symmetric


BAD_SETTINGS = [
    ({"group_size": 0}, "group_size=0"),
    ({"group_size": -128}, "group_size=-128"),
    ({"group_size": 64.0}, r"group_size=64\.0"),
    ({"group_size": True}, "group_size=True"),
    ({"symmetric": 1}, "symmetric=1"),
    ({"scale_dtype": torch.float64}, r"scale_dtype=torch\.float64.*torch\.float16, torch\.bfloat16, torch\.float32"),
    ({"scale_dtype": "float16"}, "scale_dtype='float16'"),
]


@pytest.mark.parametrize(("settings", "text"), BAD_SETTINGS, ids=[text for _, text in BAD_SETTINGS])
def test_bad_settings_are_refused_when_built(settings: dict[str, Any], text: str) -> None:
    """Each wrong setting is a ConfigError before any model is seen."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.Int4PackPass(**settings)


@pytest.mark.parametrize("bits", [2, 3, 16, True, "4", 4.0, None])
def test_only_four_or_eight_bits(bits: Any) -> None:
    """Other widths are refused rather than rounded to something else."""
    with pytest.raises(mq.ConfigError, match=r"bits=.*give bits=4 or bits=8"):
        mq.Scheme(bits=bits)


def test_the_pass_has_four_bits() -> None:
    """Whatever else is set, codes have 4 bits; a whole row may share a scale."""
    assert mq.Int4PackPass().scheme == mq.Scheme() == mq.Scheme(4, 128, False, torch.float16)
    linear = nn.Linear(96, 40)
    packed = run(linear, group_size=None, symmetric=True).model.packed_weight
    assert (packed.scheme.bits, packed.scale.shape) == (4, (40, 1))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_broken_weights_are_all_named_before_any_work(poison: float, unchanged: Any) -> None:
    """NaN and Inf stop the run before calibration, with every such layer."""
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32))
    with torch.no_grad():
        model[0].weight[3, 5] = poison
        model[2].weight[0, 0] = poison

    def never() -> Any:
        raise AssertionError("no data may be drawn")
        yield

    with pytest.raises(mq.InputError, match=r"NaN or Inf: '0', '2'; repair") as caught:
        run(model, mq.CalibrationPass(never()))
    assert caught.value.layers == ("0", "2")


def test_broken_weights_may_be_skipped() -> None:
    """A layer kept in float may hold anything."""
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    result = mq.Quantizer([mq.SkipSelectionPass(mq.NameRule("0")), mq.Int4PackPass()]).run(model)
    assert result.info.selected_layers == ["1"]


def test_weights_too_large_for_the_scales_are_named() -> None:
    """A group that spans more than float16 scales can express is refused with the way out, which works."""
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    with torch.no_grad():
        model[1].weight[0, 0] = 1e7
    with pytest.raises(
        mq.InputError, match=r"too large for torch\.float16 scales: '1'; use scale_dtype=torch\.float32"
    ):
        run(model)
    packed = run(model, scale_dtype=torch.float32).model[1]
    assert float(packed.weight[0, 0]) == pytest.approx(1e7, rel=1e-6)


def test_meta_weights_are_refused_in_a_run() -> None:
    """A plan works on meta tensors, a run cannot."""
    model = nn.Sequential(nn.Linear(32, 32)).to("meta")
    with pytest.raises(mq.InputError, match="meta device: '0'; load real weights"):
        run(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_of_the_model_is_kept(dtype: torch.dtype) -> None:
    """The packed layer takes and gives the dtype that the float layer did."""
    model = nn.Sequential(nn.Linear(48, 40), nn.Linear(40, 8)).to(dtype)
    result = run(model)
    assert result.model[0].weight.dtype == dtype
    assert result.model(torch.randn(3, 48, dtype=dtype)).dtype == dtype
    assert {record.dtype for record in result.report.layers} == {dtype}


def test_tiny_weights_are_reported() -> None:
    """Scales below the smallest normal float16 lose precision: a finding names the layer, float32 scales cure it."""
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    with torch.no_grad():
        model[0].weight.mul_(1e-4)
    findings = [(f.code, f.layer) for f in run(model).report.findings if f.code == "scale-underflow"]
    assert findings == [("scale-underflow", "0")]
    assert not [f for f in run(model, scale_dtype=torch.float32).report.findings if f.code == "scale-underflow"]


def test_what_is_no_linear_is_packed_or_told() -> None:
    """Convolutions and own forwards are packed; what cannot be is told apart from rules, with a reason."""

    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * 2

    class Slotted(nn.Linear):
        __slots__ = ("extra",)

    model = nn.Sequential(nn.Linear(32, 32), Scaled(32, 32), nn.Conv1d(32, 32, 1), Slotted(32, 32), nn.LayerNorm(32))
    result = run(model)
    records = result.report.layers
    actions = ["quantize", "quantize", "quantize", "unsupported", "unsupported"]
    assert [record.action.value for record in records] == actions
    assert [record.reason for record in records[:3]] == [
        "Linear weight to int4 g128 asymmetric float16",
        "Scaled weight to int4 g128 asymmetric float16",
        "Conv1d weight to int4 g128 asymmetric float16",
    ]
    assert "defines __slots__" in records[3].reason
    assert records[3].remedy == "remove the __slots__"
    assert records[4].reason == "LayerNorm has no weight matrix"
    x = torch.randn(3, 32)
    own, plain = result.model[1], nn.functional.linear(x, result.model[1].weight, model[1].bias)
    assert torch.equal(own(x), plain * 2)


PEAK_SCRIPT = """
import re, torch, monoquant as mq
from torch import nn

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

model = nn.Sequential(*(nn.Linear(4096, 4096, bias=False) for _ in range(2)))
passes = [mq.SkipSelectionPass(), mq.Int4PackPass(), mq.ValidationPass(), mq.AccuracyWarningPass("ignore")]
mq.Quantizer(passes).run(nn.Linear(256, 64))  # load what is loaded lazily
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
result = mq.Quantizer(passes).run(model, inplace=True)
print(status("VmHWM") - before, sum(record.bytes_after for record in result.report.layers))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to reset the peak of a process")
def test_peak_memory_is_the_result_plus_less_than_one_layer() -> None:
    """In place, packing and measuring never hold one whole float layer beyond the model and the packed result."""
    done = subprocess.run([sys.executable, "-c", PEAK_SCRIPT], capture_output=True, text=True, check=True)
    extra, packed = map(int, done.stdout.split())
    assert extra < packed + 4096 * 4096 * 4


def test_quantizing_a_quantized_model_is_refused(small: nn.Module) -> None:
    """A second run would quantize nothing or twice: it names the layers that are packed."""
    result = run(copy.deepcopy(small))
    with pytest.raises(mq.InputError, match=r"already quantized: .*'blocks\.0\.up', "):
        run(result.model)
