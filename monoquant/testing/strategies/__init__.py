"""Hypothesis strategies for tests of rules, checks, passes, algorithms, observers and plugins.

All of them shrink towards the simplest value there is, and print what is needed to see why a test failed. They need the
extra ``monoquant[testing]``.

Example::

    from hypothesis import given
    from monoquant.testing.strategies import layers

    @given(layers())
    def test_router_rule_keeps_experts(layer):
        if ".experts." in layer.name:
            assert RouterRule().reason(layer) is None
"""

from monoquant.testing.strategies.infos import gates, infos, layer_reports
from monoquant.testing.strategies.inputs import activations, input_statistics, statistics_of
from monoquant.testing.strategies.layers import layers
from monoquant.testing.strategies.models import calibration_data, models, models_with_data
from monoquant.testing.strategies.rules import skip_rules
from monoquant.testing.strategies.schemes import half_schemes, schemes
from monoquant.testing.strategies.weights import weights

__all__ = [
    "activations",
    "calibration_data",
    "gates",
    "half_schemes",
    "infos",
    "input_statistics",
    "layer_reports",
    "layers",
    "models",
    "models_with_data",
    "schemes",
    "skip_rules",
    "statistics_of",
    "weights",
]
