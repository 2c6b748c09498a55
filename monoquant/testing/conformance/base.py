"""What all conformance suites share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

from monoquant.errors import ConfigError


def require(holds: bool, broken: str, remedy: str) -> None:
    """Fail where a contract is broken.

    Args:
        holds: Whether it is kept.
        broken: What was seen, and what the contract says.
        remedy: How to repair it.

    Raises:
        AssertionError: Unless it holds.
    """
    __tracebackhide__ = True
    if not holds:
        raise AssertionError(f"{broken}\nTo repair it: {remedy}")


class Conformance:
    """Base of the suites: inherit from one of them, give it your object, and pytest collects its tests.

    Attributes:
        max_examples: How many examples hypothesis draws for each property; default 50.
    """

    max_examples: ClassVar[int] = 50

    def subject(self, attribute: str, kind: type) -> Any:
        """The object under test.

        Args:
            attribute: Where the author of the suite gives it.
            kind: What it must be an instance of.

        Raises:
            ConfigError: When it is missing, a class, or something else.
        """
        found = getattr(self, attribute, None)
        suite, example = type(self).__name__, f"{attribute} = My{kind.__name__}()"
        if found is None:
            raise ConfigError(f"{suite} has nothing to test: write '{example}' into the class")
        if isinstance(found, type):
            raise ConfigError(f"{suite}.{attribute} is the class {found.__name__}: give an instance, '{example}'")
        if not isinstance(found, kind):
            raise ConfigError(f"{suite}.{attribute} is {found!r}: give an instance of a subclass of {kind.__name__}")
        return found

    def for_all(self, *strategies: SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
        """Run a property on examples, at once.

        A test that hypothesis decorates may not be inherited by several classes; one inside a method may.

        Args:
            strategies: One for each argument of the decorated function.
        """
        profile = settings(deadline=None, max_examples=self.max_examples, report_multiple_bugs=False)
        return lambda check: profile(given(*strategies)(check))()


def check_is_frozen(value: object, what: str, *, hashable: bool = True) -> None:
    """Fail unless a value is one: what it is made of cannot be exchanged, and it can be hashed.

    Args:
        value: A rule, a check, a pass or an algorithm.
        what: What people call it.
        hashable: False where it may hold what cannot be hashed; default True.
    """
    frozen = "decorate its class with @attrs.frozen, and keep several values in a tuple or frozenset"
    slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
    for name in [*getattr(value, "__dict__", ()), *slots]:
        fixed = name.startswith("__") or not hasattr(value, name) or _refuses(value, name)
        require(fixed, f"{what} {value!r} lets {name!r} be exchanged, so that runs may differ.", frozen)
    try:
        _ = hash(value) if hashable else 0
    except TypeError as error:
        raise AssertionError(f"{what} {value!r} cannot be hashed: {error}.\nTo repair it: {frozen}") from error


def _refuses(value: object, name: str) -> bool:
    held = getattr(value, name)
    with suppress(AttributeError):  # attrs' FrozenInstanceError is one
        setattr(value, name, held)
        return False
    return True


def check_repr(value: object, what: str) -> None:
    """Fail unless a value prints as one line that is the same in every process.

    Args:
        value: A rule, a check, a pass or an algorithm.
        what: What people call it.
    """
    text = repr(value)
    remedy = "decorate its class with @attrs.frozen, or define __repr__ with the settings in it"
    require(bool(text) and "\n" not in text, f"{what} prints as {text!r}: reports show it in one line.", remedy)
    address = f" at 0x{id(value):x}" in text.lower() or " object at 0x" in text
    require(not address, f"{what} prints as {text!r}: an address differs from run to run.", remedy)
