"""From mmsegmentation's parameter names to ours and back: one table of prefixes for each head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from attnbench.errors import UsageError
from operators.hamburger import NonNegativeFactorization

Names = dict[str, str]
"""Prefix of theirs -> prefix of ours; the longest prefix that ends at a dot counts."""

_SHOWN = 6
_COUNTER = "num_batches_tracked"


def conv_norm(theirs: str, ours: str, *, norm: str = "bn") -> Names:
    """Their convolution with normalisation at `theirs`, ours at `ours`."""
    return {f"{theirs}.conv": f"{ours}.conv", f"{theirs}.{norm}": f"{ours}.norm"}


def prefixed(names: Mapping[str, str], theirs: str, ours: str) -> Names:
    """`names` one level deeper on both sides."""
    return {f"{theirs}{key}": f"{ours}{value}" for key, value in names.items()}


def renamed(name: str, names: Mapping[str, str]) -> str | None:
    """`name` with its longest known prefix replaced; none where no prefix is known.

    Example:
        >>> renamed("convs.0.bn.weight", conv_norm("convs.0", "reduction"))
        'reduction.norm.weight'
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = names.get(".".join(parts[:length]))
        if prefix is not None:
            return ".".join([prefix, *parts[length:]])
    return None


def load(module: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], what: str) -> None:
    """Loads `state`, under their names, into `module`, all of it or nothing.

    A tensor whose shape differs by axes of length 1 alone is reshaped. The counters of batches that old files lack
    keep their value.

    Raises:
        UsageError: naming the keys that are left over, missing, or of another shape.
    """
    own = module.state_dict()
    back = {ours: theirs for theirs, ours in names.items()}
    given: dict[str, Tensor] = {}
    left_over, reshaped = [], []
    for theirs, tensor in state.items():
        ours = renamed(theirs, names)
        if ours is None or ours not in own:
            left_over.append(theirs)
        elif _unpadded(tensor.shape) != _unpadded(own[ours].shape):
            reshaped.append(f"{theirs} (expected {tuple(own[ours].shape)}, got {tuple(tensor.shape)})")
            given[ours] = own[ours]
        elif ours in given and not torch.equal(given[ours].reshape(tensor.shape), tensor):
            left_over.append(f"{theirs} (shared with {renamed(ours, back)}, which differs)")
        else:
            given[ours] = tensor.reshape(own[ours].shape)
    kept = _drawn(module)
    missing = [
        renamed(ours, back) or ours
        for ours in own
        if ours not in given and ours not in kept and not ours.endswith(_COUNTER)
    ]
    faults = {"left over": left_over, "missing": missing, "of another shape": reshaped}
    if any(faults.values()):
        told = "; ".join(f"{len(found)} {fault}: {_first(found)}" for fault, found in faults.items() if found)
        raise UsageError(f"{what}: expected every key of the state dict to be used and none to be missing, got {told}")
    module.load_state_dict(given, strict=False)


def _drawn(module: nn.Module) -> set[str]:
    """Names of the bases that mmsegmentation draws anew for each image and therefore does not store."""
    return {
        f"{name}.bases"
        for name, part in module.named_modules()
        if isinstance(part, NonNegativeFactorization) and part.random_bases
    }


def _unpadded(shape: Iterable[int]) -> list[int]:
    return [length for length in shape if length != 1]


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
