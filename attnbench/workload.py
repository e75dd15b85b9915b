"""A trial made runnable: the module, its inputs, and the step that is measured."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from attnbench.config import Network
from attnbench.measuring.prediction import materialise, pretending
from attnbench.models.build import build_head, build_operator, build_segmentor
from attnbench.records import Implementation, Trial
from operators.interface import AttentionOperator, has_core

Outputs = Tensor | tuple[Tensor, ...]
"""What a module of a workload returns."""


class Unsupported(Exception):
    """A trial that its operator cannot do by design; the message says why."""


class Calls(nn.Module):
    """One module applied to each of several argument lists, as a block applies its core.

    Args:
        module: what is called.
        calls: number of its calls in one forward pass of the block.
    """

    def __init__(self, module: nn.Module, calls: int) -> None:
        super().__init__()
        self.module = module
        self.calls = calls

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Splits `arguments` evenly over the calls and returns all outputs."""
        size = len(arguments) // self.calls
        outputs: list[Tensor] = []
        for call in range(self.calls):
            out = self.module(*arguments[call * size : (call + 1) * size])
            outputs.extend((out,) if isinstance(out, Tensor) else out)
        return tuple(outputs)


@dataclass
class Workload:
    """What one cost trial runs.

    Args:
        module: the module, in the trial's type, on its device, in evaluation or training mode.
        inputs: its inputs; in training they require gradients.
        mode: `"forward"` or `"training"`.
        macs_closed_form: `macs(h, w)` times the batch, at the operator level.
        compiled: the compiled module, where latency is to be that of `torch.compile`.
        notes: what had to be done otherwise than the mode says, one sentence each.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    mode: str
    macs_closed_form: int | None = None
    notes: list[str] = field(default_factory=list)
    compiled: Callable[..., Any] | None = None

    def step(self) -> object:
        """One forward pass, or one forward and backward pass into fresh gradients."""
        return self._run(self.module)

    def timed_step(self) -> object:
        """The step whose latency is sampled: the compiled module's, where there is one."""
        return self._run(self.module if self.compiled is None else self.compiled)

    def forward(self) -> Outputs:
        """The forward pass of `step`."""
        return self._forward(self.module)

    @property
    def backward(self) -> Callable[[Outputs], None] | None:
        """The backward pass of `step`, given what the forward pass returned; none in forward mode."""
        return None if self.mode == "forward" else self._backward

    def _run(self, module: Callable[..., Any]) -> object:
        if self.mode == "forward":
            return self._forward(module)
        self.release()
        self._backward(self._forward(module))
        return None

    def _forward(self, module: Callable[..., Any]) -> Outputs:
        if self.mode == "forward":
            with torch.no_grad():
                return module(*self.inputs)  # type: ignore[no-any-return]
        return module(*self.inputs)  # type: ignore[no-any-return]

    @staticmethod
    def _backward(outputs: Outputs) -> None:
        ends = [item for item in ((outputs,) if isinstance(outputs, Tensor) else outputs) if item.requires_grad]
        torch.autograd.backward(ends, [torch.ones_like(item) for item in ends])

    def release(self) -> None:
        """Lets go of the gradients that a step leaves behind."""
        for tensor in (*self.module.parameters(), *self.inputs):
            tensor.grad = None


@dataclass(frozen=True)
class _Slot:
    """What sits in the slot, and how it is built at each level."""

    name: str
    num_classes: int
    implementation: Implementation
    settings: dict[str, Any]

    def operator(self, channels: int) -> AttentionOperator:
        return build_operator(self.name, channels, num_classes=self.num_classes, **self._how())

    def head(self, in_channels: int, network: Network) -> nn.Module:
        return build_head(self.name, in_channels, network, self.num_classes, **self._how())

    def segmentor(self, network: Network) -> nn.Module:
        return build_segmentor(self.name, network, self.num_classes, **self._how())

    def _how(self) -> dict[str, Any]:
        return {"implementation": self.implementation, "settings": self.settings}


def build_workload(trial: Trial) -> Workload:
    """Builds what a cost trial runs, with random inputs of a fixed seed.

    Raises:
        Unsupported: if the level does not exist for this operator.
        UsageError: if channels or settings do not fit the operator.
    """
    torch.manual_seed(0)
    workload = _with_inputs(_placed(_module(trial), trial, trial.device), trial, trial.device)
    if trial.compiled:
        workload.compiled = torch.compile(workload.module, dynamic=False)
        workload.notes.append("latency is that of torch.compile; MACs and peak memory are those of eager execution")
    return workload


