"""save and load: bit-equal round trips, and refusals that leave the model alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import monoquant as mq
from monoquant.testing.zoo import SmallModel


def quantized(model: nn.Module, **options: Any) -> mq.QuantResult:
    """Quantize without a word."""
    return mq.quantize(model, accuracy_warning="ignore", plugins=False, **options)


def saved(model: nn.Module, folder: Path, **options: Any) -> tuple[mq.QuantResult, Path]:
    """Quantize and save."""
    result = quantized(model, **options)
    path = folder / "model.safetensors"
    mq.save(result, path)
    return result, path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("symmetric", [False, True])
def test_round_trip_is_bit_equal(
    small: nn.Module, fresh_small: Any, tokens: Any, tmp_path: Path, dtype: torch.dtype, symmetric: bool
) -> None:
    """A fresh model takes values, dtypes and packed layers from the file, and computes the same bits."""
    result, path = saved(small.to(dtype), tmp_path, symmetric=symmetric, group_size=50)
    fresh = fresh_small()
    loaded = mq.load(path, fresh)
    assert loaded is fresh
    assert {name: (t.dtype, t.shape) for name, t in loaded.state_dict().items()} == {
        name: (t.dtype, t.shape) for name, t in result.model.state_dict().items()
    }
    assert torch.equal(loaded.eval()(tokens[0]), result.model.eval()(tokens[0]))


class Scaled(nn.Module):
    """Has a lone number, as models of text and images have."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(64, 32)
        self.logit_scale = nn.Parameter(torch.tensor(2.6))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x) * self.logit_scale.exp()


def test_a_module_whose_only_parameter_is_a_number(tmp_path: Path) -> None:
    """It is no matrix, and nobody takes it for one."""
    result, path = saved(Scaled(), tmp_path)
    loaded = mq.load(path, Scaled())
    inputs = torch.ones(2, 64)
    assert torch.equal(loaded(inputs), result.model(inputs))


def test_load_in_another_process(tmp_path: Path) -> None:
    """The file alone carries the model to a new process."""
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32))
    result, path = saved(model, tmp_path)
    inputs = torch.linspace(-1, 1, 2 * 96).reshape(2, 96)
    script = (
        "import sys, torch, monoquant as mq\nfrom torch import nn\n"
        "model = mq.load(sys.argv[1], nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32)))\n"
        "print(model(torch.linspace(-1, 1, 2 * 96).reshape(2, 96)).flatten().tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == result.model(inputs).flatten().tolist()


def test_load_into_a_meta_model(small: nn.Module, tokens: Any, tmp_path: Path) -> None:
    """A model that was never materialized takes all its tensors from the file."""
    result, path = saved(small, tmp_path)
    with torch.device("meta"):
        empty = SmallModel()
    loaded = mq.load(path, empty)
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())
    assert torch.equal(loaded.eval()(tokens[0]), result.model.eval()(tokens[0]))


def test_the_file_holds_canonical_tensors_and_the_report(small: nn.Module, tokens: Any, tmp_path: Path) -> None:
    """Any safetensors reader sees uint8 codes and scales, and the report comes back equal."""
    result, path = saved(small, tmp_path, calibration_data=tokens)
    tensors = load_file(path)
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensors[name], tensor), name
    assert "blocks.0.up.weight" not in tensors
    assert mq.load_report(path) == result.report
    assert str(mq.load_report(path)) == str(result.report)


