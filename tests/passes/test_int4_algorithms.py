"""Int4PackPass with codes that are fitted to calibration data: how they are asked for, told, and the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.algorithms.base import Needs, Solution, WeightAlgorithm, WeightProblem
from monoquant.algorithms.clip_search import ClipSearch
from monoquant.algorithms.gptq import Gptq
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.batches import HELD_OUT_OF
from tests.passes.algorithm_cases import FEATURES, QUIET, algorithms, assert_same, build, bytes_of, data, noise

UNWEIGHTED = Gptq(weigh_rows=False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "gptq"),
        ({"quality": "auto"}, "gptq"),
        ({"quality": "best"}, "gptq"),
        ({"quality": "balanced"}, "clip_search"),
        ({"quality": "fast"}, "round_to_nearest"),
        ({"algorithm": "gptq"}, "gptq"),
        ({"algorithm": "clip_search"}, "clip_search"),
        ({"algorithm": "round_to_nearest"}, "round_to_nearest"),
        ({"algorithm": Gptq(damping=0.1)}, "gptq"),
    ],
    ids=str,
)
def test_what_is_asked_for_is_what_chooses(options: dict[str, Any], expected: str) -> None:
    """By quality, by name or by object; each layer of the report says so."""
    result = mq.quantize(build(), calibration_data=[data()], **options, **QUIET)
    assert algorithms(result) == dict.fromkeys(("q", "k", "v", "out"), expected)
    assert not [finding for finding in result.report.findings if finding.code == "algorithm-fell-back"]


@pytest.mark.parametrize("options", [{}, {"quality": "auto"}, {"quality": "fast"}, {"algorithm": "auto"}])
def test_without_data_codes_are_rounded(options: dict[str, Any]) -> None:
    """The default needs no data, and says nothing of what it could have done with some."""
    result = mq.quantize(build(), **options, **QUIET)
    assert set(algorithms(result).values()) == {"round_to_nearest"}
    assert not [finding for finding in result.report.findings if finding.code == "algorithm-fell-back"]
    assert_same(bytes_of(result.model), bytes_of(mq.quantize(build(), quality="fast", **QUIET).model))


@pytest.mark.parametrize("algorithm", ["gptq", "clip_search", Gptq()])
def test_what_needs_data_is_refused_without(algorithm: Any) -> None:
    """Asked for by name, an algorithm is not silently replaced by another one."""
    with pytest.raises(mq.ConfigError, match=r"fits codes to data: put a CalibrationPass before Int4PackPass"):
        mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass(algorithm=algorithm)]).run(build())
    with pytest.raises(mq.ConfigError, match="fits codes to data"):
        mq.quantize(build(), algorithm=algorithm, **QUIET)


@pytest.mark.parametrize("quality", ["best", "balanced"])
def test_a_quality_that_needs_data_is_refused_without(quality: Any) -> None:
    """The error names the word, and a quality that does without."""
    with pytest.raises(mq.ConfigError, match=rf"quality='{quality}' fits codes to data: .*quality='fast'"):
        mq.quantize(build(), quality=quality, **QUIET)


WRONG = [
    ({"quality": "good"}, r"quality='good': give one of 'auto', 'fast', 'balanced', 'best'"),
    ({"quality": None}, "quality=None"),
    ({"quality": True}, "quality=True"),
    ({"algorithm": "awk"}, r"algorithm='awk': give one of 'round_to_nearest', 'clip_search', 'gptq', 'awq'"),
    ({"algorithm": Gptq}, "or an instance of a WeightAlgorithm"),
    ({"quality": "best", "algorithm": "gptq"}, r"quality='best' and algorithm='gptq' both choose"),
    ({"quality": "fast", "algorithm": "round_to_nearest"}, "both choose: give one of them"),
    ({"bits": 8, "quality": "best"}, r"algorithm 'gptq' is for INT4: int8 weights are rounded"),
    ({"bits": 16, "algorithm": "clip_search"}, r"algorithm 'clip_search' is for INT4"),
]


@pytest.mark.parametrize(("options", "text"), WRONG, ids=[text for _, text in WRONG])
def test_wrong_choices_are_refused(options: dict[str, Any], text: str, unchanged: Any) -> None:
    """Before anything is run."""
    model = build()
    check = unchanged(model)

    def never() -> Iterator[Tensor]:
        raise AssertionError("no data may be drawn")
        yield

    quiet = {"accuracy_warning": "ignore", "plugins": False}
    with pytest.raises(mq.ConfigError, match=text):
        mq.quantize(model, calibration_data=never(), **options, **quiet)
    check()


@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_correcting_biases_is_a_flag(value: Any) -> None:
    """Nothing else is taken for one."""
    with pytest.raises(mq.ConfigError, match="correct_bias="):
        mq.Int4PackPass(correct_bias=value)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_better_qualities_are_better(symmetric: bool, scale_dtype: torch.dtype) -> None:
    """On inputs that nobody has seen, of the kind that was fitted to: best before balanced before fast."""
    model, fresh = build(), data(500, seed=1)
    options = {"calibration_data": [data()], "symmetric": symmetric, "scale_dtype": scale_dtype, **QUIET}
    fast, balanced, best = (
        noise(model, mq.quantize(model, quality=quality, **options).model, fresh)
        for quality in ("fast", "balanced", "best")
    )
    assert best < 0.5 * fast
    assert best < balanced < fast


def test_settings_of_an_algorithm_matter() -> None:
    """An object with other settings chooses other codes."""
    one, other = (
        mq.quantize(build(), algorithm=Gptq(damping=damping), calibration_data=[data()], **QUIET).model
        for damping in (0.01, 0.9)
    )
    assert not torch.equal(one.q.packed_weight.qweight, other.q.packed_weight.qweight)


@attrs.frozen
class Ceiling(WeightAlgorithm):
    """One's own: every code one more than the nearest, where that is possible."""

    name: ClassVar[str] = "ceiling"
    needs: ClassVar[Needs] = Needs.NOTHING

    def solve(self, problem: WeightProblem) -> Solution:
        codes = RoundToNearest().solve(problem).codes
        return Solution(attrs.evolve(codes, codes=(codes.codes + 1).clamp_max(problem.scheme.max_code)))


