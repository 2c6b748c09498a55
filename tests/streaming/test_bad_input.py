"""What cannot be quantized is refused with the reason, and the file that was there before stays."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import monoquant as mq
from monoquant.container import write_container
from monoquant.disk import replacing
from monoquant.kernels.base import Codes
from monoquant.kernels.rounding import PortableRounding
from monoquant.numerics.metrics import Energy
from monoquant.streaming.run import quantize_stream
from monoquant.streaming.source import TensorSource
from monoquant.streaming.target import TensorTarget
from monoquant.values import Scheme

OLD = b"what was there before"
Change = Callable[[Path], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "in" / "float.safetensors"
    path.parent.mkdir()
    write_container(path, {f"{name}.weight": torch.randn(40, 200, generator=generator) for name in "abc"}, {})
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "packed.safetensors"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def refused(source: Path, target: Path, kind: type[BaseException] = mq.FileError, **options: Any) -> str:
    """The text of the error; the old file must be as it was, with nothing beside it."""
    with pytest.raises(kind) as caught:
        mq.quantize_file(source, target, **{"accuracy_warning": "ignore", "plugins": False, **options})
    assert target.read_bytes() == OLD
    assert list(target.parent.iterdir()) == [target]
    return str(caught.value)


def with_header(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS: list[tuple[Any, bytes, int | None, str]] = [
    (b"", b"", 1 << 40, "its header would have 1099511627776 bytes"),
    (b"{}", b"", 90_000_000, "cut short, its header alone has 90000000 bytes"),
    (b"{", b"", None, "its header cannot be read"),
    (b"\xff\xff", b"", None, "its header cannot be read"),
    (b"[" * 200_000, b"", None, "its header cannot be read"),
    ([], b"", None, "it is no object"),
    ({"a": 3}, b"", None, "'a' has no dtype"),
    ({"\ud800": tensor(0, 4, [1])}, b"1234", None, "cannot be printed"),
    ({"a\x1b[2J": tensor(0, 4, [1])}, b"1234", None, "cannot be printed)"),
    ({"__metadata__": []}, b"", None, "its __metadata__ is no object of texts"),
    ({"__metadata__": {"a": 1}}, b"", None, "__metadata__ is no object of texts"),
    (b'{"a": NaN}', b"", None, "NaN is no number"),
    (b'{"a": 1e999}', b"", None, "1e999 is no number that fits"),
    (b'{"a": [' + b"0," * 11_000_000 + b"0]}", b"", None, "values in it, where at most 10000000 make sense"),
    ({"a": tensor(0, 0, [1 << 62, 1 << 62, 0])}, b"", None, "which no tensor can have"),
    ({"a": tensor(0, 0, [1 << 63, 0])}, b"", None, "'a' has shape [9223372036854775808, 0]"),
    ({"a": tensor(0, 4, [-1])}, b"1234", None, "'a' has shape [-1]"),
    ({"a": tensor(0, 4, [True])}, b"1234", None, "'a' has shape [True]"),
    ({"a": {**tensor(0, 4, [1]), "data_offsets": [0]}}, b"1234", None, "data_offsets [0]"),
    (b'{"a": {}, "a": {}}', b"", None, "'a' appears twice"),
    ({"a": tensor(0, 4, [1], "F4"), "b": tensor(4, 8, [1], "U64")}, b"12345678", None, "a (F4), b (U64)"),
    ({"a": tensor(0, 4, [2])}, b"1234", None, "bytes do not fit their shapes: a"),
    ({"a": tensor(4, 0, [1])}, b"1234", None, "bytes do not fit their shapes: a"),
    ({"a": tensor(0, 4, [1]), "b": tensor(0, 4, [1])}, b"1234", None, "'b' overlaps the one before it"),
    ({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, b"1" * 12, None, "'b' leaves a gap before it"),
    ({"a": tensor(0, 8, [2])}, b"1234", None, "4 of 8 bytes of tensors are missing"),
    ({"a": tensor(0, 1 << 50, [1 << 48])}, b"1234", None, "bytes of tensors are missing"),
    ({"a": tensor(0, 4, [1])}, b"12345", None, "1 bytes too long"),
    ({"__metadata__": {"format": "monoquant"}}, b"", None, "quantized already"),
]


@pytest.mark.parametrize(("header", "data", "length", "said"), HEADERS, ids=[case[3] for case in HEADERS])
def test_headers_that_are_wrong(
    source: Path, target: Path, header: Any, data: bytes, length: int | None, said: str
) -> None:
    """Known before any tensor is read."""
    with_header(source, header, data, length)
    assert said in refused(source, target)


def test_files_that_are_no_files(source: Path, target: Path) -> None:
    """Missing, empty, of another kind, or given as something else."""
    assert "no such file" in refused(source.with_name("other.safetensors"), target)
    source.write_bytes(b"123")
    assert "it has 3 bytes" in refused(source, target)
    source.rename(source.with_suffix(".bin"))
    assert "it has 3 bytes" in refused(source.with_suffix(".bin"), target)
    assert "holds neither model.safetensors.index.json nor model.safetensors" in refused(source.parent, target)
    for wrong in ({"source": 3, "target": target}, {"source": source, "target": None}):
        with pytest.raises(mq.FileError, match="is no path"):
            mq.quantize_file(**wrong)  # type: ignore[arg-type]


def test_a_file_of_nothing(source: Path, target: Path) -> None:
    """No tensors at all, or none that is a weight matrix."""
    with_header(source, {})
    assert "empty" in refused(source, target, mq.InputError)
    write_container(source, {"steps": torch.arange(1000).view(10, 100), "norm.weight": torch.ones(600)}, {})
    assert "no layer of the model can be quantized" in refused(source, target, mq.InputError)
    source.chmod(0)
    if os.geteuid() != 0:
        assert "cannot be read" in refused(source, target)


INDICES: list[tuple[Any, str]] = [
    (b"{", "not an index"),
    (b'{"weight_map": {"a": "b", "a": "c"}}', "'a' appears twice"),
    ({"metadata": {}}, "not an index"),
    ({"weight_map": {}}, "maps no names to files"),
    ({"weight_map": {"a.weight": 3}}, "maps no names to files"),
    ({"weight_map": {"a.weight": "../float.safetensors"}}, "'../float.safetensors'"),
    ({"weight_map": {"a.weight": "/etc/passwd"}}, "'/etc/passwd'"),
    ({"weight_map": {"a.weight": "..\\x.safetensors", "b": ".."}}, "must lie in it"),
    (
        {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}},
        "2 of 2 files are missing: 1.safetensors, 2.",
    ),
    ({"weight_map": dict.fromkeys(("a.weight", "b.weight", "d.weight"), "float.safetensors")}, "d.weight is not in"),
    ({"weight_map": {"a.weight": "float.safetensors"}}, "b.weight in float.safetensors is not in the index"),
]


@pytest.mark.parametrize(("index", "said"), INDICES, ids=[case[1] for case in INDICES])
def test_indices_that_are_wrong(source: Path, target: Path, index: Any, said: str) -> None:
    """Unreadable, pointing out of the folder, to what is not there, or at odds with the files."""
    path = source.parent / "model.safetensors.index.json"
    path.write_bytes(index if isinstance(index, bytes) else json.dumps(index).encode())
    assert said in refused(source.parent, target)
    assert said in refused(path, target)


def test_the_source_is_never_replaced(source: Path, target: Path) -> None:
    """By whatever name, and neither are the files of an index, nor the index."""
    before = source.read_bytes()
    link = source.with_name("link.safetensors")
    link.symlink_to(source)
    hard = source.with_name("hard.safetensors")
    hard.hardlink_to(source)
    index = source.parent / "model.safetensors.index.json"
    names = ("a.weight", "b.weight", "c.weight")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, source.name)}))
    for given in (source, source.parent):
        for other in (source, link, hard):
            with pytest.raises(mq.FileError, match="is being read"):
                mq.quantize_file(given, other)
    assert source.read_bytes() == before


def test_targets_that_cannot_be(source: Path, target: Path) -> None:
    """A wrong end, a folder, no folder, one that nobody may write to."""
    for other, said in (
        (target.with_suffix(".bin"), "ends in .safetensors"),
        (target.parent / "none" / "x.safetensors", "does not exist"),
    ):
        with pytest.raises(mq.FileError, match=said):
            mq.quantize_file(source, other)
    (target.parent / "folder.safetensors").mkdir()
    with pytest.raises(mq.FileError, match="is a folder"):
        mq.quantize_file(source, target.parent / "folder.safetensors")
    (target.parent / "folder.safetensors").rmdir()
    target.parent.chmod(0o500)
    try:
        if os.geteuid() != 0:
            assert "cannot be written" in refused(source, target)
    finally:
        target.parent.chmod(0o700)


def test_no_space_left(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before any work is done, with what is needed; and if it runs out meanwhile."""

    def usage(_path: Any) -> Any:
        return attrs.make_class("Usage", ["free"])(free=5000)

    with monkeypatch.context() as patch:
        patch.setattr(replacing.shutil, "disk_usage", usage)
        patch.setattr(TensorSource, "read", None)
        assert re.search(r"needs 2\d\.\d KiB and its folder has 4\.9 KiB free", refused(source, target))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorTarget, "_write", full)
    assert "No space left on device" in refused(source, target)


