"""The checks of a gate keep the contract of every check."""

from __future__ import annotations

import monoquant as mq
from monoquant.gates.baseline import BaselineCheck
from monoquant.gates.limits import BitsPerWeightCheck, CompressionCheck, LayerSqnrCheck, ModelSqnrCheck
from monoquant.testing import WarningCheckConformance

LAYER = mq.LayerReport(
    "layer", "Linear", (64, 64), 4096, mq.Action.QUANTIZE, "", 16384, 2432, scheme=mq.Scheme(), weight_sqnr_db=20.0
)
REPORT = mq.QuantReport(mq.Scheme(), (LAYER,), (), 16384, 2432, validation=mq.ValidationResult())


class TestBaselineCheck(WarningCheckConformance):
    check = BaselineCheck(mq.Baseline(REPORT))


class TestLayerSqnrCheck(WarningCheckConformance):
    check = LayerSqnrCheck(20.0)


class TestModelSqnrCheck(WarningCheckConformance):
    check = ModelSqnrCheck(20.0)


class TestBitsPerWeightCheck(WarningCheckConformance):
    check = BitsPerWeightCheck(4.5)


class TestCompressionCheck(WarningCheckConformance):
    check = CompressionCheck(4.0)
