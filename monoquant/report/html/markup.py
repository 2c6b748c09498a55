"""HTML from Python: whatever is not HTML already is escaped, so that names and messages stay text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# Control characters, halves of surrogate pairs, and marks that turn the direction of what follows: shown, not obeyed.
_STRANGE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


class Html(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


def escape(value: object) -> Html:
    r"""Any value as HTML text.

    Args:
        value: HTML stays as it is; of everything else the text is escaped, strange characters as ``\x1b``, ``\u202e``.
    """
    if isinstance(value, Html):
        return value
    shown = _STRANGE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(value))
    return Html(html.escape(shown, quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Pieces in a row; None is left out.

    Args:
        parts: HTML or text.
        between: What stands between two of them; text.
    """
    return Html(escape(between).join(escape(part) for part in parts if part is not None))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element with its end tag.

    Args:
        name: Its name.
        content: HTML or text; None is left out.
        attributes: ``class_`` is written as ``class``, ``data_v`` as ``data-v``; None and False are left out, True has
            no value.
    """
    return Html(f"{start(name, **attributes)}{join(content)}</{name}>")


def start(name: str, **attributes: object) -> Html:
    """An element's start tag alone, for elements that have no end tag or may go without one.

    Args:
        name: Its name.
        attributes: As in :func:`tag`.
    """
    return Html(f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}>")


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(_short(value))}"'


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
