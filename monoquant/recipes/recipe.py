"""A recipe: everything that quantize() can do with words and numbers, as one frozen value."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from monoquant.errors import ConfigError, FileError
from monoquant.precision import keeps_more
from monoquant.recipes.reading import parsed, plain, structured, to_text
from monoquant.recipes.tables import (
    EXCLUSIVE,
    CalibrationTable,
    CompareTable,
    GateTable,
    OutputTable,
    PluginsTable,
    SchemeTable,
    SelectTable,
    SkipDefaultsTable,
    SkipEntry,
    ValidationTable,
    listed,
)


@attrs.frozen(kw_only=True)
class Recipe:
    """What to do with a model, in words and numbers; an empty one does what ``quantize(model)`` does.

    Args:
        scheme: What weights are reduced to.
        select: Which layers to quantize only.
        skip_defaults: Which defaults are kept.
        skip: Layers that stay float or are reduced less; entries are asked in order.
        calibration: Data to fit and measure with; default none.
        compare: Data to compare the whole model's answers on; default none.
        validation: What is measured and checked.
        gate: What fails the build.
        plugins: Who takes part.
        output: How a command writes the result.
        folder: Where relative paths start; default: the current folder. It is no part of the TOML.
    """

    scheme: SchemeTable = attrs.field(factory=SchemeTable)
    select: SelectTable = attrs.field(factory=SelectTable)
    skip_defaults: SkipDefaultsTable = attrs.field(factory=SkipDefaultsTable)
    skip: tuple[SkipEntry, ...] = attrs.field(default=(), converter=listed)
    calibration: CalibrationTable | None = None
    compare: CompareTable | None = None
    validation: ValidationTable = attrs.field(factory=ValidationTable)
    gate: GateTable = attrs.field(factory=GateTable)
    plugins: PluginsTable = attrs.field(factory=PluginsTable)
    output: OutputTable = attrs.field(factory=OutputTable)
    folder: Path = attrs.field(factory=Path, eq=False, metadata={"key": False})

    def __attrs_post_init__(self) -> None:
        target = self.scheme.target
        wanted = {f"[[skip]] {number}: to": entry.to for number, entry in enumerate(self.skip, 1)}
        wanted["[skip_defaults] to"] = self.skip_defaults.to
        problems = [
            f'{key} = "{to}" keeps no more of a layer than {target}, which all are reduced to'
            for key, to in wanted.items()
            if not keeps_more(to, target)
        ]
        if target != "int4" and self.skip_defaults != SkipDefaultsTable():
            problems.append(f"[skip_defaults] does nothing with {target}: INT4 alone has defaults")
        if problems:
            raise ConfigError("; ".join(problems))

    @classmethod
    def from_toml(cls, text: str, source: str = "the recipe", folder: str | os.PathLike[str] = "") -> Recipe:
        """Read a recipe.

        Args:
            text: TOML.
            source: What it is called, for errors.
            folder: Where relative paths start; default: the current folder.

        Raises:
            ConfigError: With every wrong key and value, a line each.
        """
        return attrs.evolve(structured(cls, parsed(text, source), source, text), folder=Path(folder))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe's file; relative paths in it start at its folder.

        Args:
            path: Of a TOML file.

        Raises:
            FileError: When it cannot be read.
            ConfigError: With every wrong key and value, a line each.
        """
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise FileError(f"{file}: cannot be read ({error.strerror or error}); correct the path") from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{file} is not TOML: it is no UTF-8 text ({error.reason} at byte {error.start})"
            ) from error
        return cls.from_toml(text, str(file), file.parent)

    def to_toml(self) -> str:
        """The recipe as TOML that :meth:`from_toml` reads; what holds its default is left out."""
        return to_text(plain(self))

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with other values for single keys, such as those of a command's options.

        Args:
            values: By table and key, such as ``{"scheme.bits": 8}``. None takes a key out. A value takes the place of
                what would contradict it: bits of dtype, algorithm of quality, one budget of the other.

        Raises:
            ConfigError: For unknown keys and wrong values, all at once.
        """
        data = plain(self)
        for name, value in values.items():
            table, _, key = name.partition(".")
            if table == "skip" or not key:
                raise ConfigError(f"{name}: give table.key, such as scheme.bits; [[skip]] entries stand in a file")
            keys = data.setdefault(table, {})
            for pair in EXCLUSIVE if table == "scheme" and value is not None else ():
                if key in pair:
                    keys.pop(pair[0] if key == pair[1] else pair[1], None)
            keys[key] = value
            if value is None:
                keys.pop(key)
            if not keys:
                data.pop(table)
        return attrs.evolve(structured(type(self), data, "what was set"), folder=self.folder)

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """The recipe with other values for single keys, as a command line says them.

        Args:
            settings: Such as ``"scheme.group_size=32"`` or ``"gate.fail_on=warning"``; values as TOML writes them,
                texts also without quotes.

        Raises:
            ConfigError: As :meth:`with_values`, and for a setting without ``=``.
        """
        return self.with_values(dict(map(_setting, settings)))


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name or not value:
        raise ConfigError(f"{text!r}: give table.key=value, such as scheme.group_size=32")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value  # a text without its quotes
