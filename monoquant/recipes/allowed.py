"""What a key of a recipe may hold: validators that say what is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

from monoquant.class_patterns import ClassPattern
from monoquant.errors import ConfigError
from monoquant.name_patterns import NamePattern

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def refusal(name: str, value: Any, wanted: str) -> ConfigError:
    """The error for a value that a key may not hold.

    Args:
        name: The key.
        value: What was given.
        wanted: What is allowed, as the end of "give ...".
    """
    return ConfigError(f"{name} = {shown(value)}: give {wanted}")


def shown(value: Any) -> str:
    """A value as TOML writes it.

    Args:
        value: Anything.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value)


def _optional(test: Callable[[Any], bool], wanted: str) -> Validator:
    def validate(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        absent = value is None and attribute.default is None  # TOML cannot say None: the key is not there
        if not absent and not test(value):
            raise refusal(attribute.name, value, wanted)

    return validate


def one_of(*allowed: Any) -> Validator:
    """One of a few values, of their very type.

    Args:
        allowed: The values.
    """

    def test(value: Any) -> bool:
        return any(type(value) is type(other) and value == other for other in allowed)

    return _optional(test, f"one of {', '.join(map(shown, allowed))}")


def whole_number(least: int, such_as: str) -> Validator:
    """A whole number that is not too small.

    Args:
        least: The smallest one.
        such_as: Examples.
    """

    def test(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return _optional(test, f"a whole number >= {least}, such as {such_as}")


def number(such_as: str, *, least: float = -math.inf) -> Validator:
    """A finite number.

    Args:
        such_as: Examples.
        least: The smallest one; default: there is none.
    """
    limit = "" if least == -math.inf else f" >= {least:g}"

    def test(value: Any) -> bool:
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        return known and math.isfinite(value) and value >= least

    return _optional(test, f"a finite number{limit}, such as {such_as}")


def flag() -> Validator:
    """True or false."""
    return _optional(lambda value: isinstance(value, bool), "true or false")


def text(what: str) -> Validator:
    """A text that is not empty.

    Args:
        what: What it says, with an article.
    """
    return _optional(lambda value: isinstance(value, str) and bool(value.strip()), f"{what}, in quotes")


def position_or_key() -> Validator:
    """Where the input of a model stands in a batch."""

    def test(value: Any) -> bool:
        return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and bool(value))

    return _optional(test, 'a position or a key, such as 0 or "input_ids"')


def texts(what: str) -> Validator:
    """A list of texts that are not empty.

    Args:
        what: What they say, in the plural.
    """

    def test(value: Any) -> bool:
        return isinstance(value, tuple) and all(isinstance(one, str) and bool(one.strip()) for one in value)

    return _optional(test, f"a list of {what}, each in quotes")


def layer_names() -> Validator:
    """A list of layer names, each of them sound."""
    return _each("layer names", NamePattern, 'such as ["lm_head", "*.gate"]')


def type_names() -> Validator:
    """A list of names of classes of modules."""
    return _each("names of module classes", ClassPattern, 'such as ["Embedding", "torch.nn.LSTM"]')


def _each(what: str, build: Callable[[str], object], such_as: str) -> Validator:
    listed = texts(f"{what}, {such_as}")

    def validate(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        listed(instance, attribute, value)
        for entry in value:
            try:
                build(entry)
            except ConfigError as error:
                raise ConfigError(f"{attribute.name} = {shown(value)}: {error}") from error

    return validate
