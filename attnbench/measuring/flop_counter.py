"""The work of one step, as the dispatcher runs it: products, elementwise operations and bytes.

One pass counts all three, in the forward and the backward pass alike, and inside custom autograd functions.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from attnbench.measuring.elementwise import output_elements, rule_of
from attnbench.measuring.handles import is_matmul_class
from operators.checks.products import product_counter


@dataclass(frozen=True)
class Work:
    """What one step does.

    Args:
        macs: products of the forward pass.
        macs_backward: products of the backward pass; nothing where the step has none.
        elementwise: elementwise operations of the forward pass.
        elementwise_backward: elementwise operations of the backward pass.
        bytes_moved: bytes that the operations read and write, one operation after the other.
        bytes_compulsory: bytes of what the step reads from outside and of what it leaves, each once.
        unruled: operations without a rule, taken for one elementwise operation for each element that they return,
            each with its number.
        hidden: those that may hide products, so that the MACs are a lower bound.
    """

    macs: int
    macs_backward: int
    elementwise: int
    elementwise_backward: int
    bytes_moved: int
    bytes_compulsory: int
    unruled: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    def fields(self, mode: str) -> dict[str, Any]:
        """The fields of a record in `mode`: what a backward pass costs is there in training alone."""
        fields: dict[str, Any] = {
            "elementwise": self.elementwise,
            "unruled": list(self.unruled),
            "bytes_moved": self.bytes_moved,
            "bytes_compulsory": self.bytes_compulsory,
        }
        if mode == "training":
            return {**fields, "macs_backward": self.macs_backward, "elementwise_backward": self.elementwise_backward}
        return {**fields, "macs_dispatched": self.macs}


_UNWRITTEN = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize", "set"})
_OVERWRITES = frozenset({"copy", "fill", "zero", "uniform", "normal"})
_MAKES = frozenset({f"{kind}_like" for kind in ("zeros", "ones", "full", "rand", "randn")} | {"new_zeros", "new_ones"})
_PICKS = frozenset({"gather", "_unsafe_index", "index", "index_select", "embedding"})


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor; those of its storage where it repeats them, as an expanded one does."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _view(tensor: Tensor) -> tuple[Any, ...]:
    return (_place(tensor), tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({_view(tensor): tensor for tensor in tensors}.values())


def moved_bytes(name: str, func: Any, operands: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    """Bytes that one operation reads and writes: its operands and results, each once.

    Views move nothing, nor does new memory that is not filled; what is made from nothing is written alone. In-place
    work reads and writes its operand, save where it overwrites it. Picking reads what it returns, and the indices.

    Args:
        name: name of the operation without namespace and trailing underscore.
        func: the dispatched operation.
        operands: its tensors.
        results: the tensors that it returns.
    """
    mutates = func._schema.is_mutable
    owned = {_place(operand) for operand in operands}
    if name in _UNWRITTEN or (not mutates and results and all(_place(result) in owned for result in results)):
        return 0
    written = sum(_size(result) for result in _distinct(results))
    if name in _MAKES:
        return written
    read = _distinct(operands[1:] if name in _OVERWRITES else operands)
    if name in _PICKS:
        return 2 * written + sum(_size(operand) for operand in read[1:])
    return sum(_size(operand) for operand in read) + written


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations and bytes of what is dispatched, and marks what is read from outside."""

    def __init__(self, counter: FlopCounterMode, outside: Mapping[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elementwise = 0
        self.bytes_moved = 0
        self.read: set[int] = set()
        self.unruled: Counter[str] = Counter()
        self.hidden: set[str] = set()
        self._counter = counter
        self._outside = outside

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operands, results = _tensors((args, kwargs)), _tensors(out)
        operation = str(func._schema.name)
        name = operation.partition("::")[2].removesuffix("_")
        moved = moved_bytes(name, func, operands, results)
        self.bytes_moved += moved
        if moved:
            self.read.update(place for place in map(_place, operands) if place in self._outside)
        if moved or not results:
            self._count(operation, func, args, kwargs, out)
        return out

    def _count(self, operation: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        rule = rule_of(operation)
        if rule is not None:
            self.elementwise += rule(args, kwargs, out)
        elif func._overloadpacket not in self._counter.flop_registry:
            self.unruled[operation] += 1
            self.elementwise += output_elements(out)
            if is_matmul_class(operation) or not operation.startswith(("aten::", "prim::")):
                self.hidden.add(operation)


def count_work(step: Callable[[], object], module: nn.Module, inputs: Sequence[Tensor]) -> Work:
    """Products, elementwise operations and bytes of `step`, which calls `module` once and may go backward.

    Args:
        step: a forward pass, or a forward and a backward pass into fresh gradients.
        module: what it calls; the backward pass begins when this returns.
        inputs: the inputs of the module.

    Example:
        >>> module, x = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.ReLU()), torch.zeros(1, 4, 5, 6)
        >>> with torch.no_grad():
        ...     work = count_work(lambda: module(x), module, (x,))
        >>> work.macs, work.elementwise, work.bytes_moved, work.bytes_compulsory
        (960, 240, 3488, 1568)
    """
    leaves = [*inputs, *module.parameters()]
    outside = {_place(tensor): _size(tensor) for tensor in (*leaves, *module.buffers())}
    counter = product_counter()
    ledger = _Ledger(counter, outside)
    halfway = _Halfway(counter, ledger, outside)
    with halfway.watching(module), ledger, counter:
        step()
    gradients = sum(_size(leaf.grad) for leaf in leaves if leaf.grad is not None)
    return Work(
        macs=halfway.macs,
        macs_backward=counter.get_total_flops() // 2 - halfway.macs,
        elementwise=halfway.elementwise,
        elementwise_backward=ledger.elementwise - halfway.elementwise,
        bytes_moved=ledger.bytes_moved,
        bytes_compulsory=sum(outside[place] for place in ledger.read) + halfway.written + gradients,
        unruled=tuple(f"{operation} x{number}" for operation, number in sorted(ledger.unruled.items())),
        hidden=tuple(sorted(ledger.hidden)),
    )


class _Halfway:
    """What had been counted when the module returned, and what it left."""

    def __init__(self, counter: FlopCounterMode, ledger: _Ledger, outside: Mapping[int, int]) -> None:
        self._counter = counter
        self._ledger = ledger
        self._outside = outside
        self.macs = 0
        self.elementwise = 0
        self.written = 0

    @contextlib.contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        handle = module.register_forward_hook(self._note)
        try:
            yield
        finally:
            handle.remove()

    def _note(self, _module: nn.Module, _inputs: Any, out: Any) -> None:
        self.macs = self._counter.get_total_flops() // 2
        self.elementwise = self._ledger.elementwise
        made = {_place(tensor): tensor for tensor in _tensors(out) if _place(tensor) not in self._outside}
        self.written = sum(_size(tensor) for tensor in made.values())
        # A backward pass reads the gradient of each output.
        self.written += sum(_size(tensor) for tensor in made.values() if tensor.requires_grad)
