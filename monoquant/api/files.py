"""Keep what a run gave: the model in a file, the report as text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from monoquant.adapters.base import ModuleAdapter
from monoquant.api.kernels import offered
from monoquant.disk.kinds import FileKind, kind_of
from monoquant.disk.replacing import replacement, staged
from monoquant.disk.strict_json import read_json
from monoquant.errors import ConfigError, FileError, InputError, PluginError
from monoquant.formats.base import Exporter
from monoquant.formats.native import NativeExporter, load_into, read_report
from monoquant.hooks import PluginManager, Plugins, manager_of
from monoquant.quantizer import QuantResult
from monoquant.registry import Registered, chosen, known_adapters
from monoquant.report import QuantReport, Reporter
from monoquant.values import BUILT_IN, CALLER

M = TypeVar("M", bound=nn.Module)


F = TypeVar("F", Exporter, Reporter)


def save(
    result: QuantResult,
    path: str | os.PathLike[str],
    format: str | Exporter | None = None,
    *,
    plugins: Plugins = True,
) -> None:
    """Write a quantized model, completely or not at all.

    Args:
        result: What :func:`quantize` or a Quantizer returned.
        path: Target; what is there already is replaced.
        format: ``"monoquant"``, the name of a format that a plugin brings, or an Exporter of your own. Default: by the
            end of the path; ``.safetensors`` is monoquant's own file, which :func:`load` reads.
        plugins: As in :func:`quantize`.

    Raises:
        ConfigError: For a format that nobody knows, or an end that several plugins write.
        FileError: When the target cannot be written, or the format cannot hold the model.
        PluginError: When an installed plugin is wrong, or an exporter writes nothing.
    """
    target = _as_path(path)
    if not isinstance(result, QuantResult):
        kind = type(result).__name__
        raise FileError(f"save takes the QuantResult that quantize() returned, not a {kind} (as of static_quantize())")
    manager = manager_of(plugins)
    found = _format(format, target, Exporter, manager.exporters(), manager)  # type: ignore[type-abstract]
    obstacle = found.value.obstacle_at(target)
    if obstacle:
        raise FileError(f"{target}: {obstacle}")
    if isinstance(found.value, NativeExporter):
        found.value.write(result, target)  # which is atomic by itself, and refuses to replace a folder
        return
    with staged(target) as place:
        _export(result, found, place)


def _export(result: QuantResult, exporter: Registered[Exporter], place: Path) -> None:
    who = f"the exporter {exporter.value.name!r} of {exporter.origin}"
    try:
        exporter.value.write(result, place)
    except Exception as error:
        error.add_note(f"raised by {who}")
        raise
    if not place.exists():
        raise PluginError(f"{who} wrote nothing to the path that it was given: write a file or a folder there")


def load(
    path: str | os.PathLike[str],
    model: M,
    *,
    exact: bool = False,
    adapters: Iterable[ModuleAdapter] = (),
    plugins: Plugins = True,
) -> M:
    """Put a saved quantized model into a freshly built float model of the same architecture.

    Args:
        path: A file written by :func:`save`.
        model: The float model, on any device, meta included; it is changed in place, taking the file's dtypes. Its own
            values do not matter.
        exact: Whether INT4 kernels must be as exact as a float32 product; default False.
        adapters: Adapters for the model's own kinds of modules, besides those of plugins; default none.
        plugins: As in :func:`quantize`.

    Returns:
        ``model``, its packed layers in place.

    Raises:
        FileError: When the file is damaged, of another format or version, or does not fit the model; ``model`` is
            then as it was.
        PluginError: When an installed plugin is wrong.
    """
    manager = manager_of(plugins)
    known = known_adapters(adapters, manager.adapters())
    with torch.inference_mode(False):  # or the model could not be trained afterwards
        load_into(model, _as_path(path), known, offered(manager, exact=exact))
    return model


def load_report(path: str | os.PathLike[str]) -> QuantReport:
    """Read the report of a saved model, or one that :func:`save_report` wrote as JSON.

    Args:
        path: A file written by :func:`save`, or by :func:`save_report` as JSON; what it holds decides, not its name.

    Raises:
        FileError: When the file is missing, damaged, or of another format or version.
    """
    file = _as_path(path)
    if kind_of(file) is FileKind.SAFETENSORS:
        return read_report(file)
    found = read_json(file, "a report that save_report wrote as JSON, nor a model that save wrote")
    try:
        return QuantReport.from_dict(found)
    except FileError as error:
        raise FileError(f"{file}: {error}") from error


def render_report(report: QuantReport, format: str | Reporter = "text", *, plugins: Plugins = True) -> str:
    """Turn a report into text.

    Args:
        report: Such as ``result.report``.
        format: ``"text"`` (default), ``"json"``, ``"html"``, the name of a form that a plugin brings, or a Reporter of
            your own.
        plugins: As in :func:`quantize`.

    Raises:
        ConfigError: For a form that nobody knows.
        PluginError: When an installed plugin is wrong.
    """
    manager = manager_of(plugins)
    reporters = manager.reporters()
    return _rendered(report, _named(format, Reporter, reporters, manager))  # type: ignore[type-abstract]


def save_report(
    report: QuantReport,
    path: str | os.PathLike[str],
    format: str | Reporter | None = None,
    *,
    plugins: Plugins = True,
) -> None:
    """Write a report to a file, completely or not at all.

    Args:
        report: Such as ``result.report``.
        path: Target; an existing file is replaced.
        format: As in :func:`render_report`; default: by the end of the path, ``.txt``, ``.json`` or ``.html``.
        plugins: As in :func:`quantize`.

    Raises:
        ConfigError: For a form that nobody knows, or an end that several plugins write.
        FileError: When the target cannot be written.
        PluginError: When an installed plugin is wrong.
    """
    target = _as_path(path)
    manager = manager_of(plugins)
    found = _format(format, target, Reporter, manager.reporters(), manager)  # type: ignore[type-abstract]
    content = _rendered(report, found).encode(errors="backslashreplace")  # names may hold halves of characters
    with replacement(target, size=len(content)) as file:
        file.write(content)


def _rendered(report: QuantReport, reporter: Registered[Reporter]) -> str:
    if not isinstance(report, QuantReport):
        raise InputError(
            f"a report is wanted, not a {type(report).__name__}: give a QuantReport, such as result.report"
        )
    try:
        text: object = reporter.value.render(report)
    except Exception as error:
        error.add_note(f"raised by the reporter {reporter.value.name!r} of {reporter.origin}")
        raise
    if not isinstance(text, str):
        raise PluginError(f"the reporter {reporter.value.name!r} of {reporter.origin} returned {text!r}: return a str")
    return text


def _format(
    given: str | F | None, path: Path, kind: type[F], entries: Sequence[Registered[F]], manager: PluginManager
) -> Registered[F]:
    """What a caller names; or what writes files that end as the path does, monoquant's own before those of plugins."""
    if given is not None:
        return _named(given, kind, entries, manager)
    fitting = [entry for entry in entries if path.name.endswith(tuple(entry.value.suffixes))]
    if not fitting:
        known = ", ".join(f"{suffix} ({entry.value.name})" for entry in entries for suffix in entry.value.suffixes)
        raise FileError(f"{path}: give a name that ends in {known}, or a format=")
    if len(fitting) > 1 and fitting[0].origin != BUILT_IN:
        names = ", ".join(f"{entry.value.name!r} of {entry.origin}" for entry in fitting)
        raise ConfigError(f"{path}: several formats end so, {names}; give one of them as format=")
    return fitting[0]


def _named(given: Any, kind: type[F], entries: Sequence[Registered[F]], manager: PluginManager) -> Registered[F]:
    value = chosen("format", given, kind, entries, manager.plugins, manager.blocked)
    return next((entry for entry in entries if entry.value is value), Registered(value, CALLER))


def _as_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise FileError(f"{path!r} is not a path: give the name of a file")
    return Path(path)
