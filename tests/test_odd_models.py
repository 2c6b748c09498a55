"""Models as people really write them: caches, replaced forwards, second references, sparse buffers, scripted parts."""

from __future__ import annotations

import pickle
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.batches import HELD_OUT_OF

QUIET: dict[str, Any] = {"accuracy_warning": "ignore", "plugins": False}


def data(rows: int = 60) -> list[Tensor]:
    """One batch for 64 features."""
    return [torch.randn(rows, 64, generator=torch.Generator().manual_seed(0))]


def pair() -> nn.Sequential:
    """Two Linears of 64 features."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


class LazyTable(nn.Module):
    """Builds a buffer at its first forward, as rotary embeddings do, and remembers keys in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.ready = False
        self.longest = 0
        self.keys: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.register_buffer("table", torch.ones(64), persistent=False)
            self.ready = True
        self.longest = max(self.longest, len(x))
        self.keys.append(x)
        return self.linear(x) * self.table


def test_what_calibration_makes_a_forward_cache_does_not_stay() -> None:
    """Attributes, new buffers and lists are as before, in the model and in the result, and both still run."""
    model = LazyTable()
    keys = model.keys
    result = mq.quantize(model, calibration_data=data(), **QUIET)
    assert result.report.layers[0].sample_rows == (60 + HELD_OUT_OF - 2) // HELD_OUT_OF  # the others are fitted to
    for one in (model, result.model):
        assert (one.ready, one.longest, one.keys) == (False, 0, [])
        assert "table" not in one._buffers
    assert model.keys is keys
    assert model(data(3)[0]).shape == result.model(data(3)[0]).shape


def test_a_forward_that_a_copy_would_share_is_refused_before_any_work(unchanged: Any) -> None:
    """A compiled forward closes over the original: the copy would silently run float layers."""
    model = nn.Sequential(pair(), nn.Linear(64, 64))
    model[0].forward = torch.compile(model[0].forward, backend="eager")
    check = unchanged(model)

    def never() -> Any:
        raise AssertionError("no data may be drawn")
        yield

    with pytest.raises(mq.InputError, match=r"replaced forward, .*: '0'; use inplace=True") as caught:
        mq.quantize(model, calibration_data=never(), **QUIET)
    assert caught.value.layers == ("0",)
    check()
    x = data()[0]
    before = model(x)
    mq.quantize(model, inplace=True, **QUIET)
    assert not torch.equal(model(x), before)


def test_a_method_in_place_of_forward_is_copied() -> None:
    """A forward that is another method of the module itself moves to the copy."""

    class TwoWays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)
            self.forward = self.other  # type: ignore[method-assign]

        def other(self, x: Tensor) -> Tensor:
            return self.linear(x)

    model = TwoWays()
    result = mq.quantize(model, **QUIET)
    assert result.model.forward.__self__ is result.model
    assert not torch.equal(result.model(data()[0]), model(data()[0]))


class TwoReferences(nn.Module):
    """Uses a weight through a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.weights = [self.linear.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weights[0].T


def test_a_second_reference_to_a_weight_is_refused_in_a_copy() -> None:
    """The copy could give that reference nothing; in place it keeps the float weight."""
    model, x = TwoReferences(), data()[0]
    with pytest.raises(mq.InputError, match=r"referenced outside their layers .*: 'linear'; .*inplace=True"):
        mq.quantize(model, **QUIET)
    expected = model(x)
    mq.quantize(model, inplace=True, **QUIET)
    assert torch.equal(model(x), expected)


def test_layers_in_plain_lists_are_packed_too() -> None:
    """References to a layer outside the module tree see the packed layer, in a copy and in place."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)
            self.steps = [self.linear]

        def forward(self, x: Tensor) -> Tensor:
            return self.steps[0](x)

    model = Listed()
    copied = mq.quantize(model, **QUIET).model
    assert copied.steps[0] is copied.linear
    assert isinstance(copied.steps[0], mq.Int4Linear)
    mq.quantize(model, inplace=True, **QUIET)
    assert isinstance(model.steps[0], mq.Int4Linear)


