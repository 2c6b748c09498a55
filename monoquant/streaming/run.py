"""From an old file to a new one, of which memory holds a few blocks at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs
import torch

from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.container import Slot, arranged, header_of, replacement, sealed
from monoquant.context import QuantContext
from monoquant.conversion import convert_in_place, copy_without_weights
from monoquant.formats.native import native_content, with_report
from monoquant.kernels.base import RoundingKernel
from monoquant.kernels.choice import PORTABLE_ROUNDING
from monoquant.measurement import Measurement
from monoquant.passes.accuracy_warning import AccuracyWarningPass
from monoquant.passes.int4_pack import Int4PackPass
from monoquant.passes.pack import PackPass, underflow
from monoquant.passes.validation import CODES, RANGE, ValidationPass
from monoquant.progress import Progress
from monoquant.quantizer import Quantizer, QuantResult, quantized_weights
from monoquant.report import QuantizationInfo, QuantReport
from monoquant.streaming.packing import Facts, WeightPacker, packer_of
from monoquant.streaming.planning import StreamedWeight, pack_empty, packing_steps, planned
from monoquant.streaming.reading import BlockReader
from monoquant.streaming.source import TensorSource
from monoquant.streaming.target import TensorTarget
from monoquant.summary import build_report
from monoquant.values import Scheme

_ROOM_PER_WEIGHT = 512
_ROOM = 4096
"""What the report says of a weight that is not known beforehand, and of everything else."""


def quantize_stream(
    quantizer: Quantizer,
    source: TensorSource,
    path: Path,
    progress: bool | Progress = False,
    kernels: Iterable[RoundingKernel] = (PORTABLE_ROUNDING,),
) -> QuantReport:
    """Write a quantized file, completely or not at all.

    Args:
        quantizer: The pipeline: skip selection, packing passes without data, validation and the gate.
        source: The float weights.
        path: The new file.
        progress: True writes a line to stderr, a function is called as ``progress(bytes, total)``.
        kernels: Who may round.

    Returns:
        What was decided and measured; the file holds it as well.

    Raises:
        MonoquantError: For a file that cannot be read, written or quantized, and for failed checks and gates.
    """
    reader = BlockReader(source, progress)
    context = planned(quantizer, reader)
    weights = pack_empty(quantizer, context, reader)
    layout = _Layout.of(context, weights, path)
    try:
        with (
            replacement(path, size=layout.size) as file,
            TensorTarget(file, layout.slots, layout.room) as target,
        ):
            facts = _transfer(reader, target, weights, tuple(kernels))
            _refuse_extremes(quantizer, weights, facts, reader)
            report = _concluded(quantizer, context, weights, facts)
            source.require_unchanged()
            target.put_header(layout.header(report, target.hashes()))
    finally:
        reader.close()
    return report


@attrs.frozen
class _Layout:
    """What the new file will hold, and where."""

    slots: Mapping[str, Slot]
    metadata: Mapping[str, str]
    room: int

    @classmethod
    def of(cls, context: QuantContext, weights: list[StreamedWeight], path: Path) -> _Layout:
        model = copy_without_weights(context.model, quantized_weights(context))
        convert_in_place(model, context.packed)
        report = build_report(context)
        content = QuantResult(model, QuantizationInfo.from_report(report), report)
        tensors, metadata = native_content(content, path)
        slots = arranged(tensors)
        least = header_of(slots, sealed(metadata, dict.fromkeys(slots, "0" * 64)))
        room = len(least) + _ROOM_PER_WEIGHT * len(weights) + _ROOM
        return cls(slots, metadata, room)

    def header(self, report: QuantReport, hashes: Mapping[str, str]) -> bytes:
        return header_of(self.slots, sealed(with_report(self.metadata, report), hashes), self.room)

    @property
    def size(self) -> int:
        """Bytes that the file will have."""
        return self.room + max((slot.end for slot in self.slots.values()), default=0)


def _transfer(
    reader: BlockReader, target: TensorTarget, weights: list[StreamedWeight], kernels: tuple[RoundingKernel, ...]
) -> dict[str, tuple[Facts, Measurement]]:
    """Pack and copy all tensors; what the packed ones showed, by their names in the old file."""
    to_pack = {one.source_name: one for one in weights}
    found = {}
    for name, stored in reader.source.in_order():
        weight = to_pack.get(name)
        if weight is None:
            for block in reader.blocks(stored):
                target.write([(name, block)])
        else:
            packer = _pack(reader, target, weight, kernels)
            found[name] = (packer.facts, packer.measurement())
    target.finish()
    return found


def _pack(
    reader: BlockReader, target: TensorTarget, weight: StreamedWeight, kernels: tuple[RoundingKernel, ...]
) -> WeightPacker:
    form, stored = weight.empty.form, weight.stored
    packer = packer_of(form.rows, form.columns, weight.scheme, stored.dtype, kernels)
    for values in reader.rows(stored, form, packer.rows_at_once):
        target.write([(weight.prefix + name, piece) for name, piece in packer.pack(values)])
    layout = torch.tensor(weight.empty.layout_values(), dtype=torch.int32, device="cpu")
    target.write([(f"{weight.prefix}layout", layout)])
    return packer


Found = Mapping[str, tuple[Facts, Measurement]]


def _refuse_extremes(quantizer: Quantizer, weights: list[StreamedWeight], found: Found, reader: BlockReader) -> None:
    for pass_ in packing_steps(quantizer.steps):
        ranges = [
            (one.layer, width)
            for one in _own(pass_, weights)
            if (width := _suspicious_range(one, found[one.source_name][0], reader)) is not None
        ]
        pass_.refuse_extremes(ranges)


def _suspicious_range(weight: StreamedWeight, facts: Facts, reader: BlockReader) -> float | None:
    """The range of a weight that cannot be packed, or of one that perhaps cannot."""
    if not facts.is_finite:
        return math.nan
    # Ranges are spread over all groups, so that they are at most twice as wide as that of one group.
    if not isinstance(weight.scheme, Scheme) or facts.largest_scale < torch.finfo(weight.scheme.scale_dtype).max / 4:
        return None
    low, high = reader.extremes(weight.stored)
    return max(high, 0.0) - min(low, 0.0)


def _own(pass_: PackPass, weights: list[StreamedWeight]) -> list[StreamedWeight]:
    return [one for one in weights if one.scheme.target == pass_.scheme.target]


def _concluded(quantizer: Quantizer, context: QuantContext, weights: list[StreamedWeight], found: Found) -> QuantReport:
    """The report, after the findings of all passes."""
    _note_packing(quantizer, context, weights, found)
    failures: list[tuple[str, str]] = []
    for layer in context.quantized_layers():
        own = [found[one.source_name] for one in weights if one.layer == layer.name]
        context.measurements[layer.name] = sum((measured for _, measured in own), Measurement())
        failures += [(code, layer.name) for code in _failed_checks([facts for facts, _ in own])]
    for step in quantizer.steps:
        if isinstance(step.value, ValidationPass):
            step.value.conclude(context, failures)
        elif isinstance(step.value, AccuracyWarningPass):
            step.value.run(context)
    return build_report(context)


def _note_packing(quantizer: Quantizer, context: QuantContext, weights: list[StreamedWeight], found: Found) -> None:
    for pass_ in packing_steps(quantizer.steps):
        for one in _own(pass_, weights):
            scale = one.empty._buffers.get("scale")
            if scale is not None:
                context.report(underflow(one.layer, found[one.source_name][0].subnormal, scale))
            if isinstance(pass_, Int4PackPass):
                context.note_algorithm(one.layer, RoundToNearest.name)


def _failed_checks(facts: list[Facts]) -> list[str]:
    outcomes = {CODES: all(one.is_as_defined for one in facts), RANGE: all(one.is_in_range for one in facts)}
    return [code for code, passed in outcomes.items() if not passed]
