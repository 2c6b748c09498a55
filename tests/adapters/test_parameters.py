"""Modules that monoquant does not know, and adapters for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.adapters.choice import BUILT_IN_ADAPTERS, Packable, examine
from monoquant.registry import known_adapters


class Projection(nn.Module):
    """Reads its matrix by name."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(24, 40, generator=torch.Generator().manual_seed(0)))
        self.token = nn.Parameter(torch.randn(1, 24, 40))
        self.bias_table = nn.Parameter(torch.randn(24, 40))
        self.gain = nn.Parameter(torch.randn(40))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.token[0, 0, :24]) @ self.matrix * self.gain + self.bias_table[0]


class ByNumber(nn.Module):
    """Reads its matrices by names that it computes."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(2):
            setattr(self, f"w{index}", nn.Parameter(torch.randn(24, 24)))

    def forward(self, x: Tensor) -> Tensor:
        return sum(x @ getattr(self, f"w{index}") for index in range(2))


class InHelper(nn.Module):
    """Reads its matrix in a method, a property, a nested function and a static method's argument."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(8, 8)) for _ in range(3))

    @property
    def doubled(self) -> Tensor:
        return self.b * 2

    def helper(self, x: Tensor) -> Tensor:
        return (lambda y: y @ self.c)(x) @ self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.helper(x) @ self.doubled


def outcome(module: nn.Module, *adapters: mq.ModuleAdapter) -> Any:
    return examine(module, (*adapters, *BUILT_IN_ADAPTERS))


def test_matrices_that_code_reads_by_name_are_packed() -> None:
    """Not what is broadcast, called a bias, or a vector."""
    found = outcome(Projection())
    assert isinstance(found, Packable)
    assert found.forms == {"matrix": mq.MatrixForm.along((24, 40), -1)}
    assert set(outcome(InHelper()).forms) == {"a", "b", "c"}


def test_what_is_packed_on_that_evidence_is_told() -> None:
    """A person should look before trusting it."""
    report = mq.quantize(Projection(), accuracy_warning="ignore").report
    (finding,) = [finding for finding in report.findings if finding.code == "unknown-kind"]
    assert finding.message.startswith("Layer '(root)' (Projection matrix): no adapter knows this kind")
    assert "skip_layer_names" in finding.remedy


def test_a_kind_nobody_knows_is_unsupported_with_its_size_and_what_to_register() -> None:
    """Never a crash, never silence."""
    with pytest.raises(mq.InputError) as caught:
        mq.quantize(ByNumber())
    text = str(caught.value)
    assert "no adapter knows ByNumber (1,152 parameters), and its forward does not read w0, w1 by name" in text
    assert "register one, such as ParameterAdapter(ByNumber, {'w0': -1, 'w1': -1})" in text


def test_following_the_remedy_works() -> None:
    """The adapter that the message names packs the module, which computes with the packed values."""
    module, x = ByNumber(), torch.randn(3, 24)
    adapter = mq.ParameterAdapter(ByNumber, {"w0": -1, "w1": -1})
    result = mq.quantize(module, bits=8, adapters=[adapter])
    assert torch.allclose(result.model(x), module(x), atol=0.3)
    assert torch.equal(result.model(x), mq.dequantize(result.model)(x))
    assert not [finding for finding in result.report.findings if finding.code == "unknown-kind"]


def test_the_axis_of_an_adapter_decides_where_groups_run() -> None:
    """One scale for each output of ``x @ matrix``."""
    adapter = mq.ParameterAdapter(Projection, {"matrix": 0})
    packed = mq.quantize(Projection(), bits=8, adapters=[adapter]).model.packed_matrix
    assert packed.scale.shape == (40, 1)
    assert mq.quantize(Projection(), bits=8).model.packed_matrix.scale.shape == (24, 1)


def test_load_takes_the_same_adapters(tmp_path: Any) -> None:
    """Without them the module is as unknown as before."""
    adapter = mq.ParameterAdapter(ByNumber, {"w0": 0, "w1": -1})
    result = mq.quantize(ByNumber(), bits=8, adapters=[adapter])
    mq.save(result, tmp_path / "known.safetensors")
    loaded, x = mq.load(tmp_path / "known.safetensors", ByNumber(), adapters=[adapter]), torch.randn(2, 24)
    assert torch.equal(loaded(x), result.model(x))
    with pytest.raises(mq.FileError, match="no adapter knows ByNumber"):
        mq.load(tmp_path / "known.safetensors", ByNumber())


