"""The frozen words of the library: scheme, layer, decision, finding. No tensor is computed here."""

from __future__ import annotations

import enum
import math
from typing import Any, Literal

import attrs
import torch

from monoquant.errors import ConfigError

INT4: torch.dtype = torch.int4  # type: ignore[attr-defined]  # torch has it, its stubs do not
CODE_BITS = (4, 8)
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HALF_DTYPES = (torch.float16, torch.bfloat16)
PACKABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigError(
            f"group_size={value!r}: give a whole number of input features >= 1, such as 32, 64 or 128, "
            "or None for one scale per output channel"
        )


def _check_bits(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value not in CODE_BITS:
        raise ConfigError(f"bits={value!r}: codes have 4 or 8 bits; give bits=4 or bits=8")


def _check_symmetric(_instance: Any, _attribute: Any, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(
            f"symmetric={value!r}: give True (signed codes around zero) or False (unsigned codes with a zero_point)"
        )


def _check_scale_dtype(_instance: Any, _attribute: Any, value: Any) -> None:
    if value not in SCALE_DTYPES:
        raise ConfigError(f"scale_dtype={value!r}: give one of {', '.join(map(str, SCALE_DTYPES))}")


def _check_activations(scheme: Scheme, _attribute: Any, value: Any) -> None:
    if value not in (None, "dynamic", "static"):
        raise ConfigError(f"activations={value!r}: give None, 'dynamic' or 'static'")
    if value is not None and (scheme.bits, scheme.group_size, scheme.symmetric) != (8, None, True):
        raise ConfigError(
            f"activations={value!r} multiplies integers, which needs symmetric 8-bit weights with one scale per output "
            "channel: give bits=8, group_size=None and symmetric=True"
        )


@attrs.frozen
class Scheme:
    """How a weight matrix is represented: ``w = (q - zero_point) * scale`` per group of input features.

    Args:
        bits: Bits per code; 4 (default) or 8.
        group_size: Consecutive input features that share one scale; >= 1, default 128. The last group of a row
            may be shorter, and a row shorter than this is one group. None: one scale per row (output channel).
        symmetric: False (default): codes 0..2**bits-1 and an integer zero_point per group. True: the full signed range
            (-8..7 or -128..127) around a fixed zero_point.
        scale_dtype: dtype of the stored scales: torch.float16 (default), torch.bfloat16 or torch.float32.
        activations: None (default): inputs stay float. ``"dynamic"``: each input row is quantized to INT8 on each call.
            ``"static"``: inputs are quantized to INT8 with a range found in calibration. Both need 8 bits, symmetric,
            and one scale per output channel.
    """

    bits: int = attrs.field(default=4, validator=_check_bits)
    group_size: int | None = attrs.field(default=128, validator=_check_group_size)
    symmetric: bool = attrs.field(default=False, validator=_check_symmetric)
    scale_dtype: torch.dtype = attrs.field(default=torch.float16, validator=_check_scale_dtype)
    activations: Literal["dynamic", "static"] | None = attrs.field(default=None, validator=_check_activations)

    def width(self, columns: int) -> int:
        """Features per group in a row.

        Args:
            columns: Input features of the row, >= 1.
        """
        return columns if self.group_size is None else min(self.group_size, columns)

    @property
    def max_code(self) -> int:
        """Largest unsigned code: 15 or 255."""
        return (1 << self.bits) - 1

    @property
    def middle_code(self) -> int:
        """Unsigned code that stands for zero in symmetric schemes: 8 or 128."""
        return 1 << (self.bits - 1)

    @property
    def target(self) -> str:
        """What rules call it: ``"int4"`` or ``"int8"``."""
        return f"int{self.bits}"

    @property
    def storage(self) -> Scheme:
        """The same representation of the weight, whatever happens to inputs."""
        return attrs.evolve(self, activations=None)

    def __str__(self) -> str:
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        scale = str(self.scale_dtype).removeprefix("torch.")
        groups = "per-channel" if self.group_size is None else f"g{self.group_size}"
        inputs = f", {self.activations} int8 inputs" if self.activations else ""
        return f"int{self.bits} {groups} {symmetry} {scale}{inputs}"


INT8_SCHEME = Scheme(8, None, True, torch.float32)


def _check_half(_instance: Any, _attribute: Any, value: Any) -> None:
    if value not in HALF_DTYPES:
        raise ConfigError(f"dtype={value!r}: give one of {', '.join(map(str, HALF_DTYPES))}")


@attrs.frozen
class HalfScheme:
    """A weight stored in 16 bits of floating point, computed with in the layer's own dtype.

    Args:
        dtype: torch.float16 or torch.bfloat16.
    """

    dtype: torch.dtype = attrs.field(validator=_check_half)

    @property
    def bits(self) -> int:
        """16."""
        return 16

    @property
    def symmetric(self) -> bool:
        """True: floats are."""
        return True

    @property
    def target(self) -> str:
        """What rules call it: ``"float16"`` or ``"bfloat16"``."""
        return str(self)

    @property
    def storage(self) -> HalfScheme:
        """Itself: half storage never concerns inputs."""
        return self

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.")


AnyScheme = Scheme | HalfScheme


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
        rule: The rule that said skip (or what else to reduce the layer to), as text; None where none did.
        origin: Who said so.
        remedy: What would make an unsupported layer possible; empty otherwise.
        scheme: How a quantized layer is represented; None for the other two.
        weights: Names of the parameters that are packed; empty for the other two.
        compute: How a quantized layer will run; empty for the other two.
    """

    layer: str
    action: Action
    reason: str
    rule: str | None = None
    origin: Origin = BUILT_IN
    remedy: str = ""
    scheme: AnyScheme | None = None
    weights: tuple[str, ...] = ()
    compute: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        origin = "" if self.origin == BUILT_IN else f" [{self.origin}]"
        compute = f"; {self.compute}" if self.compute else ""
        return f"{self.action.value:<12}{self.layer or '(root)'}: {self.reason}{compute}{remedy}{origin}"


TARGETS = ("int8", "float16", "bfloat16")


def check_target(_instance: Any, _attribute: Any, value: Any) -> None:
    """Refuse what a rule cannot reduce a layer to; a validator of attrs fields.

    Raises:
        ConfigError: Unless it is None or one of TARGETS.
    """
    if value is not None and value not in TARGETS:
        raise ConfigError(f"skip_to={value!r}: give one of {', '.join(map(repr, TARGETS))}, or None to stay in float")


@attrs.frozen
class Target:
    """What a rule reduces a layer to instead of leaving it in float.

    Args:
        to: ``"int8"``, ``"float16"`` or ``"bfloat16"``.
        reason: Why the rule does not want less, for a person.
        rule: The rule, as text.
        origin: Whose rule it is.
    """

    to: str = attrs.field(validator=check_target)
    reason: str
    rule: str
    origin: Origin


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
