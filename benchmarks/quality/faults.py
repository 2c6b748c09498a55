"""Plant faults into packed layers of MiniLM, and see which check names them.

Run ``python benchmarks/quality/faults.py``. A fault comes after packing, as that of a faulty pass or of faulty memory.
Each is planted twice: as it is, where what was intended gives it away (`codes-differ`), and with that taken from the
faulty codes, as if the algorithm itself had made the mistake: then what was measured must show it
(`sqnr-critical`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import _path  # noqa: F401
import attrs
import torch
from common.models import minilm, texts
from torch import Tensor

import monoquant as mq
from monoquant.modules.packed_weight import Intended

LAYER = "encoder.layer.3.attention.self.value"
Fault = Callable[[Any], None]


def swap_nibbles(weight: Any) -> None:
    """Even columns where odd ones belong."""
    weight.qweight.copy_(weight.qweight.bitwise_left_shift(4) | weight.qweight.bitwise_right_shift(4))


def raise_zero_points(weight: Any) -> None:
    """Every group's zero point one too high; 15 stays."""
    low, high = weight.zero_point.bitwise_and(15), weight.zero_point.bitwise_right_shift(4)
    weight.zero_point.copy_(_next(low) | _next(high).bitwise_left_shift(4))


def _next(nibbles: Tensor) -> Tensor:
    return (nibbles + 1).clamp_max(15)


def share_one_scale(weight: Any) -> None:
    """The mean scale for all groups."""
    weight.scale.fill_(weight.scale.mean())


FAULTS: dict[str, Fault] = {
    "nibbles swapped": swap_nibbles,
    "zero_point + 1": raise_zero_points,
    "one scale for all": share_one_scale,
}


@attrs.frozen
class FaultyPackPass(mq.Int4PackPass):
    """Pack, and break the packed weights of some layers.

    Args:
        fault: Changes a packed weight in place; None for no fault.
        layers: Which; all if empty.
        hidden: Whether what was intended is taken from the faulty weights, so that it cannot tell.
    """

    fault: Fault | None = None
    layers: tuple[str, ...] = ()
    hidden: bool = False

    def run(self, context: mq.QuantContext) -> None:
        """Pack and break them."""
        super().run(context)
        if self.fault is None:
            return
        for name in self.layers or tuple(context.packed):
            packed = context.packed[name]
            for weight in packed.weights.values():
                self.fault(weight)
            if self.hidden:
                intended = {key: Intended.of_digest(weight.digest()) for key, weight in packed.weights.items()}
                context.packed[name] = attrs.evolve(packed, intended=intended)


def report_of(data: list[Any], algorithm: str, **faults: Any) -> mq.QuantReport:
    """The report of a run with faults in it, if any; MiniLM, groups of 128, nothing raised."""
    passes = [
        mq.SkipSelectionPass.from_options(),
        mq.CalibrationPass(data, num_samples=sum(len(batch["input_ids"]) for batch in data)),
        FaultyPackPass(group_size=128, algorithm=algorithm, **faults),
        mq.ValidationPass(on_failure="warn"),
        mq.AccuracyWarningPass(on_failure="ignore"),
    ]
    return mq.Quantizer(passes).run(minilm.build()).report


def named(report: mq.QuantReport) -> dict[str, list[str]]:
    """Codes of CRITICAL findings by layer."""
    found: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.severity is mq.Severity.CRITICAL and finding.layer is not None:
            found.setdefault(finding.layer, []).append(finding.code)
    return found


def decibels(report: mq.QuantReport) -> str:
    """SQNR of the layer's weight and output."""
    record = next(one for one in report.layers if one.layer == LAYER)
    return f"{_decibels(record.weight_sqnr_db)} {_decibels(record.output_sqnr_db)}"


def _decibels(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:>9.2f}"


def line(data: list[Any], algorithm: str, name: str, hidden: bool) -> str:
    """What a fault in one layer is named by, and how many layers are named when it is in each of them."""
    report = report_of(data, algorithm, fault=FAULTS[name], layers=(LAYER,), hidden=hidden)
    codes = named(report)
    others = len(codes.keys() - {LAYER})
    everywhere = report_of(data, algorithm, fault=FAULTS[name], hidden=hidden)
    packed = sum(bool(one.weights) for one in everywhere.layers)
    answer = ", ".join(sorted(codes.get(LAYER, []))) or "NOTHING"
    return f"{decibels(report)}  {answer:<28} {others:>6} {len(named(everywhere)):>6} of {packed}"


def main() -> None:
    """Print a table per algorithm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=64, help="to calibrate with")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = minilm.batches(texts.calibration_and_held_out()[0][: arguments.sentences])
    print(f"faults in {LAYER} of MiniLM, {arguments.sentences} sentences")
    head = f"{'algorithm':<17} {'fault':<18} {'digest':<8} {'weight dB':>9} {'output dB':>9}  {'named by':<28}"
    print(f"{head} {'others':>6} in all layers: named")
    for algorithm in ("round_to_nearest", "gptq"):
        healthy = report_of(data, algorithm)
        print(f"{algorithm:<17} {'none':<18} {'-':<8} {decibels(healthy)}  {'-':<28} {len(named(healthy)):>6}")
        for name in FAULTS:
            for hidden in (False, True):
                head = f"{algorithm:<17} {name:<18} {'retaken' if hidden else 'kept':<8}"
                print(head, line(data, algorithm, name, hidden), flush=True)


if __name__ == "__main__":
    main()