def test_an_adapter_with_a_forward_of_its_own_is_used() -> None:
    """Its mixin comes before the module's class."""

    class Doubling(mq.PackedModule):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * (x @ self.get_submodule("packed_matrix").dequantize())

    class Adapter(mq.ModuleAdapter):
        def claims(self, module: nn.Module) -> bool:
            return isinstance(module, Projection)

        def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, mq.MatrixForm]:
            return {"matrix": mq.MatrixForm.along(weights["matrix"].shape, 0)}

        def mixin(self, module: nn.Module, scheme: Any) -> type[mq.PackedModule]:
            return Doubling

        def compute(self, module: nn.Module, scheme: Any) -> str:
            return "doubles ({size})"

    result = mq.quantize(Projection(), bits=8, adapters=[Adapter()], run_validation=False, accuracy_warning="ignore")
    x = torch.randn(2, 24)
    assert torch.equal(result.model(x), 2 * (x @ result.model.matrix))
    assert result.report.layers[0].compute == "doubles (3.8 KiB)"


def test_the_callers_adapters_come_before_those_of_plugins_and_the_built_in_ones() -> None:
    """Whatever their names and the order of registration."""
    mine = mq.ParameterAdapter(Projection, {"matrix": 0})
    theirs = mq.Registered(mq.ParameterAdapter(Projection, {"matrix": 1}), mq.Origin("a-plugin", "1"))
    order = known_adapters([mine], [*(mq.Registered(one, mq.Origin("monoquant")) for one in BUILT_IN_ADAPTERS), theirs])
    assert order == [mine, theirs.value, *BUILT_IN_ADAPTERS]


@pytest.mark.parametrize(
    ("kind", "axes", "text"),
    [
        ("Projection", {"a": 0}, "give a module class"),
        (Projection, {}, "input_axes={}"),
        (Projection, {"a": "last"}, "give the axis of input features"),
        (Projection, {1: 0}, "give the axis of input features"),
    ],
)
def test_a_wrong_adapter_is_refused(kind: Any, axes: Any, text: str) -> None:
    """When it is built."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.ParameterAdapter(kind, axes)


@pytest.mark.parametrize("given", [[mq.ParameterAdapter], [3], "adapter"])
def test_what_is_no_adapter_is_refused(given: Any) -> None:
    """With an example of one."""
    with pytest.raises(mq.ConfigError, match="is no adapter: give instances, such as ParameterAdapter"):
        mq.quantize(Projection(), adapters=given)


def test_an_adapter_for_parameters_that_are_not_there_is_an_obstacle() -> None:
    """The layer is unsupported, and the adapter is named."""
    adapter = mq.ParameterAdapter(Projection, {"matrix": 0, "missing": 0})
    found = outcome(Projection(), adapter)
    assert found.reason.startswith("it has no parameter missing, which ParameterAdapter(Projection")


def test_an_axis_that_is_not_there_is_an_error_that_names_the_layer() -> None:
    """Raised while planning, before any work."""
    with pytest.raises(mq.ConfigError, match="axis=5") as caught:
        mq.quantize(Projection(), adapters=[mq.ParameterAdapter(Projection, {"matrix": 5})])
    notes = "\n".join(caught.value.__notes__)
    assert "raised by the adapter monoquant.adapters.parameters.ParameterAdapter, asked about a Projection" in notes
    assert "raised on layer ''" in notes
    assert "Int4PackPass.plan" in notes


@pytest.mark.parametrize(
    "module",
    [nn.LayerNorm((4, 8)), nn.RMSNorm((4, 8)), nn.GroupNorm(2, 4), nn.PReLU(4), nn.BatchNorm1d(4)],
    ids=lambda module: type(module).__name__,
)
def test_elementwise_gains_are_no_matrices(module: nn.Module) -> None:
    """Also those with two axes."""
    assert outcome(module).reason == f"{type(module).__name__} has no weight matrix"


class Meta(type):
    """A metaclass of a module's own."""


class WithMeta(nn.Linear, metaclass=Meta):
    """Its subclasses must have that metaclass."""


class Demanding(nn.Module):
    """Its subclasses must say something that nobody knows to say."""

    def __init_subclass__(cls, *, purpose: str) -> None:
        super().__init_subclass__()

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


@pytest.mark.parametrize("activations", [None, "dynamic"])
def test_a_metaclass_is_no_obstacle(activations: Any) -> None:
    """The packed class has it as well."""
    model = nn.Sequential(WithMeta(8, 8))
    result = mq.quantize(model, bits=8, activations=activations, accuracy_warning="ignore")
    assert isinstance(type(result.model[0]), Meta)
    assert torch.allclose(result.model(torch.ones(1, 8)), model(torch.ones(1, 8)), atol=0.1)


def test_a_class_that_cannot_be_subclassed_is_an_obstacle() -> None:
    """With torch's words for why."""
    found = outcome(Demanding())
    assert found.reason.startswith("Demanding cannot be subclassed (")
    assert "purpose" in found.reason


def test_the_callers_adapters_are_asked_in_their_order() -> None:
    """The first one that claims a module has it."""
    first, second = (mq.ParameterAdapter(Projection, {"matrix": axis}) for axis in (1, 0))
    for order in ((first, second), (second, first)):
        assert known_adapters(order, [])[:2] == list(order)
