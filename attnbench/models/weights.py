"""Loading pretrained weights into a backbone, with errors that name what does not fit."""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.errors import UsageError

_SHOWN = 3


def load_weights(backbone: nn.Module, path: str | Path) -> None:
    """Loads the weights in the file `path` into `backbone`, all of them or none.

    A state dict may be nested under `"state_dict"`, and its keys may be prefixed with `module.` and
    `backbone.`; where some have the latter, only those are read. A deep stem may have mmsegmentation's names. A
    classifier `fc.*` is not read, and the counters of batches that old checkpoints lack keep their value.

    Args:
        backbone: what to load into.
        path: a file that `torch.load(weights_only=True)` reads, or a `.safetensors` file.

    Raises:
        UsageError: if the file is missing or unreadable, or a key is missing, unexpected or of another shape.
    """
    backbone.load_state_dict(read_weights(backbone, path), strict=False)


def read_weights(backbone: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """Entries of the file `path` for `backbone`, which may be on the meta device and is left as it is.

    Raises:
        UsageError: see `load_weights`.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"backbone weights: expected an existing file, got {str(path)!r}")
    given = _backbone_entries(_state_dict(_read(file), file))
    found = mismatch(backbone.state_dict(), given)
    if found:
        raise UsageError(
            f"backbone weights {str(path)!r}: expected the keys of this {type(backbone).__name__}, got {found}"
        )
    return given


def mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What of `given` does not fit `own`, the first few names of each kind; nothing where all fits.

    Example:
        >>> mismatch({"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": torch.zeros(3), "c": torch.zeros(1)})
        '1 missing: b; 1 unexpected: c; 1 of another shape: a (expected (2,), got (3,))'
    """
    missing = [name for name in own if name not in given and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    reshaped = [
        f"{name} (expected {tuple(own[name].shape)}, got {tuple(tensor.shape)})"
        for name, tensor in given.items()
        if name in own and own[name].shape != tensor.shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return "; ".join(f"{len(names)} {fault}: {_first(names)}" for fault, names in faults.items() if names)


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unreadable(file, "a file with tensors alone", error) from error
    except Exception as error:
        # Torn bytes make torch.load raise nearly anything: IndexError, struct.error, AttributeError.
        raise _unreadable(file, "a file written by torch.save", error) from error


def _read_safetensors(file: Path) -> Any:
    try:
        library = importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise UsageError(f"backbone weights {str(file)!r}: expected the package safetensors, got none") from error
    safetensors_error = importlib.import_module("safetensors").SafetensorError
    try:
        return library.load_file(str(file))
    except (safetensors_error, OSError) as error:
        raise _unreadable(file, "a safetensors file", error) from error


def _unreadable(file: Path, expected: str, error: Exception) -> UsageError:
    reason = " ".join(str(error).split(".")[0].split()) or "no data"
    return UsageError(f"backbone weights {str(file)!r}: expected {expected}, got {type(error).__name__}: {reason}")


def _state_dict(loaded: Any, file: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UsageError(f"backbone weights {str(file)!r}: expected a state dict, got {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UsageError(
                f"backbone weights {str(file)!r}: expected tensors by name, got {type(value).__name__} at {name!r}"
            )
    return dict(loaded)


def _backbone_entries(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if any(name.startswith("backbone.") for name in state):
        state = {
            name.removeprefix("backbone."): tensor for name, tensor in state.items() if name.startswith("backbone.")
        }
    return {_own_name(name): tensor for name, tensor in state.items() if not name.startswith("fc.")}


def _own_name(name: str) -> str:
    """Name of an entry; mmsegmentation has the last normalisation of a deep stem inside the stem."""
    return re.sub(r"^stem\.", "conv1.", re.sub(r"^stem\.7\.", "bn1.", name))
