"""Which kernel is chosen, and when."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.kernels.base import EXACT, located
from monoquant.kernels.choice import Offer
from monoquant.kernels.op import PORTABLE, kernel_at
from monoquant.kernels.portable import Portable
from monoquant.values import Scheme
from tests.kernels import crooked
from tests.kernels.matrices import normal, packed

FAST, ROUGH, PICKY = crooked.Fast(), crooked.Rough(), crooked.Picky()


def test_the_preferred_one_that_can() -> None:
    """Preference decides among those that can; exactness and obstacles come first."""
    matrix = packed(3, 8, Scheme(4, 4))
    product = mq.Product(3, 8, matrix.scheme, torch.device("cpu"), torch.float32)
    half = mq.Product(3, 8, matrix.scheme, torch.device("cpu"), torch.bfloat16)
    everything = [PORTABLE, ROUGH, FAST, PICKY]
    assert Offer(everything, exact=False).best(product) == PICKY
    assert Offer(everything, exact=False).best(half) == ROUGH
    assert Offer(everything, exact=True).best(half) == FAST
    assert Offer([ROUGH], exact=True).best(product) == PORTABLE
    assert PORTABLE.relative_error <= EXACT < ROUGH.relative_error


@pytest.mark.parametrize("exact", [1, "yes", None])
def test_exact_is_a_flag(exact: object) -> None:
    """Anything but True and False is refused."""
    with pytest.raises(mq.ConfigError, match="exact"):
        Offer([PORTABLE], exact)


def test_it_is_chosen_again_when_the_matrix_moves() -> None:
    """Another dtype may need another kernel; back in the first dtype the first one is chosen."""
    matrix = packed(5, 40, Scheme(4, 16))
    assert matrix.kernel == PORTABLE
    matrix.use(Offer([PICKY, ROUGH], exact=False))
    assert matrix.kernel == PICKY
    assert matrix.derived_bytes == 5 * 8
    matrix.to(torch.bfloat16)
    assert matrix.kernel == ROUGH
    assert matrix.derived_bytes == 0
    matrix.to(torch.float32)
    assert matrix.kernel == PICKY
    assert matrix.to("meta").kernel == PORTABLE


def test_what_was_derived_follows_what_is_loaded() -> None:
    """Loading other codes derives anew; the kernel itself checks here that it is given what belongs to them."""
    matrix, other = packed(5, 40, Scheme(4, 16)), packed(5, 40, Scheme(4, 16), seed=1)
    matrix.use(Offer([FAST]))
    matrix.load_state_dict(other.state_dict())
    inputs = normal(3, 40)
    assert torch.equal(matrix.multiplied(inputs, None), other.multiplied(inputs, None))


def test_what_was_derived_is_no_part_of_the_state() -> None:
    """It is in no state dict and among no buffers, and travels in no pickle."""
    matrix = packed(64, 64, Scheme(4, 16))
    names, size = list(matrix.state_dict()), len(pickle.dumps(matrix))
    matrix.use(Offer([FAST]))
    assert list(matrix.state_dict()) == names
    assert len(list(matrix.buffers())) == len(names)
    assert len(pickle.dumps(matrix)) < size + 100
    for twin in (copy.deepcopy(matrix), pickle.loads(pickle.dumps(matrix))):
        assert twin.kernel == FAST
        assert twin.derived_bytes == matrix.derived_bytes
        assert torch.equal(twin.multiplied(normal(2, 64), None), matrix.multiplied(normal(2, 64), None))


def test_a_pickle_outlives_the_package_of_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel cannot be imported, the portable one multiplies, and a warning says why."""
    matrix = packed(4, 32, Scheme(4, 16))
    matrix.use(Offer([FAST]))
    stored = pickle.dumps(matrix)
    monkeypatch.delattr(crooked, "Fast")
    kernel_at.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"tests.kernels.crooked:Fast cannot be used here .*install its package"):
        twin = pickle.loads(stored)
    assert twin.kernel == PORTABLE
    assert torch.equal(twin.multiplied(normal(2, 32), None), matrix.multiplied(normal(2, 32), None))


@pytest.mark.parametrize("place", ["nowhere:Kernel", "monoquant:Kern", "monoquant.values:Scheme", "monoquant", ""])
def test_places_without_a_kernel(place: str) -> None:
    """Each is told, and the portable kernel computes."""
    kernel_at.cache_clear()
    with pytest.warns(RuntimeWarning, match="the portable one computes instead"):
        assert kernel_at(place) == PORTABLE