def at_read(monkeypatch: pytest.MonkeyPatch, number: int, change: Callable[[], None]) -> None:
    """Do something right before a block is read."""
    read, count = TensorSource.read, iter(range(1000))

    def reading(self: TensorSource, *args: Any) -> None:
        if next(count) == number:
            change()
        read(self, *args)

    monkeypatch.setattr(TensorSource, "read", reading)


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(bytes(4))
    os.utime(path, ns=(1, 1))


def replaced(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("change", [appended, rewritten, replaced, Path.unlink], ids=lambda one: one.__name__)
def test_a_source_that_changes_is_refused(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, change: Change, number: int
) -> None:
    """What was read may be half the one and half the other."""
    at_read(monkeypatch, number, lambda: change(source))
    assert "changed while it was read" in refused(source, target)


def test_a_source_that_shrinks_is_refused(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error, rather than a crash on a page that is gone."""
    at_read(monkeypatch, 1, lambda: os.truncate(source, 40_000))
    assert "was cut short while it was read" in refused(source, target)


def test_a_source_that_cannot_be_read_on(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the source, not the target."""

    class Failing:
        def seek(self, _place: int) -> None:
            raise OSError(5, "Input/output error")

        def close(self) -> None:
            pass

    original = TensorSource.read

    def failing(self: TensorSource, *args: Any) -> None:
        for file in self._files.values():
            file.close()
            file.file = Failing()  # type: ignore[assignment]
        original(self, *args)

    monkeypatch.setattr(TensorSource, "read", failing)
    assert f"{source}: cannot be read (Input/output error)" in refused(source, target)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("options", [{}, {"bits": 8}, {"bits": 16}], ids=str)
def test_weights_that_are_not_finite_are_all_named(
    source: Path, target: Path, value: float, options: dict[str, Any]
) -> None:
    """In one error, as quantize() names them."""
    state = {f"{name}.weight": torch.ones(40, 200) for name in "abc"}
    state["a.weight"][39, 199] = state["c.weight"][0, 0] = value
    write_container(source, state, {})
    assert "weights with NaN or Inf: 'a', 'c'" in refused(source, target, mq.InputError, **options)


def test_weights_beyond_the_scale_dtype_are_all_named(source: Path, target: Path) -> None:
    """Also where no group alone is so wide, as quantize() refuses them."""
    state = {f"{name}.weight": torch.ones(40, 256) for name in "abc"}
    state["a.weight"][7, 7] = 2e6
    state["b.weight"][3, :128], state["b.weight"][4, 128:] = -8e5, 8e5
    state["c.weight"][3, :128] = 8e5
    write_container(source, state, {})
    said = refused(source, target, mq.InputError)
    assert "weights too large for torch.float16 scales: 'a', 'b';" in said
    with pytest.raises(mq.InputError) as caught:
        mq.quantize(source, plugins=False)
    assert str(caught.value) == said


HIGH = {"sqnr_warning_threshold": 90.0, "sqnr_error_threshold": 80.0}


def test_a_failed_gate_leaves_no_file(source: Path, target: Path) -> None:
    said = refused(source, target, mq.AccuracyError, accuracy_warning="error", **HIGH)
    assert "CRITICAL" in said
    with pytest.warns(mq.AccuracyWarning):
        mq.quantize_file(source, target, plugins=False, **HIGH)


def test_weights_out_of_their_dtypes_range(source: Path, target: Path) -> None:
    """A float16 weight so near its limit that rounding goes beyond."""
    weight = torch.zeros(4, 128, dtype=torch.float16)
    weight[1, 0], weight[1, 1] = 65504.0, -30000.0
    write_container(source, {"a.weight": weight}, {})
    said = refused(source, target, mq.ValidationError, bits=8, scale_dtype=torch.bfloat16)
    assert "layer 'a': the dequantized weight is not finite" in said
    report = mq.quantize_file(
        source, target, 8, scale_dtype=torch.bfloat16, on_failure="warn", accuracy_warning="ignore", plugins=False
    )
    result = mq.quantize(
        source, 8, scale_dtype=torch.bfloat16, on_failure="warn", accuracy_warning="ignore", plugins=False
    )
    assert report == result.report


class Wrong(PortableRounding):
    def pack(self, values: torch.Tensor, scheme: Scheme, codes: Codes, *, measured: bool) -> Energy | None:
        energy = super().pack(values, scheme, codes, measured=measured)
        codes.qweight[0, 0] ^= 1
        return energy


def test_a_kernel_that_rounds_otherwise_is_told(source: Path, target: Path) -> None:
    """By the first rows of each weight."""
    quantizer = mq.Quantizer([mq.SkipSelectionPass.from_options(), mq.Int4PackPass(), mq.ValidationPass()])
    with TensorSource(source) as tensors, pytest.raises(mq.ValidationError) as caught:
        quantize_stream(quantizer, tensors, target, kernels=[Wrong()])
    assert caught.value.layers == ("a", "b", "c")
    assert target.read_bytes() == OLD


def test_a_disk_that_forgets_is_found_out(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block is read back."""
    held = TensorTarget._require_held

    def forgetful(self: TensorTarget, name: str, place: int, given: torch.Tensor) -> None:
        if name == "b.packed_weight.qweight":
            self._file.seek(place)
            self._file.write(bytes(1))
        held(self, name, place, given)

    monkeypatch.setattr(TensorTarget, "_require_held", forgetful)
    assert "does not hold what was written to it for 'b.packed_weight.qweight'" in refused(source, target)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_interrupt_leaves_nothing(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C at any block."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    at_read(monkeypatch, number, interrupt)
    refused(source, target, KeyboardInterrupt)


@attrs.frozen
class Working(mq.Pass):
    follows = (mq.SkipSelectionPass,)

    def run(self, context: mq.QuantContext) -> None:
        """Would need whole weights."""


class Brings:
    @mq.hookimpl
    def monoquant_register_passes(self) -> list[mq.Pass]:
        return [Working()]


def test_passes_that_work_on_weights_are_refused(source: Path, target: Path) -> None:
    """With the way to leave them out."""
    said = refused(source, target, mq.ConfigError, plugins=mq.PluginManager([Brings()], discover=False))
    assert "passes of plugins work on whole weights" in said
    assert "Working of Brings" in said
    assert "plugins=['no:Brings']" in said


WRONG: list[dict[str, Any]] = [
    {"bits": 5},
    {"progress": 3},
    {"add_default_skips": 1},
    {"group_size": 0},
    {"bits": 16, "group_size": 32},
    {"skip_to": "int4"},
    {"accuracy_warning": "loud"},
    {"on_failure": "never"},
    {"layer_names": []},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_wrong_options(source: Path, target: Path, options: dict[str, Any]) -> None:
    refused(source, target, mq.ConfigError, **options)


def test_a_name_that_no_file_can_have(source: Path, target: Path) -> None:
    """It is refused as one, before anything is read."""
    with pytest.raises(mq.FileError, match=r"cannot be written \(File name too long\); give another name"):
        mq.quantize_file(source, target.parent / f"{'x' * 300}.safetensors", plugins=False)