@attrs.frozen(eq=False)
class Own(WeightAlgorithm):
    """One's own, with a choice of what it wants to know; remembers what it was told, and rounds."""

    name: ClassVar[str] = "own"

    wants: Needs
    seen: list[WeightProblem] = attrs.field(factory=list)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.wants

    def solve(self, problem: WeightProblem) -> Solution:
        self.seen.append(problem)
        return RoundToNearest().solve(problem)


@pytest.mark.parametrize("with_data", [False, True])
def test_an_algorithm_of_ones_own(with_data: bool) -> None:
    """Its codes are packed, its name is in the report, and data is not needed unless it says so."""
    options = {"calibration_data": [data()]} if with_data else {}
    plain = mq.quantize(build(), quality="fast", **QUIET).model
    result = mq.quantize(build(), algorithm=Ceiling(), **options, **QUIET)
    assert set(algorithms(result).values()) == {"ceiling"}
    for layer in "qkv":
        one, other = (
            model.get_submodule(layer).packed_weight.read_rows(slice(0, 64)).codes for model in (plain, result.model)
        )
        assert torch.equal((one + 1).clamp_max(15), other)
        biases = {name: value for name, value in build().named_parameters() if name.endswith("bias")}
    assert_same(dict(result.model.named_parameters()), biases)


@pytest.mark.parametrize("needs", [Needs.SQUARES, Needs.HESSIAN])
def test_what_an_algorithm_of_ones_own_is_told(needs: Needs) -> None:
    """Moments of what was fitted to; weights that meet the same inputs, and have or lack a bias alike, come at once."""
    own = Own(needs)
    batch = data()
    fitted = len(batch) - (len(batch) + HELD_OUT_OF - 2) // HELD_OUT_OF
    result = mq.quantize(build(), algorithm=own, calibration_data=[batch], **QUIET)
    assert set(algorithms(result).values()) == {"own"}
    assert sum(len(problem.weight) for problem in own.seen) == 3 * 64 + FEATURES
    assert len(own.seen) <= 3
    first = own.seen[0]
    assert (first.samples, first.width, first.scheme) == (fitted, 32, mq.Scheme(group_size=32))
    rows = batch[:fitted].double() - batch[:fitted].double().mean(0)
    torch.testing.assert_close(first.importance.double(), rows.square().mean(0), rtol=1e-3, atol=1e-3)
    assert (first.hessian is None) == (needs is Needs.SQUARES)
    if first.hessian is not None:
        torch.testing.assert_close(first.hessian.double(), rows.T @ rows / fitted, rtol=1e-3, atol=1e-2)


