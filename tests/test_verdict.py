"""From findings to a verdict: check_accuracy_warnings, and how checks are run and delivered."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import monoquant as mq
from monoquant.values import BUILT_IN
from monoquant.verdict import deliver, require_policy, run_checks

GATE = mq.AccuracyGate()
ORIGIN = mq.Origin("example", "2.0")
CRITICAL_TEXT = (
    "CRITICAL: Very low SQNR (8.00 dB). Significant accuracy loss likely. Consider INT8 or skipping more layers."
)
LOW_TEXT = "Warning: Low SQNR (15.00 dB). Quantization may impact accuracy. Verify with task-specific evaluation."
SAMPLES_TEXT = "Low calibration sample count (30). Recommend at least 100 samples for reliable calibration."


def make_info(sqnr_db: float | None = None, samples: int = 0, **fields: Any) -> mq.QuantizationInfo:
    """An info as people build it by hand: something quantized, something skipped."""
    values: dict[str, Any] = {"selected_layers": ["a"], "skipped_layers": ["lm_head"], **fields}
    return mq.QuantizationInfo(
        calibration_samples_used=samples, dtype=torch.int4, symmetric=False, sqnr_db=sqnr_db, **values
    )


def record(layer: str, output: float) -> mq.LayerReport:
    return mq.LayerReport(
        layer, "Linear", (64, 64), 4096, mq.Action.QUANTIZE, "", 16384, 2048, scheme=mq.Scheme(), output_sqnr_db=output
    )


def texts(info: mq.QuantizationInfo, **options: Any) -> list[str]:
    """What check_accuracy_warnings writes into the info."""
    return mq.check_accuracy_warnings(info, on_failure="ignore", **options).warnings


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sqnr_db": 8.0}, [CRITICAL_TEXT]),
        ({"sqnr_db": 15.0}, [LOW_TEXT]),
        ({"samples": 30}, [SAMPLES_TEXT]),
        ({"sqnr_db": 8.0, "samples": 30}, [CRITICAL_TEXT, SAMPLES_TEXT]),
        ({"sqnr_db": 25.0, "samples": 100}, []),
    ],
)
def test_texts_people_search_for(fields: dict[str, Any], expected: list[str]) -> None:
    """Known texts stay word for word, each ending with what to do."""
    assert texts(make_info(**fields)) == expected


def test_all_layers_were_quantized() -> None:
    """An info built by hand with nothing skipped gets the known text and an advice."""
    [text] = texts(make_info(skipped_layers=[]))
    assert text.startswith("All layers were quantized. For INT4, consider skipping embeddings")
    assert texts(make_info(skipped_layers=["lm_head"])) == []


def test_no_layers_were_quantized() -> None:
    """Nothing selected is told, and is not taken for everything selected."""
    [text] = texts(make_info(selected_layers=[], skipped_layers=[]))
    assert text.startswith("Warning: No layers were quantized.")


@pytest.mark.parametrize(
    ("sqnr_db", "start"),
    [
        (-5.0, "CRITICAL: Very low SQNR (-5.00 dB)"),
        (9.999, "CRITICAL: Very low SQNR (10.00 dB)"),
        (10.0, "Warning: Low SQNR (10.00 dB)"),
        (19.999, "Warning: Low SQNR (20.00 dB)"),
        (20.0, None),
        (30.5, None),
        (math.inf, None),
        (math.nan, "CRITICAL: Very low SQNR (nan dB)"),
        (-math.inf, "CRITICAL: Very low SQNR (-inf dB)"),
        (None, None),
    ],
)
def test_thresholds_are_strict(sqnr_db: float | None, start: str | None) -> None:
    """Exactly a threshold passes it, NaN never does, and not measured is never critical."""
    found = texts(make_info(sqnr_db))
    assert len(found) == (0 if start is None else 1)
    assert all(text.startswith(str(start)) for text in found)


@pytest.mark.parametrize(("samples", "count"), [(0, 0), (1, 1), (49, 1), (50, 0)])
def test_few_samples_count_only_with_calibration(samples: int, count: int) -> None:
    """No samples mean no calibration, which is not a low count of it."""
    assert len(texts(make_info(samples=samples))) == count


def test_thresholds_are_settings() -> None:
    """Both thresholds can be moved."""
    assert texts(make_info(8.0), sqnr_error_threshold=5.0) == [LOW_TEXT.replace("15.00", "8.00")]
    assert texts(make_info(15.0), sqnr_warning_threshold=12.0) == []
    assert texts(make_info(15.0), sqnr_error_threshold=16.0)[0].startswith("CRITICAL")


def test_two_checks_can_be_switched_off() -> None:
    """Each switch silences its own text only."""
    fields: dict[str, Any] = {"samples": 30, "skipped_layers": []}
    assert texts(make_info(**fields), all_layers_quantized_warning=False) == [SAMPLES_TEXT]
    [text] = texts(make_info(**fields), low_calibration_warning=False)
    assert text.startswith("All layers")


@pytest.mark.parametrize("on_failure", ["ignore", "warn", "error"])
def test_the_list_is_filled_in_every_mode_and_only_once(on_failure: Any) -> None:
    """Own texts stay, found ones are added, and a second call adds nothing."""
    info = make_info(8.0, samples=30, warnings=["mine"])
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mq.AccuracyWarning)
            try:
                assert mq.check_accuracy_warnings(info, on_failure=on_failure) is info
            except mq.AccuracyError:
                assert on_failure == "error"
        assert info.warnings == ["mine", CRITICAL_TEXT, SAMPLES_TEXT]


def test_a_run_has_told_everything_already(small: Any, tokens: Any) -> None:
    """Judging the info of a run again, with the same thresholds, adds nothing."""
    result = mq.quantize(
        small, calibration_data=tokens[:2], modules_to_not_convert=[], accuracy_warning="ignore", plugins=False
    )
    before = list(result.info.warnings)
    assert before
    assert texts(result.info) == before


def test_error_raises_for_critical_findings_only() -> None:
    """AccuracyError is a ValueError that carries CRITICAL, the text and the info; lesser findings raise nothing."""
    info = make_info(8.0)
    with pytest.raises(mq.AccuracyError, match="CRITICAL") as caught:
        mq.check_accuracy_warnings(info, on_failure="error")
    assert isinstance(caught.value, ValueError)
    assert caught.value.info is info
    assert caught.value.report is None
    assert caught.value.layers == ()
    assert CRITICAL_TEXT in str(caught.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is not critical is only listed
        assert mq.check_accuracy_warnings(make_info(15.0), on_failure="error").warnings == [LOW_TEXT]


def test_error_names_every_failing_layer_worst_first() -> None:
    """All critical layers are in the error, NaN first, then by rising SQNR; healthy ones are not."""
    values = {"a": 9.0, "b": math.nan, "c": 25.0, "d": -3.0, "e": 15.0, "f": 1.0, "g": 2.0, "h": 3.0, "i": 4.0}
    layers = tuple(record(name, value) for name, value in values.items())
    info = make_info(15.0, selected_layers=list(values), layers=layers)
    with pytest.raises(mq.AccuracyError) as caught:
        mq.check_accuracy_warnings(info, on_failure="error")
    assert caught.value.layers == ("b", "d", "f", "g", "h", "i", "a")
    assert "'b'" in str(caught.value)
    assert len([text for text in info.warnings if "CRITICAL" in text]) == 1


def test_warn_emits_one_warning_for_all_texts() -> None:
    """However many texts there are, there is one AccuracyWarning, and it holds them all."""
    with pytest.warns(mq.AccuracyWarning) as caught:
        mq.check_accuracy_warnings(make_info(8.0, samples=30))
    [warning] = caught
    assert CRITICAL_TEXT in str(warning.message)
    assert SAMPLES_TEXT in str(warning.message)


def test_the_warning_points_at_the_caller() -> None:
    """File and line are those of the call, so that people find it and filters by module work."""
    line = inspect.currentframe().f_lineno + 2  # type: ignore[union-attr]
    with pytest.warns(mq.AccuracyWarning) as caught:
        mq.check_accuracy_warnings(make_info(8.0))
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_the_warning_of_a_run_points_at_the_caller(small: Any) -> None:
    """Through quantize() and the passes, the place is still the caller's."""
    line = inspect.currentframe().f_lineno + 2  # type: ignore[union-attr]
    with pytest.warns(mq.AccuracyWarning) as caught:
        mq.quantize(small, sqnr_error_threshold=90, sqnr_warning_threshold=90, plugins=False)
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_a_caller_beside_the_package_is_a_caller() -> None:
    """A folder whose name only begins like the package's, such as a plugin's, is not inside it."""
    caller = f"{Path(mq.__file__).parent}_moe/train.py"
    code = compile("check(info)", caller, "exec")
    with pytest.warns(mq.AccuracyWarning) as caught:
        exec(code, {"check": mq.check_accuracy_warnings, "info": make_info(8.0)})  # noqa: S102 - a frame of that file
    assert caught[0].filename == caller


