"""What a format can reach on Gaussian weights: the yardstick for weight SQNR."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from monoquant.numerics.affine import dequantize, round_to_nearest
from monoquant.numerics.metrics import Energy, measure
from monoquant.values import AnyScheme, HalfScheme

_SAMPLES = 1 << 16


@functools.lru_cache(maxsize=1024)  # a pure function of small frozen values, asked once per layer
def gaussian_reference(scheme: AnyScheme, columns: int) -> Energy:
    """Energies of round-to-nearest on unit Gaussian weights with this scheme and row length.

    Args:
        scheme: The representation.
        columns: Input features, >= 1; a ragged last group counts with its share.

    Returns:
        Energies of one row of ``columns`` weights; about 19.9 dB for asymmetric groups of 128.
    """
    width = columns if isinstance(scheme, HalfScheme) else scheme.width(columns)
    tail = columns % width
    full = _sampled(scheme, width, columns - tail)
    return full + _sampled(scheme, tail, tail) if tail else full


def _sampled(scheme: AnyScheme, width: int, weights: int) -> Energy:
    generator = torch.Generator("cpu").manual_seed(0)
    sample = torch.randn(max(1, _SAMPLES // width), width, generator=generator, device="cpu", dtype=torch.float32)
    energy = measure(sample, _represented(sample, scheme))
    return Energy(energy.signal * weights / sample.numel(), energy.noise * weights / sample.numel())


def _represented(sample: Tensor, scheme: AnyScheme) -> Tensor:
    if isinstance(scheme, HalfScheme):
        return sample.to(scheme.dtype)
    quantized = round_to_nearest(sample, scheme)
    return dequantize(quantized.codes, quantized.scale, quantized.zero_point, sample.shape[1])
