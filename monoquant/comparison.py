"""Compare what the quantized model answers with what the float model answers, on data of the caller's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from monoquant.batches import Batches, Forward, Part, check_forward, check_select, require_batches, run_model
from monoquant.context import QuantContext
from monoquant.conversion import convert_in_place, copy_without_weights
from monoquant.errors import ConfigError, InputError
from monoquant.report.records import ComparisonResult
from monoquant.restoring import undisturbed
from monoquant.statistics.gradients import first_float, logits_of
from monoquant.values import Finding, Severity

_THRESHOLDS = {"kl": (0.25, 0.5), "cosine": (0.99, 0.95)}
_ROWS_AT_ONCE = 1024


def _check_data(_instance: Any, _attribute: Any, data: Any) -> None:
    require_batches(data, "comparison")


def _check_measure(_instance: Any, _attribute: Any, value: Any) -> None:
    if value not in ("auto", *_THRESHOLDS):
        raise ConfigError(f"measure={value!r}: give 'kl' (of logits), 'cosine' (of embeddings) or 'auto'")


def _check_threshold(_instance: Any, attribute: Any, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if value is not None and not number:
        raise ConfigError(f"{attribute.name}={value!r}: give a finite number, or None for the default")


def _check_samples(_instance: Any, _attribute: Any, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigError(f"num_samples={value!r}: give a whole number of samples >= 1, or None for all")


@attrs.frozen
class Comparison:
    """What to compare, and how much may be lost.

    KL is the Kullback-Leibler divergence of the quantized model's distribution from the float model's, in nats,
    averaged over rows (positions): below .05 is excellent, above .5 bad. Cosine is the similarity of the two models'
    vectors, averaged over rows: above .99 is good, below .95 bad. Padding (an ``attention_mask``) is left out.

    Args:
        data: Batches, other ones than those calibrated with.
        measure: ``"kl"`` of logits, ``"cosine"`` of embeddings or hidden states, ``"auto"`` (default): kl where the
            model returns ``logits``, else cosine.
        warning_threshold: More KL, or less cosine, than this is worth a warning; default .25, .99.
        error_threshold: More KL, or less cosine, than this is CRITICAL; default .5, .95.
        num_samples: Samples to use at most; None (default) for all. The last batch is cut to fit, or used whole where
            the model cannot take a part of it (a graph, say).
        select: Position or key of the item in each batch that is the model's one input; default: the whole batch.
        forward: ``forward(model, batch)`` returns the tensor to compare; default: the model's logits, or its first
            floating-point tensor.
    """

    data: Iterable[Any] = attrs.field(repr=False, validator=_check_data)
    measure: Literal["auto", "kl", "cosine"] = attrs.field(default="auto", validator=_check_measure)
    warning_threshold: float | None = attrs.field(default=None, validator=_check_threshold)
    error_threshold: float | None = attrs.field(default=None, validator=_check_threshold)
    num_samples: int | None = attrs.field(default=None, validator=_check_samples)
    select: int | str | None = attrs.field(default=None, validator=check_select)
    forward: Forward | None = attrs.field(default=None, validator=check_forward)

    def run(self, context: QuantContext) -> ComparisonResult:
        """Run both models on all data.

        Args:
            context: Of the run; every layer must be packed. Takes the memory of one more quantized model.
        """
        twin = copy_without_weights(context.model, {name: context.weight_names(name) for name in context.packed})
        convert_in_place(twin, context.packed, context.rescaling.parameters)
        data = Batches(self.data, self.num_samples or 1 << 62, self.select, self.forward, what="comparison")
        measure, total, rows, samples = self.measure, 0.0, 0, 0
        with undisturbed(context.model), undisturbed(twin):
            for given in data.parts(hold_out=False):
                part, reference = self._reference(context, data, given)
                other = self._answer(twin, part)
                if measure == "auto":
                    measure = "kl" if reference[1] else "cosine"
                if reference[0].shape[-1] < 2:
                    raise InputError(
                        f"the model's answer to comparison batch {part.index} has vectors of fewer than two features, "
                        f"of which {'KL' if measure == 'kl' else 'a cosine'} says nothing: give a forward(model, "
                        "batch) that returns longer ones, the last hidden state say"
                    )
                for found in _per_row(measure, reference[0], other[0], part):
                    total, rows = total + float(found.sum()), rows + len(found)
                samples += part.samples
        if not rows:
            raise InputError(
                "comparison data is nothing but padding: give some that its attention_mask does not leave out"
            )
        return ComparisonResult("kl" if measure == "kl" else "cosine", total / rows, rows, samples)

    def _reference(self, context: QuantContext, data: Batches, part: Part) -> tuple[Part, tuple[Tensor, bool]]:
        """What the float model answers, to the whole batch where it cannot take a part of one."""
        try:
            return part, self._answer(context.model, part)
        except InputError:
            if not part.is_cut:
                raise
        whole = data.whole(part)
        answer = self._answer(context.model, whole)
        context.report([_UNCUT])
        return whole, answer

    def _answer(self, model: nn.Module, part: Part) -> tuple[Tensor, bool]:
        answer = run_model(model, part, self.forward)
        logits = logits_of(answer)
        found = first_float(answer) if logits is None else logits
        if found is None or not found.dim():
            raise InputError(
                f"the model's answer to comparison batch {part.index} has no vectors to compare: give a "
                "forward(model, batch) that returns a tensor [..., features]"
            )
        return found.detach(), logits is not None

    def finding(self, result: ComparisonResult) -> Finding:
        """What the result means.

        Args:
            result: Of :meth:`run`.
        """
        low, high = _THRESHOLDS[result.measure]
        warning = low if self.warning_threshold is None else self.warning_threshold
        error = high if self.error_threshold is None else self.error_threshold
        what = (
            "KL of the quantized model's logits from the float model's is"
            if result.measure == "kl"
            else ("Cosine between the quantized model's vectors and the float model's is")
        )
        unit = " nats" if result.measure == "kl" else ""
        said = f"{what} {result.value:.4f}{unit} on average over {result.rows} rows of {result.samples} samples"
        if math.isnan(result.value) or _is_worse(result.measure, result.value, error):
            message = f"CRITICAL: {said}, beyond {error:g}."
            return Finding("model-output-critical", Severity.CRITICAL, message, remedy=_REMEDY)
        if _is_worse(result.measure, result.value, warning):
            return Finding(
                "model-output-low", Severity.WARNING, f"Warning: {said}, beyond {warning:g}.", remedy=_REMEDY
            )
        return Finding("model-output", Severity.INFO, f"{said}.")


_UNCUT = Finding(
    "comparison-not-cut",
    Severity.INFO,
    "The model cannot take a part of a comparison batch, so more samples than num_samples are compared.",
)
_REMEDY = "Calibrate with more data, use smaller groups, or spend more bits with target_bits_per_weight."


def _is_worse(measure: str, value: float, threshold: float) -> bool:
    return value > threshold if measure == "kl" else value < threshold


def _per_row(measure: str, reference: Tensor, other: Tensor, part: Part) -> Iterator[Tensor]:
    """The measure of each row, some rows at a time."""
    counted = part.counted
    if counted is not None and counted.shape == reference.shape[:-1]:
        mask = counted.to(reference.device)
        reference, other = reference[mask], other[mask]
    flat, changed = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (reference, other))
    for start in range(0, len(flat), _ROWS_AT_ONCE):
        one, two = (tensor[start : start + _ROWS_AT_ONCE].double() for tensor in (flat, changed))
        yield _divergence(one, two) if measure == "kl" else _cosine(one, two)


def _cosine(reference: Tensor, other: Tensor) -> Tensor:
    found = torch.cosine_similarity(reference, other, dim=-1, eps=1e-30)
    return torch.where((reference == other).all(-1), 1.0, found)  # two zero vectors, too, are the same


def _divergence(reference: Tensor, other: Tensor) -> Tensor:
    log_p, log_q = reference.log_softmax(-1), other.log_softmax(-1)
    # Where p is 0, log p may be -inf: such classes add nothing.
    return torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q)).sum(-1)
