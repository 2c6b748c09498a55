"""Tables out of the JSON files that the benchmarks write: printed, or put into `benchmarks/README.md`.

Run ``python benchmarks/speed/render.py FILE...`` to replace the tables between the markers of README.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

MEBIBYTE = 1 << 20
README = Path(__file__).parents[1] / "README.md"
Row = Mapping[str, Any]


def text(results: Row) -> str:
    """The machine, the tables and what failed, in Markdown.

    Args:
        results: As a benchmark writes them.
    """
    parts = [_about(results), *TABLES[results["kind"]](results), *_failures(results)]
    return "\n\n".join(parts)


def _about(results: Row) -> str:
    machine, arguments = results["machine"], results["arguments"]
    where = f"{machine['cpu']}, {machine['cores']} cores, flags {' '.join(machine['telling flags'])}"
    how = f"{machine['threads']} thread(s), {arguments['rounds']} rounds, {arguments['clock']} time"
    versions = ", ".join(dict.fromkeys(results["versions"].values()))
    return f"{where}; Python {machine['python']}; {how}; {machine['date'][:10]}. {versions}."


def _failures(results: Row) -> Iterator[str]:
    failed = {f"{row['way']}": row["failure"] for row in results["rows"] if "failure" in row} | results["failures"]
    if failed:
        yield "\n".join(["Not measured:", "", *(f"- {name}: {why}" for name, why in failed.items())])


def markdown(head: list[str], lines: Iterable[list[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *lines])


def _kernels(results: Row) -> Iterator[str]:
    rows = [row for row in results["rows"] if row.get("seconds")]
    for baseline in dict.fromkeys(row["baseline"] for row in rows):
        for shape in dict.fromkeys(tuple(row["shape"]) for row in rows):
            chosen = [row for row in rows if row["baseline"] == baseline and tuple(row["shape"]) == shape]
            if chosen:
                yield _layer(chosen, baseline, shape)


def _layer(rows: list[Row], baseline: str, shape: tuple[int, ...]) -> str:
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    title = f"{shape[0]} -> {shape[1]}: time / time of F.linear in {baseline} (the least that is possible)"
    head = ["", *(f"M={batch}" for batch in batches), "relative error", "kernel"]
    lines = [["float, ms", *(_float_ms(rows, batch) for batch in batches), "", ""]]
    for way in dict.fromkeys(row["way"] for row in rows):
        own = {row["batch"]: row for row in rows if row["way"] == way}
        lines.append([way, *(_ratio(own.get(batch)) for batch in batches), _error(own.values()), _kernel(own.values())])
    return f"{title}\n\n{markdown(head, lines)}"


def _float_ms(rows: list[Row], batch: int) -> str:
    return f"{1e3 * median(one for row in rows if row['batch'] == batch for one in row['float seconds']):.3g}"


def _ratio(row: Row | None) -> str:
    if row is None:
        return "-"
    base = median(row["float seconds"])
    return f"{_short(median(row['seconds']) / base)} ({_short(row['floor'] / base)})"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"


def _error(rows: Iterable[Row]) -> str:
    known = list(rows)
    note = "" if known[0]["against"] == "its own weight" else " (float weight)"
    return f"{max(row['error'] for row in known):.1e}{note}"


def _kernel(rows: Iterable[Row]) -> str:
    return ", ".join(dict.fromkeys(row["kernel"] for row in rows if row.get("kernel")))


def _quantization(results: Row) -> Iterator[str]:
    weights, floor = results["arguments"]["weights"], results["floor"]
    lines = []
    for row in results["rows"]:
        if row["seconds"] and "failure" not in row:
            extra = "-" if row["extra MiB"][0] is None else f"{max(row['extra MiB']):.0f}"
            time = median(row["seconds"])
            note = "" if row["part"] == 1 else f" (estimated from {row['part']:.1%} of the weights)"
            lines.append([row["way"] + note, f"{time:.2f}", f"{time / floor:.1f}", extra if not note else "-"])
    head = ["", "seconds", "/ least", "MiB above the float model"]
    title = f"{weights:,} weights to INT4 in groups of 128; to copy the float ones takes {floor:.2f} s"
    yield f"{title}\n\n{markdown(head, lines)}"


def _models(results: Row) -> Iterator[str]:
    rows = [row for row in results["rows"] if row.get("seconds")]
    for subject in dict.fromkeys(row["subject"] for row in rows):
        chosen = [row for row in rows if row["subject"] == subject]
        workloads = list(dict.fromkeys(row["workload"] for row in chosen))
        head = ["", *(cell for name in workloads for cell in (f"{name}, ms", "/ float")), chosen[0]["loss name"]]
        lines = [["float", *(cell for name in workloads for cell in (_base_ms(chosen, name), "1")), "0"]]
        for way in dict.fromkeys(row["way"] for row in chosen):
            own = {row["workload"]: row for row in chosen if row["way"] == way}
            cells = [cell for name in workloads for cell in _timed(own.get(name))]
            lines.append([way, *cells, f"{next(iter(own.values()))['loss']:.4f}"])
        yield f"{subject}\n\n{markdown(head, lines)}"


def _base_ms(rows: list[Row], workload: str) -> str:
    return f"{1e3 * median(one for row in rows if row['workload'] == workload for one in row['float seconds']):.3g}"


def _timed(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    time = median(row["seconds"])
    return f"{1e3 * time:.3g}", _short(time / median(row["float seconds"]))


def _memory(results: Row) -> Iterator[str]:
    weights = results["arguments"]["weights"]
    found = [row for row in results["rows"] if "failure" not in row]
    lines = [
        [row["way"], _mebibytes(row["kept"]), f"{weights * row['bits'] / 8 / MEBIBYTE:.0f}"]
        for row in found
        if row["table"] == "resident"
    ]
    title = (
        f"{weights:,} weights, quantized and called once: resident memory (float32: {weights * 4 / MEBIBYTE:.0f} MiB)"
    )
    yield f"{title}\n\n{markdown(['', 'MiB', 'MiB of the format'], lines)}"
    loads = [row for row in found if row["table"] == "load"]
    lines = [[row["way"], _mebibytes(row["kept"]), _mebibytes(row["peak"]), f"{row['file MiB']:.0f}"] for row in loads]
    yield f"Loading them\n\n{markdown(['', 'kept, MiB', 'peak, MiB', 'file, MiB'], lines)}"
    yield from _files([row for row in found if row["table"] == "files"], results["copy bytes/s"])


def _files(rows: list[Row], copying: float) -> Iterator[str]:
    if rows:
        rates = [row["bytes"] / median(row["seconds"]) / 1e9 for row in rows]
        lines = [[row["way"], _mebibytes(row["peak"]), f"{rate:.2f}"] for row, rate in zip(rows, rates, strict=True)]
        size = rows[0]["bytes"] / 1e9
        title = f"A file of {size:.1f} GB to INT4, warm (memory is copied at {copying / 1e9:.1f} GB/s)"
        yield f"{title}\n\n{markdown(['', 'peak, MiB', 'GB/s'], lines)}"


def _mebibytes(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


TABLES: dict[str, Callable[[Row], Iterator[str]]] = {
    "kernels": _kernels,
    "models": _models,
    "quantization": _quantization,
    "memory": _memory,
}


def put(readme: str, kind: str, content: str) -> str:
    """Replace what is between the markers of a kind.

    Raises:
        ValueError: When there are no such markers.
    """
    start, end = f"<!-- {kind} -->", f"<!-- /{kind} -->"
    if start not in readme or end not in readme:
        raise ValueError(f"{README} needs the lines {start} and {end}")
    before, _, rest = readme.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{content}\n{end}{after}"


def main() -> None:
    """Put the tables of some files into README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    readme = README.read_text(encoding="utf-8")
    for path in parser.parse_args().files:
        results = json.loads(path.read_text(encoding="utf-8"))
        readme = put(readme, results["kind"], text(results))
    README.write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