@pytest.mark.parametrize(
    "body", ["raise RuntimeError('made for another machine')", "class Kernel:\n    def __init__(self, size): ..."]
)
def test_a_package_that_is_broken_is_as_one_that_is_missing(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever importing it, or making its kernel, raises."""
    (tmp_path / "broken_kernels.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_kernels", raising=False)
    kernel_at.cache_clear()
    with pytest.warns(RuntimeWarning, match="broken_kernels:Kernel cannot be used here"):
        assert kernel_at("broken_kernels:Kernel") == PORTABLE


def test_kernels_are_where_they_say() -> None:
    """A kernel is equal to the one that is made anew from where it can be imported."""
    kernel_at.cache_clear()
    for kernel in (PORTABLE, FAST, ROUGH):
        assert kernel_at(located(kernel)) == kernel
        assert hash(kernel_at(located(kernel))) == hash(kernel)
    assert FAST != ROUGH
    assert Portable() == PORTABLE
    assert repr(FAST) == "Fast()"


def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64, bias=False))


class Plugin:
    """Brings an exact kernel and an approximate one."""

    @mq.hookimpl
    def monoquant_register_kernels(self) -> list[mq.Kernel]:
        return [FAST, ROUGH]


QUIET = {"accuracy_warning": "ignore"}


def test_quantize_chooses_tells_and_measures() -> None:
    """The plan names the kernel, repr too, and a finding says what an approximate one costs."""
    result = mq.quantize(model(), plugins=[Plugin()], **QUIET)
    assert [record.compute for record in result.report.layers] == ["multiplied by rough, relative error up to 0.1"] * 2
    assert "rough" in repr(result.model[0])
    (told,) = [finding for finding in result.report.findings if finding.code == "kernel"]
    assert "rough multiplies 2 weights" in told.message
    assert "relative error of up to 0.1" in told.message
    assert "exact=True" in told.remedy
    inputs = normal(3, 64)
    assert torch.allclose(result.model[0](inputs), mq.dequantize(result.model)[0](inputs) * 1.05, rtol=1e-4)


def test_exact_forbids_approximate_kernels() -> None:
    """In quantize, load and choose_kernels alike."""
    result = mq.quantize(model(), plugins=[Plugin()], exact=True, **QUIET)
    assert [record.compute for record in result.report.layers] == ["multiplied by fast"] * 2
    (told,) = [finding for finding in result.report.findings if finding.code == "kernel"]
    assert "in memory beside the packed weights" in told.message
    assert mq.choose_kernels(result.model, plugins=[Plugin()]) == {"0": "rough", "2": "rough"}
    assert mq.choose_kernels(result.model, plugins=[Plugin()], exact=True) == {"0": "fast", "2": "fast"}
    assert mq.choose_kernels(result.model, plugins=False, exact=True) == {"0": "portable", "2": "portable"}


def test_load_chooses(tmp_path: object) -> None:
    """A file knows no kernels: whoever loads it has its own."""
    path = f"{tmp_path}/model.safetensors"
    result = mq.quantize(model(), plugins=[Plugin()], **QUIET)
    mq.save(result, path)
    names = [
        mq.load(path, model(), plugins=[Plugin()])[0].packed_weight.kernel.name,
        mq.load(path, model(), plugins=[Plugin()], exact=True)[0].packed_weight.kernel.name,
        mq.load(path, model(), plugins=False, exact=True)[0].packed_weight.kernel.name,
    ]
    assert names == ["rough", "fast", "portable"]


def test_a_kernel_that_computes_something_else_is_left_out_and_told(tmp_path: object) -> None:
    """In a report by a finding, elsewhere by a warning; the model is right either way."""

    class Careless:
        __version__ = "3"

        @mq.hookimpl
        def monoquant_register_kernels(self) -> list[mq.Kernel]:
            return [crooked.Wrong(), crooked.RoundsDown()]

    result = mq.quantize(model(), plugins=[Careless()], exact=True, **QUIET)
    told = [finding for finding in result.report.findings if finding.code == "kernel-disabled"]
    assert [finding.severity for finding in told] == [mq.Severity.WARNING] * 2
    assert [str(finding.origin) for finding in told] == ["Careless 3"] * 2
    assert "wrong: the product of a" in told[1].message or "wrong: the product of a" in told[0].message
    assert [record.compute for record in result.report.layers] == ["multiplied by portable"] * 2
    mq.save(result, f"{tmp_path}/a.safetensors")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mq.load(f"{tmp_path}/a.safetensors", model(), plugins=[Careless()], exact=True)
    assert sum("Careless 3" in str(one.message) for one in caught) == 2


def test_a_kernel_that_is_wrong_in_one_layer_fails_the_build() -> None:
    """What the trials on small matrices did not find is found in the layer, before anybody gets the model."""

    class Careless:
        @mq.hookimpl
        def monoquant_register_kernels(self) -> list[mq.Kernel]:
            return [crooked.WrongInLargeMatrices()]

    large = nn.Sequential(nn.Linear(64, 512), nn.Linear(512, 64))
    with pytest.raises(mq.ValidationError, match="layer '1': its kernel multiplies to something else") as caught:
        mq.quantize(large, plugins=[Careless()], exact=True, **QUIET)
    assert caught.value.layers == ("1",)
    report = mq.quantize(large, plugins=[Careless()], exact=True, on_failure="ignore", **QUIET).report
    (told,) = [finding for finding in report.findings if finding.code == "product-differs"]
    assert told.severity is mq.Severity.CRITICAL
    assert "Block the plugin" in told.remedy


def test_a_kernel_that_nobody_could_import_is_an_error() -> None:
    """A compiled graph or a pickle refers to its class by name."""

    class Local(crooked.Fast):
        name = "local"

    class Careless:
        @mq.hookimpl
        def monoquant_register_kernels(self) -> list[mq.Kernel]:
            return [Local()]

    with pytest.raises(mq.PluginError, match=r"Careless.*'local' cannot be imported.*top level"):
        mq.quantize(model(), plugins=[Careless()], **QUIET)


def test_two_kernels_of_one_name_are_an_error() -> None:
    """Reports could not tell them apart."""

    class Careless:
        @mq.hookimpl
        def monoquant_register_kernels(self) -> list[mq.Kernel]:
            return [FAST]

    with pytest.raises(mq.PluginError, match="both bring a kernel called 'fast'"):
        mq.quantize(model(), plugins=[Plugin(), Careless()], **QUIET)


@pytest.mark.parametrize("given", [nn.Sequential(nn.Linear(3, 3)), "model.safetensors", None])
def test_models_without_kernels(given: object) -> None:
    """Nothing to choose for is an error that says what to give."""
    with pytest.raises(mq.InputError, match="no layer of the model multiplies through a kernel"):
        mq.choose_kernels(given)


def test_exact_is_for_int4() -> None:
    """It would change nothing elsewhere."""
    for options in ({"bits": 8}, {"dtype": torch.float16}):
        with pytest.raises(mq.ConfigError, match="exact=True is for INT4"):
            mq.quantize(model(), exact=True, **options)


def test_tied_weights_share_what_was_derived() -> None:
    """The kernel belongs to the weight, which two layers may share."""
    tied = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    tied[2].weight = tied[0].weight
    result = mq.quantize(tied, plugins=[Plugin()], exact=True, **QUIET)
    assert result.model[0].packed_weight is result.model[2].packed_weight
    told = [finding.message for finding in result.report.findings if finding.code == "kernel"]
    assert "multiplies 1 weight:" in told[0]
    result.model(normal(2, 64))


def test_a_whole_model_can_be_pickled() -> None:
    """torch.save of a model, as many pipelines do, keeps the choice and not what was derived."""
    result = mq.quantize(model(), plugins=[Plugin()], exact=True, **QUIET)
    buffer = io.BytesIO()
    torch.save(result.model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert loaded[0].packed_weight.kernel == FAST
    assert torch.equal(loaded(normal(2, 64)), result.model(normal(2, 64)))


def test_a_kernel_that_a_pickle_names_is_tried_first() -> None:
    """It may have been right where the pickle was made, and be wrong here."""
    matrix = packed(5, 40, Scheme(4, 16))
    with pytest.warns(RuntimeWarning, match="kernel wrong is not used: the product of a"):
        matrix.use(Offer([crooked.Wrong()]))
    assert matrix.kernel == PORTABLE
