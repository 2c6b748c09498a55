"""What monoquant itself wrote: quantized models, and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monoquant.disk.header import read_header
from monoquant.disk.kinds import FileKind, kind_of
from monoquant.disk.open_file import OpenFile
from monoquant.disk.strict_json import read_json
from monoquant.errors import FileError, InputError
from monoquant.formats.native import FORMAT, peek_report, read_dequantized, read_report
from monoquant.opening.opened import OpenedKind, OpenedModel
from monoquant.report import QuantReport
from monoquant.values import Action


def is_quantized(path: Path) -> bool:
    """Whether ``monoquant.save`` wrote a file.

    Args:
        path: The file.

    Raises:
        FileError: When it cannot be read, or is a damaged safetensors file.
    """
    if kind_of(path) is not FileKind.SAFETENSORS:
        return False
    with OpenFile(path) as file:
        return read_header(file)[1].get("format") == FORMAT


def open_quantized(given: str, file: Path, *, in_folder: bool = False) -> OpenedModel:
    """Open a quantized model.

    Args:
        given: As it was written.
        file: What ``monoquant.save`` wrote.
        in_folder: Whether a folder was given that holds it.

    Raises:
        FileError: When its header is damaged.
    """
    what = "quantized model in a folder" if in_folder else "quantized model"
    return OpenedModel(
        given=given,
        kind=OpenedKind.QUANTIZED,
        path=file,
        described=f"{what}, {_told(peek_report(file))}",
        report=lambda progress: read_report(file, progress),
        dequantized_state=lambda progress: read_dequantized(file, progress),
    )


def open_json(given: str, path: Path) -> OpenedModel | None:
    """Open a JSON file that is a report.

    Args:
        given: As it was written.
        path: The file.

    Returns:
        The report; None where the file is the index of weights.

    Raises:
        FileError: When it is no sound JSON, or a report of another version.
        InputError: When it is something else.
    """
    found: Any = read_json(path, "a report or an index")
    if isinstance(found, dict) and "weight_map" in found:
        return None
    if not isinstance(found, dict) or "version" not in found or "layers" not in found:
        is_config = isinstance(found, dict) and ("architectures" in found or "model_type" in found)
        hint = f"give its folder, {path.parent}" if is_config else "give a model, or a report that save_report wrote"
        raise InputError(f"{path}: a JSON file that is neither a report nor an index; {hint}")
    try:
        report = QuantReport.from_dict(found)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
    return OpenedModel(
        given=given,
        kind=OpenedKind.REPORT,
        path=path,
        described=f"report, {_told(report)}",
        report=lambda _progress: report,
    )


def _told(report: QuantReport) -> str:
    packed = len(report.by_action(Action.QUANTIZE))
    return f"{report.scheme}, {packed} of {len(report.layers)} layers packed"