class Shared(nn.Module):
    """A tied pair, a shared module, views of one storage, a non-persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 64)
        self.tied_head = nn.Linear(64, 64, bias=False)
        self.tied_head.weight = self.embed.weight
        self.first = nn.Linear(64, 64)
        self.again = self.first
        self.twin = nn.Linear(64, 64)
        self.twin.weight = self.first.weight
        self.register_buffer("table", torch.arange(8.0), persistent=False)
        flat = torch.randn(20)
        self.left, self.right = nn.Parameter(flat[:10]), nn.Parameter(flat[10:])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tied_head(self.twin(self.again(self.first(self.embed(tokens)))))


def test_ties_survive_saving_and_loading(tmp_path: Path) -> None:
    """Tied weights are stored once, and are tied again after loading."""
    result, path = saved(Shared(), tmp_path)
    names = set(load_file(path))
    assert "embed.weight" in names
    assert "tied_head.weight" not in names
    assert "first.packed_weight.qweight" in names
    assert "twin.packed_weight.qweight" not in names
    loaded = mq.load(path, Shared())
    assert loaded.tied_head.weight is loaded.embed.weight
    assert loaded.first is loaded.again
    assert loaded.first.packed_weight is loaded.twin.packed_weight
    tokens = torch.arange(64)
    assert torch.equal(loaded(tokens), result.model(tokens))
    assert torch.equal(loaded.left, result.model.left)
    assert torch.equal(loaded.right, result.model.right)


def test_a_result_cast_after_the_run_is_saved_as_it_is(small: nn.Module, fresh_small: Any, tmp_path: Path) -> None:
    """half() on the result changes what the layers look like from outside; the file remembers."""
    result = quantized(small)
    result.model.half()
    path = tmp_path / "half.safetensors"
    mq.save(result, path)
    loaded = mq.load(path, fresh_small())
    assert loaded.blocks[0].down.weight.dtype == torch.float16
    assert torch.equal(loaded.blocks[0].down.weight, result.model.blocks[0].down.weight)


def test_requires_grad_and_parameter_ties_of_the_model_are_kept(
    small: nn.Module, fresh_small: Any, tmp_path: Path
) -> None:
    """Loading replaces values, not what the caller set on the fresh model."""
    _, path = saved(small, tmp_path)
    fresh = fresh_small()
    fresh.embed.weight.requires_grad_(False)
    loaded = mq.load(path, fresh)
    assert not loaded.embed.weight.requires_grad
    assert loaded.lm_head.weight.requires_grad


class Other(nn.Module):
    """Shares some names with Small, with other shapes and kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(51, 96)
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])
        self.lm_head = nn.Linear(96, 50)
        self.extra = nn.Linear(3, 3)


def test_a_wrong_architecture_is_refused_with_all_differences(small: nn.Module, tmp_path: Path, unchanged: Any) -> None:
    """Missing, additional and misshapen tensors and layers are listed at once; the model stays as it was."""
    _, path = saved(small, tmp_path)
    other = Other()
    check = unchanged(other)
    with pytest.raises(mq.FileError) as caught:
        mq.load(path, other)
    check()
    text = str(caught.value)
    for part in (
        "does not fit the model Other",
        "no layer 'blocks.1.down' in the model",
        "missing in the file: extra.weight",
        "not in the model: bn.running_mean",
        "embed.weight has shape (50, 96) in the file, (51, 96) in the model",
    ):
        assert part in text


class Own(nn.Linear):
    """Computes something else with its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Slotted(nn.Linear):
    """Cannot be packed."""

    __slots__ = ("extra",)


def test_layers_of_other_shape_or_kind_are_refused(tmp_path: Path, unchanged: Any) -> None:
    """An odd number of columns that packs to the same bytes is told apart, as is what cannot take the file's layer."""
    _, path = saved(nn.Sequential(nn.Linear(33, 20)), tmp_path)
    integers = tmp_path / "integers.safetensors"
    mq.save(quantized(nn.Sequential(nn.Linear(33, 20)), bits=8, activations="dynamic"), integers)
    for file, layer, text in (
        (path, nn.Linear(34, 20), r"'0' of shape \(20, 34\) does not fit: its weight has shape \(20, 33\) in the file"),
        (path, Slotted(33, 20), "'0' cannot be packed: Slotted defines __slots__"),
        (path, nn.LayerNorm(33), "'0' cannot be packed: LayerNorm has no weight matrix"),
        (path, nn.Conv1d(33, 20, 1), r"'0' of shape \(20, 33, 1\) does not fit"),
        (integers, Own(33, 20), "'0' multiplied integers, and cannot here: Own has a forward of its own"),
    ):
        model = nn.Sequential(layer)
        check = unchanged(model)
        with pytest.raises(mq.FileError, match=text):
            mq.load(file, model)
        check()


def test_a_layer_with_its_own_forward_keeps_it(tmp_path: Path) -> None:
    """Weights of a Linear load into a subclass of it, which goes on computing what it computes."""
    result, path = saved(nn.Sequential(nn.Linear(33, 20)), tmp_path, skip_param_threshold=0)
    loaded = mq.load(path, nn.Sequential(Own(33, 20)))
    x = torch.linspace(-1, 1, 66).reshape(2, 33)
    assert isinstance(loaded[0], Own)
    assert torch.equal(loaded(x), result.model(x) + 1)


def test_a_quantized_model_is_no_target(small: nn.Module, tmp_path: Path) -> None:
    """Loading goes into a float model; a quantized one is told so."""
    result, path = saved(small, tmp_path)
    with pytest.raises(mq.InputError, match="already quantized"):
        mq.load(path, result.model)


def test_ties_that_the_file_contradicts_are_refused(tmp_path: Path) -> None:
    """If the model ties two tensors that differ in the file, one of them would be lost."""
    model = nn.Sequential(nn.Embedding(64, 64), nn.Embedding(64, 64), nn.Linear(64, 64))
    _, path = saved(model, tmp_path)
    model[1].weight = model[0].weight
    with pytest.raises(mq.FileError, match=r"0\.weight and 1\.weight are tied in the model, but differ in the file"):
        mq.load(path, model)


