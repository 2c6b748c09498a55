"""The function API: every parameter does something, and what it promises."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq

STATIC_PARAMETERS = {
    "dtype": None,
    "bits": None,
    "symmetric": None,
    "layer_types": None,
    "layer_names": None,
    "skip_types": None,
    "skip_names": None,
    "num_calibration_samples": 150,
    "modules_to_not_convert": None,
    "skip_layer_types": None,
    "skip_layer_names": None,
    "skip_param_threshold": None,
    "group_size": None,
    "run_validation": True,
    "on_failure": "error",
    "accuracy_warning": "warn",
    "sqnr_warning_threshold": 20.0,
    "sqnr_error_threshold": 10.0,
}

DYNAMIC_PARAMETERS = {
    "dtype": torch.qint8,
    "layer_types": None,
    "layer_names": None,
    "modules_to_not_convert": None,
    "skip_layer_types": None,
    "skip_layer_names": None,
    "skip_param_threshold": None,
    "run_validation": True,
    "on_failure": "error",
    "accuracy_warning": "warn",
    "sqnr_warning_threshold": 20.0,
    "sqnr_error_threshold": 10.0,
}


def selected(info: mq.QuantizationInfo) -> set[str]:
    """Names of the quantized layers."""
    return set(info.selected_layers)


@pytest.fixture
def static(small: nn.Module, tokens: Any) -> Callable[..., mq.QuantizationInfo]:
    """Call static_quantize on the small model, and return its info."""

    def call(**options: Any) -> mq.QuantizationInfo:
        options = {"bits": 4, "accuracy_warning": "ignore", **options}
        return mq.static_quantize(small, tokens, **options)[1]

    return call


@pytest.mark.parametrize(
    ("function", "required", "promised"),
    [
        (mq.static_quantize, ["model", "calibration_data"], STATIC_PARAMETERS),
        (mq.dynamic_quantize, ["model"], DYNAMIC_PARAMETERS),
    ],
)
def test_signature_is_the_promised_one(
    function: Callable[..., Any], required: list[str], promised: dict[str, Any]
) -> None:
    """Names, order and defaults are a promise to existing users; what is new can be given by keyword only."""
    every = inspect.signature(function).parameters
    parameters = {name: p for name, p in every.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY}
    assert list(parameters) == [*required, *promised]
    assert all(parameters[name].default is inspect.Parameter.empty for name in required)
    assert {name: parameters[name].default for name in promised} == promised


ALL = {"blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"}


def test_defaults_quantize_the_blocks(static: Any) -> None:
    """Embedding, norms and lm_head stay float, the rest is packed and measured on outputs."""
    info = static()
    assert selected(info) == ALL
    assert set(info.skipped_layers) == {"embed", "blocks.0.norm", "blocks.1.norm", "bn", "lm_head"}
    assert info.dtype == torch.int4
    assert info.sqnr_kind == "output"
    assert info.calibration_samples_used == 120


SELECTION = [
    ({"layer_types": nn.Linear}, ALL),
    ({"layer_types": [nn.ModuleList]}, ALL),
    ({"layer_names": ["blocks.1"]}, {"blocks.1.up", "blocks.1.down"}),
    ({"layer_names": "blocks.*.up"}, {"blocks.0.up", "blocks.1.up"}),
    ({"layer_types": nn.Embedding, "layer_names": ["blocks.0"]}, {"blocks.0.up", "blocks.0.down"}),
    ({"skip_types": nn.ModuleList, "modules_to_not_convert": []}, {"lm_head"}),
    ({"skip_names": ["blocks.0.up"]}, ALL - {"blocks.0.up"}),
    ({"modules_to_not_convert": ["up"]}, {"blocks.0.down", "blocks.1.down", "lm_head"}),
    ({"modules_to_not_convert": []}, ALL | {"lm_head"}),
    ({"skip_layer_names": ["up"]}, {"blocks.0.down", "blocks.1.down"}),
    ({"skip_layer_types": [nn.ModuleList], "modules_to_not_convert": []}, {"embed", "lm_head"}),
    ({"skip_layer_types": []}, ALL | {"embed"}),
    ({"skip_param_threshold": 19_201}, {"blocks.0.up", "blocks.1.up"}),
]


@pytest.mark.parametrize(("options", "expected"), SELECTION, ids=[str(list(options)) for options, _ in SELECTION])
def test_selection_parameters(static: Any, options: dict[str, Any], expected: set[str]) -> None:
    """Each way to choose layers changes which ones are quantized."""
    assert selected(static(**options)) == expected


def test_scheme_parameters(small: nn.Module, tokens: Any) -> None:
    """group_size and symmetric reach the packed layers and the info."""
    model, info = mq.static_quantize(small, tokens, bits=4, group_size=32, symmetric=True, accuracy_warning="ignore")
    packed = model.blocks[0].up.packed_weight
    assert (packed.group_size, packed.zero_point, info.symmetric) == (32, None, True)


def test_int4_can_be_asked_for_by_dtype(static: Any) -> None:
    """dtype=torch.int4 alone means 4 bits."""
    assert selected(static(bits=None, dtype=torch.int4)) == ALL


REFUSED = [
    ({"bits": 3}, "bits=3: give 4, 8 or 16"),
    ({"bits": True}, "bits=True: give 4, 8 or 16"),
    ({"bits": "4"}, "bits='4': give 4, 8 or 16"),
    ({"bits": 16, "dtype": torch.int8}, "disagree"),
    ({"bits": None, "dtype": torch.float32}, "dtype=torch.float32: give one of torch.int4, torch.int8, torch.float16"),
    ({"bits": 8, "group_size": 64}, "activations='static' multiplies integers"),
    ({"bits": 8, "symmetric": False}, "activations='static' multiplies integers"),
    ({"bits": 8, "observer": "best"}, "'best'"),
    ({"bits": 4, "observer": "histogram"}, "observer='histogram' does nothing without bits=8"),
    ({"bits": 16, "group_size": 64}, "group_size change nothing in float16"),
    ({"bits": 16, "symmetric": True}, "symmetric change nothing in float16"),
    ({"bits": 4, "dtype": torch.qint8}, "disagree"),
    ({"dtype": "int4"}, "dtype='int4'"),
    ({"group_size": 0}, "group_size=0"),
    ({"symmetric": "yes"}, "symmetric='yes'"),
    ({"num_calibration_samples": 0}, "num_samples=0"),
    ({"on_failure": "explode"}, "on_failure='explode'"),
    ({"accuracy_warning": "explode"}, "accuracy_warning='explode'"),
    ({"sqnr_warning_threshold": 5.0}, "is above sqnr_warning_threshold"),
    ({"sqnr_error_threshold": 30.0}, "is above sqnr_warning_threshold"),
    ({"skip_layer_types": ["Linear"]}, "give one or more module classes"),
    ({"layer_types": 3}, "3: give a list of module classes"),
    ({"layer_types": []}, "select no layer at all"),
    ({"layer_names": [3]}, "must be a string, not 3"),
    ({"modules_to_not_convert": 3}, "3: give a list of layer names"),
    ({"skip_param_threshold": -1}, "skip_param_threshold=-1"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_wrong_options_are_refused(static: Any, options: dict[str, Any], text: str) -> None:
    """Each wrong value is a ConfigError that says what was given."""
    with pytest.raises(mq.ConfigError, match=text):
        static(**options)


def test_num_calibration_samples(static: Any) -> None:
    """Fewer samples are used when fewer are asked for, and few are worth a warning."""
    info = static(num_calibration_samples=30)
    assert info.calibration_samples_used == 30
    assert "Low calibration sample count (30). Recommend at least 100 samples" in " ".join(info.warnings)


def test_run_validation(static: Any) -> None:
    """Without validation nothing is measured, and None says so."""
    info = static(run_validation=False)
    assert (info.sqnr_db, info.sqnr_kind, info.original_size_mb, info.compression_ratio) == (None, None, None, None)
    assert static().sqnr_db is not None


def test_on_failure(static: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed check raises or is told, as asked."""
    from monoquant.passes import validation

    monkeypatch.setattr(validation, "survives_saving", lambda _packed: False)
    with pytest.raises(mq.ValidationError, match="does not survive"):
        static()
    assert "does not survive saving" in " ".join(static(on_failure="ignore").warnings)


