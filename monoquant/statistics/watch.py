"""See every product that watched weights take part in while a model runs, whatever code multiplies them.

Hooks see the inputs of modules; the weights of attention, recurrent layers and stacked experts are multiplied inside
their modules, with inputs that no hook sees. So the operations themselves are watched (torch's dispatch modes), and a
weight is known by its memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol

import attrs
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from monoquant.numerics.matrix_form import MatrixForm
from monoquant.statistics.products import Convolved, Product, aten, is_product, products, products_within

_COPIES = (aten._to_copy.default, aten.clone.default)
MOST_CHANNEL_GROUPS = 32
"""Convolutions with more groups of channels have too many Hessians, and too few weights in each, to be worth it."""
_VECTORS = (aten.mv.default, aten.addmv.default)


@attrs.frozen
class Block:
    """Consecutive rows of a weight that meet the same inputs.

    Args:
        layer: Name of the layer.
        weight: Name of its weight.
        start: First row of the weight as a matrix.
        stop: One past the last row.
    """

    layer: str
    weight: str
    start: int
    stop: int


@attrs.frozen
class RowOrder:
    """Which vectors the rows of a product are.

    Args:
        shape: Leading shape of the argument that holds the vectors, its last axis left out.
        swapped: Whether its second axis comes before its first in the product.
    """

    shape: tuple[int, ...]
    swapped: bool = False

    def arrange(self, values: Tensor) -> Tensor:
        """Put one value per vector into the order of the rows.

        Args:
            values: Of :attr:`shape`.

        Returns:
            ``[rows]``.
        """
        return (values.transpose(0, 1) if self.swapped else values).flatten()


@attrs.frozen(eq=False)
class WatchedWeight:
    """A weight to look for.

    Args:
        layer: Name of the layer.
        name: Name of its weight.
        tensor: The weight as its module reads it.
        form: Its matrix.
        computed_by: The module that computes the weight anew for each call; None where it is a parameter.
        caller: The module whose calls multiply the weight; None if it is not known how.
        order: In which order that does it, as an adapter's ``row_order`` says.
        heard_at: Name of the module whose output's vectors are the product's rows; None if there is none.
    """

    layer: str
    name: str
    tensor: Tensor
    form: MatrixForm
    computed_by: nn.Module | None = None
    caller: nn.Module | None = None
    order: Literal["kept", "swapped"] | None = None
    heard_at: str | None = None


class Receiver(Protocol):
    """Who is told of products."""

    def receive(self, block: Block, inputs: Tensor, shared: bool, order: RowOrder | None = None) -> None:
        """A product is about to be computed.

        Args:
            block: Which rows of which weight take part.
            inputs: ``[n, columns]``.
            shared: Whether other weights may be given the very same tensor; False for one made for this block alone.
            order: Which vectors they are; None if that is not known.
        """

    def about_to_change(self, tensor: Tensor) -> None:
        """A tensor is about to be written to.

        Args:
            tensor: Which may share memory with inputs that were received.
        """


@attrs.frozen(eq=False)
class _Region:
    """Where a weight lies in a storage."""

    watched: WatchedWeight
    offset: int
    stride: tuple[int, ...]
    alive: StorageWeakRef | None = None  # kept, so that the storage's address means nothing else meanwhile


@attrs.frozen(eq=False)
class _Running:
    """A call that is under way: the weight that its module computes, and which vectors it was given."""

    computed: WatchedWeight | None = None
    order: RowOrder | None = None


class ProductWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class hook has no annotations
    """While active, tells of each product of a watched weight.

    Args:
        weights: What to look for.
        receiver: Told before each product.
    """

    def __init__(self, weights: Sequence[WatchedWeight], receiver: Receiver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self._receiver = receiver
        self._computed = {id(one.computed_by): one for one in weights if one.computed_by is not None}
        self._callers = {id(one.caller): one.order for one in weights if one.caller is not None}
        self._regions: dict[int, list[_Region]] = {}
        self._blocks: dict[tuple[Any, ...], Block | None] = {}
        self._running: list[_Running] = []
        for one in weights:
            if one.computed_by is None:
                region = _Region(one, int(one.tensor.storage_offset()), one.tensor.stride())
                self._regions.setdefault(storage_of(one.tensor), []).append(region)

    @contextmanager
    def watching(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Watch what the modules compute in this thread.

        Args:
            modules: All modules of the model.
        """
        with ExitStack() as stack:
            for module in modules:
                for handle in self._follow_calls(module):
                    stack.callback(handle.remove)
            # Under a function mode torch's attention keeps off its fused kernel, in which no product can be seen.
            stack.enter_context(_PassingThrough())
            stack.enter_context(self)
            yield

    def _follow_calls(self, module: nn.Module) -> list[Any]:
        """Know when a module that multiplies a weight runs, with which vectors, and when a weight is being computed."""
        computed, order = self._computed.get(id(module)), self._callers.get(id(module))
        if computed is None and order is None and not isinstance(module, ParametrizationList):
            return []

        def enter(_module: nn.Module, args: Any, kwargs: Any) -> None:
            self._running.append(_Running(computed, _order_of(order, args, kwargs)))

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            self._running.pop()

        entering = module.register_forward_pre_hook(enter, with_kwargs=True)
        return [entering, module.register_forward_hook(leave, always_call=True)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_product(func) and (self._touches(args) or self._expects(func)):
            for product in products(func, args):
                self._see(product)
        if func._schema.is_mutable:
            for value in (*args, *(kwargs or {}).values()):
                for tensor in value if isinstance(value, (tuple, list)) else (value,):
                    if isinstance(tensor, Tensor):
                        self._receiver.about_to_change(tensor)
        result = func(*args, **(kwargs or {}))
        for product in products_within(func, args, result):
            self._see(product)
        if func in _COPIES and storage_of(args[0]) in self._regions:
            self._see_copy(args[0], result)
        return result

    def _touches(self, args: Sequence[Any]) -> bool:
        return any(storage_of(value) in self._regions for value in args if isinstance(value, Tensor))

    def _expects(self, func: Any) -> bool:
        return bool(self._running) and self._running[-1].computed is not None and func not in _VECTORS

    def _see(self, product: Product | Convolved) -> None:
        running = self._running[-1] if self._running else _Running()
        watched = running.computed
        if isinstance(product, Convolved):
            self._see_convolution(product, watched)
            return
        block = self._block(product.weight)
        if block is None and watched is not None and product.weight.shape == (watched.form.columns, watched.form.rows):
            block = _whole(watched)
        if block is not None and len(product.inputs):
            inputs, order = product.inputs.detach(), running.order
            known = order is not None and math.prod(order.shape) == len(inputs)
            self._receiver.receive(block, inputs, True, order if known else None)

    def _see_convolution(self, seen: Convolved, running: WatchedWeight | None) -> None:
        if seen.geometry.groups > MOST_CHANNEL_GROUPS:
            return
        held = [region.watched for region in self._regions.get(storage_of(seen.weight), [])]
        expected = [] if running is None else [running]
        for watched in (*held, *expected):
            if watched.form == seen.form and tuple(seen.weight.shape) == watched.form.shape:
                rows = watched.form.rows // seen.geometry.groups
                for group, patches in seen.geometry.patches(seen.inputs.detach()):
                    block = Block(watched.layer, watched.name, group * rows, (group + 1) * rows)
                    self._receiver.receive(block, patches, False)
                return

    def _see_copy(self, source: Tensor, result: Tensor) -> None:
        """Follow a weight into another dtype, as autocast and mixed-precision code do."""
        for region in list(self._regions[storage_of(source)]):
            same = (region.offset, region.stride) == (source.storage_offset(), source.stride())
            if same and tuple(source.shape) == region.watched.form.shape:
                storage = result.untyped_storage()
                alive = StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # of torch
                copied = _Region(region.watched, int(result.storage_offset()), result.stride(), alive)
                self._regions.setdefault(storage._cdata, []).append(copied)

    def _block(self, weight: Tensor) -> Block | None:
        regions = self._regions.get(storage_of(weight))
        if regions is None:
            return None
        view = (storage_of(weight), weight.storage_offset(), weight.stride(), weight.shape)
        if view not in self._blocks:
            found = (_block_of(weight, region) for region in regions)
            self._blocks[view] = next((block for block in found if block is not None), None)
        return self._blocks[view]


def _order_of(order: str | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> RowOrder | None:
    given = args[0] if args else next(iter(kwargs.values()), None)
    if order is None or not isinstance(given, Tensor) or given.is_nested or given.dim() < 2:
        return None
    shape = tuple(given.shape[:-1])
    return RowOrder(shape, swapped=order == "swapped" and len(shape) > 1)


class _PassingThrough(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def storage_of(tensor: Any) -> int:
    """What tells a tensor's memory from any other that is alive.

    Args:
        tensor: Anything.

    Returns:
        A number; 0 for what has no memory of its own.
    """
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_nested:
        return 0
    address: int = tensor.untyped_storage()._cdata
    return address


def _whole(watched: WatchedWeight) -> Block:
    return Block(watched.layer, watched.name, 0, watched.form.rows)


def _block_of(view: Tensor, region: _Region) -> Block | None:
    """The rows of a weight that a ``[columns, rows]`` view of its memory shows; None if it shows something else."""
    watched, form = region.watched, region.watched.form
    columns, rows = view.shape
    start = int(view.storage_offset()) - region.offset
    if columns != form.columns or start < 0:
        return None
    down = _flat_index(_counted(columns) * view.stride(0) + start, form.shape, region.stride)
    across = _flat_index(_counted(rows) * view.stride(1) + start, form.shape, region.stride)
    if down is None or across is None:
        return None
    (row_of_column, column), (row, column_of_row) = form.position(down), form.position(across)
    first = int(row[0])
    in_order = torch.equal(column, _counted(columns)) and torch.equal(row, first + _counted(rows))
    if not in_order or bool((row_of_column != first).any()) or bool(column_of_row.any()):
        return None
    return Block(watched.layer, watched.name, first, first + rows)


def _counted(count: int) -> Tensor:
    return torch.arange(count, device="cpu", dtype=torch.int64)


def _flat_index(offset: Tensor, shape: Sequence[int], stride: Sequence[int]) -> Tensor | None:
    """Indices into the contiguous tensor, of elements at offsets in the memory of a strided one."""
    flat = torch.zeros_like(offset)
    places = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        places[axis] = places[axis + 1] * shape[axis + 1]
    for axis in sorted(range(len(shape)), key=lambda one: (-stride[one], shape[one] == 1)):
        if shape[axis] == 1:
            continue
        if not stride[axis]:
            return None
        index = offset // stride[axis]
        if bool((index >= shape[axis]).any()):
            return None
        offset = offset - index * stride[axis]
        flat = flat + index * places[axis]
    return None if bool(offset.any()) else flat
