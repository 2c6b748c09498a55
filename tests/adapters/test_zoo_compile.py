"""torch.compile and torch.export take every kind of module with packed weights that they take as a float one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import monoquant as mq
from monoquant.testing.zoo import Specimen, specimens

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

Outputs = Callable[[nn.Module, tuple[Any, ...]], list[Tensor]]

# Where nothing multiplies integers, all precisions run through the same modules.
CASES = [
    pytest.param(one, precision, id=f"{one}-{precision}")
    for one in specimens()
    for precision in ("int4", "int8-dynamic", "int8-static", "float16")
    if precision == "int4" or one.in_integers
]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Let no compiled code of one test reach another one."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("specimen", "precision"), [case for case in CASES if case.values[0].compilable])
def test_compiling_makes_one_graph_with_the_same_outputs(
    specimen: Specimen, precision: str, result: mq.QuantResult, outputs: Outputs, fresh_compiler: None
) -> None:
    """No kind of packed layer breaks the graph."""
    compiled = torch.compile(copy.deepcopy(result.model), backend="eager", fullgraph=True)
    inputs = specimen.inputs()
    for one, other in zip(outputs(compiled, inputs), outputs(result.model, inputs), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("specimen", [one for one in specimens() if not one.compilable], ids=str)
def test_what_cannot_be_compiled_cannot_as_a_float_module(
    specimen: Specimen, result_of: Callable[[str, str], mq.QuantResult], outputs: Outputs, fresh_compiler: None
) -> None:
    """Dynamo refuses it as one graph, packed or not; with graph breaks it runs, packed or not."""
    packed = copy.deepcopy(result_of(specimen.name, "int4").model)
    for model in (specimen.build(), packed):
        with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN"):
            outputs(torch.compile(model, backend="eager", fullgraph=True), specimen.inputs())
    torch._dynamo.reset()
    found = outputs(torch.compile(packed, backend="eager"), specimen.inputs())
    for one, other in zip(found, outputs(packed, specimen.inputs()), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("specimen", "precision"), CASES)
def test_an_exported_program_holds_the_packed_weights_and_computes_the_same(
    specimen: Specimen, precision: str, result: mq.QuantResult, exact_model: nn.Module, outputs: Outputs
) -> None:
    """Its state is that of the packed module: no weight was turned into a float constant.

    It multiplies by the kernel that runs on any machine, whichever was chosen here.
    """
    inputs = specimen.inputs()
    with torch.no_grad():
        program = torch.export.export(copy.deepcopy(result.model), inputs)
    for one, other in zip(outputs(program.module(), inputs), outputs(exact_model, inputs), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)
    held = {**program.state_dict, **program.constants}
    codes = {name for name, _ in result.model.named_buffers() if name.endswith((".qweight", ".values"))}
    assert codes <= held.keys()
    floats = {name for name, value in held.items() if isinstance(value, Tensor) and value.dtype == torch.float32}
    assert floats <= result.model.state_dict().keys()
