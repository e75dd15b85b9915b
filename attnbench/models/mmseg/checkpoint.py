"""Checkpoint files, read without running anything that is in them."""

from __future__ import annotations

import collections
import logging
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from attnbench.errors import UsageError
from attnbench.models.mmseg.unpickling import LeftOut, RefusedError, RestrictedUnpickler, Storage, StorageType

_LOG = logging.getLogger(__name__)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ABSENT = object()


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Args:
        state_dict: weights and buffers by name, on CPU.
        meta: plain data about them: configuration, classes, version.
        left_out: name of each type that was left out -> how many objects.
    """

    state_dict: Mapping[str, Tensor]
    meta: Mapping[str, Any]
    left_out: Mapping[str, int]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads the weights in the file `path`, in torch's zip format or the one before 1.6, without running code from it.

    Tensors and plain data load. Objects of packages that wrote about training (mmengine's message hub, numpy
    scalars, configuration objects) are left out, whether or not the package is installed.

    Args:
        path: the file; the state dict stands under `"state_dict"`, or is the whole file.

    Raises:
        UsageError: if there is no such file, it is not a checkpoint, or it names a type or a function that is neither
            tensor, plain data nor of a package that may be left out; the message names it.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"checkpoint: expected an existing file, got {str(path)!r}")
    loaded, left_out = _read(file)
    for name, count in left_out.items():
        _LOG.info("checkpoint %s: left out %s (%d)", file.name, name, count)
    meta = loaded.get("meta") if isinstance(loaded, dict) else None
    return Checkpoint(_state_dict(loaded, file), meta if isinstance(meta, dict) else {}, left_out)


def _read(file: Path) -> tuple[Any, Mapping[str, int]]:
    is_zip = zipfile.is_zipfile(file)
    if not is_zip and tarfile.is_tarfile(file):
        raise UsageError(f"checkpoint {str(file)!r}: expected a file of torch 0.4 or newer, got a tar archive")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True), {}
    except Exception:  # noqa: BLE001 - torn bytes make it raise nearly anything; the reader below tells what is wrong
        _LOG.debug("checkpoint %s: more than tensors and plain data", file.name)
    left_out: collections.Counter[str] = collections.Counter()
    try:
        loaded = (_read_zip if is_zip else _read_legacy)(file, left_out)
    except RefusedError as error:
        raise UsageError(f"checkpoint {str(file)!r}: expected tensors and plain data alone, got {error}") from error
    except UsageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split(".")[0].split()) or "no data"
        raise UsageError(
            f"checkpoint {str(file)!r}: expected a file written by torch.save, got {type(error).__name__}: {reason}"
        ) from error
    return _plain(loaded), left_out


def _read_zip(file: Path, left_out: collections.Counter[str]) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if any(name.endswith("/constants.pkl") for name in names):
            raise UsageError(f"checkpoint {str(file)!r}: expected a state dict, got a TorchScript archive")
        if len(pickles) != 1:
            raise UsageError(f"checkpoint {str(file)!r}: expected one data.pkl in the archive, got {len(pickles)}")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise UsageError(f"checkpoint {str(file)!r}: expected little-endian numbers, got big-endian ones")
        storages: dict[str, Storage] = {}

        def load(dtype: torch.dtype, key: str, _: int) -> Storage:
            if key not in storages:
                storages[key] = Storage(dtype, _bytes(archive.read(f"{folder}data/{key}")))
            return Storage(dtype, storages[key].data)

        with archive.open(pickles[0]) as stream:
            return RestrictedUnpickler(stream, _identified(load), left_out).load()  # type: ignore[arg-type]


def _read_legacy(file: Path, left_out: collections.Counter[str]) -> Any:
    storages: dict[str, Storage] = {}

    def load(dtype: torch.dtype, key: str, length: int) -> Storage:
        if key not in storages:
            size = length * dtype.itemsize
            if not 0 <= size <= file.stat().st_size:
                raise pickle.UnpicklingError(f"a storage of {size} bytes in a smaller file")
            storages[key] = Storage(dtype, torch.zeros(size, dtype=torch.uint8))
        return storages[key]

    with file.open("rb") as stream:

        def read(identified: Callable[[Any], Storage]) -> Any:
            return RestrictedUnpickler(stream, identified, left_out).load()

        for expected in (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
            if read(_no_storage) != expected:
                raise pickle.UnpicklingError("other bytes at its start")
        read(_no_storage)
        loaded = read(_identified(load))
        keys = read(_no_storage)
        for key in keys:
            _fill(storages[key], stream)
    return loaded


def _fill(storage: Storage, stream: BinaryIO) -> None:
    """Reads the bytes of `storage`, which follow their number of elements."""
    (length,) = struct.unpack("<q", stream.read(8))
    size = storage.data.numel()
    if length * storage.dtype.itemsize != size:
        raise pickle.UnpicklingError(f"a storage of {length} elements where {size} bytes were announced")
    data = stream.read(size)
    if len(data) != size:
        raise pickle.UnpicklingError("a torn storage")
    if size:
        storage.data.copy_(_bytes(data))


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _identified(load: Callable[[torch.dtype, str, int], Storage]) -> Callable[[Any], Storage]:
    def answer(identifier: Any) -> Storage:
        kind, *rest = identifier if isinstance(identifier, tuple) else (identifier,)
        if kind != "storage" or len(rest) < 4 or not isinstance(rest[0], StorageType):
            raise RefusedError(f"a persistent object of kind {kind!r}")
        storage_type, key, _, length, *view = rest
        if view and view[0] is not None:
            raise RefusedError("a view of a storage, as torch before 0.4 wrote it")
        return load(storage_type.dtype, str(key), int(length))

    return answer


def _no_storage(identifier: Any) -> Storage:
    raise RefusedError(f"a persistent object {identifier!r} in the file's header")


def _plain(value: Any) -> Any:
    """`value` without what was left out: entries of containers, at any depth."""
    if isinstance(value, dict):
        items = {key: _plain(item) for key, item in value.items() if not isinstance(key, LeftOut)}
        return {key: item for key, item in items.items() if item is not _ABSENT}
    if isinstance(value, list | tuple | set | frozenset):
        kept = [item for item in map(_plain, value) if item is not _ABSENT]
        return type(value)(kept)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | slice | Tensor | torch.dtype):
        return value
    return _ABSENT


def _state_dict(loaded: Any, file: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping) and "belongs_hash" in loaded:
        raise UsageError(
            f"checkpoint {str(file)!r}: expected the weights of a network, got what train.py --resume goes on from; "
            "the network is the model.safetensors beside its folder, once the training has ended"
        )
    nested = loaded.get("state_dict") if isinstance(loaded, Mapping) else None
    state = nested if isinstance(nested, Mapping) else loaded
    if not isinstance(state, Mapping) or not state:
        got = "nothing" if state is _ABSENT else type(state).__name__
        raise UsageError(f"checkpoint {str(file)!r}: expected a state dict, got {got}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UsageError(
                f"checkpoint {str(file)!r}: expected tensors by name, got {type(value).__name__} at {name!r}"
            )
    return {name.removeprefix("module."): value.detach() for name, value in state.items()}
