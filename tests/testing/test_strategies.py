"""The strategies that users get: what they promise to yield, they yield, and nothing else."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from torch import nn

from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.rules import AllRule, AnyRule, NameRule, NotRule, SkipRule, ThresholdRule, TypeRule
from monoquant.testing.strategies import half_schemes, layers, schemes, skip_rules, weights
from monoquant.values import CODE_BITS, PACKABLE_DTYPES, SCALE_DTYPES, TARGETS, Ancestor, HalfScheme, Layer, Scheme

normal = settings(deadline=None, max_examples=100)
search = settings(deadline=None, max_examples=3000, database=None, derandomize=True, phases=[Phase.generate])
shrink = settings(search, phases=[Phase.generate, Phase.shrink])


@normal
@given(weight=weights(), scheme=schemes())
def test_weights_are_ones_that_every_scheme_can_hold(weight: torch.Tensor, scheme: Scheme) -> None:
    """Weights are finite matrices in a packable dtype, and stay finite when packed by any scheme."""
    assert weight.dim() == 2
    assert weight.dtype in PACKABLE_DTYPES
    assert not weight.requires_grad
    assert torch.isfinite(weight).all()
    packed, _ = PackedMatrix.pack(weight, scheme)
    assert torch.isfinite(packed.scale).all()
    assert torch.isfinite(packed.dequantize()).all()


@normal
@given(data=st.data(), rows=st.integers(1, 9), columns=st.integers(1, 40), dtype=st.sampled_from(PACKABLE_DTYPES))
def test_weights_keep_within_what_was_asked_for(
    data: st.DataObject, rows: int, columns: int, dtype: torch.dtype
) -> None:
    """Sizes, dtypes and layouts can be limited, to a single one as well."""
    weight = data.draw(weights(dtypes=[dtype], max_rows=rows, max_columns=columns, contiguous=True))
    assert weight.is_contiguous()
    assert 1 <= weight.shape[0] <= rows
    assert 1 <= weight.shape[1] <= columns
    assert weight.dtype == dtype


def anything(_drawn: object) -> bool:
    return True


def is_subnormal(weight: torch.Tensor) -> bool:
    limits = torch.finfo(weight.dtype)
    magnitudes = weight.double().abs()
    return bool(((magnitudes > 0) & (magnitudes < limits.smallest_normal)).any())


def spread(weight: torch.Tensor, dim: int) -> float:
    sizes = weight.double().abs().amax(dim)
    return float(sizes.max() / sizes.clamp_min(1e-30).min())


NIGHTMARES: dict[str, Callable[[torch.Tensor], bool]] = {
    "1x1": lambda weight: weight.numel() == 1,
    "large matrix": lambda weight: weight.numel() > 20 * 250,
    "ragged": lambda weight: weight.shape[1] > 128 and weight.shape[1] % 32 != 0,
    "odd": lambda weight: weight.shape[1] % 2 == 1 and len(weight) % 2 == 1 and weight.numel() > 100,
    "dead row": lambda weight: len(weight) > 1 and bool((weight == 0).all(1).any()) and bool(weight.any()),
    "constant": lambda weight: weight.numel() > 9 and bool((weight == weight[0, 0]).all()) and bool(weight.all()),
    "transposed": lambda weight: min(weight.shape) > 9 and weight.T.is_contiguous(),
    "cut from a wider one": lambda weight: min(weight.shape) > 9 and weight.stride(1) == 2,
    "constant row": lambda weight: weight.shape[1] > 9 and bool((weight == weight[:, :1]).all()) and bool(weight.all()),
    "positive only": lambda weight: weight.numel() > 100 and bool((weight > 0).all()),
    "negative row": lambda weight: weight.shape[1] > 20 and bool((weight < 0).all(1).any()),
    "outlier channel": lambda weight: min(weight.shape) > 10 and spread(weight, 0) > 30,
    "rows of different size": lambda weight: min(weight.shape) > 10 and 1e3 < spread(weight, 1) < 1e12,
    "heavy tail": lambda weight: (
        weight.numel() > 1000 and float(weight.abs().max()) > 100 * float(weight.float().std())
    ),
    "ties": lambda weight: (
        weight.shape[1] > 30 and bool((weight * 32 == (weight * 32).round()).all()) and bool(weight.any())
    ),
    "sparse": lambda weight: weight.numel() > 500 and 0 < int((weight != 0).sum()) < weight.numel() * 0.1,
    "subnormal": is_subnormal,
    "large magnitude": lambda weight: float(weight.abs().max()) > 2e5,
    **{str(dtype): (lambda weight, dtype=dtype: weight.dtype == dtype) for dtype in PACKABLE_DTYPES},
}


@pytest.mark.parametrize("trait", NIGHTMARES)
def test_weights_have_every_trait(trait: str) -> None:
    """Each of the promised kinds of weight does come up."""
    assert NIGHTMARES[trait](find(weights(), NIGHTMARES[trait], settings=search))


@pytest.mark.parametrize("dtype", PACKABLE_DTYPES, ids=str)
def test_subnormals_exist_in_every_dtype(dtype: torch.dtype) -> None:
    """Also float64 gets down to its own subnormals."""
    assert is_subnormal(find(weights(dtypes=[dtype]), is_subnormal, settings=search))


def test_weights_shrink_to_the_simplest() -> None:
    """A test that always fails is shown one value of the first dtype; one that needs 20 values is shown 20."""
    simplest = find(weights(), anything, settings=shrink)
    assert simplest.shape == (1, 1)
    assert simplest.dtype == PACKABLE_DTYPES[0]
    assert find(weights(), lambda weight: weight.numel() >= 20, settings=shrink).numel() == 20


def test_bad_limits_are_refused() -> None:
    """A limit that leaves nothing to draw is an error, not an endless search."""
    for empty in (weights(max_rows=0), weights(max_columns=0), weights(dtypes=[])):
        with pytest.raises(Exception, match=r"max_value|Cannot sample|empty|Unsatisfiable"):
            find(empty, anything, settings=search)


def test_schemes_shrink_to_the_default() -> None:
    """The simplest scheme is the one that people have who chose nothing."""
    assert find(schemes(), anything, settings=shrink) == Scheme()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES, ids=str)
@pytest.mark.parametrize("bits", CODE_BITS)
def test_schemes_cover_all_options(bits: int, scale_dtype: torch.dtype, symmetric: bool) -> None:
    """Every width and scale dtype comes with both symmetries, with usual, odd and whole-row groups."""
    wanted = (bits, scale_dtype, symmetric)
    for odd in (True, False, None):
        find(
            schemes(),
            lambda scheme, odd=odd: (
                (scheme.bits, scheme.scale_dtype, scheme.symmetric) == wanted
                and (None if scheme.group_size is None else scheme.group_size % 16 != 0) == odd
            ),
            settings=search,
        )


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_schemes_have_integer_inputs(activations: str) -> None:
    """Both ways to quantize inputs come up, and only where 8 bits may."""
    find(schemes(), lambda scheme: scheme.activations == activations, settings=search)
    with pytest.raises(NoSuchExample):
        find(schemes(bits=[4]), lambda scheme: scheme.bits != 4 or scheme.activations is not None, settings=search)


def test_half_schemes_are_both() -> None:
    """float16 first, bfloat16 as well."""
    assert find(half_schemes(), anything, settings=shrink) == HalfScheme(torch.float16)
    find(half_schemes(), lambda scheme: scheme.dtype == torch.bfloat16, settings=search)


@normal
@given(layer=layers())
def test_layers_are_consistent(layer: Layer) -> None:
    """A layer's parameters cover its weight, and its ancestors are exactly the prefixes of its names, root first."""
    assert math.prod(layer.shape) <= layer.parameters <= math.prod(layer.shape) + layer.shape[0]
    assert issubclass(layer.type, nn.Module)
    prefixes = {
        ".".join(name.split(".")[:depth]) for name in layer.names if name for depth in range(len(name.split(".")))
    }
    assert {ancestor.name for ancestor in layer.ancestors} == prefixes
    assert len(layer.ancestors) == len(prefixes)
    if layer.ancestors:
        assert layer.ancestors[0].name == ""
    assert layer.name not in layer.ties
    if issubclass(layer.type, nn.Linear):
        assert len(layer.shape) == 2


