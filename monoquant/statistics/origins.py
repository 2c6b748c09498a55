"""Find out what computes the inputs of products, and who else reads them: whether a factor can be moved there exactly.

With ``s_j > 0`` on column j of the weights, and ``1 / s_j`` in the parameters that their inputs are linear in, a model
computes what it did before, if those parameters compute nothing else, and nothing else reads those inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from monoquant.errors import quoted
from monoquant.statistics.held import held_by
from monoquant.statistics.products import aten, factors_of, is_product
from monoquant.statistics.steps import Step, channel_axis, step_of, tensors_in
from monoquant.statistics.store import Key
from monoquant.statistics.watch import Block, WatchedWeight, storage_of

NOTHING_LINEAR = "no norm and no Linear with parameters of its own computes their inputs"
_Parameters = tuple[Key, ...]
_CHANGING = "what reads their inputs changes from call to call"


@attrs.frozen
class FoldSite:
    """Where a factor of inputs can be moved to.

    Args:
        parameters: What the inputs are linear in, by layer and name: weight and bias of a norm, one number per column,
            or those of a Linear, one row per column.
        weights: All that is multiplied with the inputs, by layer and name, in model order.
    """

    parameters: tuple[Key, ...]
    weights: tuple[Key, ...]


@attrs.frozen
class FoldSites:
    """What was found of all watched weights.

    Args:
        sites: Each weight is in one at most.
        obstacles: Why a weight is in none.
    """

    sites: tuple[FoldSite, ...] = ()
    obstacles: Mapping[Key, str] = attrs.field(factory=dict)


@attrs.define(eq=False)
class _Computed:
    """Something that was computed in one call, linear in parameters."""

    parameters: list[Key]
    size: int
    readers: set[Key] = attrs.field(factory=set)
    flaw: str = ""
    given_out: str = ""

    @property
    def key(self) -> _Parameters:
        """Each parameter once."""
        return tuple(dict.fromkeys(self.parameters))

    def obstacle(self) -> str:
        who = self.flaw or self.given_out
        return f"{who} their inputs as well" if who else ""


@attrs.define(eq=False)
class _Site:
    """The same over all calls."""

    parameters: tuple[Key, ...]
    readers: frozenset[Key]
    size: int
    flaw: str = ""


@attrs.frozen(eq=False)
class _Tracked:
    """Memory that holds something computed; channel c of it is where the offset is c modulo its size."""

    computed: tuple[_Computed, ...]
    alive: StorageWeakRef  # kept, so that the storage's address means nothing else meanwhile


class Origins:
    """Is told of every operation of a model.

    Args:
        model: The model.
        weights: Those that could take factors.
    """

    def __init__(self, model: nn.Module, weights: Sequence[WatchedWeight]) -> None:
        self._watched = {(one.layer, one.name): one for one in weights}
        self._held = held_by(model)
        self._read: dict[Key, str] = {}
        self._fed_otherwise: set[Key] = set()
        self._computed: dict[_Computed, None] = {}
        self._tracked: dict[int, _Tracked] = {}
        self._kept: dict[int, _Tracked] = {}
        self._met: set[int] = set()
        self._called = {""}
        self._feeds: list[tuple[Key, tuple[_Computed, ...]]] = []
        self._fed_by: dict[Key, set[_Parameters]] = {}
        self._sites: dict[_Parameters, _Site] = {}

    def saw(
        self,
        operation: Any,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
        result: Any,
        products: Sequence[tuple[Block, Tensor]],
    ) -> None:
        """Follow what an operation did.

        Args:
            operation: An overload.
            arguments: Its positional arguments.
            options: Its named arguments.
            result: What it returned.
            products: Rows of watched weights that took part, each with its inputs.
        """
        operands = [*tensors_in(arguments), *tensors_in(options)]
        self._meet(operands)
        held = [one for one in operands if storage_of(one) in self._tracked or storage_of(one) in self._held]
        results = list(tensors_in(result))
        if (not held and not products) or _is_view(operation, operands, results):
            return
        used: list[Tensor] = []
        step = step_of(operation, arguments, options)
        if is_product(operation):
            used = self._multiply(operation, arguments, options, results[0], products)
        elif step is not None and results[0].is_floating_point():
            used = self._carry(step, results[0])
        for one in held:
            position = next((index for index, other in enumerate(used) if one is other), None)
            if position is None:
                self._disturb(one, f"{operation.overloadpacket} reads")
            else:
                del used[position]  # an operand that is there twice is accounted for once

    def _meet(self, operands: Sequence[Tensor]) -> None:
        """Note whose memory is used, and whether it was computed in an earlier call."""
        for storage in map(storage_of, operands):
            self._met.add(storage)
            kept = self._kept.get(storage)
            for computed in () if kept is None else kept.computed:
                site = self._sites[computed.key]
                site.flaw = site.flaw or "a later call reads their inputs as well"

    def gave_out(self, module: str, output: Any, *, root: bool) -> None:
        """Take note of what leaves a module.

        Args:
            module: Its name.
            output: What it returned.
            root: Whether it is the whole model.
        """
        self._called.add(module)
        for one in tensors_in(output):
            tracked = self._tracked.get(storage_of(one))
            for computed in () if tracked is None else tracked.computed:
                if root or any(layer != module for layer, _ in computed.parameters):
                    computed.given_out = "the model gives out" if root else "a module that contains them gives out"

    def end_call(self) -> None:
        """Judge what was computed in one call of the model, and forget it."""
        for computed in self._computed:
            readers = frozenset(computed.readers)
            site = self._sites.setdefault(computed.key, _Site(computed.key, readers, computed.size))
            site.flaw = site.flaw or computed.obstacle() or ("" if site.readers == readers else _CHANGING)
        for weight, sources in self._feeds:
            keys = {computed.key for computed in sources}
            self._fed_by[weight] = self._fed_by.get(weight, keys) & keys
        kept = {**self._kept, **self._tracked}
        self._kept = {storage: one for storage, one in kept.items() if not one.alive.expired()}  # type: ignore[no-untyped-call]  # of torch
        self.forget_call()

    def forget_call(self) -> None:
        """Forget what was computed in a call that was not ended."""
        self._computed, self._tracked, self._feeds = {}, {}, []

    def found(self) -> FoldSites:
        """What can be done, once the data is at its end."""
        obstacles = {key: reason for key in self._watched if (reason := self._obstacle(key))}
        taken: dict[Key, FoldSite] = {}
        reasons: dict[Key, str] = {}
        for site in self._sites.values():
            weights = tuple(key for key in self._watched if key in site.readers)
            flaw = self._flaw(site, obstacles)
            if not flaw and not taken.keys() & set(weights):
                taken.update(dict.fromkeys(weights, FoldSite(site.parameters, weights)))
            reasons.update({key: flaw for key in weights if flaw and key not in reasons})
        found = {key: obstacles.get(key) or reasons.get(key, NOTHING_LINEAR) for key in self._watched}
        return FoldSites(
            tuple(dict.fromkeys(taken.values())), {key: one for key, one in found.items() if key not in taken}
        )

    def _obstacle(self, key: Key) -> str:
        """What keeps a weight from taking factors, whatever computes its inputs."""
        held = self._held.get(storage_of(self._watched[key].tensor))
        if held is None or held.key != key or self._watched[key].computed_by is not None:
            return "something computes their weights, or shares them"
        if held.shared:
            return "their weights are shared"
        if key in self._read:
            return f"{self._read[key]} their weights as well"
        return NOTHING_LINEAR if key in self._fed_otherwise else ""

    def _flaw(self, site: _Site, obstacles: Mapping[Key, str]) -> str:
        names = {key for other in self._sites.values() if other is not site for key in other.parameters}
        if site.flaw or not site.readers:
            return site.flaw
        if not names.isdisjoint(site.parameters) or any(self._is_shared(key) for key in site.parameters):
            return "the parameters that compute their inputs are shared"
        read = next((self._read[key] for key in site.parameters if key in self._read), "")
        if read:
            return f"{read} the parameters that compute their inputs as well"
        if any(site.parameters not in self._fed_by[key] for key in site.readers):
            return "their weights are also given inputs that are computed elsewhere"
        unreached = self._unreached(site)
        if unreached:
            return f"calibration never reached {quoted(unreached)}, which may read their inputs as well"
        return next((obstacles[key] for key in sorted(site.readers) if key in obstacles), "")

    def _unreached(self, site: _Site) -> list[str]:
        """Layers that may read what was computed, as far as anybody knows: their weights fit, and were never used."""
        inside = self._owner(site)
        unused = [held for storage, held in self._held.items() if storage not in self._met]
        fitting = [held.key[0] for held in unused if held.tensor.dim() > 1 and site.size in held.tensor.shape]
        return [layer for layer in dict.fromkeys(fitting) if not inside or f"{layer}.".startswith(f"{inside}.")]

    def _owner(self, site: _Site) -> str:
        """The module that what was computed did not leave: the innermost that was called and holds all concerned."""
        names = [layer.split(".") for layer, _ in (*site.parameters, *site.readers)]
        alike = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
        common = [parts[0] for parts in alike]
        while ".".join(common) not in self._called:
            common.pop()
        return ".".join(common)

    def _is_shared(self, key: Key) -> bool:
        return any(held.key == key and held.shared for held in self._held.values())

    def _multiply(
        self,
        operation: Any,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
        result: Tensor,
        products: Sequence[tuple[Block, Tensor]],
    ) -> list[Tensor]:
        """Note which weights met what; returns the operands that are accounted for."""
        factors = [one for one in factors_of(operation, arguments) if isinstance(one, Tensor)]
        known: set[int] = set()
        unknown: set[int] = set()
        used: list[Tensor] = []
        for block, inputs in products:
            key = (block.layer, block.weight)
            weights = [one for one in factors if self._key_of(one) == key]
            if len(weights) != 1 or not self._is_whole(block):
                self._fed_otherwise.add(key)
                unknown.add(storage_of(inputs))
                continue
            known.add(storage_of(weights[0]))
            tracked = self._tracked.get(storage_of(inputs))
            if tracked is None or any(channel_axis(inputs, one.size) != -1 for one in tracked.computed):
                self._fed_otherwise.add(key)
                unknown.add(storage_of(inputs))
            else:
                known.add(storage_of(inputs))
                self._feed(key, tracked.computed)
            used += self._compute_linear(operation, arguments, options, result, weights[0])
        return [*used, *(one for one in factors if storage_of(one) in known - unknown)]

    def _feed(self, key: Key, sources: tuple[_Computed, ...]) -> None:
        self._feeds.append((key, sources))
        for computed in sources:
            computed.readers.add(key)

    def _is_whole(self, block: Block) -> bool:
        form = self._watched[block.layer, block.weight].form
        return block.start == 0 and block.stop == form.rows

    def _compute_linear(
        self, operation: Any, arguments: Sequence[Any], options: Mapping[str, Any], result: Tensor, weight: Tensor
    ) -> list[Tensor]:
        """Follow the output of a Linear; returns its bias."""
        right = {aten.mm.default: 1, aten.addmm.default: 2}.get(operation)
        key = self._key_of(weight)
        if right is None or key is None or options or arguments[right] is not weight:
            return []
        keys, bias = [key], arguments[0] if right == 2 else None
        if bias is not None:
            added = self._vector(bias, result.shape[-1])
            if added is None:
                return []
            keys.append(added)
        self._track(result, [_Computed(keys, result.shape[-1])])
        return [] if bias is None else [bias]

    def _carry(self, step: Step, result: Tensor) -> list[Tensor]:
        """Follow an elementwise operation; returns the operands that are accounted for."""
        used: list[Tensor] = []
        found: list[_Computed] = []
        for one in (value for value in step.carried if isinstance(value, Tensor)):
            carried = self._carried(one, result)
            if carried:
                used.append(one)
                found += carried
        keys = [self._vector(one, found[0].size) if found else None for one in step.added]
        linear_in = [key for computed in found for key in computed.key]
        if len(set(linear_in)) != len(linear_in) or None in keys:  # a square of something is not linear in it
            return []
        for computed in found:
            computed.parameters += [key for key in keys if key is not None]
        self._track(result, found)
        return [*used, *step.added] if found else []

    def _carried(self, operand: Tensor, result: Tensor) -> list[_Computed]:
        """What of an operand its product is linear in, channel by channel."""
        tracked = self._tracked.get(storage_of(operand))
        if tracked is None:
            key = self._vector(operand, result.shape[-1] if result.dim() else 0)
            return [] if key is None else [_Computed([key], result.shape[-1])]
        for one in tracked.computed:
            axis = channel_axis(operand, one.size)
            if axis is None or axis != channel_axis(result, one.size):
                return []
        return list(tracked.computed)

    def _track(self, result: Tensor, computed: Sequence[_Computed]) -> None:
        if not computed:
            return
        misplaced = any(channel_axis(result, one.size) is None for one in computed)
        for one in computed:
            one.flaw = one.flaw or ("something rearranges" if misplaced else "")
        self._computed.update(dict.fromkeys(computed))
        storage = result.untyped_storage()
        alive = StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # of torch
        self._tracked[storage._cdata] = _Tracked(tuple(computed), alive)

    def _disturb(self, operand: Tensor, how: str) -> None:
        tracked, key = self._tracked.get(storage_of(operand)), self._key_of(operand)
        for computed in () if tracked is None else tracked.computed:
            computed.flaw = computed.flaw or how
        if key is not None:
            self._read.setdefault(key, how)

    def _key_of(self, tensor: Tensor) -> Key | None:
        held = self._held.get(storage_of(tensor))
        return None if held is None else held.key

    def _vector(self, tensor: Any, size: int) -> Key | None:
        """The parameter of so many numbers that a tensor shows along its last axis."""
        held = self._held.get(storage_of(tensor))
        if held is None or held.tensor.dim() != 1 or tensor.numel() != size or channel_axis(tensor, size) != -1:
            return None
        return held.key


def _is_view(operation: Any, operands: Sequence[Tensor], results: Sequence[Tensor]) -> bool:
    """Whether all that an operation returned is memory that it was given, not written to."""
    given = {storage_of(one) for one in operands} - {0}
    return bool(results) and not operation._schema.is_mutable and all(storage_of(one) in given for one in results)
