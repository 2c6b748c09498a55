"""Everything that quantize() can do, as a TOML file; needs the extra ``cli``."""

from monoquant.recipes.recipe import Recipe
from monoquant.recipes.tables import (
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
)

__all__ = [
    "CalibrationTable",
    "CompareTable",
    "GateTable",
    "OutputTable",
    "PluginsTable",
    "Recipe",
    "SchemeTable",
    "SelectTable",
    "SkipDefaultsTable",
    "SkipEntry",
    "ValidationTable",
]
