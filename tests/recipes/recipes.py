"""Any recipe, for properties."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from monoquant.recipes import (
    CalibrationTable,
    CompareTable,
    GateTable,
    OutputTable,
    PluginsTable,
    Recipe,
    SchemeTable,
    SelectTable,
    SkipDefaultsTable,
    SkipEntry,
    ValidationTable,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-100, 100)
POSITIVE = st.floats(0, 1e6) | st.integers(0, 100)
NAMES = st.lists(st.sampled_from(["lm_head", "*.gate", "re:.*v_proj", "layers.1", "re:a\"b\\\\'"]), max_size=3)
TYPES = st.lists(st.sampled_from(["Embedding", "torch.nn.LSTM", "*RMSNorm"]), max_size=3)
POLICIES = st.sampled_from(["error", "warn", "ignore"])
COUNTS = st.integers(1, 1 << 40)


def tables(kind: Any, **fields: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """A table, each of whose keys may be there or not."""
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: kind(**given))


def _schemes(target: str) -> SearchStrategy[SchemeTable]:
    bits = {"int4": 4, "int8": 8, "float16": 16, "bfloat16": 16}[target]
    precisions = [{"dtype": target}, {"bits": bits, "dtype": target}]
    if target != "bfloat16":
        precisions.append({"bits": bits})
    exclusive = [
        {},
        {"quality": "best"},
        {"algorithm": "gptq"},
        {"target_bits_per_weight": 4.5},
        {"target_sqnr_db": 30},
    ]
    others = st.fixed_dictionaries(
        {},
        optional={
            "group_size": COUNTS,
            "symmetric": st.booleans(),
            "scale_dtype": st.sampled_from(["float16", "bfloat16", "float32"]),
            "activations": st.sampled_from(["dynamic", "static"]),
            "observer": TEXTS,
            "exact": st.booleans(),
        },
    )
    parts = st.tuples(st.sampled_from(precisions), st.sampled_from(exclusive), others)
    return parts.map(lambda found: SchemeTable(**found[0], **found[1], **found[2]))


def _entries(targets: list[str]) -> SearchStrategy[SkipEntry]:
    what = st.tuples(NAMES, TYPES, st.none() | COUNTS).filter(any)
    to = st.sampled_from([None, *targets])
    return st.builds(
        lambda keys, to, reason: SkipEntry(names=keys[0], types=keys[1], smaller_than=keys[2], to=to, reason=reason),
        what,
        to,
        st.none() | TEXTS,
    )


DATA: dict[str, Any] = {
    "tokenizer": TEXTS,
    "samples": COUNTS,
    "batch_size": COUNTS,
    "max_length": COUNTS,
    "select": TEXTS | st.integers(-3, 3),
}
LIMITS: dict[str, Any] = {
    "accuracy_warning": POLICIES,
    "sqnr_warning_threshold": NUMBERS,
    "sqnr_error_threshold": NUMBERS,
    "fail_on": st.sampled_from(["critical", "warning"]),
    "min_layer_sqnr_db": NUMBERS,
    "min_model_sqnr_db": NUMBERS,
    "max_bits_per_weight": POSITIVE,
    "min_compression": POSITIVE,
}
TOLERANCES: dict[str, Any] = {"tolerance_db": POSITIVE, "size_tolerance_percent": POSITIVE}
GATES = tables(GateTable, **LIMITS) | st.fixed_dictionaries({"baseline": TEXTS}, optional={**LIMITS, **TOLERANCES}).map(
    lambda given: GateTable(**given)
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any recipe that can be built."""
    target = draw(st.sampled_from(["int4", "int8", "float16", "bfloat16"]))
    more = {"int4": ["int8", "float16", "bfloat16"], "int8": ["float16", "bfloat16"]}.get(target, [])
    flags = {"names": st.booleans(), "types": st.booleans(), "smaller_than": st.booleans()}
    defaults = tables(SkipDefaultsTable, **flags, to=st.sampled_from(more)) if target == "int4" else st.none()
    compared = {"measure": st.sampled_from(["auto", "kl", "cosine"]), "warning_threshold": NUMBERS}
    given = {
        "scheme": _schemes(target),
        "select": tables(SelectTable, names=NAMES, types=TYPES),
        "skip_defaults": defaults,
        "skip": st.lists(_entries(more), max_size=4),
        "calibration": st.none() | st.builds(CalibrationTable, data=TEXTS, **DATA, statistics_bytes=COUNTS),
        "compare": st.none() | st.builds(CompareTable, data=TEXTS, **DATA, **compared, error_threshold=NUMBERS),
        "validation": tables(ValidationTable, run=st.booleans(), on_failure=POLICIES),
        "gate": GATES,
        "plugins": tables(
            PluginsTable, installed=st.booleans(), block=st.lists(TEXTS, max_size=2), files=st.lists(TEXTS, max_size=2)
        ),
        "output": tables(OutputTable, format=TEXTS),
    }
    drawn = {name: draw(strategy) for name, strategy in given.items()}
    return Recipe(**{name: value for name, value in drawn.items() if value is not None})
