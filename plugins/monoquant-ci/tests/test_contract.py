"""The contract of every check."""

from __future__ import annotations

import monoquant as mq
from monoquant.testing import WarningCheckConformance

from monoquant_ci.gate import Gate

LAYER = mq.LayerReport(
    "layer", "Linear", (64, 64), 4096, mq.Action.QUANTIZE, "", 16384, 2432, scheme=mq.Scheme(), weight_sqnr_db=20.0
)
BASELINE = mq.QuantReport(mq.Scheme(), (LAYER,), (), 16384, 2432)


class TestGate(WarningCheckConformance):
    check = Gate(BASELINE)
