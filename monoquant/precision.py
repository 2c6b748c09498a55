"""From the words people use for a precision (bits, dtypes) to the packing passes."""

from __future__ import annotations

from typing import Any, Literal

import torch

from monoquant.algorithms.base import WeightAlgorithm
from monoquant.errors import ConfigError
from monoquant.passes.half_cast import HalfCastPass
from monoquant.passes.int4_pack import Int4PackPass
from monoquant.passes.int8_pack import Int8PackPass
from monoquant.passes.pack import PackPass
from monoquant.ranges import ObserverKind
from monoquant.values import INT4, check_target

Activations = Literal["dynamic", "static"]
Quality = Literal["auto", "fast", "balanced", "best"]

_BY_QUALITY = {"auto": "auto", "fast": "round_to_nearest", "balanced": "clip_search", "best": "gptq"}

DTYPES: dict[str, torch.dtype] = {
    "int4": INT4,
    "int8": torch.int8,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_TARGETS = {dtype: target for target, dtype in DTYPES.items()} | {torch.qint8: "int8"}
_BY_BITS = {4: "int4", 8: "int8", 16: "float16"}


def require_precision(bits: Any, dtype: Any, default: str) -> str:
    """What a caller means by ``bits`` and ``dtype``.

    Args:
        bits: 4, 8, 16 or None.
        dtype: torch.int4, torch.int8, torch.qint8, torch.float16, torch.bfloat16 or None.
        default: What neither means.

    Returns:
        ``"int4"``, ``"int8"``, ``"float16"`` or ``"bfloat16"``.

    Raises:
        ConfigError: For anything else, or two that disagree.
    """
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or bits not in _BY_BITS):
        raise ConfigError(f"bits={bits!r}: give 4, 8 or 16 (and calibration data by name: calibration_data=...)")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in _TARGETS):
        allowed = ", ".join(map(str, _TARGETS))
        raise ConfigError(f"dtype={dtype!r}: give one of {allowed}")
    by_bits = None if bits is None else _BY_BITS[bits]
    by_dtype = None if dtype is None else _TARGETS[dtype]
    if by_bits and by_dtype and by_bits != by_dtype and not (bits == 16 and by_dtype == "bfloat16"):
        raise ConfigError(f"bits={bits!r} and dtype={dtype} disagree: give one of them")
    return by_dtype or by_bits or default


def require_more_careful(skip_to: str | None, target: str) -> None:
    """Refuse to "keep" layers in something that is no more than what the rest is reduced to.

    Args:
        skip_to: What a caller wants skipped layers reduced to; None for float.
        target: What the rest is reduced to.

    Raises:
        ConfigError: When they would lose as much as the rest, or more.
    """
    check_target(None, None, skip_to)
    if not keeps_more(skip_to, target):
        raise ConfigError(f"skip_to={skip_to!r} keeps no more of a layer than {target}, which all are reduced to")


def keeps_more(skip_to: str | None, target: str) -> bool:
    """Whether a layer keeps more in one representation than in another.

    Args:
        skip_to: ``"int8"``, ``"float16"``, ``"bfloat16"``; None for float.
        target: One of these or ``"int4"``.
    """
    bits = {"int4": 4, "int8": 8, "float16": 16, "bfloat16": 16}
    return skip_to is None or bits[skip_to] > bits[target]


def chosen_algorithm(quality: Any, algorithm: str | WeightAlgorithm | None, *, has_data: bool) -> str | WeightAlgorithm:
    """What a caller means by ``quality`` and ``algorithm``.

    Args:
        quality: ``"auto"``, ``"fast"``, ``"balanced"`` or ``"best"``.
        algorithm: A name, an algorithm, or None.
        has_data: Whether there is calibration data.

    Returns:
        What Int4PackPass takes.

    Raises:
        ConfigError: For another quality, both at once, or one that needs data and has none.
    """
    if quality not in _BY_QUALITY:
        raise ConfigError(f"quality={quality!r}: give one of {', '.join(map(repr, _BY_QUALITY))}")
    if algorithm is not None and quality != "auto":
        raise ConfigError(f"quality={quality!r} and algorithm={algorithm!r} both choose: give one of them")
    if quality in ("balanced", "best") and not has_data:
        raise ConfigError(f"quality={quality!r} fits codes to data: give calibration_data, or use quality='fast'")
    return _BY_QUALITY[quality] if algorithm is None else algorithm


def packing_pass(
    target: str,
    group_size: int | None,
    symmetric: bool | None,
    scale_dtype: torch.dtype | None,
    activations: Activations | None,
    observer: str | ObserverKind,
    algorithm: str | WeightAlgorithm,
    exact: bool,
) -> PackPass:
    """The pass for a precision, with the options that were given.

    Args:
        target: As :func:`require_precision` returns it.
        group_size: None means the pass's default; so do the next two.
        symmetric: As the passes explain it.
        scale_dtype: As the passes explain it.
        activations: INT8 only.
        observer: INT8 with static activations only.
        algorithm: INT4 only; "auto" is the default.
        exact: INT4 only; False is the default.

    Raises:
        ConfigError: For wrong values, and for options that would change nothing.
    """
    given = {"group_size": group_size, "symmetric": symmetric, "scale_dtype": scale_dtype}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if target != "int4" and algorithm != "auto":
        raise ConfigError(f"algorithm {algorithm!r} is for INT4: {target} weights are rounded to nearest")
    if target != "int4" and exact:
        raise ConfigError(f"exact=True is for INT4: the kernels of {target} are exact, and those of integers their own")
    if target == "int8":
        return Int8PackPass(**options, activations=activations, observer=observer)
    if activations is not None:
        raise ConfigError(f"activations={activations!r} is for INT8: give bits=8")
    if observer != "minmax":
        raise ConfigError(f"observer={observer!r} does nothing without bits=8 and activations='static'")
    if target == "int4":
        return Int4PackPass(**options, algorithm=algorithm, exact=exact)
    if options:
        raise ConfigError(f"{', '.join(options)} change nothing in {target}: leave them out")
    return HalfCastPass(DTYPES[target])


def secondary_passes(target: str, scale_dtype: torch.dtype | None) -> list[PackPass]:
    """Passes for what rules may reduce less than the rest (``skip_to``).

    Args:
        target: What the rest is reduced to.
        scale_dtype: Of all scales; None means the pass's default.

    Returns:
        A pass for each other target; one that no rule names does nothing.
    """
    integers = Int8PackPass() if scale_dtype is None else Int8PackPass(scale_dtype=scale_dtype)
    passes: list[PackPass] = [integers, HalfCastPass(torch.float16), HalfCastPass(torch.bfloat16)]
    return [pass_ for pass_ in passes if pass_.scheme.target != target]
