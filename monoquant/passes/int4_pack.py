"""Pack weights to group-wise INT4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from monoquant.algorithms.base import Needs, WeightAlgorithm
from monoquant.algorithms.choice import algorithm_named
from monoquant.algorithms.gptq import Gptq
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.context import QuantContext
from monoquant.errors import ConfigError, require_flag
from monoquant.fitting import Fit, Fitter
from monoquant.folding import Folder
from monoquant.kernels.choice import Offer
from monoquant.modules.packed_layer import Represented
from monoquant.passes.code_pack import refuse_large_scales
from monoquant.passes.pack import PackPass, Represent
from monoquant.registry import Registry
from monoquant.values import AnyScheme, Scheme

AUTO = "auto"


def _chosen(given: Any) -> WeightAlgorithm | None:
    return None if given is None or given == AUTO else algorithm_named(given)


def _check_flag(_instance: Any, attribute: Any, value: Any) -> None:
    require_flag(attribute.name, value)


@attrs.frozen
class Int4PackPass(PackPass):
    """Turn the weights of every remaining layer into 4-bit codes with a scale per group of input features.

    Args:
        group_size: Input features per group, >= 1; default 128. Ragged last groups are fine. None: a whole row.
        symmetric: False (default): codes 0..15 with a zero_point per group. True: codes -8..7.
        scale_dtype: torch.float16 (default), torch.bfloat16 or torch.float32.
        algorithm: How codes are chosen: ``"round_to_nearest"``; ``"clip_search"``, ``"gptq"`` and ``"awq"``, which fit
            them to calibration data; the name of one that a plugin brings; or a WeightAlgorithm of your own.
            ``"auto"`` (default): gptq where there is a CalibrationPass, round_to_nearest elsewhere.
        correct_bias: Whether biases make up for what the error of a weight adds to its product on average, where
            calibration saw its inputs; default True.
        exact: Whether kernels must be as exact as a float32 product. False (default) allows those that round inputs to
            bfloat16 or INT8, which adds far less than the codes do; each is told.
    """

    single: ClassVar[bool] = True

    group_size: int | None = 128
    symmetric: bool = False
    scale_dtype: torch.dtype = torch.float16
    algorithm: WeightAlgorithm | None = attrs.field(default=None, converter=_chosen)
    correct_bias: bool = attrs.field(default=True, validator=_check_flag)
    exact: bool = attrs.field(default=False, validator=_check_flag)

    def __attrs_post_init__(self) -> None:
        _ = self.scheme  # refuses bad settings now rather than in the run

    def bound(self, registry: Registry) -> Int4PackPass:
        return self if self.algorithm is None else attrs.evolve(self, algorithm=registry.algorithm(self.algorithm))

    @property
    def scheme(self) -> Scheme:
        return Scheme(4, self.group_size, self.symmetric, self.scale_dtype)

    def offer(self, context: QuantContext) -> Offer:
        return context.registry.offer(exact=self.exact)

    @property
    def scales_inputs(self) -> bool:
        """Whether it may change what layers are given, along with their weights."""
        return self.algorithm is not None and self.algorithm.scales_inputs

    def refuse_extremes(self, ranges: Sequence[tuple[str, float]]) -> None:
        super().refuse_extremes(ranges)
        refuse_large_scales(ranges, self.scheme)

    def prepare(self, context: QuantContext) -> None:
        super().prepare(context)
        algorithm = Gptq() if self.algorithm is None else self.algorithm
        needs = algorithm.needs
        context.weighs_rows |= bool(needs) and algorithm.weighs_rows
        context.wants_fold_sites |= self.scales_inputs
        for layer in self.mine(context):
            if needs and algorithm.weighs_rows:
                context.wanted_gradients.add(context.heard_at(layer.name))
            if needs and context.packable(layer.name).adapter.multiplies:
                for name in context.weight_names(layer.name):
                    context.want_moments(layer.name, name, full=needs is Needs.HESSIAN)

    def requires(self, context: QuantContext) -> None:
        if self.algorithm is not None and self.algorithm.needs and context.statistics is None:
            raise ConfigError(
                f"algorithm {self.algorithm.name!r} fits codes to data: put a CalibrationPass before Int4PackPass, or "
                "choose 'round_to_nearest' or 'auto'"
            )

    def run(self, context: QuantContext) -> None:
        if self.algorithm is not None and self.algorithm.scales_inputs:
            own = {layer.name for layer in self.mine(context)}
            folder = Folder(self.algorithm, self.scheme, context, own, corrects_bias=self.correct_bias)
            context.report(folder.fold())
        super().run(context)

    def representation(self, context: QuantContext) -> Represent:
        fitted: WeightAlgorithm = self.algorithm or (RoundToNearest() if context.statistics is None else Gptq())
        own = {layer.name for layer in self.mine(context)}
        fitter = Fitter(fitted, context, own, corrects_bias=self.correct_bias)

        def represent(layer: str, name: str, scheme: AnyScheme) -> Represented:
            fit = fitter.fit(layer, name, scheme if isinstance(scheme, Scheme) else self.scheme)
            biases = self._biases(layer, name, fit, context)
            return Represented(fit.weight, fit.intended, biases, fit.algorithm, fit.input_rows, fit.findings)

        return represent

    def _biases(self, layer: str, name: str, fit: Fit, context: QuantContext) -> dict[str, Tensor]:
        bias = context.correctable_bias(layer, name)
        held = None if bias is None else context.module(layer)._parameters[bias]
        if bias is None or held is None:
            return {}
        rescaled = context.rescaling.parameters.get((layer, bias))
        if not self.correct_bias or fit.shift is None:
            return {} if rescaled is None else {bias: rescaled}
        before = held.detach() if rescaled is None else rescaled
        return {bias: (before - fit.shift.to(held.device)).to(held.dtype)}