def test_without_correcting_biases_the_mean_is_fitted_to_as_well() -> None:
    """Where no bias makes up for it, the error that the mean of the inputs makes counts."""
    own = Own(Needs.HESSIAN)
    passes = [mq.SkipSelectionPass(), mq.CalibrationPass([data()])]
    mq.Quantizer([*passes, mq.Int4PackPass(32, algorithm=own, correct_bias=False)]).run(build())
    fitted = 144 - (144 + HELD_OUT_OF - 2) // HELD_OUT_OF
    rows = data()[:fitted].double()
    torch.testing.assert_close(own.seen[0].hessian.double(), rows.T @ rows / fitted, rtol=1e-3, atol=1e-2)
    assert len(own.seen[0].weight) == 3 * 64


def test_a_bad_algorithm_is_named_with_its_layer(unchanged: Any) -> None:
    """And the model is as it was."""

    class Bad(Ceiling):
        name = "bad"

        def solve(self, problem: WeightProblem) -> Solution:
            codes = RoundToNearest().solve(problem).codes
            return Solution(attrs.evolve(codes, scale=codes.scale * 0))

    model = build()
    check = unchanged(model)
    with pytest.raises(mq.PassError, match=r"(?s)algorithm 'bad' returned scales that are zero.*layer 'q'"):
        mq.quantize(model, algorithm=Bad(), inplace=True, **QUIET)
    check()


@pytest.mark.parametrize("answer", [None, 3, (1, 2)])
def test_an_algorithm_that_returns_no_solution_is_named(answer: Any) -> None:
    """Rather than the first thing that its answer lacks."""

    class Bad(Ceiling):
        name = "bad"

        def solve(self, problem: WeightProblem) -> Any:
            return answer

    with pytest.raises(mq.PassError, match=r"algorithm 'bad' returned .*: return a Solution from its solve"):
        mq.quantize(build(), algorithm=Bad(), **QUIET)


@pytest.mark.parametrize(
    ("base", "method", "where"),
    [(mq.RoundToNearest, "solve", "Int4PackPass.run, layer '0'"), (mq.Awq, "input_scale", "Int4PackPass.run")],
)
def test_an_algorithm_that_raises_is_named(base: type[mq.WeightAlgorithm], method: str, where: str) -> None:
    """Its own exception, with notes that tell whose it is; where one matrix is coded, of which layer."""

    def fail(_: Any, problem: WeightProblem) -> Any:
        raise KeyError("lost")

    kind = type("Raising", (base,), {"name": "raising", "needs": Needs.SQUARES, method: fail})
    foldable = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES))
    with pytest.raises(KeyError) as caught:
        mq.quantize(foldable, algorithm=kind(), calibration_data=[data()], **QUIET)
    notes = "\n".join(caught.value.__notes__)
    assert "raised by the algorithm 'raising', " in notes
    assert where in notes


