"""Modules that monoquant does not know: matrices that their code reads as attributes, 3-D expert weights among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor, nn

from monoquant.adapters.base import ModuleAdapter, Obstacle
from monoquant.adapters.code import PAST_NAMES, names_read_by_forward
from monoquant.errors import ConfigError
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import AnyScheme

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_READ_BY_OWNER = (nn.ParameterList, nn.ParameterDict)
_AXES_OF_CONVOLUTION = 4
_ELEMENTWISE = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.PReLU,
    nn.modules.batchnorm._NormBase,
)


def _check_kind(_instance: Any, _attribute: Any, kind: Any) -> None:
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigError(f"ParameterAdapter({kind!r}, ...): give a module class")


def _check_axes(_instance: Any, _attribute: Any, axes: Any) -> None:
    if not axes or not all(isinstance(name, str) and type(axis) is int for name, axis in axes.items()):
        raise ConfigError(f"input_axes={axes!r}: give the axis of input features by parameter name, as in {{'up': -1}}")


@attrs.frozen
class ParameterAdapter(ModuleAdapter):
    """Pack named parameters of one class of modules, which read them as attributes.

    Example: ``ParameterAdapter(MyExperts, {"gate_up": -2, "down": -2})`` for experts that compute ``x @ gate_up[i]``.

    Args:
        kind: The module class; subclasses count.
        input_axes: By parameter name, the axis of its input features, along which groups run.
    """

    kind: type[nn.Module] = attrs.field(validator=_check_kind)
    input_axes: Mapping[str, int] = attrs.field(validator=_check_axes)

    def claims(self, module: nn.Module) -> bool:
        return isinstance(module, self.kind)

    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | Obstacle:
        missing = sorted(self.input_axes.keys() - weights.keys())
        if missing:
            return Obstacle(f"it has no parameter {', '.join(missing)}, which {self!r} names", "correct the adapter")
        return {name: MatrixForm.along(weights[name].shape, axis) for name, axis in self.input_axes.items()}

    def compute(self, module: nn.Module, scheme: AnyScheme) -> str:
        return _READ

    def __repr__(self) -> str:
        return f"ParameterAdapter({self.kind.__name__}, {dict(self.input_axes)})"


_READ = "dequantizes up to {size} each time its code reads a weight, and of a stack the items that it reads"


class AttributeAdapter(ModuleAdapter):
    """The last resort: every matrix that the module's own forward reads by name, groups along the last axis.

    A weight of four axes or more is taken for that of a convolution, whose first axis counts rows.

    A tensor whose first axis has length 1 (position tables, class tokens) is broadcast rather than multiplied, and no
    matrix; nor is one called a bias. Modules whose forward does not read a matrix by name are left alone: nobody can
    know what a replaced parameter would break. What is packed is told by an ``unknown-kind`` finding.
    """

    def claims(self, module: nn.Module) -> bool:
        return True

    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | Obstacle:
        kind = type(module).__name__
        matrices = {name: weight for name, weight in weights.items() if _is_matrix(name, weight)}
        if not matrices or isinstance(module, _ELEMENTWISE):
            return Obstacle(f"{kind} has no weight matrix")
        count = sum(weight.numel() for weight in weights.values())
        unknown = f"no adapter knows {kind} ({count:,} parameters)"
        remedy = f"register one, such as ParameterAdapter({kind}, {dict.fromkeys(matrices, -1)})"
        if isinstance(module, _CONTAINERS):
            return Obstacle(
                f"{unknown}, and it is a container, which would run packed weights as it runs modules", remedy
            )
        read = set(matrices) if isinstance(module, _READ_BY_OWNER) else names_read_by_forward(type(module))
        past = sorted(PAST_NAMES & read)
        if past:
            return Obstacle(f"{unknown}, and its forward reads past names, through {', '.join(past)}", remedy)
        unread = [name for name in matrices if name not in read]
        if unread:
            return Obstacle(f"{unknown}, and its forward does not read {', '.join(unread)} by name", remedy)
        return {name: likely_form(weight.shape) for name, weight in matrices.items()}

    def compute(self, module: nn.Module, scheme: AnyScheme) -> str:
        return _READ

    def caveat(self, module: nn.Module) -> str:
        return "no adapter knows this kind; its matrices are packed because its forward reads them by name"


def _is_matrix(name: str, weight: Tensor) -> bool:
    return weight.dim() >= 2 and weight.shape[0] > 1 and weight.shape[-1] > 1 and "bias" not in name


def likely_form(shape: Sequence[int]) -> MatrixForm:
    """The matrix that a weight of an unknown module most likely is.

    Args:
        shape: Two axes or more.
    """
    return MatrixForm.along(shape, -1) if len(shape) < _AXES_OF_CONVOLUTION else MatrixForm.rows_first(shape)