def test_compiled_models_are_calibrated() -> None:
    """Compiled code that has run before would not call new hooks; calibration runs eagerly."""
    compiled = torch.compile(pair(), backend="eager").eval()
    with torch.no_grad():
        compiled(data()[0])  # as calibration will run it: nothing makes torch compile again
    result = mq.quantize(compiled, calibration_data=data(), **QUIET)
    assert result.info.sqnr_kind == "output"
    assert result.report.calibration.unseen_layers == ()
    assert not torch.equal(result.model(data()[0]), compiled(data()[0]))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_parts_are_left_alone(unchanged: Any) -> None:
    """A scripted submodule inside an eager model is no obstacle, also when the run fails."""
    model = nn.Sequential(nn.Linear(64, 64), torch.jit.script(nn.Linear(64, 64)))
    model.train()
    result = mq.quantize(model, calibration_data=data(), **QUIET)
    assert isinstance(result.model[0], mq.Int4Linear)
    with pytest.raises(mq.InputError):
        mq.quantize(model, calibration_data=[torch.ones(2, 3)], **QUIET)
    assert all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_buffers(layout: str, tmp_path: Any) -> None:
    """A sparse adjacency is counted and copied; saving it is refused by name."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)
            dense = torch.eye(60)
            self.register_buffer("adjacency", dense.to_sparse() if layout == "coo" else dense.to_sparse_csr())

        def forward(self, x: Tensor) -> Tensor:
            return self.adjacency @ self.linear(x)

    # The rows are nodes rather than samples, which only a forward of one's own can tell; torch cannot copy CSR.
    options: dict[str, Any] = {"forward": lambda model, nodes: model(nodes), "inplace": layout == "csr"}
    result = mq.quantize(Graph(), calibration_data=data(), **options, **QUIET)
    assert result.model(data()[0]).shape == (60, 64)
    indices = 2 * 60 * 8 if layout == "coo" else (61 + 60) * 8
    assert result.report.original_bytes == 64 * 65 * 4 + indices + 60 * 4
    with pytest.raises(mq.FileError, match="adjacency"):
        mq.save(result, tmp_path / "graph.safetensors")


def test_a_weight_that_is_also_a_buffer_stays_counted() -> None:
    """Packing does not free memory that a buffer holds on to."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    model.register_buffer("kept", model[0].weight.data)
    report = mq.quantize(model, **QUIET).report
    assert report.original_bytes == 64 * 64 * 4
    assert report.quantized_bytes > 64 * 64 * 4


def test_ties_survive_a_pass_that_replaces_weights() -> None:
    """A replacement holds for all layers that share the weight."""

    class Halving(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            for layer in context.quantized_layers():
                context.replace_weight(layer.name, context.original_weight(layer.name) / 2)

    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    passes = [mq.SkipSelectionPass(), Halving(), mq.Int4PackPass()]
    result = mq.Quantizer(passes).run(model)
    assert result.model[0].packed_weight is result.model[1].packed_weight
    assert result.model[0].weight.abs().max() < model[0].weight.abs().max() * 0.6


def test_a_tie_that_packing_ends_is_told() -> None:
    """A weight that is another one's transpose in the same memory becomes a matrix of its own."""
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
    model[1].weight = nn.Parameter(model[0].weight.data.T)
    findings = [f for f in mq.quantize(model, **QUIET).report.findings if f.code == "untied"]
    assert [finding.layer for finding in findings] == ["0", "1"]
    assert findings[0].severity is mq.Severity.WARNING
    assert not [f for f in mq.quantize(pair(), **QUIET).report.findings if f.code == "untied"]


def test_experts_that_see_no_rows_are_told_as_unseen() -> None:
    """A call with zero rows is no observation."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.busy, self.idle = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.busy(x), self.idle(x[:0])])

    report = mq.quantize(Experts(), calibration_data=data(), **QUIET).report
    assert report.calibration.unseen_layers == ("idle",)
    assert [finding.layer for finding in report.findings if finding.code == "not-calibrated"] == ["idle"]


def test_exact_layers_do_not_lift_the_headline() -> None:
    """A layer of zeros is exact; the median is that of the others."""
    model = pair()
    with torch.no_grad():
        model[2].weight.zero_()
    info = mq.quantize(model, calibration_data=data(), **QUIET).info
    assert info.sqnr_db < 40


def test_errors_can_be_pickled() -> None:
    """A failed gate in a worker process reaches the parent as what it is."""
    for kind in (mq.AccuracyError, mq.ValidationError, mq.InputError):
        error = pickle.loads(pickle.dumps(kind("CRITICAL", layers=["a"])))
        assert (type(error), str(error), error.layers) == (kind, "CRITICAL", ("a",))


def test_embeddings_that_renormalize_themselves_are_left_as_they_were() -> None:
    """nn.Embedding(max_norm=...) writes to its weight in forward, also in eval mode."""
    model = nn.Sequential(nn.Embedding(50, 64, max_norm=1.0), nn.Flatten(), nn.Linear(192, 64))
    before = model[0].weight.clone()
    mq.quantize(model, calibration_data=[torch.randint(0, 50, (60, 3))], **QUIET)
    assert torch.equal(model[0].weight, before)
    with pytest.raises(mq.InputError):
        mq.quantize(model, calibration_data=[torch.randint(0, 50, (6, 3)), torch.ones(2)], **QUIET)
    assert torch.equal(model[0].weight, before)


no_gradients = pytest.mark.parametrize(
    "quality",
    [
        "fast",
        "balanced",
        "best",
    ],
)


@no_gradients
def test_a_forward_that_writes_to_parameters_is_found_out(quality: Any) -> None:
    """It cannot be undone without a copy of everything, so it is an error that names the parameter."""

    class Decaying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            self.linear.weight.mul_(0.5)
            return self.linear(x)

    with pytest.raises(mq.InputError, match=r"writes to its own parameters: 'linear\.weight'"):
        mq.quantize(Decaying(), calibration_data=data(), quality=quality, **QUIET)


@no_gradients
def test_forwards_that_leave_autograd_can_be_calibrated(quality: Any) -> None:
    """Models for inference hand tensors to NumPy and the like as well, which is no reason to fail."""

    class Leaving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.from_dlpack(self.first(x)))  # as x.numpy() does, but needs no NumPy

    report = mq.quantize(Leaving(), calibration_data=data(), quality=quality, **QUIET).report
    assert report.calibration.unseen_layers == ()


def test_nested_caches_and_hooks_of_a_forward_do_not_stay() -> None:
    """Dicts of lists, deques and hooks that a forward adds to are as before."""

    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)
            self.cache: dict[str, list[Tensor]] = {"k": []}
            self.recent: deque[int] = deque([1])
            self.itself = [self.cache]

        def forward(self, x: Tensor) -> Tensor:
            self.cache["k"].append(x)
            self.recent.append(2)
            self.linear.register_forward_hook(lambda *_: None)
            return self.linear(x)

    model = Caching()
    mq.quantize(model, calibration_data=data(), **QUIET)
    assert model.cache == {"k": []}
    assert model.recent == deque([1])
    assert not model.linear._forward_hooks


@pytest.mark.parametrize(
    "buffer", [torch.ones(3, device="meta"), torch.full((1,), float("nan")).expand(4), torch.full((2,), float("nan"))]
)
def test_odd_buffers_do_not_get_in_the_way(buffer: Tensor) -> None:
    """Meta, expanded and NaN buffers neither break a run nor hide the model's own error."""
    model = pair()
    model.register_buffer("odd", buffer, persistent=False)
    assert mq.quantize(model, calibration_data=data(), **QUIET).info.sqnr_kind == "output"
    with pytest.raises(mq.InputError, match="batch 0"):
        mq.quantize(model, calibration_data=[torch.ones(2, 3)], **QUIET)


@pytest.mark.parametrize("where", ["attribute", "hook"])
def test_functions_that_hold_on_to_the_original_are_refused_in_a_copy(where: str) -> None:
    """A closure over a layer would go on using the float original; in place it is fine."""

    class Closing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)
            self.first = nn.Identity()
            if where == "attribute":
                self.apply_linear = lambda x: self.linear(x)
            else:
                self.first.register_forward_hook(lambda _module, _args, out: self.linear(out))

        def forward(self, x: Tensor) -> Tensor:
            return self.apply_linear(x) if where == "attribute" else self.first(x)

    model, x = Closing(), data()[0]
    with pytest.raises(mq.InputError, match=r"a function .* use inplace=True"):
        mq.quantize(model, **QUIET)
    before = model(x)
    mq.quantize(model, inplace=True, **QUIET)
    assert not torch.equal(model(x), before)