def test_warnings_can_be_filtered() -> None:
    """The category is AccuracyWarning, a UserWarning: ignored or turned into an error by name, the list filled."""
    assert issubclass(mq.AccuracyWarning, UserWarning)
    info = make_info(8.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", mq.AccuracyWarning)
        with pytest.raises(mq.AccuracyWarning, match="CRITICAL"):
            mq.check_accuracy_warnings(info)
    assert info.warnings == [CRITICAL_TEXT]


@pytest.mark.parametrize("fields", [{"sqnr_db": 25.0}, {"sqnr_db": 35.0}, {}])
@pytest.mark.parametrize("on_failure", ["warn", "error"])
def test_healthy_runs_are_silent(fields: dict[str, Any], on_failure: Any) -> None:
    """Where there is nothing to tell there is no warning and no text, praise included."""
    assert mq.check_accuracy_warnings(make_info(**fields), on_failure=on_failure).warnings == []


@pytest.mark.parametrize("on_failure", ["raise", "", None, True, "WARN", ["warn"]])
def test_other_modes_are_refused(on_failure: Any) -> None:
    """The three modes are listed, and nothing was added to the info before the refusal."""
    info = make_info(8.0)
    with pytest.raises(mq.ConfigError, match=r"on_failure=.*'error', 'warn', 'ignore'"):
        mq.check_accuracy_warnings(info, on_failure=on_failure)
    assert info.warnings == []


@pytest.mark.parametrize(
    "thresholds",
    [
        {"sqnr_warning_threshold": 5.0},
        {"sqnr_error_threshold": 25.0},
        {"sqnr_error_threshold": math.nan},
        {"sqnr_warning_threshold": "20"},
        {"sqnr_warning_threshold": True},
    ],
)
def test_senseless_thresholds_are_refused(thresholds: dict[str, Any]) -> None:
    """Swapped thresholds and values that are no decibels are refused by name."""
    with pytest.raises(mq.ConfigError, match=next(iter(thresholds))):
        mq.check_accuracy_warnings(make_info(8.0), **thresholds)


@settings(deadline=None)
@given(
    sqnr_db=st.none() | st.floats(-100, 100) | st.sampled_from((math.nan, math.inf, -math.inf)),
    samples=st.integers(0, 200),
    error_threshold=st.floats(0, 20),
    gap=st.floats(0, 20),
)
def test_error_mode_raises_exactly_below_its_threshold(
    sqnr_db: float | None, samples: int, error_threshold: float, gap: float
) -> None:
    """For any figure: critical is NaN or strictly below; texts say CRITICAL exactly then; they never repeat."""
    info = make_info(sqnr_db, samples)
    critical = sqnr_db is not None and (math.isnan(sqnr_db) or sqnr_db < error_threshold)
    raised = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mq.AccuracyWarning)
        try:
            mq.check_accuracy_warnings(info, error_threshold + gap, error_threshold, on_failure="error")
        except mq.AccuracyError:
            raised = True
    assert raised == critical
    assert any("CRITICAL" in text for text in info.warnings) == critical
    assert len(info.warnings) == len(set(info.warnings))


