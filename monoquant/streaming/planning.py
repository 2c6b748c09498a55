"""The plan for a file: the same passes decide as for a model, of which only names, shapes and dtypes are known."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from monoquant.context import QuantContext
from monoquant.disk.header import Stored
from monoquant.errors import ConfigError
from monoquant.modules.packed_layer import Represented
from monoquant.modules.packed_module import PREFIX
from monoquant.modules.packed_weight import Intended, PackedWeight
from monoquant.modules.storage import empty_weight
from monoquant.modules.tensor_holder import hold
from monoquant.numerics.grouping import chunk_rows
from monoquant.passes.base import Pass
from monoquant.passes.order import Step, name_of
from monoquant.passes.pack import PackPass
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.quantizer import Quantizer, require_work
from monoquant.report.table import format_bytes
from monoquant.source import joined
from monoquant.streaming.reading import BLOCK_BYTES, BlockReader, lies_by_rows
from monoquant.values import BUILT_IN, CALLER, AnyScheme, Finding, HalfScheme, Severity

_WORK = ("prepare", "requires", "run", "ensures")
_UNCHECKED = Intended(lambda _packed: True)  # rows are checked as they go by


@attrs.frozen(eq=False)
class StreamedWeight:
    """A weight that will be packed.

    Args:
        layer: Its layer.
        name: Which of the layer's weights.
        scheme: The representation.
        stored: Where its values are.
        empty: Its packed form on the meta device.
    """

    layer: str
    name: str
    scheme: AnyScheme
    stored: Stored
    empty: PackedWeight

    @property
    def prefix(self) -> str:
        """What the names of its tensors in the new file begin with."""
        return joined(self.layer, f"{PREFIX}{self.name}.")

    @property
    def source_name(self) -> str:
        """Its name in the old file."""
        return joined(self.layer, self.name)


def planned(quantizer: Quantizer, reader: BlockReader) -> QuantContext:
    """Decide what becomes of each layer of a file.

    Args:
        quantizer: The pipeline.
        reader: The file, read only where decisions depend on values, as those for float16 do.

    Raises:
        ConfigError: When passes of plugins want whole weights.
        InputError: When nothing of the file can be quantized.
    """
    _refuse_workers(quantizer)
    source = reader.source
    context = quantizer.planned(hold(source.state()))
    halves = [
        (layer.name, name)
        for layer in context.quantized_layers()
        for name in context.weight_names(layer.name)
        if isinstance(context.plan[layer.name].scheme, HalfScheme)
    ]
    if halves:
        extremes = {key: reader.extremes(source.tensors[joined(*key)]) for key in halves}
        largest = {key: max(-low, high) for key, (low, high) in extremes.items()}
        context = quantizer.planned(hold(source.state()), largest)
    require_work(context)
    context.begin(BUILT_IN)
    for step in quantizer.steps:
        if isinstance(step.value, SkipSelectionPass):
            step.value.prepare(context)  # what it has to say; it asks for nothing
    return context


def _refuse_workers(quantizer: Quantizer) -> None:
    working = [step for step in quantizer.steps if step.origin != CALLER and _works(step.value)]
    if working:
        named = ", ".join(f"{name_of(step.value)} of {step.origin}" for step in working)
        blocked = ", ".join(sorted({repr(f"no:{step.origin.name}") for step in working}))
        raise ConfigError(
            f"passes of plugins work on whole weights, which a file is not held as: {named}; leave them out with "
            f"plugins=[{blocked}], or use quantize() and save()"
        )


def _works(pass_: Pass) -> bool:
    return any(getattr(type(pass_), phase) is not getattr(Pass, phase) for phase in _WORK)


def packing_steps(steps: tuple[Step, ...]) -> list[PackPass]:
    """The packing passes among others, in order.

    Args:
        steps: Of a pipeline.
    """
    return [step.value for step in steps if isinstance(step.value, PackPass)]


def pack_empty(quantizer: Quantizer, context: QuantContext, reader: BlockReader) -> list[StreamedWeight]:
    """Give the context packed layers without values, and tell of weights that cannot be read by blocks.

    Args:
        quantizer: The pipeline.
        context: The plan is final.
        reader: The file.

    Returns:
        All weights that will be packed, in the order in which passes take them.
    """
    weights = [one for pass_ in packing_steps(quantizer.steps) for one in _of_pass(pass_, context, reader)]
    context.report([_not_streamed(one) for one in weights if not _fits_blocks(one)])
    return weights


def _of_pass(pass_: PackPass, context: QuantContext, reader: BlockReader) -> Iterator[StreamedWeight]:
    for layer in pass_.mine(context):
        scheme, forms = context.plan[layer.name].scheme or pass_.scheme, context.packable(layer.name).forms
        weights = {}
        for name in context.weight_names(layer.name):
            stored = reader.source.tensors[joined(layer.name, name)]
            weights[name] = empty_weight(forms[name], scheme, stored.dtype)
            yield StreamedWeight(layer.name, name, scheme, stored, weights[name])
        represented = {name: Represented(weight, _UNCHECKED) for name, weight in weights.items()}
        context.packed[layer.name] = pass_.assembled(layer.name, scheme, represented, context)


def _fits_blocks(weight: StreamedWeight) -> bool:
    columns = weight.empty.columns
    return (
        lies_by_rows(weight.empty.form) and chunk_rows(columns) * columns * weight.stored.dtype.itemsize <= BLOCK_BYTES
    )


def _not_streamed(weight: StreamedWeight) -> Finding:
    if lies_by_rows(weight.empty.form):
        rows = format_bytes(weight.empty.columns * weight.stored.dtype.itemsize)
        reason = f"its rows have {rows} each, and were read two at a time"
    else:
        reason = f"its rows do not follow one another, so all {format_bytes(weight.stored.size)} were read at once"
    message = f"Weight {weight.source_name!r} needed more memory than others: {reason}."
    return Finding("not-streamed", Severity.INFO, message, weight.layer)
