"""Experts whose weights are stacked as ``[experts, in, out]``, so that groups must run along the middle axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from monoquant import MatrixForm, ModuleAdapter, Obstacle
from torch import Tensor, nn

TRANSPOSED_EXPERTS: Final = ("GptOssExperts", "Llama4TextExperts")
"""Classes of transformers that compute ``x @ gate_up_proj[i]``; the others keep ``[experts, out, in]``."""

INPUT_AXES: Final = {"gate_up_proj": 1, "down_proj": 1}


class TransposedExpertsAdapter(ModuleAdapter):
    """Packs gate_up_proj and down_proj with one scale per group of *input* features.

    Without it monoquant packs them too, but runs groups along the output features.
    """

    def claims(self, module: nn.Module) -> bool:
        # By name, because transformers is no dependency.
        return any(kind.__name__ in TRANSPOSED_EXPERTS for kind in type(module).__mro__)

    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | Obstacle:
        missing = sorted(INPUT_AXES.keys() - weights.keys())
        if missing:
            return Obstacle(f"it has no {', '.join(missing)}", "use a version of transformers that stacks its experts")
        return {name: MatrixForm.along(weights[name].shape, axis) for name, axis in INPUT_AXES.items()}