def test_unsaved_buffers_on_meta_are_refused(tmp_path: Path) -> None:
    """A non-persistent buffer cannot come from the file, so it must exist in the model."""
    _, path = saved(Shared(), tmp_path)
    with torch.device("meta"):
        model = Shared()
    with pytest.raises(mq.FileError, match="buffer table is on the meta device and not saved"):
        mq.load(path, model)


def test_an_exception_while_filling_leaves_the_model_as_it_was(
    small: nn.Module, fresh_small: Any, tmp_path: Path, unchanged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of loading undoes everything."""
    from monoquant.formats import filling

    _, path = saved(small, tmp_path)
    fresh, calls = fresh_small(), []
    real = filling._like

    def flaky(old: Tensor, new: Tensor) -> Tensor:
        calls.append(old)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(old, new)

    monkeypatch.setattr(filling, "_like", flaky)
    check = unchanged(fresh)
    with pytest.raises(KeyboardInterrupt):
        mq.load(path, fresh)
    check()


def test_save_refuses_what_it_cannot_keep(small: nn.Module, tmp_path: Path) -> None:
    """Another suffix, a bare model, extra state, or a model that was changed after the run."""
    result = quantized(small)
    with pytest.raises(mq.FileError, match=r"ends in \.safetensors"):
        mq.save(result, tmp_path / "model.pt")
    with pytest.raises(mq.FileError, match="takes the QuantResult"):
        mq.save(result.model, tmp_path / "model.safetensors")
    result.model.blocks[0].up = nn.Linear(96, 200)
    with pytest.raises(mq.FileError, match=r"no longer those of the report: 'blocks\.0\.up'"):
        mq.save(result, tmp_path / "model.safetensors")

    class WithState(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"not": "a tensor"}

    stateful = quantized(nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.LayerNorm(64), WithState(2, 2))))
    with pytest.raises(mq.FileError, match=r"extra state cannot be saved, of '1\.1'"):
        mq.save(stateful, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")
def test_mode_follows_the_umask(small: nn.Module, tmp_path: Path) -> None:
    """The file is as readable as any other file that the user writes."""
    old = os.umask(0o027)
    try:
        _, path = saved(small, tmp_path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_module_of_another_kind_in_the_place_of_a_layer(tmp_path: Path, unchanged: Any) -> None:
    """What is no Linear, or has no weight at all, is told as such."""
    _, path = saved(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), tmp_path)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.ReLU())
    check = unchanged(model)
    with pytest.raises(mq.FileError, match="'2' cannot be packed: ReLU has no weight matrix"):
        mq.load(path, model)
    check()


def test_what_is_no_path_is_refused(small: nn.Module) -> None:
    """None in place of a name, for loading and for saving."""
    for call in (
        lambda: mq.load(None, small),
        lambda: mq.load_report(3),
        lambda: mq.save(quantized(small), None),
    ):
        with pytest.raises(mq.FileError, match="is not a path"):
            call()


@pytest.mark.parametrize("other", [nn.Linear(64, 32, bias=False), nn.Conv2d(3, 4, 1), nn.ReLU(), None])
def test_tied_layers_are_each_held_against_the_model(tmp_path: Path, unchanged: Any, other: nn.Module | None) -> None:
    """The second of two tied layers must fit as well as the first."""

    def build() -> nn.ModuleDict:
        return nn.ModuleDict({"a": nn.Linear(64, 64, bias=False), "b": nn.Linear(64, 64, bias=False)})

    tied = build()
    tied["b"].weight = tied["a"].weight
    _, path = saved(tied, tmp_path)
    model = build()
    if other is None:
        del model["b"]
    else:
        model["b"] = other
    check = unchanged(model)
    with pytest.raises(mq.FileError, match="'b'"):
        mq.load(path, model)
    check()
    loaded = mq.load(path, build())
    assert loaded["a"].packed_weight is loaded["b"].packed_weight


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_names_at_the_limit(small: nn.Module, tmp_path: Path) -> None:
    """A name that the file system allows can be written; one that it does not is a FileError."""
    result = quantized(small)
    longest = tmp_path / ("x" * 243 + ".safetensors")
    mq.save(result, longest)
    assert list(tmp_path.iterdir()) == [longest]
    for name in ("x" * 250 + ".safetensors", "a\0b.safetensors"):
        with pytest.raises(mq.FileError):
            mq.save(result, tmp_path / name)
    assert list(tmp_path.iterdir()) == [longest]