@contextlib.contextmanager
def pretended_workload(trial: Trial) -> Iterator[Workload]:
    """What `build_workload` builds, on the CPU and without memory, inside a `pretending` block.

    Raises:
        Unsupported: if the level does not exist for this operator.
        UsageError: if channels or settings do not fit the operator.

    Example:
        >>> trial = Trial("cost", "conv1x1", "reference", "cpu", level="operator", mode="forward", channels=64,
        ...               height=10**5, width=10**5, batch=1, num_classes=2)
        >>> with pretended_workload(trial) as workload:
        ...     tuple(workload.step().shape)
        (1, 64, 100000, 100000)
    """
    with torch.device("meta"):
        module = _placed(_module(trial), trial, "meta")
    with pretending():
        materialise(module)
        yield _with_inputs(module, trial, "cpu")


def _module(trial: Trial) -> nn.Module:
    assert trial.channels
    assert trial.num_classes
    slot = _Slot(trial.operator, trial.num_classes, trial.implementation, json.loads(trial.settings))
    if trial.level in ("operator", "core"):
        return slot.operator(trial.channels)
    assert trial.network
    if trial.level == "head":
        return slot.head(trial.in_channels or trial.channels, trial.network)
    return slot.segmentor(trial.network)


def _input_shape(trial: Trial) -> tuple[int, ...]:
    assert trial.channels
    assert trial.height
    assert trial.width
    assert trial.batch
    if trial.level == "network":
        assert trial.network
        stride = trial.network.output_stride
        return trial.batch, 3, stride * (trial.height - 1) + 1, stride * (trial.width - 1) + 1
    channels = trial.in_channels or trial.channels if trial.level == "head" else trial.channels
    return trial.batch, channels, trial.height, trial.width


def _placed(module: nn.Module, trial: Trial, device: str) -> nn.Module:
    module = module.to(device=device, dtype=_dtype(trial))
    if trial.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def _dtype(trial: Trial) -> torch.dtype:
    return getattr(torch, trial.dtype or "float32")  # type: ignore[no-any-return]


def _with_inputs(module: nn.Module, trial: Trial, device: str) -> Workload:
    layout = torch.channels_last if trial.channels_last else torch.contiguous_format
    closed_form = None
    if trial.level == "operator":
        assert trial.batch
        assert trial.height
        assert trial.width
        closed_form = trial.batch * cast(AttentionOperator, module).macs(trial.height, trial.width)
    module = module.train(trial.mode == "training")
    inputs = (torch.randn(_input_shape(trial)).to(device=device, dtype=_dtype(trial), memory_format=layout),)
    workload = Workload(module, inputs, trial.mode or "forward", closed_form)
    if trial.mode == "training":
        settle_batch_norms(workload)
    if trial.level == "core":
        _reduce_to_core(workload)
    if trial.mode == "training":
        workload.inputs = tuple(
            tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in workload.inputs
        )
    return workload


def settle_batch_norms(workload: Workload) -> None:
    """Puts batch norms that see a single value per channel, and so cannot train, on their running statistics."""
    starved: list[nn.Module] = []

    def inspect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training and inputs[0].numel() == inputs[0].shape[1]:
            starved.append(module.eval())

    norms = [module for module in workload.module.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    handles = [norm.register_forward_pre_hook(inspect) for norm in norms]
    try:
        with torch.no_grad():
            workload.module(*workload.inputs)
    finally:
        for handle in handles:
            handle.remove()
    if starved:
        workload.notes.append(
            f"{len(starved)} batch norm(s) see one value per channel at this batch and use their running statistics"
        )


def _reduce_to_core(workload: Workload) -> None:
    """Replaces a block by its core, and its input by the arguments that the block gives the core."""
    block = workload.module
    if not has_core(block):
        raise Unsupported("the operator names no core")
    seen: list[tuple[Tensor, ...]] = []
    core: nn.Module = block.core  # type: ignore[assignment]
    handle = core.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    try:
        with torch.no_grad():
            block(*workload.inputs)
    finally:
        handle.remove()
    workload.module = Calls(core, len(seen))
    workload.inputs = tuple(tensor.clone() for arguments in seen for tensor in arguments)