def test_accuracy_warning_and_thresholds(static: Any) -> None:
    """Thresholds decide between silence, warning and error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert static(accuracy_warning="error", sqnr_warning_threshold=15.0).warnings == []
    with pytest.warns(mq.AccuracyWarning, match="Low SQNR") as caught:
        static(accuracy_warning="warn", sqnr_warning_threshold=40.0)
    assert caught[0].filename == __file__
    with pytest.raises(mq.AccuracyError, match="CRITICAL"):
        static(accuracy_warning="error", sqnr_warning_threshold=40.0, sqnr_error_threshold=40.0)


def test_static_quantize_needs_data(small: nn.Module) -> None:
    """None in place of data is refused with the function that can do without."""
    with pytest.raises(mq.InputError, match=r"call quantize\(\)"):
        mq.static_quantize(small, None, bits=4)


def test_quantize_defaults_to_int4_without_data(small: nn.Module, unchanged: Any) -> None:
    """One argument is enough; weights are measured, the model is left alone."""
    check = unchanged(small)
    result = mq.quantize(small, plugins=False)
    check()
    assert selected(result.info) == ALL
    assert result.info.sqnr_kind == "weight"
    assert result.report.calibration is None


def test_quantize_agrees_with_the_pipeline_spelled_out(small: nn.Module, tokens: Any) -> None:
    """The function is the pipeline, nothing more."""
    by_function = mq.quantize(small, calibration_data=tokens, accuracy_warning="ignore", plugins=False)
    passes = [
        mq.SkipSelectionPass.from_options(),
        mq.CalibrationPass(tokens),
        mq.Int4PackPass(),
        mq.ValidationPass(),
        mq.AccuracyWarningPass("ignore"),
    ]
    by_hand = mq.Quantizer(passes).run(small)
    assert by_function.report == by_hand.report
    assert by_function.info == by_hand.info


def test_the_other_parameters_of_quantize(small: nn.Module, tokens: Any) -> None:
    """scale_dtype, select, forward, progress, add_default_skips, inplace and plugins reach the run."""
    options: dict[str, Any] = {"accuracy_warning": "ignore", "plugins": False, "quality": "fast"}
    assert mq.quantize(small, scale_dtype=torch.bfloat16, **options).report.scheme.scale_dtype == torch.bfloat16
    pairs = [(batch, torch.zeros(12)) for batch in tokens]
    told: list[int] = []
    chosen = mq.quantize(small, calibration_data=pairs, select=0, progress=lambda done, _: told.append(done), **options)
    assert chosen.info.calibration_samples_used == told[-1] == 120
    forwarded = mq.quantize(small, calibration_data=pairs, forward=lambda model, pair: model(pair[0]), **options)
    assert forwarded.report == chosen.report
    few = mq.quantize(small, calibration_data=tokens, num_calibration_samples=7, **options)
    assert few.info.calibration_samples_used == 7
    both = mq.quantize(small, modules_to_not_convert=["up"], add_default_skips=True, **options)
    assert selected(both.info) == {"blocks.0.down", "blocks.1.down"}
    assert selected(mq.quantize(small, bits=4, layer_names="blocks.0", **options).info) == {
        "blocks.0.up",
        "blocks.0.down",
    }
    assert mq.quantize(small, inplace=True, **options).model is small


def test_plugins_can_be_turned_off(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """quantize asks installed plugins unless told not to."""
    asked = []
    monkeypatch.setattr("monoquant.hooks.loading.installed", lambda: asked.append("installed") or [])
    mq.quantize(small, accuracy_warning="ignore", plugins=False)
    assert asked == []
    mq.quantize(small, accuracy_warning="ignore")
    assert asked == ["installed"]


@pytest.mark.parametrize("model", [None, 3, [nn.Linear(64, 64)], nn.Linear])
def test_what_is_neither_module_nor_weights_is_refused(model: Any) -> None:
    """Nonsense gets a clear error that says what would do."""
    with pytest.raises(mq.InputError, match=r"give an nn\.Module, or a state dict to quantize"):
        mq.quantize(model, plugins=False)


@pytest.mark.parametrize("as_file", [False, True])
def test_state_dicts_and_files_of_them_are_quantized(small: nn.Module, tmp_path: Any, as_file: bool) -> None:
    """The codes are those of the model, and the result loads into the float architecture."""
    weights: Any = small.state_dict()
    if as_file:
        torch.save(weights, tmp_path / "model.pt")
        weights = tmp_path / "model.pt"
    result = mq.quantize(weights, accuracy_warning="ignore", plugins=False)
    of_model = mq.quantize(small, accuracy_warning="ignore", plugins=False)
    assert selected(result.info) == selected(of_model.info) == ALL
    expected = of_model.model.state_dict()
    assert result.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.model.state_dict().items())
    mq.save(result, tmp_path / "packed.safetensors")
    loaded = mq.load(tmp_path / "packed.safetensors", small)
    assert torch.equal(loaded.blocks[0].up.weight, of_model.model.blocks[0].up.weight)


def test_weights_that_cannot_be_used_are_refused(tokens: Any) -> None:
    """A missing file, an empty or nested state dict, and data for a model that does not run."""
    with pytest.raises(mq.FileError, match=r"model\.pt: no such file"):
        mq.quantize("model.pt", plugins=False)
    with pytest.raises(mq.InputError, match="the state dict is empty"):
        mq.quantize({}, plugins=False)
    with pytest.raises(mq.InputError, match=r"quantize\(state\['model'\]\)"):
        mq.quantize({"model": {"weight": torch.ones(64, 64)}}, plugins=False)
    with pytest.raises(mq.ConfigError, match="a state dict has none: give the module, or no data"):
        mq.quantize({"weight": torch.ones(64, 64)}, calibration_data=tokens, plugins=False)


def test_public_names_exist_and_are_documented() -> None:
    """Everything in __all__ is there and has a docstring of its own."""
    for name in mq.__all__:
        public = getattr(mq, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert inspect.getdoc(public), name


def test_a_gate_without_measurements_is_refused(small: nn.Module, tokens: Any) -> None:
    """Asking for an error and for no validation would switch the gate off without a word."""
    for call in (
        lambda: mq.quantize(small, accuracy_warning="error", run_validation=False, plugins=False),
        lambda: mq.static_quantize(small, tokens, bits=4, accuracy_warning="error", run_validation=False),
        lambda: mq.Quantizer(
            [mq.SkipSelectionPass(), mq.Int4PackPass(), mq.AccuracyWarningPass(on_failure="error")]
        ).run(small),
    ):
        with pytest.raises(mq.ConfigError, match="nothing to judge"):
            call()


@pytest.mark.parametrize(
    "options", [{"num_calibration_samples": 5}, {"select": 0}, {"forward": print}, {"progress": True}]
)
def test_calibration_options_without_data_are_refused(small: nn.Module, options: dict[str, Any]) -> None:
    """They would do nothing."""
    with pytest.raises(mq.ConfigError, match="without calibration_data"):
        mq.quantize(small, plugins=False, **options)


def test_static_quantize_takes_pairs_by_choice(small: nn.Module, tokens: Any) -> None:
    """What the error about (input, label) batches proposes, static_quantize accepts."""
    pairs = [(batch, torch.zeros(12)) for batch in tokens]
    with pytest.raises(mq.InputError, match=r"give select=0 or a forward\(model, batch\) function"):
        mq.static_quantize(small, pairs, bits=4)
    # Batches that forward takes are held out whole, others in part, so that fitted codes would differ.
    options: dict[str, Any] = {"bits": 4, "quality": "fast", "accuracy_warning": "ignore"}
    chosen = mq.static_quantize(small, pairs, select=0, **options)[1]
    forwarded = mq.static_quantize(small, pairs, forward=lambda model, pair: model(pair[0]), **options)[1]
    assert chosen == forwarded
    assert chosen.calibration_samples_used == 120


def test_natural_slips_get_clear_errors(small: nn.Module, tokens: Any) -> None:
    """Data in place of bits, names in place of classes, a misspelt selection, a result in place of a model."""
    with pytest.raises(mq.ConfigError, match="calibration_data="):
        mq.quantize(small, tokens, plugins=False)
    with pytest.raises(mq.ConfigError, match=r"'Linear': give module classes"):
        mq.quantize(small, skip_layer_types="Linear", plugins=False)
    with pytest.raises(mq.InputError, match=r"'bloks' \(nearest: 'blocks'"):
        mq.quantize(small, layer_names=["bloks"], plugins=False)
    with pytest.raises(mq.ConfigError, match="dtype="):
        mq.static_quantize(small, tokens, dtype=[torch.int4])
    result = mq.quantize(small, accuracy_warning="ignore", plugins=False)
    with pytest.raises(mq.InputError, match=r"quantized is a QuantResult: give the module itself"):
        mq.validate_quantization(small, result)
    with pytest.raises(mq.InputError, match="original weights on the meta device"):
        mq.validate_quantization(small.to("meta"), result.model)


WRONG_KINDS: list[Callable[[], Any]] = [
    lambda: mq.quantize(nn.Linear(64, 64), inplace="no"),
    lambda: mq.quantize(nn.Linear(64, 64), run_validation="no"),
    lambda: mq.quantize(nn.Linear(64, 64), add_default_skips=1),
    lambda: mq.quantize(nn.Linear(64, 64), plugins=5),
    lambda: mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass()]).run(nn.Linear(64, 64), inplace="no"),
    lambda: mq.static_quantize(nn.Linear(64, 64), [], bits=4, run_validation="no"),
    lambda: mq.check_accuracy_warnings(mq.quantize(nn.Linear(64, 64), accuracy_warning="ignore", plugins=False)),
    lambda: mq.Int4Linear(0, 4),
    lambda: mq.Int4Linear(4, -1),
    lambda: mq.Int4Linear(4, 4, scheme=5),
    lambda: mq.Int4Linear(4, 4, dtype=torch.int8),
    lambda: mq.AnyRule(5),
    lambda: mq.AllRule("ab"),
    lambda: mq.Registry(5),
    lambda: mq.SkipSelectionPass.from_options(extra_rules=5),
    lambda: mq.QuantReport.from_dict(5),
    lambda: mq.Scheme(4.0),
    lambda: mq.get_layers_to_skip(nn.Linear(4, 4), skip_param_threshold=""),
]


@pytest.mark.parametrize("call", WRONG_KINDS)
def test_wrong_kinds_are_errors_of_ours(call: Callable[[], Any]) -> None:
    """A text in place of a switch is not taken for yes, and nothing leaks a TypeError or AttributeError."""
    with pytest.raises(mq.MonoquantError):
        call()
