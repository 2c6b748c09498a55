"""Folders in GPTQ: layout, configuration, refusals, and the check of what was written.

That gptqmodel and transformers read them is tested in tests_gptq.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import monoquant as mq
from monoquant.formats import gptq
from tests.formats.pretrained import Small, changed, other_config, place_of, quantized, saved, small

FORMAT = "gptq"
LINEARS = ("block.0", "block.2")


def half(**options: Any) -> Small:
    return small(**options).half()


def spread(model: nn.Module) -> nn.Module:
    """Groups of one sign, whose zero points are the first code and the last one, among others."""
    with torch.no_grad():
        for name in LINEARS:
            weight = model.get_submodule(name).weight
            weight[0].abs_()
            weight[1].abs_().neg_()
    return model


def codes_of(words: list[int], bits: int) -> list[int]:
    whole = sum((word & 0xFFFFFFFF) << 32 * position for position, word in enumerate(words))
    return [whole >> bits * position & ((1 << bits) - 1) for position in range(len(words) * 32 // bits)]


def as_read(tensors: dict[str, Tensor], name: str, bits: int, added: int) -> Tensor:
    """A weight, read number by number."""
    codes = [codes_of(column, bits) for column in tensors[f"{name}.qweight"].t().tolist()]
    zeros = [codes_of(row, bits) for row in tensors[f"{name}.qzeros"].tolist()]
    scales, groups = tensors[f"{name}.scales"].tolist(), tensors[f"{name}.g_idx"].tolist()
    rows = [
        [(code - zeros[group][row] - added) * scales[group][row] for code, group in zip(column, groups, strict=True)]
        for row, column in enumerate(codes)
    ]
    return torch.tensor(rows, dtype=torch.float64)


@settings(deadline=None, max_examples=12)
@given(
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    group_size=st.sampled_from([None, 16, 32]),
    seed=st.integers(0, 99),
)
def test_a_straightforward_reader_gets_the_dequantized_weights(
    tmp_path_factory: pytest.TempPathFactory, bits: int, symmetric: bool, group_size: int | None, seed: int
) -> None:
    """Zero points of 0 and of the largest code included; each tensor in its dtype and shape."""
    model = half()
    generator = torch.Generator().manual_seed(seed)
    for name in LINEARS:
        weight = model.get_submodule(name).weight
        weight.data = torch.randn(weight.shape, generator=generator).half()
    options = {"symmetric": symmetric, "group_size": group_size or 128, "scale_dtype": torch.float16}
    if group_size is None and bits == 8:
        options["group_size"] = None
    rules = {} if bits == 4 else {"modules_to_not_convert": ["lm_head"]}
    result = quantized(spread(model), bits, **options, **rules)
    config, tensors = saved(result, tmp_path_factory.mktemp("gptq") / "m", FORMAT)
    found = config["quantization_config"]
    assert (found["bits"], found["group_size"], found["sym"]) == (bits, group_size or -1, symmetric)
    assert found["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
    expected = mq.dequantize(result.model)
    for name in LINEARS:
        weight = expected.get_submodule(name).weight
        rows, columns = weight.shape
        groups = columns // (group_size or columns)
        shapes = {part: tuple(tensors[f"{name}.{part}"].shape) for part in ("qweight", "qzeros", "scales", "g_idx")}
        assert shapes == {
            "qweight": (columns * bits // 32, rows),
            "qzeros": (groups, rows * bits // 32),
            "scales": (groups, rows),
            "g_idx": (columns,),
        }
        assert tensors[f"{name}.scales"].dtype == torch.float16
        assert {tensors[f"{name}.{part}"].dtype for part in ("qweight", "qzeros", "g_idx")} == {torch.int32}
        read = as_read(tensors, name, bits, 1 if symmetric else 0)
        assert torch.equal(read.to(torch.float32).half(), weight)
        if not symmetric:
            zeros = [codes_of(row, bits) for row in tensors[f"{name}.qzeros"].tolist()]
            assert (zeros[0][0], zeros[0][1]) == (0, (1 << bits) - 1)


def test_both_readers_are_told_which_layers_are_packed(tmp_path: Path) -> None:
    """Packed ones by their full names, float ones each by a pattern of its own; all other tensors are as they are."""
    result = quantized(half(), modules_to_not_convert=["lm_head", "block.0"])
    config, tensors = saved(result, tmp_path / "m", FORMAT)
    assert (config["architectures"], config["dtype"]) == (["Small"], "float16")
    assert config["quantization_config"] == {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "dynamic": {"-:^block\\.0$": {}, "-:^lm_head$": {}},
        "block_name_to_quantize": "",
        "modules_in_block_to_quantize": [["block.2"]],
    }
    kept = {name: one for name, one in result.model.state_dict().items() if "packed_" not in name}
    assert tensors.keys() == kept.keys() | {f"block.2.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    assert all(torch.equal(tensors[name], one) for name, one in kept.items())


def mixed(symmetric: bool) -> mq.QuantResult:
    rules = [mq.NameRule("block.2", skip_to="int8"), mq.NameRule("embed")]
    return quantized(half(), symmetric=symmetric, scale_dtype=torch.float16, rules=rules)


@pytest.mark.parametrize("symmetric", [True, False])
def test_schemes_other_than_the_usual_one_are_listed(tmp_path: Path, symmetric: bool) -> None:
    """The layer's own bits and group size; one asymmetric layer makes all zero points those of the second version."""
    result = mixed(symmetric)
    config, tensors = saved(result, tmp_path / "m", FORMAT)
    found = config["quantization_config"]
    assert (found["bits"], found["group_size"], found["sym"]) == (4, 32, symmetric)
    assert found["dynamic"] == {"+:^block\\.2$": {"bits": 8, "group_size": -1}, "-:^lm_head$": {}}
    expected = mq.dequantize(result.model)
    for name, bits in zip(LINEARS, (4, 8), strict=True):
        read = as_read(tensors, name, bits, 1 if symmetric else 0)
        assert torch.equal(read.to(torch.float32).half(), expected.get_submodule(name).weight)


