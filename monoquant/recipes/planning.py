"""The dry run of a recipe: what becomes of every layer, and what each line had to do with it."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import Tensor, nn

from monoquant.api.quantizing import quantizer_of
from monoquant.hooks import PluginManager
from monoquant.modules.tensor_holder import hold
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.pack import PackPass
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.precision import chosen_algorithm, packing_pass, require_more_careful, secondary_passes
from monoquant.quantizer import Quantizer
from monoquant.recipes.explaining import RecipeExplanation, explain
from monoquant.recipes.options import plugins_of, scheme_options, skip_options
from monoquant.recipes.recipe import Recipe
from monoquant.report import QuantReport
from monoquant.source import inventory
from monoquant.values import Decision


@attrs.frozen
class RecipePlan:
    """What a recipe makes of a model, before anything is measured; ``print`` it for the whole of it.

    Args:
        decisions: Exactly one for every layer, in model order.
        explanation: What each line of the recipe did.
        forecast: The report so far: the plan, bytes as they will be, and findings that need no measurement.
    """

    decisions: tuple[Decision, ...]
    explanation: RecipeExplanation
    forecast: QuantReport

    def __str__(self) -> str:
        layers = "\n".join(map(str, self.decisions))
        return f"{self.explanation}\n\n{layers}"


def plan_recipe(
    recipe: Recipe,
    model: nn.Module | Mapping[str, Tensor],
    *,
    trust_code: bool = False,
    plugins: PluginManager | None = None,
) -> RecipePlan:
    """Decide on every layer as the recipe says; no data is read and nothing is measured.

    Args:
        recipe: The recipe.
        model: A float model or its state dict; weights on the meta device are fine. It is left alone.
        trust_code: Whether plugin files may run; default False.
        plugins: Who takes part; default: whom the recipe names.

    Returns:
        The plan; what a budget (``target_bits_per_weight``, ``target_sqnr_db``) changes needs data, and is not in it.

    Raises:
        MonoquantError: As ``quantize()`` for wrong options, models and plugins.
    """
    quantizer = planner_of(recipe, trust_code=trust_code, plugins=plugins)
    module = hold(model) if isinstance(model, Mapping) else model
    decisions = quantizer.plan(module)
    return RecipePlan(decisions, explain(recipe, inventory(module), decisions), quantizer.forecast(module))


def planner_of(recipe: Recipe, *, trust_code: bool = False, plugins: PluginManager | None = None) -> Quantizer:
    """The pipeline of a recipe, for dry runs: it has no data.

    Args:
        recipe: The recipe.
        trust_code: Whether plugin files may run; default False.
        plugins: Who takes part; default: whom the recipe names.

    Raises:
        MonoquantError: As ``quantize()`` for wrong options and plugins.
    """
    options, target = skip_options(recipe), recipe.scheme.target
    rules = options.pop("rules", ())
    skips = SkipSelectionPass.from_options(extra_rules=rules, defaults=target == "int4", **options)
    require_more_careful(recipe.skip_defaults.to, target)
    steps = (
        skips,
        _unread(recipe),
        _packing(recipe),
        *secondary_passes(target, scheme_options(recipe).get("scale_dtype")),
    )
    taking_part = plugins_of(recipe, trust_code=trust_code) if plugins is None else plugins
    return quantizer_of(steps, taking_part, (), recipe.to_toml())


def _unread(recipe: Recipe) -> CalibrationPass | None:
    """Passes that need data can be planned where there is some; it stays closed."""
    return None if recipe.calibration is None else CalibrationPass([])


def _packing(recipe: Recipe) -> PackPass:
    options, scheme = scheme_options(recipe), recipe.scheme
    has_data = recipe.calibration is not None
    return packing_pass(
        scheme.target,
        scheme.group_size,
        scheme.symmetric,
        options.get("scale_dtype"),
        options.get("activations"),
        scheme.observer or "minmax",
        chosen_algorithm(scheme.quality or "auto", scheme.algorithm, has_data=has_data),
        exact=scheme.exact,
    )
