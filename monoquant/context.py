"""What the passes of one run share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import attrs

from monoquant.adapters.base import Obstacle
from monoquant.adapters.choice import Packable
from monoquant.errors import PassError, quoted
from monoquant.measurement import Measurement
from monoquant.model_view import ModelView, written
from monoquant.modules.packed_layer import Represented
from monoquant.modules.reparametrized import computed_weights
from monoquant.observers import Request
from monoquant.report import CalibrationFacts, ComparisonResult, ValidationResult
from monoquant.report.tradeoff import Tradeoff
from monoquant.statistics.collector import RowStatistics
from monoquant.statistics.gradients import GradientProbe
from monoquant.statistics.origins import FoldSites
from monoquant.statistics.store import StatisticsStore
from monoquant.statistics.watch import WatchedWeight
from monoquant.values import BUILT_IN, Action, AnyScheme, Decision, Finding, Layer, Origin, Target

O = TypeVar("O")  # noqa: E741 - the observer of a request
Said = TypeVar("Said", Decision, Finding)


@attrs.define(eq=False)
class QuantContext(ModelView):
    """The one mutable object of a run. Passes add to it; only the Quantizer writes to a model.

    What is said below of who writes a field, and when, is checked after every call of a pass: it must be of one of the
    classes, or of a subclass.

    Args:
        model: The user's model; read it, never write to it. (set by Quantizer; read by all passes)
        scheme: The scheme of the first packing pass. (set by Quantizer; read by all passes)
        layers: Every module that owns parameters. (set by Quantizer; read by all passes)
        registry: Rules, checks and adapters, with their origins. (set by Quantizer; read by SkipSelectionPass, packing
            passes and AccuracyWarningPass)
        magnitudes: Largest absolute values of weights on the meta device, by layer and weight, where they are known.
            (set by Quantizer; read by packing passes)
        recipe: TOML text of the recipe that the run follows. (set by Quantizer; read by the report)
        plan: Decisions by layer name; use :meth:`decide`. (written in the plan phase by SkipSelectionPass and packing
            passes; read by all passes)
        targets: Layers that a rule reduces less than the others; use :meth:`redirect`. (written in the plan phase by
            SkipSelectionPass; read by packing passes)
        obstacles: Why a layer could not be packed so far; use :meth:`decline`. (written in the plan phase by packing
            passes; read by Quantizer)
        wanted: Statistics that passes asked for, by layer; use :meth:`want`. (written in the prepare phase; read by
            CalibrationPass)
        observed: The observers that fulfilled them; use :meth:`observer`. (written by CalibrationPass; read by packing
            passes and ValidationPass)
        wanted_moments: Weights whose inputs' moments passes asked for, and whether all of them; use
            :meth:`want_moments`. (written in the prepare phase; read by CalibrationPass)
        wanted_gradients: Modules whose outputs' weight in the model's output passes asked for. (written in the prepare
            phase; read by CalibrationPass)
        weighs_rows: Whether passes asked that input rows count by how much they matter. (written in the prepare phase;
            read by CalibrationPass)
        gradients: That weight. (written by CalibrationPass; read by BudgetPass)
        statistics: Those moments; use :meth:`input_statistics`. (written by CalibrationPass; read by packing passes)
        wants_fold_sites: Whether a pass wants to know what computes the inputs of those weights. (written in the
            prepare phase; read by CalibrationPass)
        fold_sites: That. (written by CalibrationPass; read by Int4PackPass)
        rescaling: Factors moved from inputs of weights into what computes them; weights are read with them. (written by
            Int4PackPass; read by packing passes, ValidationPass and Quantizer)
        calibration: Facts about the data. (written by CalibrationPass; read by the report)
        packers: Packing passes by what they reduce layers to. (written in the plan phase by packing passes; read by
            BudgetPass)
        represented: Packed weights that may be used, by layer, weight and scheme. (written by BudgetPass; read by
            packing passes)
        packed: Packed layers by name. (written by packing passes; read by ValidationPass and Quantizer)
        algorithms: What chose the codes, by layer name. (written by packing passes; read by the report)
        input_rows: Calibration input rows they were fitted to, by layer name. (written by packing passes; read by the
            report)
        measurements: Damage by layer name. (written by ValidationPass; read by the report)
        validation: Totals and failed checks. (written by ValidationPass; read by the report)
        comparison: How far the model's answers moved. (written by ValidationPass; read by the report)
        tradeoff: How precision was shared out. (written by BudgetPass; read by the report)
        findings: What a person should know. (written by all passes; read by the report)
    """

    recipe: str | None = attrs.field(default=None, kw_only=True, metadata=written("no phase"))
    targets: dict[str, Target] = attrs.field(factory=dict, init=False, metadata=written("plan", "SkipSelectionPass"))
    obstacles: dict[str, Obstacle] = attrs.field(factory=dict, init=False, metadata=written("plan"))
    wanted: dict[str, list[Request[Any]]] = attrs.field(factory=dict, init=False, metadata=written("prepare"))
    observed: dict[tuple[str, Request[Any]], Any] = attrs.field(
        factory=dict, init=False, metadata=written("run", "CalibrationPass")
    )
    wanted_moments: dict[tuple[str, str], bool] = attrs.field(factory=dict, init=False, metadata=written("prepare"))
    wanted_gradients: set[str] = attrs.field(factory=set, init=False, metadata=written("prepare"))
    weighs_rows: bool = attrs.field(default=False, init=False, metadata=written("prepare"))
    gradients: GradientProbe | None = attrs.field(default=None, init=False, metadata=written("run", "CalibrationPass"))
    statistics: StatisticsStore | None = attrs.field(
        default=None, init=False, metadata=written("run", "CalibrationPass")
    )
    wants_fold_sites: bool = attrs.field(default=False, init=False, metadata=written("prepare"))
    fold_sites: FoldSites = attrs.field(factory=FoldSites, init=False, metadata=written("run", "CalibrationPass"))
    calibration: CalibrationFacts | None = attrs.field(
        default=None, init=False, metadata=written("run", "CalibrationPass")
    )
    packers: dict[str, Any] = attrs.field(
        factory=dict, init=False, metadata=written("plan", "PackPass")
    )  # passes live on a higher floor
    represented: dict[tuple[str, str, AnyScheme], Represented] = attrs.field(
        factory=dict, init=False, metadata=written("run", "BudgetPass")
    )
    algorithms: dict[str, str] = attrs.field(factory=dict, init=False, metadata=written("run", "PackPass"))
    input_rows: dict[str, int] = attrs.field(factory=dict, init=False, metadata=written("run", "PackPass"))
    measurements: dict[str, Measurement] = attrs.field(
        factory=dict, init=False, metadata=written("run", "ValidationPass")
    )
    validation: ValidationResult | None = attrs.field(
        default=None, init=False, metadata=written("run", "ValidationPass")
    )
    comparison: ComparisonResult | None = attrs.field(
        default=None, init=False, metadata=written("run", "ValidationPass")
    )
    tradeoff: Tradeoff | None = attrs.field(default=None, init=False, metadata=written("run", "BudgetPass"))
    findings: list[Finding] = attrs.field(factory=list, init=False, metadata=written("any"))
    _planning: bool = attrs.field(default=True, init=False)
    _current_layer: str | None = attrs.field(default=None, init=False)
    _speaker: Origin = attrs.field(default=BUILT_IN, init=False)

    def decide(self, decision: Decision) -> None:
        """Give a layer its one answer; only in the plan phase.

        Args:
            decision: The answer; its layer must have none yet.

        Raises:
            PassError: When planning is over, the layer is unknown, or it has an answer already.
        """
        name = decision.layer
        if not self._planning:
            raise PassError(f"the plan is final: decide on layer {name!r} in plan(), not in run()", layers=[name])
        if name not in {layer.name for layer in self.layers}:
            raise PassError(f"no layer is called {name!r}: decide on the layers in context.layers", layers=[name])
        if name in self.plan:
            raise PassError(
                f"layer {name!r} is decided already ({self.plan[name].reason}): ask undecided()", layers=[name]
            )
        self.plan[name] = self._signed(decision)

    def refine(self, layer: str, scheme: AnyScheme, reason: str) -> None:
        """Represent a layer that the plan quantizes otherwise than planned, by what was measured since.

        Args:
            layer: Its name; it must not be packed yet.
            scheme: The representation, one that a pass of the pipeline packs to.
            reason: Why, for a person.

        Raises:
            PassError: When it is packed already, or no pass packs to the scheme.
        """
        if layer in self.packed or scheme.target not in self.packers:
            raise PassError(
                f"layer {layer!r} cannot become {scheme} any more: put this pass before the packing ones, "
                f"which pack to {quoted(self.packers)}",
                layers=[layer],
            )
        planned = self.plan[layer]
        compute = self.packers[scheme.target].compute(layer, self.packable(layer), scheme, self)
        self.plan[layer] = attrs.evolve(planned, scheme=scheme, reason=reason, compute=compute)

    def redirect(self, layer: str, target: Target) -> None:
        """Say that a layer is to be reduced less than the others; only in the plan phase.

        Args:
            layer: Name of a layer without an answer.
            target: What to reduce it to, and who said so.
        """
        self.targets[layer] = target

    def decline(self, layer: str, obstacle: Obstacle) -> None:
        """Say why a layer cannot be packed; it is unsupported unless a later pass takes it.

        Args:
            layer: Name of a layer without an answer.
            obstacle: What is in the way; the first one is told.
        """
        self.obstacles.setdefault(layer, obstacle)

    def undecided(self) -> list[Layer]:
        """Layers without an answer so far, in model order."""
        return [layer for layer in self.layers if layer.name not in self.plan]

    def close_plan(self) -> None:
        """End the plan phase; called by the Quantizer."""
        self._planning = False

    def decisions(self) -> tuple[Decision, ...]:
        """The plan in model order."""
        return tuple(self.plan[layer.name] for layer in self.layers if layer.name in self.plan)

    def quantized_layers(self) -> Iterator[Layer]:
        """Layers the plan quantizes, in model order.

        An exception while one of them is being worked on carries a note with its name.
        """
        for layer in self.layers:
            decision = self.plan.get(layer.name)
            if decision is not None and decision.action is Action.QUANTIZE:
                self._current_layer = layer.name
                yield layer
        self._current_layer = None

    @property
    def current_layer(self) -> str | None:
        """Name of the layer a pass is working on, for error notes."""
        return self._current_layer

    def begin(self, speaker: Origin) -> None:
        """Tell that a pass begins; called by the Quantizer.

        Args:
            speaker: Who brought the pass; its decisions and findings that name nobody are said by that.
        """
        self._current_layer = None
        self._speaker = speaker

    def want(self, layer: str, request: Request[Any]) -> None:
        """Ask that calibration collects a statistic of a layer's inputs.

        Args:
            layer: Name of a layer.
            request: What to collect.
        """
        requests = self.wanted.setdefault(layer, [])
        if request not in requests:
            requests.append(request)

    def observer(self, layer: str, request: Request[O]) -> O | None:
        """What calibration collected.

        Args:
            layer: Name of a layer.
            request: What was asked for.

        Returns:
            The observer; None if there was no calibration, or it never called the layer.
        """
        found: O | None = self.observed.get((layer, request))
        return found

    def want_moments(self, layer: str, name: str, *, full: bool) -> None:
        """Ask that calibration collects moments of what a weight is multiplied with.

        Args:
            layer: Name of a layer the plan quantizes.
            name: Which of its weights.
            full: True: all second moments. False: their diagonal.
        """
        key = self.leading(layer, name)
        self.wanted_moments[key] = full or self.wanted_moments.get(key, False)

    def watched_weights(self) -> list[WatchedWeight]:
        """The weights whose inputs' moments were asked for, in model order."""
        order = {layer.name: index for index, layer in enumerate(self.layers)}
        return [self._watched(*key) for key in sorted(self.wanted_moments, key=lambda key: order[key[0]])]

    def _watched(self, layer: str, name: str) -> WatchedWeight:
        module = self.module(layer)
        computed_by = module if name in computed_weights(module) else None
        weight, packable = self.original_weight(layer, name), self.packable(layer)
        where = self.heard_at(layer)
        owner, heard = self.examine(where), where if packable.adapter.takes_rows else None
        order = owner.adapter.row_order(self.module(where)) if isinstance(owner, Packable) else None
        caller = None if order is None else self.module(where)
        return WatchedWeight(layer, name, weight, packable.forms[name], computed_by, caller, order, heard)

    def input_statistics(self, layer: str, name: str) -> Sequence[RowStatistics]:
        """What calibration learned of the inputs that a weight is multiplied with.

        Args:
            layer: Name of a layer the plan quantizes.
            name: Which of its weights.

        Returns:
            Disjoint ranges of the weight's rows as a matrix; rows that never met inputs are in none.
        """
        return () if self.statistics is None else self.statistics.of(self.leading(layer, name))

    def note_algorithm(self, layer: str, name: str, input_rows: int | None = None) -> None:
        """Remember what chose a layer's codes; several for a layer of several weights.

        Args:
            layer: Its name.
            name: Of the algorithm, as reports show it.
            input_rows: Calibration input rows that a weight was fitted to; default: none were asked for.
        """
        if input_rows is not None:
            self.input_rows[layer] = min(input_rows, self.input_rows.get(layer, input_rows))
        known = self.algorithms.get(layer)
        self.algorithms[layer] = name if known in (None, name) else f"{known} and {name}"

    @property
    def speaker(self) -> Origin:
        """Who brought the pass that works now."""
        return self._speaker

    def report(self, findings: Sequence[Finding], speaker: Origin | None = None) -> None:
        """Add findings, each once.

        Args:
            findings: What a person should know.
            speaker: Who says those that name nobody; default: who brought the pass that works now.
        """
        signed = [self._signed(finding, speaker) for finding in findings]
        self.findings.extend(finding for finding in signed if finding not in self.findings)

    def _signed(self, said: Said, speaker: Origin | None = None) -> Said:
        return attrs.evolve(said, origin=speaker or self._speaker) if said.origin == BUILT_IN else said
