"""``package.module:factory``: code that a person names, run only where that person says so."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monoquant.errors import InputError

_SPELLING = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_factory(given: str | os.PathLike[str]) -> bool:
    """Whether a text names a factory; a path that exists is a path whatever it looks like.

    Args:
        given: What a person wrote.
    """
    return isinstance(given, str) and _SPELLING.fullmatch(given) is not None and not os.path.lexists(given)


def made_by(given: str, *, trust_code: bool, what: str) -> Any:
    """Call a factory without arguments; modules beside the current folder are found, as ``python -m`` finds them.

    Args:
        given: ``package.module:factory``.
        trust_code: Whether the person allowed it.
        what: What it is to return, for errors.

    Raises:
        InputError: When code is not trusted, there is no such factory, or it fails.
    """
    module, _, name = given.partition(":")
    if not trust_code:
        raise InputError(
            f"{given!r} names code: --trust-code (trust_code=True) runs the code of {module}, which may do anything; "
            f"say so if you trust it, or give a file with {what}"
        )
    with _current_folder_importable():
        factory = _found(given, module, name)
        try:
            return factory()
        except (Exception, SystemExit) as error:
            raise InputError(f"{given}: the factory failed, {_told(error)}") from error


def _found(given: str, module: str, name: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise InputError(f"{given}: there is no module {error.name!r}; install it, or go to its folder") from error
        raise InputError(f"{given}: {module} cannot be imported, {_told(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{given}: {module} cannot be imported, {_told(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            known = sorted(one for one, value in vars(found).items() if callable(value) and not one.startswith("_"))
            listed = f"; it has {', '.join(known[:10])}" if known else ""
            raise InputError(f"{given}: {getattr(found, '__name__', module)} has no {part!r}{listed}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{given}: is a {type(found).__name__}, which cannot be called; give a function")
    return found


def _told(error: BaseException) -> str:
    """An error in a line, with the place in the person's code where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text} (line {last.lineno} of {last.filename})"


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
