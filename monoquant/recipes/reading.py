"""From TOML to tables and back: every mistake is told at once, with its key and what is allowed."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import attrs
import tomli_w
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError, IterableValidationError
from cattrs.errors import AttributeValidationNote
from cattrs.gen import make_dict_structure_fn, override

from monoquant.errors import ConfigError
from monoquant.recipes.allowed import shown

T = TypeVar("T")
Path = tuple[str | int, ...]


def parsed(text: str, source: str) -> dict[str, Any]:
    """Read TOML.

    Args:
        text: The text.
        source: What it is called.

    Raises:
        ConfigError: When it is no TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from error


def structured(kind: type[T], data: Mapping[str, Any], source: str, text: str = "") -> T:
    """Make a value of tables.

    Args:
        kind: An attrs class; its fields are keys or tables.
        data: What TOML said.
        source: What it is called.
        text: The TOML, for the numbers of lines; default: there is none.

    Raises:
        ConfigError: With every wrong key and value, a line each.
    """
    try:
        return _converter().structure(data, kind)
    except (ClassValidationError, IterableValidationError) as error:
        problems = sorted((line_of(text, path), told) for path, told in _problems(error, ()))
        listed = "".join(f"\n- {f'line {line}: ' if line else ''}{told}" for line, told in problems)
        raise ConfigError(f"{source} is no recipe:{listed}") from None


def plain(value: Any) -> dict[str, Any]:
    """The opposite of :func:`structured`: what holds its default is left out.

    Args:
        value: An attrs instance.
    """
    told = {}
    for field in attrs.fields(type(value)):
        item = getattr(value, field.name)
        if field.metadata.get("key", True) and item != _default_of(field):
            told[field.name] = _plain_item(item)
    return told


def to_text(data: Mapping[str, Any]) -> str:
    """TOML of plain values.

    Args:
        data: Tables, lists, texts and numbers.
    """
    return tomli_w.dumps(data)


def _default_of(field: attrs.Attribute[Any]) -> Any:
    factory = getattr(field.default, "factory", None)
    return field.default if factory is None else factory()


def _plain_item(item: Any) -> Any:
    if attrs.has(type(item)):
        return plain(item)
    return [_plain_item(one) for one in item] if isinstance(item, tuple) else item


def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook_factory(attrs.has, lambda kind: _table_hook(kind, converter))
    return converter


def _table_hook(kind: type[Any], converter: Converter) -> Any:
    hooks: dict[str, Any] = {field.name: _override(field, converter) for field in attrs.fields(kind)}
    structure = make_dict_structure_fn(kind, converter, **hooks)

    def of_table(data: Any, wanted: Any) -> Any:
        if not isinstance(data, Mapping):
            raise ConfigError(f"{shown(data)} is no table: give keys of its own")
        return structure(data, wanted)

    return of_table


def _override(field: attrs.Attribute[Any], converter: Converter) -> Any:
    if not field.metadata.get("key", True):
        return override(omit=True)
    if field.validator is not None:
        return override(struct_hook=_key_hook(field))
    if field.default == ():
        return override(struct_hook=_entries_hook(field, converter))
    return override()


def _key_hook(field: attrs.Attribute[Any]) -> Any:
    # Validators know types as well as values, and so refuse what cattrs would turn into something else.
    def of_key(value: Any, _kind: Any) -> Any:
        converted = field.converter(value) if callable(field.converter) else value
        if field.validator is not None:
            field.validator(None, field, converted)
        return converted

    return of_key


def _entries_hook(field: attrs.Attribute[Any], converter: Converter) -> Any:
    def of_entries(value: Any, kind: Any) -> Any:
        if not isinstance(value, list):
            raise ConfigError(f"these are several entries: write [[{field.name}]] above each")
        return converter.structure(value, kind)

    return of_entries


def _problems(error: BaseException, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(error, (ClassValidationError, IterableValidationError)):
        noted, others = error.group_exceptions()
        for inner, note in noted:
            step = note.name if isinstance(note, AttributeValidationNote) else note.index
            yield from _problems(inner, (*path, step))
        for inner in others:
            yield from _problems(inner, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        yield from ((((*path, name)), _unknown(name, error.cl, path)) for name in sorted(error.extra_fields))
    elif isinstance(error, KeyError):
        yield path, f"{_table(path[:-1])}{path[-1]} is missing: it cannot do without"
    elif isinstance(error, ConfigError):
        yield path, f"{_table(_owner(path, str(error)))}{error}"
    else:
        yield path, f"{_table(path)}{error}"


def _owner(path: Path, message: str) -> Path:
    """The table that a message is about; messages on a key begin with it."""
    return path[:-1] if path and message.startswith(f"{path[-1]} = ") else path


def _table(path: Path) -> str:
    if not path:
        return ""
    if len(path) > 1 and isinstance(path[1], int):
        return f"[[{path[0]}]] {path[1] + 1}: "
    return f"[{path[0]}] "


def _unknown(name: str, kind: type, path: Path) -> str:
    known = [field.name for field in attrs.fields(kind) if field.metadata.get("key", True)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"do you mean {near[0]!r}?" if near else f"give one of {', '.join(known)}"
    what = "key" if path else "table"
    return f"{_table(path)}{name}: there is no such {what}; {hint}"


def line_of(text: str, path: Path) -> int:
    """The line in which a key stands.

    Args:
        text: TOML.
        path: Table, its number where there are several, and key.

    Returns:
        Counted from 1; 0 where it is not plain to see, as in inline tables.
    """
    table, number, key = path[0] if path else "", -1, ""
    for step in path[1:]:
        number, key = (step, key) if isinstance(step, int) else (number, step)
    header = re.compile(rf"\s*\[\[?\s*{re.escape(str(table))}\s*\]\]?\s*(#.*)?$")
    entry = re.compile(rf"\s*(\"?){re.escape(key)}\1\s*=")
    inside, seen, found = False, -1, 0
    for line, content in enumerate(text.splitlines(), 1):
        if content.lstrip().startswith("["):
            seen += bool(header.match(content))
            inside = bool(header.match(content)) and number in (-1, seen)
            found = line if inside and not found else found
        elif inside and key and entry.match(content):
            return line
    return found