def test_hooks_that_only_watch_are_copied() -> None:
    """A hook that closes over a list and a tensor is no obstacle, and works on the packed layer."""
    seen: list[str] = []
    shift = torch.ones(2)
    model = pair()
    model[0].register_forward_hook(lambda module, _args, _out: seen.append(type(module).__name__ * len(shift[:1])))
    mq.quantize(model, **QUIET).model(data()[0])
    assert seen == ["Int4Linear"]


def test_sparse_weights_are_unsupported() -> None:
    """A sparse weight is told in the plan, with the way out."""
    model = pair()
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse())
    record = mq.quantize(model, inplace=True, **QUIET).report.layers[0]  # torch cannot copy sparse Parameters
    assert record.action is mq.Action.UNSUPPORTED
    assert "torch.sparse_coo" in record.reason
    assert "to_dense" in record.remedy


@no_gradients
def test_a_result_made_in_inference_mode_can_be_trained_and_loaded(tmp_path: Any, quality: Any) -> None:
    """The caller's mode does not leak into the tensors of the result."""
    with torch.inference_mode():
        result = mq.quantize(pair(), calibration_data=data(), quality=quality, **QUIET)
        mq.save(result, tmp_path / "model.safetensors")
        loaded = mq.load(tmp_path / "model.safetensors", pair())
    for model in (result.model, loaded):
        model.load_state_dict(model.state_dict())
    result.model(data()[0].requires_grad_()).sum().backward()


def test_parameters_over_one_memory_stay_so() -> None:
    """Two Parameter objects with one storage share it in the copy as well."""
    model = nn.ModuleDict({"embed": nn.Embedding(50, 64), "head": nn.Linear(64, 50), "body": nn.Linear(64, 64)})
    model["head"].weight = nn.Parameter(model["embed"].weight.data)
    result = mq.quantize(model, **QUIET)
    assert result.model["embed"].weight.data_ptr() == result.model["head"].weight.data_ptr()
    assert result.model["embed"].weight.data_ptr() != model["embed"].weight.data_ptr()


def test_ordinary_models_do_not_touch_compiler_settings() -> None:
    """The stance is process-wide, so only models that hold compiled code change it."""
    stances = []
    model = pair()
    model.register_forward_hook(lambda *_: stances.append(torch._dynamo.eval_frame._stance.stance))
    mq.quantize(model, calibration_data=data(), **QUIET)
    assert len(stances) >= 2  # once for what is fitted to, at least, and once for what is held out
    assert set(stances) == {"default"}
