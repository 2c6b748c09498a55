"""monoquant's own file: one safetensors file with canonical tensors, decisions and report."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from monoquant.adapters.base import ModuleAdapter
from monoquant.container import read_container, read_metadata, refuse_unknown_kinds, write_container
from monoquant.disk.strict_json import parse_json
from monoquant.errors import FileError
from monoquant.formats.base import Exporter
from monoquant.formats.filling import PackedAs, dequantized_state, examine, fill
from monoquant.kernels.choice import Offer
from monoquant.modules.kernel_compute import choose_kernels
from monoquant.modules.packed_module import PREFIX, PackedModule
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.progress import Progress, part_of, untold
from monoquant.quantizer import QuantResult
from monoquant.report import LayerReport, QuantReport
from monoquant.report.plain import dtype_named, from_plain, to_plain
from monoquant.source import joined, names_of_modules, persistent_tensors, tensor_identity
from monoquant.values import PACKABLE_DTYPES, Action

_SCALE = re.compile(rf"(^|\.){PREFIX}[^.]+\.scale$")
_LARGEST = 1 << 60
"""Elements that a tensor can have at most."""
FORMAT = "monoquant"
FORMAT_VERSION = 1


class NativeExporter(Exporter):
    """Writes what :func:`load` reads: one safetensors file with canonical tensors, decisions and report."""

    name: ClassVar[str] = FORMAT
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)

    def write(self, result: QuantResult, path: Path) -> None:
        if path.suffix != ".safetensors":
            raise FileError(f"{path}: give a name that ends in .safetensors")
        write_container(path, *native_content(result, path))


def native_content(result: QuantResult, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a file of this format holds.

    Args:
        result: The result; its model may be on the meta device.
        path: Where the file will be, for errors.

    Returns:
        Tensors by name, and texts by key.
    """
    changes = _dtype_changes(result, path)
    tensors, aliases = _without_copies(_state(result.model))
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "dtypes": json.dumps(changes, separators=(",", ":")),
        "forms": json.dumps(to_plain(_special_forms(result)), separators=(",", ":")),
        "aliases": json.dumps(aliases, separators=(",", ":")),
    }
    return tensors, with_report(metadata, result.report)


def with_report(metadata: Mapping[str, str], report: QuantReport) -> dict[str, str]:
    """Metadata of a file with a report in it.

    Args:
        metadata: The rest of it, or with another report.
        report: The report.
    """
    return {**metadata, "report": json.dumps(report.to_dict(), separators=(",", ":"))}


def load_into(model: nn.Module, path: Path, adapters: Sequence[ModuleAdapter], offer: Offer) -> None:
    """Turn a float model into the quantized one that a file holds.

    Args:
        model: Of the same architecture, on any device; changed in place.
        path: A file that :class:`NativeExporter` wrote.
        adapters: All there are, in the order in which they are asked.
        offer: Kernels to choose from.

    Raises:
        FileError: When the file is damaged, of another format or version, or does not fit the model; ``model`` is
            then as it was.
    """
    stored, state = _read(path)
    fit = examine(model, state, stored.packed, adapters)
    if fit.problems:
        listed = "\n".join(f"- {problem}" for problem in fit.problems)
        raise FileError(f"{path} does not fit the model {type(model).__name__}:\n{listed}")
    fill(model, state, fit.packed)
    choose_kernels(model, offer)


def read_report(path: Path, progress: Progress = untold) -> QuantReport:
    """Read the report that is stored in a file, and verify all that the file holds.

    Args:
        path: A file that :class:`NativeExporter` wrote.
        progress: Told how much is read; default: nobody is told.

    Raises:
        FileError: When the file is damaged or of another format or version.
    """
    return parsed(path, read_container(path, progress)[1]).report


def peek_report(path: Path) -> QuantReport:
    """Read the report that is stored in a file, without its tensors.

    Args:
        path: A file that :class:`NativeExporter` wrote.

    Raises:
        FileError: When its header is damaged, or of another format or version; damage to tensors goes unseen.
    """
    return parsed(path, read_metadata(path)).report


def read_dequantized(path: Path, progress: Progress = untold) -> dict[str, Tensor]:
    """The weights that a file stands for, in floating point.

    Args:
        path: A file that :class:`NativeExporter` wrote.
        progress: Told how much is read and decoded; default: nobody is told.

    Returns:
        Tensors by the names that they had before, on the CPU.

    Raises:
        FileError: When the file is damaged, of another format or version, or contradicts itself.
    """
    stored, state = _read(path, part_of(progress, 0, 1, 2))
    return dequantized_state(path, state, stored.packed, part_of(progress, 1, 2, 2))


