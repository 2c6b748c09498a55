"""Frozen attrs objects to JSON-ready values and back."""

from __future__ import annotations

import enum
import math
import types
import typing
from collections.abc import Collection
from typing import Any, TypeVar

import attrs
import torch

from monoquant.errors import FileError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Reduce a value to dicts, lists, strings, numbers, booleans and None.

    Args:
        value: An attrs instance, or anything one may hold: enums, dtypes, tuples, lists, dicts, floats.

    Returns:
        Values that strict JSON can hold; fields that equal their default are left out.
    """
    if attrs.has(type(value)):
        held = ((field, getattr(value, field.name)) for field in attrs.fields(type(value)))
        return {field.name: to_plain(item) for field, item in held if not _is_default(field, item)}
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _is_default(field: attrs.Attribute[Any], item: Any) -> bool:
    default = field.default
    if callable(factory := getattr(default, "factory", None)):
        return bool(item == factory())
    return bool(default is not attrs.NOTHING and item == default)


def from_plain(kind: type[T], data: Any) -> T:
    """Undo :func:`to_plain`.

    Args:
        kind: The attrs class to build.
        data: A dict of its fields.

    Raises:
        FileError: For a missing or unknown field, or a value of the wrong kind.
    """
    try:
        built: T = _build(kind, data)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FileError(f"stored {kind.__name__} cannot be read: {error}") from error
    return built


def _build(kind: Any, data: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if data is None else _build(_option(arguments, data), data)
    if origin is typing.Literal:
        if data not in arguments:
            raise ValueError(f"{data!r} is not one of {arguments}")
        return data
    if origin in (tuple, list):
        return origin(_build(item_kind, item) for item_kind, item in _paired(arguments, data))
    if attrs.has(kind):
        hints = typing.get_type_hints(kind)
        built = {name: _build(hints[name], item) for name, item in data.items()}
        _require_fields(kind, built)
        return kind(**built)
    if kind is torch.dtype:
        return dtype_named(data)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind[data.upper()]
    if kind is float:
        return float(data)
    if not isinstance(data, kind):
        raise TypeError(f"{data!r} is not a {kind.__name__}")
    return data


def _require_fields(kind: Any, given: Collection[str]) -> None:
    missing = [one.name for one in attrs.fields(kind) if one.default is attrs.NOTHING and one.name not in given]
    if missing:
        raise ValueError(f"it lacks {', '.join(map(repr, missing))}")


def _option(kinds: tuple[Any, ...], data: Any) -> Any:
    """Which kind of a union a value is of: the first class that has all the fields that are given."""
    options = [kind for kind in kinds if kind is not type(None)]
    fitting = (kind for kind in options if attrs.has(kind) and data.keys() <= attrs.fields_dict(kind).keys())
    return options[0] if len(options) == 1 else next(fitting, options[0])


def _paired(kinds: tuple[Any, ...], data: list[Any]) -> list[tuple[Any, Any]]:
    if not isinstance(data, list):
        raise TypeError(f"{data!r} is not a list")
    if len(kinds) == 1 or kinds[-1] is Ellipsis:
        return [(kinds[0], item) for item in data]
    return list(zip(kinds, data, strict=True))


def dtype_named(name: str) -> torch.dtype:
    """The dtype of a name such as ``"float16"``.

    Args:
        name: As :func:`to_plain` writes it.

    Raises:
        ValueError: For anything else.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is not a torch dtype")
    return found
