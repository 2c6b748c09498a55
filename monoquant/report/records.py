"""Records of a run, frozen: one per layer, the calibration's, the validation's."""

from __future__ import annotations

from typing import Literal

import attrs
import torch

from monoquant.errors import ConfigError
from monoquant.report.tradeoff import Tradeoff
from monoquant.values import BUILT_IN, Action, AnyScheme, Finding, Origin


@attrs.frozen
class LayerReport:
    """One layer: what was decided and why, what it weighs, what it lost.

    Args:
        layer: Dotted name; ``""`` for the root.
        kind: Class name.
        shape: Shape of the weight.
        parameters: Parameters of its own.
        action: quantize, skip or unsupported.
        reason: Why.
        bytes_before: Bytes of its own parameters and buffers as given.
        bytes_after: The same in the result.
        dtype: dtype of the weight as seen from outside; default float32.
        rule: The rule that said skip, as text.
        origin: Who decided.
        remedy: What would make an unsupported layer possible.
        scheme: Representation of the weights; None if they stayed float.
        weights: Names of the packed parameters; empty if it stayed float.
        matrices: Rows and columns of each packed parameter as a matrix; empty if it stayed float.
        compute: How the packed layer runs.
        algorithm: What chose its codes; empty where nothing was chosen.
        weight_sqnr_db: SQNR of the weight in dB; None if not measured.
        reference_sqnr_db: What the same scheme reaches on Gaussian weights, in dB.
        output_sqnr_db: SQNR of the layer's output on calibration inputs in dB; None if none were seen.
        sample_rows: Calibration input rows, or samples, the output was measured on.
        input_rows: Calibration input rows its codes were fitted to; for weights whose rows meet different inputs, such
            as stacked experts, the fewest of all. None where nothing was to be fitted.
        aliases: Further names of the same module.

    Raises:
        ConfigError: For matrices that are not those of the weights.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    action: Action
    reason: str
    bytes_before: int
    bytes_after: int
    dtype: torch.dtype = torch.float32
    rule: str | None = None
    origin: Origin = BUILT_IN
    remedy: str = ""
    scheme: AnyScheme | None = None
    weights: tuple[str, ...] = ()
    matrices: tuple[tuple[int, int], ...] = attrs.field(default=())
    compute: str = ""
    algorithm: str = ""
    weight_sqnr_db: float | None = None
    reference_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    sample_rows: int = 0
    input_rows: int | None = None
    aliases: tuple[str, ...] = ()

    @matrices.validator
    def _require_one_per_weight(self, _: object, given: tuple[tuple[int, int], ...]) -> None:
        if given and len(given) != len(self.weights):  # a plan made none yet
            counts = f"{len(given)} matrices of {len(self.weights)} packed weights"
            raise ConfigError(f"layer {self.name!r}: {counts}; give one each, or none")

    @property
    def name(self) -> str:
        """The layer's name as people read it: the root is ``(root)``."""
        return self.layer or "(root)"

    @property
    def sqnr_db(self) -> float | None:
        """The SQNR that counts: of the output where it was measured, else of the weight."""
        return self.weight_sqnr_db if self.output_sqnr_db is None else self.output_sqnr_db


@attrs.frozen
class CalibrationFacts:
    """What calibration data was seen.

    Args:
        samples: Samples, the sum of the batches' leading dimensions.
        batches: Batches.
        unseen_layers: Layers whose inputs were asked for and that were never called.
        held_out: Samples among them that nothing was fitted to, and outputs were measured on; 0 where nothing was
            fitted, and all of them served to measure.
    """

    samples: int
    batches: int
    unseen_layers: tuple[str, ...] = ()
    held_out: int = 0


@attrs.frozen
class ComparisonResult:
    """How far the quantized model's answers are from the float model's.

    Args:
        measure: ``"kl"`` of logits in nats, or ``"cosine"`` of vectors.
        value: Its mean over rows; nan if an answer is not finite.
        rows: Vectors that were compared.
        samples: Samples they are of.
    """

    measure: Literal["kl", "cosine"]
    value: float
    rows: int
    samples: int


@attrs.frozen
class ValidationResult:
    """The damage, and whether the result holds what it should.

    Args:
        sqnr_db: Median SQNR of the layers' outputs where outputs were measured, else pooled SQNR of the weights; dB.
        original_size_mb: MiB of all parameters and buffers before.
        quantized_size_mb: MiB of all parameters and buffers after.
        compression_ratio: Before divided by after.
        load_test_passed: Every packed layer survived saving and loading with bit-equal outputs.
        weight_range_valid: Every dequantized weight is finite in the layer's dtype.
        errors: Failed checks, each with its layer.
        warnings: Texts about lost accuracy.
    """

    sqnr_db: float | None = None
    original_size_mb: float | None = None
    quantized_size_mb: float | None = None
    compression_ratio: float | None = None
    load_test_passed: bool = False
    weight_range_valid: bool = False
    errors: list[str] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)


@attrs.frozen
class ReportData:
    """The fields of a report: everything that was decided and measured in one run.

    Args:
        scheme: The scheme that was asked for; layers may have others.
        layers: One record per layer, in model order; together they own every parameter.
        findings: What a person should know, worst first.
        original_bytes: Bytes of all parameters and buffers before, shared memory counted once.
        quantized_bytes: The same after.
        pooled_weight_sqnr_db: SQNR of all packed weights together in dB; None if not measured.
        calibration: Calibration facts; None if there was no calibration.
        validation: The validation; None if there was none.
        versions: Pairs of package and version: monoquant, torch, active plugins.
        tradeoff: How precision was shared out under a budget; None where there was none.
        comparison: How far the whole model's answers moved; None if they were not compared.
        recipe: TOML text of the recipe that the run followed, with all that was added to it; None if there was none.
    """

    scheme: AnyScheme
    layers: tuple[LayerReport, ...]
    findings: tuple[Finding, ...]
    original_bytes: int
    quantized_bytes: int
    pooled_weight_sqnr_db: float | None = None
    calibration: CalibrationFacts | None = None
    validation: ValidationResult | None = None
    versions: tuple[tuple[str, str], ...] = ()
    tradeoff: Tradeoff | None = None
    comparison: ComparisonResult | None = None
    recipe: str | None = None

    @property
    def headline(self) -> tuple[Literal["output", "weight"] | None, float | None]:
        """The SQNR that stands for the model: what it was measured on, and dB; None and None where it was not.

        The median over the layers' outputs where outputs were measured, else pooled over all packed weights.
        """
        sqnr = self.pooled_weight_sqnr_db if self.validation is None else self.validation.sqnr_db
        if sqnr is None:
            return None, None
        outputs = self.validation is not None and any(record.output_sqnr_db is not None for record in self.layers)
        return ("output" if outputs else "weight"), sqnr

    def by_action(self, action: Action) -> tuple[LayerReport, ...]:
        """Records of the layers with one kind of decision, in model order.

        Args:
            action: quantize, skip or unsupported.
        """
        return tuple(record for record in self.layers if record.action is action)
