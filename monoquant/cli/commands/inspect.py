"""``monoquant inspect``: what is in a file, a folder, or a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Group, RenderableType
from rich.text import Text
from torch import nn

from monoquant.cli.exits import EXIT_FINE
from monoquant.cli.opening import opened, report_of
from monoquant.cli.reports import report_option, require_forms, write_reports
from monoquant.cli.session import Session, command
from monoquant.cli.streams import printable
from monoquant.cli.tables import report_view, table
from monoquant.cli.target import require_apart
from monoquant.numerics.memory import stored_bytes
from monoquant.opening import OpenedKind
from monoquant.report.plain import to_plain
from monoquant.report.table import format_bytes
from monoquant.source import inventory, model_tensors, own_tensors

_SHOWN = 20
_HEADINGS = ("layer", "kind", "shape", "dtype", "parameters", "bytes", "also named")


@attrs.frozen
class _Line:
    layer: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    bytes: int
    aliases: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        shape = "x".join(map(str, self.shape))
        size = format_bytes(self.bytes)
        also = ", ".join(self.aliases) or "-"
        return (self.layer or "(root)", self.kind, shape, self.dtype, f"{self.parameters:,}", size, also)


@command
@click.argument("model")
@report_option
def inspect(session: Session, model: str, reports: tuple[Path, ...]) -> int:
    """Show what MODEL is and holds: of a quantized one, or of a report, all that was decided and measured.

    MODEL is a file of weights, a HuggingFace folder, package.module:factory (with --trust-code), a quantized file or
    folder, or a report; what is in it decides, not its name. --report turns the report into another form.
    """
    found = opened(session, model)
    streams, plugins = session.streams, session.plugins()
    require_forms(reports, plugins)
    require_apart("--report", reports, {"the model": found.path})
    streams.put(kind=found.kind.name.lower(), described=found.described)
    if found.kind in (OpenedKind.QUANTIZED, OpenedKind.REPORT):
        report = report_of(session, found)
        streams.show(
            Group(
                Text(printable(found.described)), Text(), report_view(report, streams.out, everything=session.verbose)
            )
        )
        streams.put(report=report.to_dict())
        write_reports(session, report, reports, plugins)
        return EXIT_FINE
    if reports:
        raise click.UsageError(f"--report: {found.described} has no report; plan or quantize make one")
    with session.stage(f"reading {model}"):
        module = found.skeleton()
    lines = _lines(module)
    total = stored_bytes(model_tensors(module))
    streams.show(_view(session, found.described, lines, total))
    streams.put(layers=[to_plain(one) for one in lines], bytes=total)
    return EXIT_FINE


def _lines(module: nn.Module) -> list[_Line]:
    modules = dict(module.named_modules())
    return [
        _Line(
            layer=layer.name,
            kind=layer.type.__name__,
            shape=layer.shape,
            dtype=str(layer.dtype).removeprefix("torch."),
            parameters=layer.parameters,
            bytes=sum(one.numel() * one.element_size() for one in own_tensors(modules[layer.name]).values()),
            aliases=layer.aliases,
        )
        for layer in inventory(module)
    ]


def _view(session: Session, described: str, lines: list[_Line], total: int) -> RenderableType:
    largest = sorted(lines, key=lambda one: -one.bytes)
    shown = largest if session.verbose else largest[:_SHOWN]
    rest: list[Any] = [Text(f"... and {len(lines) - len(shown)} smaller layers; --verbose shows them")]
    head = Text(f"{printable(described)}\n{len(lines)} layers, parameters and buffers: {format_bytes(total)}\n")
    listed = table(_HEADINGS, [one.cells() for one in shown], session.streams.out, everything=session.verbose)
    return Group(head, listed, *(rest if len(shown) < len(lines) else []))