def _read(path: Path, progress: Progress = untold) -> tuple[Stored, dict[str, Tensor]]:
    """What a file says, and its tensors under all their names."""
    tensors, metadata = read_container(path, progress)
    stored = parsed(path, metadata)
    lost = sorted(set(stored.aliases.values()) - set(tensors))
    if lost:
        raise FileError(f"{path}: its metadata names tensors that it does not hold: {', '.join(lost)}")
    broken = sorted(name for name in tensors if _SCALE.search(name) and not tensors[name].isfinite().all())
    if broken:
        raise FileError(f"{path}: scales with NaN or Inf: {', '.join(broken)}; quantize it again")
    return stored, {**tensors, **{alias: tensors[kept] for alias, kept in stored.aliases.items()}}


@attrs.frozen
class Stored:
    """What the metadata of a file says.

    Args:
        report: The report of the run.
        aliases: Further names of tensors, with the names that they are stored under.
        packed: The packed layers by name.
    """

    report: QuantReport
    aliases: dict[str, str]
    packed: dict[str, PackedAs]


def parsed(path: Path, metadata: dict[str, str]) -> Stored:
    """Understand the metadata of a file.

    Args:
        path: Where it is, for errors.
        metadata: As :func:`read_container` gives it.

    Raises:
        FileError: When it is of another format or version, or cannot be read.
    """
    if metadata.get("format") != FORMAT:
        raise FileError(f"{path}: not written by monoquant.save (format {metadata.get('format')!r})")
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        raise FileError(f"{path}: format version {version}, this monoquant reads version {FORMAT_VERSION}")
    try:
        report = QuantReport.from_dict(parse_json(metadata["report"]))
        dtypes = {name: dtype_named(text) for name, text in _texts(metadata["dtypes"]).items()}
        if not set(dtypes.values()) <= set(PACKABLE_DTYPES):
            raise ValueError(f"weight dtypes {sorted(map(str, dtypes.values()))}")
        special = {name: from_plain(MatrixForm, form) for name, form in parse_json(metadata["forms"]).items()}
        packed = {
            record.layer: PackedAs(record.scheme, dtypes.get(record.layer, record.dtype), _forms(record, special))
            for record in report.by_action(Action.QUANTIZE)
            if record.scheme is not None
        }
        return Stored(report, _texts(metadata["aliases"]), packed)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise FileError(f"{path}: its metadata cannot be read ({error})") from error


def _forms(record: LayerReport, special: Mapping[str, MatrixForm]) -> dict[str, MatrixForm]:
    plain = MatrixForm.rows_first(record.shape)
    forms = {name: special.get(joined(record.layer, name), plain) for name in record.weights}
    absurd = [form.shape for form in forms.values() if not 0 < math.prod(form.shape) < _LARGEST]
    if absurd:
        raise ValueError(f"layer {record.layer!r} has shape {absurd[0]}, which no weight can have")
    return forms


def _special_forms(result: QuantResult) -> dict[str, MatrixForm]:
    """Forms by full parameter name, where they are not the plain one of the record's shape."""
    records = result.report.by_action(Action.QUANTIZE)  # others may hold a lone number, which is no matrix
    plain = {record.layer: MatrixForm.rows_first(record.shape) for record in records}
    modules = {name: module for name, module in result.model.named_modules() if isinstance(module, PackedModule)}
    forms = {(name, key): weight.form for name, one in modules.items() for key, weight in one.packed_weights().items()}
    return {joined(name, key): form for (name, key), form in forms.items() if form != plain.get(name)}


def _texts(stored: str) -> dict[str, str]:
    found = parse_json(stored)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{stored[:40]!r} is not an object of texts")
    return found


def _dtype_changes(result: QuantResult, path: Path) -> dict[str, str]:
    """Weight dtypes that the caller changed after the run, for instance by ``.half()``."""
    packed = {name: module for name, module in result.model.named_modules() if isinstance(module, PackedModule)}
    reported = {record.layer: record.dtype for record in result.report.by_action(Action.QUANTIZE)}
    if set(packed) != set(reported):
        changed = ", ".join(map(repr, sorted(set(packed) ^ set(reported))))
        raise FileError(f"{path}: the model's packed layers are no longer those of the report: {changed}")
    now = {name: next(iter(module.packed_weights().values())).dtype for name, module in packed.items()}
    return {name: to_plain(dtype) for name, dtype in now.items() if dtype != reported[name]}


def _state(model: nn.Module) -> dict[str, Tensor]:
    names = names_of_modules(model)
    strange = [found[0] for module, found in names.items() if _has_extra_state(module)]
    if strange:
        raise FileError(f"extra state cannot be saved, of {', '.join(map(repr, strange))}; keep it in buffers")
    state = persistent_tensors(model)
    refuse_unknown_kinds(state)
    return state


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _without_copies(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    kept: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in state.items():
        first = kept.setdefault(tensor_identity(tensor), name)
        if first != name:
            aliases[name] = first
    # Different views of one storage become tensors of their own: the format knows no shared memory.
    return {name: state[name].detach().clone(memory_format=torch.contiguous_format) for name in kept.values()}, aliases
