"""The contract of weight algorithms."""

from __future__ import annotations

import copy
from typing import ClassVar

import attrs
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Generator, Tensor

from monoquant.algorithms.base import Needs, Solution, WeightAlgorithm, WeightProblem
from monoquant.algorithms.clean import InputStatistics, clean_problem, flaw
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.numerics.affine import GroupCodes, dequantize
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.int4_pack import Int4PackPass
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.passes.validation import ValidationPass
from monoquant.quantizer import Quantizer
from monoquant.testing import zoo
from monoquant.testing.conformance.base import Conformance, check_is_frozen, check_repr, require
from monoquant.testing.strategies.inputs import input_statistics, statistics_of
from monoquant.testing.strategies.schemes import schemes
from monoquant.testing.strategies.weights import weights
from monoquant.testing.unchanged import torch_settings, untouched
from monoquant.values import Scheme

_FELL_BACK = "algorithm-fell-back"
_PURE = "let solve() depend on the problem alone: seed a generator of its own, and keep nothing between calls"


class AlgorithmConformance(Conformance):
    """Tests every weight algorithm must pass.

    Example::

        class TestMine(AlgorithmConformance):
            algorithm = Mine()

    Attributes:
        algorithm: The algorithm to test.
        schemes: Strategy of the representations that it is asked for; default: 4 and 8 bits, all of them.
        worst_factor: On Gaussian matrices of 4 bits in groups of 32 to 128, with inputs that were seen often enough,
            its objective may be so many times that of round-to-nearest; default 1.05.
    """

    algorithm: WeightAlgorithm
    schemes: ClassVar[SearchStrategy[Scheme]] = schemes()
    worst_factor: ClassVar[float] = 1.05

    def objective(self, problem: WeightProblem, error: Tensor) -> float:
        """What the algorithm makes small; override it where it is something else.

        Args:
            problem: The matrix.
            error: float64 ``[rows, columns]``, the matrix minus what its codes stand for.

        Returns:
            The squared error of the product, as far as ``needs`` tells the algorithm of it: ``sum(e H e^T)``, or
            ``sum(e_j^2 * importance_j)``, or ``sum(e^2)``.
        """
        if problem.hessian is not None:
            return float(((error @ problem.hessian.double()) * error).sum())
        importance = 1.0 if problem.importance is None else problem.importance.double()
        return float((error.square() * importance).sum())

    def test_it_is_a_frozen_value(self) -> None:
        """Its settings cannot be exchanged, it can be hashed and copied, and prints in one line."""
        check_is_frozen(self._algorithm, "the algorithm")
        check_repr(self._algorithm, "the algorithm")
        equal = copy.deepcopy(self._algorithm) == self._algorithm
        broken = f"a copy of the algorithm {self._algorithm!r} does not equal it."
        require(equal, broken, "decorate its class with @attrs.frozen: equal settings are equal algorithms")

    def test_it_says_what_it_is_and_needs(self) -> None:
        """Reports show its name; calibration collects what it needs."""
        name, needs, weighs = (getattr(self._algorithm, key, None) for key in ("name", "needs", "weighs_rows"))
        broken = f"the algorithm {self._algorithm!r} has the name {name!r}."
        require(isinstance(name, str) and bool(name.strip()), broken, "write 'name: ClassVar[str] = \"mine\"'")
        broken = f"the algorithm {self._algorithm!r} needs {needs!r}."
        require(isinstance(needs, Needs), broken, "give Needs.NOTHING, Needs.SQUARES or Needs.HESSIAN")
        broken = f"weighs_rows of the algorithm {self._algorithm!r} is {weighs!r}."
        require(isinstance(weighs, bool), broken, "return True or False")

    def test_codes_can_be_stored(self) -> None:
        """Whatever matrix and inputs are: right shapes and dtypes, codes of the scheme, finite scales other than 0."""

        @self.for_all(self._problems())
        def solves(problem: WeightProblem) -> None:
            codes = self._solved(problem).codes
            wrong = flaw(codes, problem)
            broken = f"the algorithm {self._algorithm!r} returned {wrong}."
            require(not wrong, broken, "return codes as GroupCodes and Solution describe them")
            finite = bool(torch.isfinite(_values(codes, problem)).all())
            require(finite, f"codes of {self._algorithm!r} stand for NaN or Inf.", "choose smaller scales")

    def test_equal_problems_have_equal_solutions(self) -> None:
        """Nothing is random, nothing is remembered."""

        @self.for_all(self._problems())
        def solves(problem: WeightProblem) -> None:
            one, other = self._solved(problem), self._solved(problem)
            pairs = zip(attrs.astuple(one.codes), attrs.astuple(other.codes), strict=True)
            equal = one.fallback == other.fallback and all(torch.equal(*pair) for pair in pairs)
            require(equal, f"the algorithm {self._algorithm!r} solves one problem in two ways.", _PURE)

    def test_it_writes_to_nothing(self) -> None:
        """The problem's tensors, which the model owns, and torch's settings are left alone."""

        @self.for_all(self._problems())
        def solves(problem: WeightProblem) -> None:
            held = {name: getattr(problem, name) for name in ("weight", "importance", "hessian")}
            before = {name: tensor.clone() for name, tensor in held.items() if tensor is not None}
            settings = torch_settings()
            self._solved(problem)
            self._algorithm.input_scale(problem)
            for name, tensor in before.items():
                broken = f"the algorithm {self._algorithm!r} wrote to problem.{name}."
                require(torch.equal(held[name], tensor), broken, f"work on problem.{name}.clone()")
            for name, value in torch_settings().items():
                broken = f"the algorithm {self._algorithm!r} changed torch's {name}."
                require(value == settings[name], broken, "leave global settings and the random state alone")

    def test_factors_can_be_moved(self) -> None:
        """What it multiplies columns by is None, or finite and positive; None unless ``scales_inputs`` says more."""

        @self.for_all(self._problems())
        def scales(problem: WeightProblem) -> None:
            columns = (problem.weight.shape[1],)
            found, again = (self._algorithm.input_scale(problem) for _ in range(2))
            if found is None or again is None:
                require(found is again, f"the algorithm {self._algorithm!r} scales one problem in two ways.", _PURE)
                return
            broken = f"the algorithm {self._algorithm!r} has factors, and scales_inputs is not True."
            require(self._algorithm.scales_inputs is True, broken, "write 'scales_inputs: ClassVar[bool] = True'")
            broken = f"input_scale() of the algorithm {self._algorithm!r} returned {found!r}."
            fits = tuple(found.shape) == columns and found.dtype == torch.float32
            positive = fits and bool((torch.isfinite(found) & (found > 0)).all())
            require(positive, broken, "return positive, finite float32 factors, one per column, or None")
            require(torch.equal(found, again), f"{self._algorithm!r} scales one problem in two ways.", _PURE)

    def test_zeros_stay_zero(self) -> None:
        """A dead matrix is exact, whatever its inputs are: zero is always among the values that codes stand for."""

        @self.for_all(self._problems(st.builds(torch.zeros, st.integers(1, 3), st.integers(1, 140))))
        def solves(problem: WeightProblem) -> None:
            exact = not bool(_values(self._solved(problem).codes, problem).any())
            broken = f"the algorithm {self._algorithm!r} makes something of a matrix of zeros."
            require(exact, broken, "give zeros the code zero_point")

    def test_it_is_no_worse_than_rounding(self) -> None:
        """On usual matrices its objective is at most ``worst_factor`` times that of round-to-nearest."""
        sizes = st.sampled_from((32, 64, 128))

        @self.for_all(self.schemes, sizes, st.sampled_from((64, 96, 130)), st.integers(0, 2**16 - 1))
        def solves(drawn: Scheme, group_size: int, columns: int, seed: int) -> None:
            scheme = attrs.evolve(drawn.storage, bits=4, group_size=group_size)
            generator = Generator("cpu").manual_seed(seed)
            mixed = torch.randn(columns, columns, generator=generator) * 0.1 + torch.eye(columns)
            inputs = torch.randn(8 * columns, columns, generator=generator) @ mixed
            matrix = 0.02 * torch.randn(16, columns, generator=generator)
            problem = clean_problem(matrix, scheme, self._algorithm.needs, statistics_of(inputs))
            found, rounded = (
                self.objective(problem, problem.weight.double() - _values(solution.codes, problem))
                for solution in (self._solved(problem), RoundToNearest().solve(problem))
            )
            broken = (
                f"the algorithm {self._algorithm!r} leaves {found:.4g} of its objective with {scheme}, "
                f"round-to-nearest {rounded:.4g}: {found / rounded:.3f} times as much, and {self.worst_factor} may be."
            )
            remedy = "keep round-to-nearest's codes where yours are no better; or say so with worst_factor"
            require(found <= self.worst_factor * rounded, broken, remedy)

    def test_the_pipeline_uses_it(self) -> None:
        """In a run the report says that it chose codes, every layer is packed, and the model is left alone."""
        for name in ("Linear", "Linear of ragged groups", "experts"):
            specimen = zoo.specimen(name)
            model, batches = specimen.build(), [specimen.inputs(seed) for seed in range(8)]
            packing = Int4PackPass(group_size=32, algorithm=self._algorithm)
            passes = [CalibrationPass(batches), SkipSelectionPass(), packing, ValidationPass()]
            with untouched(model):
                report = Quantizer(passes).run(model).report
            used = " and ".join(sorted({record.algorithm for record in report.layers}))
            told = [finding.code for finding in report.findings]
            broken = (
                f"codes of {name} were chosen by {used!r}, not by {self._algorithm.name!r}, and no finding says why."
            )
            noted = self._algorithm.name in used or _FELL_BACK in told
            require(noted, broken, "return the algorithm's own codes, or say why not in Solution.fallback")

    @property
    def _algorithm(self) -> WeightAlgorithm:
        algorithm: WeightAlgorithm = self.subject("algorithm", WeightAlgorithm)
        return algorithm

    def _problems(self, matrices: SearchStrategy[Tensor] | None = None) -> SearchStrategy[WeightProblem]:
        needs = self._algorithm.needs

        def with_inputs(matrix: Tensor) -> SearchStrategy[WeightProblem]:
            known: SearchStrategy[InputStatistics | None] = st.none() | input_statistics(matrix.shape[1])
            schemes = st.builds(_narrowed, self.schemes, st.sampled_from((16, 300, 5, 32)))
            return st.builds(clean_problem, st.just(matrix), schemes, st.just(needs), known)

        return (weights(max_rows=5, max_columns=140) if matrices is None else matrices).flatmap(with_inputs)

    def _solved(self, problem: WeightProblem) -> Solution:
        try:
            solution = self._algorithm.solve(problem)
        except Exception as error:
            raise AssertionError(
                f"the algorithm {self._algorithm!r} raised {error!r}.\nTo repair it: return Solution("
                "RoundToNearest().solve(problem).codes, fallback='why') for matrices and inputs that it cannot solve"
            ) from error
        broken = f"solve() of the algorithm {self._algorithm!r} returned {type(solution).__name__}."
        require(isinstance(solution, Solution), broken, "return Solution(GroupCodes(codes, scale, zero_point))")
        broken = f"the fallback of a solution of {self._algorithm!r} is {solution.fallback!r}."
        require(isinstance(solution.fallback, str), broken, "give the reason as text, empty where there is none")
        return solution


def _narrowed(scheme: Scheme, most: int) -> Scheme:
    """The scheme with smaller groups: matrices of tests are small, and should have several groups, ragged ones too."""
    return scheme if scheme.group_size is None else attrs.evolve(scheme, group_size=min(scheme.group_size, most))


def _values(codes: GroupCodes, problem: WeightProblem) -> Tensor:
    """float64 ``[rows, columns]``."""
    return dequantize(codes.codes, codes.scale, codes.zero_point, problem.width).double()