class FixedCheck(mq.WarningCheck):
    """A check that answers what it was given."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def finding(code: str, severity: mq.Severity = mq.Severity.WARNING, **fields: Any) -> mq.Finding:
    return mq.Finding(code, severity, f"Found {code}.", **fields)


def run(*answers: Any, disabled: Iterable[str] = ()) -> list[mq.Finding]:
    checks = [mq.Registered(FixedCheck(answer), ORIGIN) for answer in answers]
    return run_checks(checks, make_info(), GATE, disabled)


def test_findings_are_stamped_and_sorted() -> None:
    """Each finding carries its check's origin, whatever the check claimed, and the worst come first."""
    mild, severe = (
        finding("mild", mq.Severity.INFO, origin=BUILT_IN),
        finding("severe", mq.Severity.CRITICAL, layer="a"),
    )
    assert [(found.code, found.layer) for found in run([mild], [severe])] == [("severe", "a"), ("mild", None)]
    assert {found.origin for found in run([mild], [severe])} == {ORIGIN}


def test_findings_can_be_disabled_by_code() -> None:
    """A disabled code is left out, of whichever check."""
    assert [found.code for found in run([finding("a"), finding("b")], disabled=["a"])] == ["b"]


def test_checks_may_yield() -> None:
    """Any iterable of findings will do."""
    assert [found.code for found in run(iter([finding("a")]), (finding("b"),))] == ["a", "b"]


@pytest.mark.parametrize("answer", [["text"], [None], [mq.Finding], "text", None, finding("alone"), 3])
def test_wrong_answers_of_a_check_name_it(answer: Any) -> None:
    """What is not an iterable of findings is an error that names check, plugin and version."""
    with pytest.raises(mq.PluginError, match=r"FixedCheck\(\) of example 2\.0"):
        run(answer)


def test_exceptions_of_a_check_keep_their_type() -> None:
    """Nothing is swallowed: the exception goes up with a note that names check, plugin and version."""
    with pytest.raises(ZeroDivisionError) as caught:
        run(ZeroDivisionError())
    assert any("FixedCheck() of example 2.0" in note for note in caught.value.__notes__)


def test_findings_of_one_kind_share_a_text() -> None:
    """Several layers with one code are one text; findings about the whole model stay apart."""
    info = make_info()
    layers = [finding("low", layer=name) for name in ("a", "b", "c")]
    whole = [mq.Finding("odd", mq.Severity.WARNING, "First oddity."), mq.Finding("odd", mq.Severity.WARNING, "Second.")]
    deliver(info, [*layers, *whole], "ignore")
    assert info.warnings == ["Found low. Likewise 'b', 'c'.", "First oddity.", "Second."]


def test_remarks_are_not_warnings() -> None:
    """INFO findings are for the report: no text, no warning, no error."""
    info = make_info()
    deliver(info, [finding("good", mq.Severity.INFO)], "warn")
    assert info.warnings == []


def test_policies() -> None:
    """The three policies pass, anything else is refused under the option's name."""
    for policy in ("error", "warn", "ignore"):
        require_policy("accuracy_warning", policy)
    with pytest.raises(mq.ConfigError, match="accuracy_warning='loud'"):
        require_policy("accuracy_warning", "loud")
