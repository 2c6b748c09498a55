"""CalibrationPass: what it leaves as it was, what it refuses, and what it tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import monoquant as mq
from monoquant.batches import describe
from tests.passes.calibration_cases import Recorder, batches, calibrate, either


@either
def test_runs_in_eval_without_gradients_and_restores_everything(
    small: nn.Module, tokens: Any, unchanged: Any, algorithm: str
) -> None:
    """Mixed training flags, running statistics and hooks are as before; weights get no gradients.

    Only what rows are weighed by needs any: those of the outputs of layers.
    """
    model, _ = calibrate(batches(), Recorder().train(), algorithm)
    modes = {(False, False)} | ({(False, True)} if algorithm == "gptq" else set())
    assert set(model.log.modes) == modes
    assert model.training
    assert [parameter.grad for parameter in model.parameters()] == [None, None]
    check = unchanged(small)
    calibrate(tokens, small, algorithm)
    check()


@either
def test_buffers_that_forward_writes_are_restored(algorithm: str) -> None:
    """A model that counts its calls in a buffer, or rebinds one, is left as it was."""

    class Counting(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.register_buffer("cache", None)

        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            self.calls += 1
            self.cache = x
            return super().forward(x)

    model = Counting()
    buffer = model.calls
    calibrate(batches(), model, algorithm)
    assert model.calls is buffer
    assert float(buffer) == 0
    assert model.cache is None


@either
@pytest.mark.parametrize("batch", [0, 2])
def test_an_exception_in_a_batch_leaves_nothing_behind(
    small: nn.Module, tokens: Any, unchanged: Any, batch: int, algorithm: str
) -> None:
    """Batch k does not fit: the error names it, and hooks, flags and buffers are as before."""
    data = [*tokens[:batch], torch.full((4, 7), 10**6)]
    check = unchanged(small)
    with pytest.raises(mq.InputError, match=rf"calibration batch {batch} \(Tensor int64 \[4, 7\]\): IndexError"):
        calibrate(data, small, algorithm)
    check()


@either
def test_a_failing_source_keeps_its_exception(small: nn.Module, tokens: Any, unchanged: Any, algorithm: str) -> None:
    """An error raised by the data itself keeps its type, with a note that tells the batch."""

    def data() -> Iterator[Tensor]:
        yield tokens[0]
        raise ConnectionError("lost")

    check = unchanged(small)
    with pytest.raises(ConnectionError) as caught:
        calibrate(data(), small, algorithm)
    assert any("calibration data itself, before batch 1" in note for note in caught.value.__notes__)
    check()


def test_out_of_memory_is_not_disguised() -> None:
    """Running out of memory keeps its type, so that callers can react to it."""

    class Huge(Recorder):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        calibrate(batches(), Huge())
    assert any("calibration batch 0" in note for note in caught.value.__notes__)


@either
@pytest.mark.parametrize("data", [[], iter([]), [torch.empty(0, 32)]])
def test_no_samples_is_an_error(data: Any, algorithm: str) -> None:
    """Empty and used-up data are told apart from success."""
    with pytest.raises(mq.InputError, match="holds no samples"):
        calibrate(data, algorithm=algorithm)


def test_a_used_up_generator_is_told_in_the_second_run() -> None:
    """The pass is reusable, but a generator is not: the second run says so."""
    quantizer = mq.Quantizer([mq.SkipSelectionPass(), mq.CalibrationPass(iter(batches())), mq.Int4PackPass()])
    quantizer.run(Recorder())
    with pytest.raises(mq.InputError, match="a generator that was used up before"):
        quantizer.run(Recorder())


def test_batches_without_tensors_are_refused() -> None:
    """Strings or scalars have no sample dimension to count."""
    for batch in ("text", torch.tensor(1.0), {"x": "text"}):
        with pytest.raises(mq.InputError, match="leading sample dimension"):
            calibrate([batch])


def test_select_must_exist() -> None:
    """A wrong key or position names the batch and what it holds."""
    with pytest.raises(mq.InputError, match=r"batch 0 \(mapping of x: Tensor float32 \[5, 32\]\) has no item 'pixels'"):
        calibrate([{"x": torch.ones(5, 32)}], select="pixels")
    with pytest.raises(mq.InputError, match="has no item 3"):
        calibrate([(torch.ones(5, 32),)], select=3)


BAD_SETTINGS = [
    ({"data": torch.ones(2, 2)}, "is one Tensor: give an iterable"),
    ({"data": {"x": torch.ones(2, 2)}}, "is one dict: give an iterable"),
    ({"data": "path"}, "is one str"),
    ({"data": 3}, "calibration data is 3"),
    ({"data": [], "num_samples": 0}, "num_samples=0"),
    ({"data": [], "num_samples": True}, "num_samples=True"),
    ({"data": [], "num_samples": 1.5}, "num_samples=1.5"),
    ({"data": [], "forward": 3}, "forward=3"),
    ({"data": [], "forward": print, "select": 0}, "select and forward are both given"),
    ({"data": [], "select": 1.0}, "select=1.0"),
    ({"data": [], "progress": 1}, "progress=1"),
    ({"data": [], "statistics_bytes": 0}, "statistics_bytes=0"),
    ({"data": [], "statistics_bytes": True}, "statistics_bytes=True"),
    ({"data": [], "statistics_bytes": 1e9}, "statistics_bytes=1000000000.0"),
]


@pytest.mark.parametrize(("settings", "text"), BAD_SETTINGS, ids=[text for _, text in BAD_SETTINGS])
def test_bad_settings_are_refused_when_built(settings: dict[str, Any], text: str) -> None:
    """Each wrong setting is a ConfigError before any model is seen."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.CalibrationPass(**settings)