def test_a_packed_head_and_16_bit_layers(tmp_path: Path) -> None:
    """gptqmodel has a flag for the head; 16-bit weights are plain ones."""
    model = half()
    model.lm_head = nn.Linear(64, 64, bias=False).half()
    rules = [mq.NameRule("block.2", skip_to="float16")]
    config, tensors = saved(quantized(model, modules_to_not_convert=[], rules=rules), tmp_path / "m", FORMAT)
    found = config["quantization_config"]
    assert found["lm_head"] is True
    assert found["modules_in_block_to_quantize"] == [["block.0", "lm_head"]]
    assert tensors["block.2.weight"].dtype == torch.float16


def test_bfloat16_models_with_scales_of_their_dtype(tmp_path: Path) -> None:
    """They are stored in float16, which holds them."""
    result = quantized(small().to(torch.bfloat16), scale_dtype=torch.bfloat16)
    config, tensors = saved(result, tmp_path / "m", FORMAT)
    assert config["dtype"] == "bfloat16"
    weight = mq.dequantize(result.model).get_submodule("block.0").weight
    read = as_read(tensors, "block.0", 4, 1).to(torch.float32)
    assert torch.equal(read.to(torch.bfloat16), weight)


def _tiny_scales() -> mq.QuantResult:
    model = small().to(torch.bfloat16)
    model.block[0].weight.data.mul_(1e-6)
    return quantized(model, scale_dtype=torch.bfloat16)


