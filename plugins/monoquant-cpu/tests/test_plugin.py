"""The kernels as monoquant finds, chooses and tells of them."""

from __future__ import annotations

import monoquant as mq
import pytest
import torch
from torch import nn

from monoquant_cpu import CpuFloat, CpuInt8, CpuRounding, Library, Unavailable, kernels, plugin

pytestmark = pytest.mark.usefixtures("library")


def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(256, 300), nn.ReLU(), nn.Linear(300, 70, bias=False)).eval()


def quantized(**options: object) -> mq.QuantResult:
    return mq.quantize(model(), plugins=True, accuracy_warning="ignore", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("exact", "name"), [(False, "cpu-int8"), (True, "cpu-float")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_installed_plugin_is_used_and_told(exact: bool, name: str, dtype: torch.dtype) -> None:
    """quantize() finds it, the report and repr name it, and the model's answers are those of its weights."""
    result = mq.quantize(model().to(dtype), exact=exact, accuracy_warning="ignore")
    assert {record.compute.split(",")[0] for record in result.report.layers} == {f"multiplied by {name}"}
    assert "monoquant-cpu" in str(result.report)
    assert name in repr(result.model)
    inputs = torch.randn(5, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = mq.dequantize(result.model).float()(inputs.float())
    error = (result.model(inputs).float() - expected).norm() / expected.norm()
    assert error < {torch.float32: 1e-2, torch.bfloat16: 2e-2, torch.float16: 1e-2}[dtype]
    assert result.model(inputs).dtype == dtype


def test_bytes_do_not_depend_on_who_rounds() -> None:
    """A build with the plugin and one without it give the same file."""
    states = [
        mq.quantize(model(), plugins=used, accuracy_warning="ignore").model.state_dict() for used in (True, False)
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] | states[1])


@pytest.mark.parametrize("exact", [True, False])
def test_compiled_and_exported(exact: bool) -> None:
    """A compiled graph calls the native kernel; an exported program runs anywhere, and so does not."""
    result, inputs = quantized(exact=exact), torch.randn(3, 256)
    compiled = torch.compile(result.model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), result.model(inputs))
    program = torch.export.export(result.model, (inputs,))
    assert "monoquant_cpu" not in program.graph_module.code
    torch.testing.assert_close(program.module()(inputs), quantized(exact=True).model(inputs), rtol=1e-4, atol=1e-4)


def test_gradients_are_exact() -> None:
    """Those of the dequantized product, in spite of 8-bit inputs."""
    result, inputs = quantized(), torch.randn(3, 256, requires_grad=True)
    result.model[0](inputs).sum().backward()
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad, result.model[0].weight.sum(0).expand(3, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [CpuInt8(), CpuFloat()], ids=repr)
@pytest.mark.parametrize(
    ("device", "bits", "dtype", "reason"),
    [("cuda", 4, torch.float32, "CPUs"), ("cpu", 8, torch.float32, "4 bits"), ("cpu", 4, torch.float64, "4 bits")],
)
def test_what_they_cannot_multiply(
    kernel: mq.ProductKernel, device: str, bits: int, dtype: torch.dtype, reason: str
) -> None:
    """Each reason is told."""
    wanted = mq.Product(8, 64, mq.Scheme(bits), torch.device(device), dtype)
    assert reason in str(kernel.obstacle(wanted))
    assert reason in str(CpuRounding().obstacle(dtype, torch.device(device), mq.Scheme(bits)))


def test_without_the_library_all_goes_on_and_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other kernels multiply, and a finding says why these do not."""
    for module in (kernels, plugin):
        monkeypatch.setattr(module, "load", lambda: Unavailable("the native library was not built: no compiler"))
    result = quantized(exact=True)
    assert {record.compute for record in result.report.layers} == {"multiplied by portable"}
    (told,) = [finding for finding in result.report.findings if finding.code == "native-kernels-missing"]
    assert "no compiler" in told.message
    assert told.origin.name == "monoquant-cpu"
    assert told.severity is mq.Severity.INFO
    codes = result.model[0].packed_weight.codes
    with pytest.raises(RuntimeError, match="no compiler"):
        CpuFloat().multiply(torch.zeros(1, 256), codes, (), None)


def test_with_it_nothing_is_told(library: Library) -> None:
    """No news where all is well."""
    assert library.isas
    assert not [one for one in quantized().report.findings if one.code == "native-kernels-missing"]


def test_torch_may_have_more_threads_than_the_library_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on machines with thousands of processors: some of them work."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5000)
    result, inputs = quantized(exact=True), torch.ones(3, 256)
    torch.testing.assert_close(result.model(inputs), mq.dequantize(result.model)(inputs), rtol=1e-4, atol=1e-4)
