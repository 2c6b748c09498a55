"""The frozen words of the library: scheme, layer, decision, finding. No tensor is computed here."""

from __future__ import annotations

import enum
import math
from typing import Any

import attrs
import torch

from monoquant.errors import ConfigError

INT4: torch.dtype = torch.int4  # type: ignore[attr-defined]  # torch has it, its stubs do not
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Severity(enum.IntEnum):
    """How bad a finding is; comparable, the worst is the largest."""

    INFO = 0
    WARNING = 1
    CRITICAL = 2


class Action(enum.StrEnum):
    """The three answers a plan has for a layer."""

    QUANTIZE = "quantize"
    SKIP = "skip"
    UNSUPPORTED = "unsupported"


@attrs.frozen
class Origin:
    """Where a rule, a check or a finding comes from.

    Args:
        name: ``"monoquant"`` for built-ins, ``"caller"`` for what the caller passed, else the plugin's name.
        version: Version of the distribution, or None.
    """

    name: str
    version: str | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name} {self.version}"


BUILT_IN = Origin("monoquant")
CALLER = Origin("caller")


def _check_group_size(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigError(f"group_size={value!r}: give a whole number of input features >= 1, such as 32, 64 or 128")


def _check_bits(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value != 4:
        raise ConfigError(f"bits={value!r}: this version packs 4 bits only; give bits=4")


def _check_symmetric(_instance: Any, _attribute: Any, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"symmetric={value!r}: give True (codes -8..7) or False (codes 0..15 with a zero_point)")


def _check_scale_dtype(_instance: Any, _attribute: Any, value: Any) -> None:
    if value not in SCALE_DTYPES:
        raise ConfigError(f"scale_dtype={value!r}: give one of {', '.join(map(str, SCALE_DTYPES))}")


@attrs.frozen
class Scheme:
    """How a weight matrix is represented: ``w = (q - zero_point) * scale`` per group of input features.

    Args:
        bits: Bits per code; 4.
        group_size: Consecutive input features that share one scale; >= 1, default 128. The last group of a row
            may be shorter, and a row shorter than this is one group.
        symmetric: False (default): codes 0..15 and an integer zero_point per group. True: the full signed range
            -8..7, stored as 0..15 with a fixed zero_point of 8.
        scale_dtype: dtype of the stored scales: torch.float16 (default), torch.bfloat16 or torch.float32.
    """

    bits: int = attrs.field(default=4, validator=_check_bits)
    group_size: int = attrs.field(default=128, validator=_check_group_size)
    symmetric: bool = attrs.field(default=False, validator=_check_symmetric)
    scale_dtype: torch.dtype = attrs.field(default=torch.float16, validator=_check_scale_dtype)

    def __str__(self) -> str:
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        scale = str(self.scale_dtype).removeprefix("torch.")
        return f"int{self.bits} g{self.group_size} {symmetry} {scale}"


@attrs.frozen
class Ancestor:
    """A module on the way from the root to a layer.

    Args:
        name: Dotted name of the module; ``""`` for the root.
        type: Its class.
    """

    name: str
    type: type


@attrs.frozen
class Layer:
    """A module that owns parameters, as rules see it.

    Args:
        name: Dotted name, the first one if the module is used under several; ``""`` for the root.
        type: The module's class.
        shape: Shape of its weight (of its largest parameter where none is called ``weight``).
        parameters: Number of parameters of its own, biases included; default: the product of ``shape``.
        dtype: dtype of that weight.
        aliases: Further dotted names of the same module.
        ties: Names of the other layers that share a parameter with this one.
        ancestors: Modules that contain it, root first.
    """

    name: str
    type: type
    shape: tuple[int, ...]
    parameters: int = attrs.field()
    dtype: torch.dtype = torch.float32
    aliases: tuple[str, ...] = ()
    ties: tuple[str, ...] = ()
    ancestors: tuple[Ancestor, ...] = attrs.field(default=(), repr=False)

    @parameters.default
    def _count_weight(self) -> int:
        return math.prod(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the layer, the first one first."""
        return (self.name, *self.aliases)


@attrs.frozen
class Decision:
    """The one answer a plan has for a layer.

    Args:
        layer: Name of the layer.
        action: quantize, skip or unsupported.
        reason: Why, for a person.
        rule: The rule that said skip, as text; None for the other two.
        origin: Who said so.
        remedy: What would make an unsupported layer possible; empty otherwise.
        scheme: How a quantized layer is represented; None for the other two.
    """

    layer: str
    action: Action
    reason: str
    rule: str | None = None
    origin: Origin = BUILT_IN
    remedy: str = ""
    scheme: Scheme | None = None

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        origin = "" if self.origin == BUILT_IN else f" [{self.origin}]"
        return f"{self.action.value:<12}{self.layer or '(root)'}: {self.reason}{remedy}{origin}"


@attrs.frozen
class Finding:
    """Something a person should know about the run.

    Args:
        code: Stable identifier for machines, such as ``"sqnr-low"``.
        severity: INFO, WARNING or CRITICAL.
        message: What was found, with the figures.
        layer: Name of the layer concerned, or None for the whole model.
        remedy: What to do about it, and what that costs.
        origin: Who found it.
    """

    code: str
    severity: Severity
    message: str
    layer: str | None = None
    remedy: str = ""
    origin: Origin = BUILT_IN

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()