REFUSED: dict[str, tuple[Callable[[], mq.QuantResult], str, list[str]]] = {
    "float32": (
        lambda: quantized(),
        r"its dtype is torch.float32, and readers compute in float16 or bfloat16; quantize model.half\(\), or call res",
        [*LINEARS],
    ),
    "odd": (
        lambda: quantized(half(width=80), group_size=16),
        r"'block.0': its 80 input features are no multiple of 32,.*\n.*'block.2': its 80 output features",
        [*LINEARS],
    ),
    "head": (
        lambda: quantized(half(), 8, scale_dtype=torch.float16, rules=[mq.NameRule("block")]),
        r"'lm_head': its 40 output features are no multiple of 32, as readers need; skip it by modules_to_not_convert",
        ["lm_head"],
    ),
    "group": (
        lambda: quantized(half(), group_size=8),
        "group_size=8, which readers do not know; quantize with one of 16, 32, 64, ",
        [*LINEARS],
    ),
    "ragged": (lambda: quantized(half(), group_size=64), "96 input features are no multiple of .*=64", ["block.2"]),
    "scale": (
        lambda: quantized(half(), 8, modules_to_not_convert=["lm_head"]),
        r"in torch.float16, which rounds its torch.float32 scales; quantize with scale_dtype=torch.float16",
        [*LINEARS],
    ),
    "bfloat16": (
        lambda: quantized(small().to(torch.bfloat16)),
        "in torch.bfloat16, which rounds its torch.float16 scales; quantize with scale_dtype=torch.bfloat16\n",
        [*LINEARS],
    ),
    "tiny": (_tiny_scales, r"scales are too small or too large for float16.*; quantize model.half", ["block.0"]),
    "embedding": (
        lambda: quantized(half(), 8, skip_layer_types=[], modules_to_not_convert=["block", "lm_head"]),
        "only nn.Linear can be packed, not Embedding",
        ["embed"],
    ),
    "inputs": (
        lambda: quantized(
            half(), 8, activations="dynamic", scale_dtype=torch.float16, modules_to_not_convert=["lm_head"]
        ),
        "inputs are quantized to INT8.*activations=None",
        [*LINEARS],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_the_format_cannot_hold_are_refused_before_writing(tmp_path: Path, case: str) -> None:
    """All of them at once, each with the way out; nothing is left."""
    result, message, layers = REFUSED[case][0](), *REFUSED[case][1:]
    with pytest.raises(mq.FileError, match=message) as caught:
        mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    assert sorted(caught.value.layers) == layers
    assert str(caught.value).startswith("gptq cannot hold these layers:")
    assert not list(tmp_path.iterdir())


def test_all_kinds_of_obstacles_are_told_at_once() -> None:
    """One line a kind, asked before the work, when packed weights have no values yet."""
    model = quantized(small(80), group_size=8).model.to("meta")
    with pytest.raises(
        mq.FileError,
        match=r"(?s)- 'block.0': its 80 input.*\n- 'block.0', 'block.2': group_size=8.*\n- .*: its dtype is torch.fl",
    ):
        gptq.GptqExporter().require_held(model)


@pytest.mark.parametrize(
    ("dtype", "scale", "held"),
    [
        (torch.float16, torch.float16, True),
        (torch.float16, torch.float32, False),
        (torch.bfloat16, torch.float16, False),
        (torch.bfloat16, torch.bfloat16, True),
    ],
)
def test_scales_without_values_are_judged_by_their_dtype(dtype: torch.dtype, scale: torch.dtype, held: bool) -> None:
    """What would be refused after the work is refused before it."""
    model = quantized(small().to(dtype), scale_dtype=scale).model.to("meta")
    if held:
        gptq.GptqExporter().require_held(model)
        return
    with pytest.raises(mq.FileError, match=f"which rounds its {scale} scales; quantize with scale_dtype={dtype}"):
        gptq.GptqExporter().require_held(model)


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    """Not of transformers; nothing packed; without weights."""
    other = quantized(nn.Sequential(nn.Linear(64, 64)).half())
    with pytest.raises(mq.FileError, match="holds models of transformers, and this is a Sequential"):
        mq.save(other, tmp_path / "m", FORMAT, plugins=False)
    halves = mq.quantize(small(), dtype=torch.float16, plugins=False, accuracy_warning="ignore")
    with pytest.raises(mq.FileError, match="no layer of the model is packed in codes"):
        mq.save(halves, tmp_path / "m", FORMAT, plugins=False)
    empty = quantized(half())
    empty.model.to("meta")
    with pytest.raises(mq.FileError, match="on the meta device"):
        mq.save(empty, tmp_path / "m", FORMAT, plugins=False)
    assert not list(tmp_path.iterdir())


def _swapped(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def swapped(matrix: Any) -> Tensor:
        codes = original(matrix).view(torch.uint8)
        return (codes << 4 | codes >> 4).view(torch.int32)

    return swapped


def _minus_one(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda matrix, offset: original(matrix, offset + 1)


def _no_floats(original: Callable[..., list[str]]) -> Callable[..., list[str]]:
    return lambda model: original(model)[1:]


BROKEN: dict[str, tuple[str, Callable[..., Any], str]] = {
    "float": ("float_linears", _no_floats, "gptqmodel would take lm_head for one of 4 bits .*; it is a float layer"),
    "listed": (
        "config_of",
        other_config(modules_in_block_to_quantize=[["block.0"]]),
        "modules_in_block_to_quantize, which optimum reads, is wrong about block.2; it is one of 4 bits",
    ),
    "ending": (
        "config_of",
        other_config(modules_in_block_to_quantize=[[*LINEARS, "head"]]),
        "which optimum reads, is wrong about lm_head; it is a float layer",
    ),
    "prefix": ("config_of", other_config(block_name_to_quantize="layers"), "'layers' instead of ''"),
    "bits": ("config_of", other_config(bits=8), "take block.0 for one of 8 bits .*; it is one of 4 bits"),
    "size": ("config_of", other_config(group_size=64), "for one of 4 bits with group_size=64; it is"),
    "order": ("config_of", other_config(desc_act=True), "config.desc_act is True instead of False"),
    "symmetry": ("config_of", other_config(sym=False), "config.sym is False instead of True"),
    "version": ("config_of", other_config(checkpoint_format="gptq_v2"), "'gptq_v2' instead of 'gptq'"),
    "method": ("config_of", other_config(quant_method="awq"), "quant_method is 'awq' instead of 'gptq'"),
    "head": ("config_of", other_config(lm_head=True), "lm_head is True instead of False"),
    "nibbles": ("packed_words", _swapped, "block.0.qweight holds other codes"),
    "words": ("packed_words", lambda original: lambda one: original(one)[:, :-1], "block.0.qweight holds other codes"),
    "zeros": ("_zero_words", _minus_one, "block.0.qzeros holds other zero points"),
    "narrow": ("_zero_words", lambda original: lambda *one: original(*one)[:, :-1], "qzeros holds other zero points"),
    "scales": ("write_folder", changed(lambda t: t["block.0.scales"].mul_(2)), "block.0.scales has other"),
    "groups": ("write_folder", changed(lambda t: t["block.2.g_idx"].zero_()), "block.2.g_idx puts features"),
    "values": ("write_folder", changed(lambda t: t["norm.weight"].add_(1)), "norm.weight has other values"),
    "missing": ("write_folder", changed(lambda t: t.pop("block.0.g_idx")), "tensor block.0.g_idx is missing"),
    "more": ("write_folder", changed(lambda t: t.update(x=torch.ones(1))), "tensor x is none of the model"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_writer_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """What is wrong is told, and nothing is left."""
    name, broken, message = BROKEN[case]
    place = place_of(name, gptq, gptq.GptqExporter)
    monkeypatch.setattr(place, name, broken(getattr(place, name)))
    with pytest.raises(mq.FileError, match=message) as caught:
        mq.save(quantized(half()), tmp_path / "m", FORMAT, plugins=False)
    assert "what was written is not what it should be" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_lost_scheme_of_one_layer_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers would unpack it as the others."""
    exporter = gptq.GptqExporter
    monkeypatch.setattr(exporter, "config_of", other_config(dynamic={})(exporter.config_of))
    with pytest.raises(
        mq.FileError, match=r"take block.2 for one of 4 bits with group_size=32; it is one of 8 bits wi"
    ):
        mq.save(mixed(True), tmp_path / "m", FORMAT, plugins=False)