@pytest.mark.parametrize(
    "wanted",
    [
        lambda layer: layer.name == "",
        lambda layer: layer.name == "lm_head",
        lambda layer: layer.name.startswith("model.layers.") and layer.name.endswith("q_proj"),
        lambda layer: ".experts." in layer.name,
        lambda layer: layer.type is nn.Embedding,
        lambda layer: len(layer.shape) == 4,
        lambda layer: bool(layer.aliases and layer.ties),
        lambda layer: layer.parameters < 512,
        lambda layer: layer.dtype == torch.bfloat16,
        lambda layer: any(ancestor.type is nn.MultiheadAttention for ancestor in layer.ancestors),
    ],
)
def test_layers_have_every_trait(wanted: Callable[[Layer], bool]) -> None:
    """Roots, heads, experts, embeddings, kernels, ties and small layers all come up."""
    assert wanted(find(layers(), wanted, settings=search))


def test_layers_shrink_to_a_head() -> None:
    """The simplest layer is a named one: the root is a special case, to be shown where it matters only."""
    assert find(layers(), anything, settings=shrink) == Layer(
        "lm_head", nn.Linear, (1, 1), ancestors=(Ancestor("", nn.Module),)
    )
    assert find(layers(), lambda layer: not layer.name, settings=shrink) == Layer("", nn.Linear, (1, 1))


@normal
@given(rule=skip_rules(), layer=layers())
def test_rules_answer_about_every_layer(rule: SkipRule, layer: Layer) -> None:
    """Rules and layers fit together: each question is answered by a reason or None, and rules print their parts."""
    answer = rule.reason(layer)
    assert answer is None or (isinstance(answer, str) and answer)
    assert "Rule(" in repr(rule)


@pytest.mark.parametrize("kind", [NameRule, TypeRule, ThresholdRule, AnyRule, AllRule, NotRule])
@pytest.mark.parametrize("hit", [True, False])
def test_rules_of_every_kind_hit_and_miss(kind: type[SkipRule], hit: bool) -> None:
    """Every kind of rule comes up with a layer it skips and with one it leaves alone."""
    rule, layer = find(
        st.tuples(skip_rules(), layers()),
        lambda pair: isinstance(pair[0], kind) and (pair[0].reason(pair[1]) is not None) == hit,
        settings=search,
    )
    assert (rule.reason(layer) is not None) == hit


@pytest.mark.parametrize("target", [None, *TARGETS])
def test_rules_reduce_layers_less(target: str | None) -> None:
    """Each target comes up with a layer that a rule has a reason for."""
    find(
        st.tuples(skip_rules(), layers()),
        lambda pair: pair[0].reason(pair[1]) is not None and pair[0].target(pair[1]) == target,
        settings=search,
    )


def test_rules_nest() -> None:
    """Combinations of combinations come up."""
    find(
        skip_rules(),
        lambda rule: isinstance(rule, AnyRule) and any(isinstance(part, (AllRule, NotRule)) for part in rule.rules),
        settings=search,
    )
