"""Folders in compressed-tensors pack-quantized: layout, configuration, refusals, and the check of what was written.

That transformers reads them is tested in tests_interop.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

import monoquant as mq
from monoquant.formats import compressed_tensors, folder, words
from monoquant.modules.packed_matrix import PackedMatrix
from tests.formats.pretrained import Config, Small, changed, other_config, place_of, quantized, saved, small

FORMAT = "compressed-tensors"


@given(rows=st.integers(1, 5), columns=st.integers(1, 70), bits=st.sampled_from([4, 8]), seed=st.integers(0, 99))
def test_words_hold_unsigned_codes_first_one_lowest(rows: int, columns: int, bits: int, seed: int) -> None:
    """Bit i * bits + j of a row is bit j of code i, as the format has it; the rest is zero."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    matrix, _ = PackedMatrix.pack(weight, mq.Scheme(bits, None, True))
    packed = words.packed_words(matrix)
    assert (packed.dtype, tuple(packed.shape)) == (torch.int32, (rows, -(-columns * bits // 32)))
    for row, codes in zip(packed.tolist(), matrix.read_rows(slice(None)).codes.tolist(), strict=True):
        whole = sum((word & 0xFFFFFFFF) << 32 * position for position, word in enumerate(row))
        assert whole == sum(code << bits * position for position, code in enumerate(codes))


def test_a_uniform_model_says_linear_and_lists_every_float_one(tmp_path: Path) -> None:
    """All names of what stays float, and all other tensors as they are."""
    result = quantized(modules_to_not_convert=["lm_head", "block.0"])
    config, tensors = saved(result, tmp_path / "m", FORMAT)
    assert (config["architectures"], config["dtype"], config["model_type"]) == (["Small"], "float32", "small")
    assert "_name_or_path" not in config
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "dynamic": False,
        "strategy": "group",
        "group_size": 32,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    assert config["quantization_config"] == {
        "quant_method": FORMAT,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["block.0", "lm_head"],
    }
    kept = {name: one for name, one in result.model.state_dict().items() if "packed_" not in name}
    packed = {f"block.2.{part}" for part in ("weight_packed", "weight_scale", "weight_shape")}
    assert tensors.keys() == kept.keys() | packed
    assert all(torch.equal(tensors[name], one) for name, one in kept.items())
    assert tensors["block.2.weight_shape"].tolist() == [64, 96]
    assert tensors["block.2.weight_shape"].dtype == torch.int64
    scale = result.model.block[2].packed_weight.scale  # type: ignore[union-attr, index]
    assert torch.equal(tensors["block.2.weight_scale"], scale.float())


def test_a_mixed_model_has_a_group_a_scheme_with_exact_names_more_bits_first(tmp_path: Path) -> None:
    """transformers' dequantize=True takes the first group for all; in this order it fails rather than errs."""
    rule = mq.NameRule("block.2", skip_to="int8")
    config, tensors = saved(quantized(rules=[rule]), tmp_path / "m", FORMAT)
    groups = config["quantization_config"]["config_groups"]
    assert [group["targets"] for group in groups.values()] == [["block.2"], ["block.0"]]
    assert [group["weights"]["num_bits"] for group in groups.values()] == [8, 4]
    assert groups["group_0"]["weights"]["strategy"] == "channel"
    assert "group_size" not in groups["group_0"]["weights"]
    assert tensors["block.2.weight_packed"].shape == (64, 96 // 4)


@pytest.mark.parametrize(("group_size", "found"), [(32, {"group"}), (64, {"group"}), (96, {"channel", "group"})])
def test_a_row_that_is_one_whole_group_is_a_group(tmp_path: Path, group_size: int, found: set[str]) -> None:
    """So that one scheme for all stays one; a shorter row is one channel."""
    model = small()
    if group_size == 64:
        model.block = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64))
    config, _ = saved(quantized(model, group_size=group_size), tmp_path / "m", FORMAT)
    groups = config["quantization_config"]["config_groups"].values()
    assert {group["weights"]["strategy"] for group in groups} == found
    assert len(groups) == len(found)


def test_16_bit_layers_are_float_weights(tmp_path: Path) -> None:
    """In the bytes that they take, embeddings included."""
    rules = [mq.NameRule("block.2", "embed", skip_to="float16")]
    result = quantized(rules=rules, skip_layer_types=[])
    config, tensors = saved(result, tmp_path / "m", FORMAT)
    assert config["quantization_config"]["ignore"] == ["block.2", "lm_head"]
    for name in ("block.2", "embed"):
        module = result.model.get_submodule(name)
        assert tensors[f"{name}.weight"].dtype == torch.float16
        assert torch.equal(tensors[f"{name}.weight"].float(), module.weight)  # type: ignore[arg-type]


def test_ties_that_transformers_makes_are_stored_once(tmp_path: Path) -> None:
    """And others under all their names; what is never saved is left out."""
    tied = small(tied=True)
    tied._keys_to_ignore_on_save = {"block.2.bias"}
    _, tensors = saved(quantized(tied), tmp_path / "a", FORMAT)
    assert "lm_head.weight" not in tensors
    assert "block.2.bias" not in tensors
    assert "embed.weight" in tensors
    unknown = small(tied=True)
    unknown.all_tied_weights_keys = {}
    _, tensors = saved(quantized(unknown), tmp_path / "b", FORMAT)
    assert torch.equal(tensors["lm_head.weight"], tensors["embed.weight"])
    broken = quantized(small(tied=True))
    broken.model.lm_head.weight = nn.Parameter(broken.model.lm_head.weight + 1)  # type: ignore[union-attr, operator]
    _, tensors = saved(broken, tmp_path / "c", FORMAT)
    assert torch.equal(tensors["lm_head.weight"], tensors["embed.weight"] + 1)


def _subclass() -> Small:
    model = small()
    model.block[0] = nn.modules.linear.NonDynamicallyQuantizableLinear(64, 96)
    return model


def _shared() -> Small:
    model = small()
    model.block[0] = model.block[2] = nn.Linear(64, 64)
    return model


def _tied() -> Small:
    model = small()
    model.block = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model.block[1].weight = model.block[0].weight
    return model


REFUSED: dict[str, tuple[Callable[[], mq.QuantResult], str, int]] = {
    "asymmetric": (lambda: quantized(symmetric=False), "are asymmetric, which .* fails to load.*symmetric=True", 2),
    "ragged": (lambda: quantized(group_size=40), "its 96 input features are no multiple .*=40.*group_size=32", 2),
    "odd": (lambda: quantized(small(63)), "63 input features are no multiple of .*=32; quantize with bits=8", 1),
    "embedding": (lambda: quantized(bits=8, skip_layer_types=[]), "only nn.Linear can be packed, not Embedding; ", 1),
    "subclass": (lambda: quantized(_subclass()), "not NonDynamicallyQuantizableLinear", 1),
    "inputs": (lambda: quantized(bits=8, activations="dynamic"), "inputs are quantized to INT8.*activations=None", 3),
    "shared": (lambda: quantized(_shared()), "shared with another layer", 1),
    "tied": (lambda: quantized(_tied()), "shared with another layer", 2),
    "scale": (
        lambda: quantized(small().to(torch.bfloat16)),
        r"in torch.bfloat16, which rounds its torch.float16 scales; quantize with scale_dtype=torch.bfloat16",
        2,
    ),
    "double": (
        lambda: quantized(small().double(), bits=8, scale_dtype=torch.float32),
        r"in torch.float64, which rounds its torch.float32 scales; quantize with scale_dtype=torch.float16",
        3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_the_format_cannot_hold_are_refused_before_writing(tmp_path: Path, case: str) -> None:
    """All of them at once, each with the way out; nothing is left."""
    result, message, count = REFUSED[case][0](), *REFUSED[case][1:]
    with pytest.raises(mq.FileError, match=message) as caught:
        mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    assert len(caught.value.layers) == count
    assert not list(tmp_path.iterdir())


def test_all_kinds_of_obstacles_are_told_at_once(tmp_path: Path) -> None:
    """One line a kind."""
    result = quantized(small(63), symmetric=False, skip_layer_types=[])
    with pytest.raises(
        mq.FileError, match=r"(?s)- 'embed': .*\n- 'block.0', 'block.2': its codes.*\n- 'block.0': its 63"
    ) as caught:
        mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    assert set(caught.value.layers) == {"embed", "block.0", "block.2"}


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    """Not of transformers; with code of their own; nothing packed; without weights."""
    other = quantized(nn.Sequential(nn.Linear(64, 64)))
    with pytest.raises(mq.FileError, match=r"holds models of transformers, and this is a Sequential.*\.safetensors"):
        mq.save(other, tmp_path / "m", FORMAT, plugins=False)
    coded = small()
    coded.config = Config(auto_map={"AutoModel": "own.Small"})
    with pytest.raises(mq.FileError, match="Small needs Python files of its own folder"):
        mq.save(quantized(coded), tmp_path / "m", FORMAT, plugins=False)
    halves = mq.quantize(small(), dtype=torch.float16, plugins=False, accuracy_warning="ignore")
    with pytest.raises(mq.FileError, match="no layer of the model is packed in codes"):
        mq.save(halves, tmp_path / "m", FORMAT, plugins=False)
    result = quantized()
    empty = attrs.evolve(result, model=result.model.to("meta"))
    with pytest.raises(mq.FileError, match="on the meta device"):
        mq.save(empty, tmp_path / "m", FORMAT, plugins=False)
    assert not list(tmp_path.iterdir())


def test_what_a_cast_on_loading_would_change_is_refused(tmp_path: Path) -> None:
    """Unless transformers keeps it, or it survives."""
    model = small().to(torch.bfloat16)
    model.norm.float().weight.data += 1e-5
    result = quantized(model, scale_dtype=torch.bfloat16)
    with pytest.raises(mq.FileError, match=r"casts all weights to torch.bfloat16, which would change 'norm.weight'"):
        mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    result.model._keep_in_fp32_modules = ["norm"]  # type: ignore[assignment]
    mq.save(result, tmp_path / "m", FORMAT, plugins=False)
    result.model.block[0].packed_weight.dtype = torch.float32  # type: ignore[union-attr, index]
    with pytest.raises(mq.FileError, match=r"its dtype is torch.float32, that of the model torch.bfloat16"):
        mq.save(result, tmp_path / "n", FORMAT, plugins=False)


def test_names_that_transformers_changes_on_loading_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in models whose files know their parts by other names."""

    class Rule:
        def __init__(self, old: str, new: str) -> None:
            self.old, self.new = old, new

        def rename_source_key(self, name: str) -> tuple[str, str | None]:
            return name.replace(self.old, self.new), self.old if self.old in name else None

    class Converter(Rule):
        operations = ("merge",)

    class Mapping:
        def __init__(self, *rules: Rule) -> None:
            self.rules = rules

        def get_model_conversion_mapping(self, model: nn.Module) -> tuple[Rule, ...]:
            return self.rules

    name = "transformers.conversion_mapping"
    for rule in (Rule("block", "layers"), Converter("block", "block")):
        monkeypatch.setitem(__import__("sys").modules, name, Mapping(Rule("gamma", "weight"), rule))
        with pytest.raises(mq.FileError, match=r"(?s)'block.0.bias'.*'block.2.weight' of a Small under other names"):
            mq.save(quantized(), tmp_path / "m", FORMAT, plugins=False)
    monkeypatch.setitem(__import__("sys").modules, name, Mapping(Rule("gamma", "weight")))
    mq.save(quantized(), tmp_path / "m", FORMAT, plugins=False)


def test_large_models_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an index, as transformers reads them."""
    monkeypatch.setattr(folder, "LARGEST_SHARD", 12_000)
    mq.save(quantized(), tmp_path / "m", FORMAT, plugins=False)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert len(files) >= 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "m" / file, framework="pt") as opened:
            assert name in opened.keys()  # noqa: SIM118


def _without_first(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: original(*given)[1:]


def _swapped(original: Callable[..., Any]) -> Callable[..., Any]:
    def swapped(matrix: PackedMatrix) -> Tensor:
        codes = original(matrix).view(torch.uint8)
        return (codes << 4 | codes >> 4).view(torch.int32)

    return swapped


def _narrow(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda matrix: original(matrix)[:, :-1]


def _other_group(**entries: Any) -> Callable[..., Any]:
    return lambda original: lambda bits, size, targets: {**original(bits, size, targets), **entries}


BROKEN: dict[str, tuple[str, Callable[..., Any], str]] = {
    "ignore": ("float_linears", _without_first, "readers would take lm_head for .*; it is a float layer"),
    "nibbles": ("packed_words", _swapped, "block.0.weight_packed holds other codes"),
    "words": ("packed_words", _narrow, "block.0.weight_packed holds other codes"),
    "scale": ("write_folder", changed(lambda t: t["block.0.weight_scale"].mul_(2)), "block.0.weight_scale has other"),
    "shape": ("write_folder", changed(lambda t: t["block.0.weight_shape"].add_(1)), r"shape is \[97, 65\] inst"),
    "float": ("write_folder", changed(lambda t: t["norm.weight"].add_(1)), "norm.weight has other values"),
    "missing": ("write_folder", changed(lambda t: t.pop("norm.bias")), "tensor norm.bias is missing"),
    "more": ("write_folder", changed(lambda t: t.update(x=torch.ones(1))), "tensor x is none of the model"),
    "status": ("config_of", other_config(quantization_status="frozen"), "_status is 'frozen' instead"),
    "format": ("config_of", other_config(format="dense"), "format is 'dense' instead of 'pack-quantized'"),
    "targets": ("_scheme", _other_group(targets=["block.0"]), "take block.2 for a float layer; it is .4"),
    "inputs": ("_scheme", _other_group(input_activations={"num_bits": 8}), "take block.0 for .*'num_bits': 8"),
    "bits": ("_scheme", _other_group(weights={"num_bits": 8}), "readers would take block.0 for .8, None"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_writer_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """What is wrong is told, and nothing is left."""
    name, broken, message = BROKEN[case]
    place = place_of(name, compressed_tensors, compressed_tensors.CompressedTensorsExporter)
    monkeypatch.setattr(place, name, broken(getattr(place, name)))
    with pytest.raises(mq.FileError, match=message) as caught:
        mq.save(quantized(), tmp_path / "m", FORMAT, plugins=False)
    assert "what was written is not what it should be" in str(caught.value)
    assert not list(tmp_path.iterdir())
