"""A pickle reader that builds tensors and plain data, leaves out what known packages wrote, and runs nothing else.

Pickle names classes and functions and says how to call them. Here a name is looked up in a closed table of stand-ins
that are written in this module; none of them is the object that the file asked for. What the file can do is
therefore what the table can do: make containers, decode text to bytes, and lay tensors over bytes of the file.
"""

from __future__ import annotations

import collections
import math
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

LEFT_OUT_PACKAGES = frozenset({"addict", "mmcv", "mmdet", "mmengine", "mmpretrain", "mmcls", "mmseg", "numpy", "yapf"})
"""Packages whose objects are left out: what they hold is about training, never weights."""


class RefusedError(pickle.UnpicklingError):
    """A name that is neither tensor, plain data nor of a package that may be left out."""


class LeftOut:
    """Stands for an object of a package that need not be installed; it keeps nothing that it is given."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> LeftOut:
        """The placeholder, whatever the arguments."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        return

    def __setitem__(self, _: object, __: object) -> None:
        return

    def append(self, _: object) -> None:
        """Drops the item."""

    def extend(self, _: object) -> None:
        """Drops the items."""

    def add(self, _: object) -> None:
        """Drops the item."""


class StorageType:
    """Type of the numbers in a storage.

    Args:
        dtype: that type.
    """

    __slots__ = ("dtype",)
    dtype: torch.dtype

    def __init__(self, dtype: torch.dtype) -> None:
        object.__setattr__(self, "dtype", dtype)

    def __setattr__(self, _: str, __: object) -> NoReturn:
        raise RefusedError("a storage type that is written to")

    def __setstate__(self, _: object) -> NoReturn:
        raise RefusedError("a storage type that is written to")


class Storage:
    """Bytes of the file, read once for all tensors that lie on them.

    Args:
        dtype: type of the numbers.
        data: flat uint8 tensor of the bytes; a legacy file fills it in after its tensors are built.
    """

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: torch.dtype, data: Tensor) -> None:
        self.dtype = dtype
        self.data = data

    def __setstate__(self, _: object) -> NoReturn:
        raise RefusedError("a storage that is written to")


class _Function:
    """A function of this module that a file may call, but not write attributes to."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, _: str, __: object) -> NoReturn:
        raise RefusedError("a function that is written to")

    def __setstate__(self, _: object) -> NoReturn:
        raise RefusedError("a function that is written to")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
    if not isinstance(storage, Storage):
        raise RefusedError(f"a tensor on {type(storage).__name__}")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError(f"a tensor of size {tuple(size)} and stride {tuple(stride)} at {offset}")
    flat = storage.data.view(storage.dtype)
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1
    if math.prod(size) and reach > flat.numel():
        raise pickle.UnpicklingError(f"a tensor that reaches element {reach} of a storage of {flat.numel()}")
    return flat.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Any, *_: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise RefusedError(f"a parameter that is {type(data).__name__}")
    return data


def _encode(text: Any, encoding: Any = "utf-8", *_: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise RefusedError(f"_codecs.encode to {encoding!r}")
    return text.encode(encoding)


def _bytes(value: Any = b"", *encoding: object) -> bytes:
    return _encode(value, *encoding) if isinstance(value, str) else b"".join([value])


def _attribute(owner: Any, name: Any, *_: object) -> type[LeftOut]:
    if isinstance(owner, type) and issubclass(owner, LeftOut):
        return owner
    raise RefusedError(f"builtins.getattr of {name!r}")


def _shape(values: Any = ()) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _device(*arguments: Any) -> str:
    return ":".join(str(argument) for argument in arguments)


def _frozenset(values: Any = ()) -> frozenset[Any]:
    return frozenset(values)


def _mapping(*arguments: Any) -> dict[Any, Any]:
    return _Mapping(*arguments)


class _Mapping(dict[Any, Any]):
    """A dictionary; the attributes that files write to it (`_metadata` of a state dict) are dropped."""

    __slots__ = ()

    def __setstate__(self, _: object) -> None:
        return


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): _shape,
    ("torch", "device"): _device,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("_codecs", "encode"): _encode,
    ("builtins", "getattr"): _attribute,
    ("builtins", "set"): _frozenset,
    ("builtins", "frozenset"): _frozenset,
    ("builtins", "list"): list,
    ("builtins", "dict"): _mapping,
    ("builtins", "tuple"): tuple,
    ("builtins", "slice"): slice,
    ("builtins", "complex"): complex,
    ("builtins", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytes,
}
_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}
_LEGACY_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "numpy._core": "numpy"}


class RestrictedUnpickler(pickle.Unpickler):
    """Reads one pickle by the table above.

    Args:
        file: where the pickle stands.
        load_storage: what answers the pickle's persistent identifiers.
        left_out: names of what was left out, added to while reading.

    Raises:
        RefusedError: naming what is neither tensor nor plain data.
    """

    def __init__(self, file: BinaryIO, load_storage: Callable[[Any], Storage], left_out: collections.Counter[str]):
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage
        self._left_out = left_out

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for `module.name`.

        Raises:
            RefusedError: if it has none.
        """
        module = _LEGACY_MODULES.get(module, module)
        function = _FUNCTIONS.get((module, name))
        if function is not None:
            return _Function(function)
        if module in ("torch", "torch.storage"):
            dtype = _dtype(name)
            if dtype is not None:
                return dtype
        if module.partition(".")[0] in LEFT_OUT_PACKAGES:
            self._left_out[f"{module}.{name}"] += 1
            return type("LeftOut", (LeftOut,), {"__slots__": ()})
        raise RefusedError(f"{module}.{name}")

    def persistent_load(self, identifier: Any) -> Storage:
        """The storage that `identifier` names."""
        return self._load_storage(identifier)


def _dtype(name: str) -> StorageType | torch.dtype | None:
    if name in _STORAGES:
        return StorageType(_STORAGES[name])
    dtype = getattr(torch, name, None)
    return dtype if isinstance(dtype, torch.dtype) else None
