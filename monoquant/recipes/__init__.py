"""Everything that quantize() can do, as a TOML file; needs the extra ``cli``."""

from monoquant.recipes.explaining import RecipeExplanation, RecipeLine, explain
from monoquant.recipes.options import gate_of, plugins_of, quantize_file_options, quantize_options
from monoquant.recipes.planning import RecipePlan, plan_recipe
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
    "RecipeExplanation",
    "RecipeLine",
    "RecipePlan",
    "SchemeTable",
    "SelectTable",
    "SkipDefaultsTable",
    "SkipEntry",
    "ValidationTable",
    "explain",
    "gate_of",
    "plan_recipe",
    "plugins_of",
    "quantize_file_options",
    "quantize_options",
]