@either
def test_progress_can_be_shown_and_silenced(capsys: pytest.CaptureFixture[str], algorithm: str) -> None:
    """Silent by default; True writes to stderr only; a function is told samples and goal after each whole batch."""
    calibrate(batches())
    assert capsys.readouterr() == ("", "")
    calibrate(batches(), progress=True, num_samples=20)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "20 of at most 20 samples\n" in shown.err
    told: list[tuple[int, int]] = []
    tell = lambda samples, wanted: told.append((samples, wanted))  # noqa: E731
    calibrate(batches(), algorithm=algorithm, progress=tell, num_samples=12)
    assert told == [(5, 12), (10, 12), (12, 12)]


def test_layers_that_data_never_reaches_are_reported() -> None:
    """A branch that is not taken is measured on its weight, and a finding says why."""

    class Branch(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(32, 32)

    _, result = calibrate(batches(), Branch())
    records = {record.layer: record for record in result.report.layers}
    assert records["idle"].output_sqnr_db is None
    assert records["idle"].weight_sqnr_db is not None
    assert result.report.calibration.unseen_layers == ("idle",)
    assert [(f.code, f.layer) for f in result.report.findings if f.code == "not-calibrated"] == [
        ("not-calibrated", "idle")
    ]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padded_batches_in_nested_tensors_are_sampled() -> None:
    """Of padded batches, which TransformerEncoder turns into nested tensors, only real positions are seen."""
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 1)
    padding = torch.zeros(6, 7, dtype=torch.bool)
    padding[:, 5:] = True
    _, result = calibrate([{"src": torch.randn(6, 7, 32), "src_key_padding_mask": padding}], model)
    records = {record.layer: record for record in result.report.by_action(mq.Action.QUANTIZE)}
    assert records["layers.0.linear1"].sample_rows == 6 * 5
    assert records["layers.0.self_attn"].sample_rows == 6
    assert records["layers.0.self_attn.out_proj"].sample_rows == 6
    assert min(record.output_sqnr_db for record in records.values()) > 15


def test_only_layers_to_be_quantized_are_observed() -> None:
    """A skipped layer costs no memory, also when calibration stands before the selection."""
    kept = []

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            kept.extend(layer for layer, _ in context.observed)
            kept.extend(f"moments of {weight.layer}" for weight in context.watched_weights())

    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    passes = [mq.CalibrationPass(batches()), mq.SkipSelectionPass(mq.NameRule("1")), mq.Int4PackPass()]
    mq.Quantizer([*passes, mq.ValidationPass(), Peek()]).run(model)
    assert kept == ["0", "moments of 0"]


def test_describe_names_kinds_and_shapes() -> None:
    """The text of errors shows what a batch was made of."""
    batch = ({"x": torch.ones(2, 3)}, [torch.ones(2, dtype=torch.bool), "label"])
    assert describe(batch) == "tuple of mapping of x: Tensor float32 [2, 3], list of Tensor bool [2], str"


def test_misfits_of_any_kind_are_input_errors() -> None:
    """Some modules check their input with assert; the user sees the batch all the same."""
    layer = nn.TransformerEncoderLayer(32, 2, 64)
    with pytest.raises(mq.InputError, match=r"batch 0 \(Tensor float32 \[5, 5, 16\]\): AssertionError"):
        calibrate([torch.ones(5, 5, 16)], layer)


def test_a_later_misfit_is_told_by_the_layer_itself() -> None:
    """Observing does not get in the way of the model's own error."""
    with pytest.raises(mq.InputError, match=r"batch 1 .*mat1 and mat2 shapes cannot be multiplied"):
        calibrate([torch.ones(5, 32), torch.ones(5, 31)])


def test_datasets_are_refused() -> None:
    """A Dataset yields single samples, whose features would be counted as samples."""
    with pytest.raises(mq.ConfigError, match="give a DataLoader over it"):
        mq.CalibrationPass(TensorDataset(torch.ones(20, 32)))


def test_forward_may_take_batches_of_anything() -> None:
    """With a forward function, batches without tensors count their items."""

    def forward(model: nn.Module, texts: list[str]) -> None:
        model(torch.ones(len(texts), 32))

    _, result = calibrate([["a", "b", "c"], ["d"]], forward=forward)
    assert result.info.calibration_samples_used == 4
    assert result.report.layers[0].sample_rows == 4
    assert (
        calibrate([1.5, 2.5], forward=lambda model, _: model(torch.ones(1, 32)))[1].info.calibration_samples_used == 2
    )


def test_a_layer_that_is_called_by_keyword_is_observed() -> None:
    """Inputs count, however they are given; what is no tensor is left to the layer."""

    class ByKeyword(Recorder):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            return self.linear(input=x)

    assert calibrate(batches(), ByKeyword())[1].report.layers[0].sample_rows == 20
