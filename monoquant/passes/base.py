"""The base of all passes."""

from __future__ import annotations

from typing import ClassVar

import attrs

from monoquant.context import QuantContext


@attrs.frozen
class Pass:
    """One step of the pipeline: settings as fields, work in methods. Reusable: a run leaves nothing in it.

    A Quantizer calls, in this order: ``plan`` of every pass; then, unless it is a dry run, ``prepare`` of every pass;
    then ``requires``, ``run`` and ``ensures`` pass by pass. Override what you need; most passes override ``run`` only.
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
