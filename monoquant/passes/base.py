"""The base of all passes."""

from __future__ import annotations

from typing import ClassVar

import attrs

from monoquant.context import QuantContext
from monoquant.registry import Registry


@attrs.frozen
class Pass:
    """One step of the pipeline: settings as fields, work in methods. Reusable: a run leaves nothing in it.

    A Quantizer calls ``bound`` when it is built. For each model it calls, in this order: ``plan`` of every pass; then,
    unless it is a dry run, ``prepare`` of every pass; then ``requires``, ``run`` and ``ensures`` pass by pass. Override
    what you need; most passes override ``run`` only. The docstring of QuantContext says which of its fields who may
    write, and when; the Quantizer holds passes to that.
    ``monoquant.testing`` has ``assert_pass`` and ``PassConformance`` to test one.

    Attributes:
        follows: Passes of which one instance each must stand earlier in the pipeline.
        after: Passes that must stand earlier if they are there at all.
        before: Passes that must stand later.
        single: Whether a pipeline may hold only one of its kind.
    """

    follows: ClassVar[tuple[type[Pass], ...]] = ()
    after: ClassVar[tuple[type[Pass], ...]] = ()
    before: ClassVar[tuple[type[Pass], ...]] = ()
    single: ClassVar[bool] = False

    def bound(self, registry: Registry) -> Pass:
        """Look up what settings mean by name; called when a Quantizer is built, before any model is seen.

        Args:
            registry: What there is, with what plugins bring.

        Returns:
            The pass that will run: itself (default), or one with values in place of names.

        Raises:
            ConfigError: For a name that nothing is registered under, as ``registry.algorithm(name)`` raises it.
        """
        return self

    def plan(self, context: QuantContext) -> None:
        """Decide about layers with ``context.decide``, from names, types and shapes (weights may be meta).

        Args:
            context: Shared state; the plan is open.
        """

    def prepare(self, context: QuantContext) -> None:
        """Refuse bad input before any work is done, and ask for statistics with ``context.want``.

        Args:
            context: Shared state; the plan is final.
        """

    def requires(self, context: QuantContext) -> None:
        """Check what must be true right before ``run``; raise if it is not.

        Args:
            context: Shared state.
        """

    def run(self, context: QuantContext) -> None:
        """Do the work: read what earlier passes added, add to the context, leave the model alone.

        Args:
            context: Shared state.
        """

    def ensures(self, context: QuantContext) -> None:
        """Check what ``run`` must have achieved; raise if it has not.

        Args:
            context: Shared state.
        """