@pytest.mark.parametrize("algorithm", ["gptq", "clip_search"])
def test_two_runs_give_the_same_bytes(algorithm: str) -> None:
    """Whatever ran before, and whatever the global random state is."""
    batches = list(data().split(60))
    models = [build(), build(), build(5)]
    torch.manual_seed(1)
    one = mq.quantize(models[0], algorithm=algorithm, calibration_data=batches, **QUIET)
    torch.manual_seed(2)
    mq.quantize(models[2], algorithm=algorithm, calibration_data=[data(seed=3)], **QUIET)
    state = torch.get_rng_state()
    other = mq.quantize(models[1], algorithm=algorithm, calibration_data=iter(batches), **QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(bytes_of(one.model), bytes_of(other.model))
    assert one.report == other.report


@pytest.mark.parametrize("algorithm", [ClipSearch(), UNWEIGHTED], ids=["clip_search", "gptq"])
def test_layers_are_fitted_independently(algorithm: WeightAlgorithm) -> None:
    """A layer gets the codes it would get if others were skipped, also where they share inputs and are solved at once.

    Sums in another order may decide between codes that are equally good.
    """
    options = {"calibration_data": [data()], "algorithm": algorithm, **QUIET}
    everything = mq.quantize(build(), **options).model
    for layer in ("q", "k", "out"):
        alone = mq.quantize(build(), layer_names=[layer], **options).model
        one, other = (model.get_submodule(layer).packed_weight.dequantize() for model in (everything, alone))
        assert int((~torch.isclose(one, other, atol=1e-6)).any(1).sum()) <= 1


WAVE = 4 * FEATURES * (FEATURES + 1)


@pytest.mark.parametrize("kind", ["list", "generator", "DataLoader"])
@pytest.mark.parametrize(
    "algorithm",
    [
        ClipSearch(),
        UNWEIGHTED,
        Gptq(),
    ],
    ids=["clip_search", "gptq without weights", "gptq"],
)
def test_waves_give_the_same_codes(kind: str, algorithm: WeightAlgorithm) -> None:
    """Little memory for statistics means that the data is run more often, and nothing else."""
    batches = list(data().split(64))

    def given() -> Any:
        if kind == "DataLoader":
            return torch.utils.data.DataLoader(data(), batch_size=64)
        return iter(batches) if kind == "generator" else batches

    options = {"algorithm": algorithm, **QUIET}
    whole = mq.quantize(build(), calibration_data=given(), **options)
    limit = WAVE if algorithm.needs is Needs.HESSIAN else 4 * 2 * FEATURES
    model = build()
    waves = mq.quantize(model, calibration_data=given(), statistics_bytes=limit, **options)
    assert_same(bytes_of(whole.model), bytes_of(waves.model))
    told = [finding for finding in waves.report.findings if finding.code == "calibrated-in-waves"]
    assert len(told) == 1
    assert "was run 4 times" in told[0].message
    assert told[0].severity is mq.Severity.INFO
    assert "statistics_bytes" in told[0].remedy
    assert not [finding for finding in whole.report.findings if finding.code == "calibrated-in-waves"]
    others = [finding for finding in waves.report.findings if finding not in told]
    assert others == list(whole.report.findings)
    assert waves.report.calibration == whole.report.calibration
    assert [record.sqnr_db for record in waves.report.layers] == [record.sqnr_db for record in whole.report.layers]


def test_a_generator_is_drawn_once_for_all_waves() -> None:
    """Its batches are kept, as many as are used."""
    drawn = []

    def batches() -> Iterator[Tensor]:
        for part in data(640).split(64):
            drawn.append(len(part))
            yield part

    options = {"num_calibration_samples": 150, "statistics_bytes": WAVE, **QUIET}
    result = mq.quantize(build(), calibration_data=batches(), **options)
    assert drawn == [64] * 3
    assert result.report.calibration.samples == 150


def test_too_little_memory_for_one_weight_is_an_error(unchanged: Any) -> None:
    """All layers that would not fit are named, with what would do; and it does."""
    model = build()
    check = unchanged(model)
    with pytest.raises(mq.InputError, match=rf"too little for .*'q', 'k', 'v'.*{WAVE} bytes.*clip_search") as caught:
        mq.quantize(model, calibration_data=[data()], statistics_bytes=WAVE - 1, **QUIET)
    assert caught.value.layers == ("q", "k", "v")
    check()
    mq.quantize(model, calibration_data=[data()], statistics_bytes=WAVE, **QUIET)
    mq.quantize(model, calibration_data=[data()], statistics_bytes=WAVE - 1, quality="balanced", **QUIET)


@pytest.mark.parametrize("fails_in", ["first", "later"])
def test_a_failure_in_a_wave_leaves_the_model_alone(unchanged: Any, fails_in: str) -> None:
    """Data that gives out in the second run is as bad as in the first."""
    runs = []

    class Data:
        def __iter__(self) -> Iterator[Tensor]:
            runs.append(1)
            yield data(64)
            if len(runs) > (fails_in == "later"):
                raise ConnectionError("lost")

    model = build()
    check = unchanged(model)
    with pytest.raises(ConnectionError):
        mq.quantize(model, calibration_data=Data(), statistics_bytes=WAVE, inplace=True, **QUIET)
    check()
