"""Names of operators: registering, finding, and plugins of third parties.

Built-ins and plugins stand in one table. A plugin is an entry point of the group `attnbench.operators` whose object
is an `AttentionOperator` class and whose entry-point name is `spec.name`; it is listed without being imported, and one
that cannot be imported is listed as broken with its error.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from operators.interface import AttentionOperator

GROUP = "attnbench.operators"

_registered: dict[str, type[AttentionOperator]] = {}
_T = TypeVar("_T", bound=type[AttentionOperator])


class UnknownOperatorError(ValueError):
    """A name that no built-in and no plugin has."""


class BrokenOperatorError(ImportError):
    """A plugin or file that cannot be imported, or does not hold an operator."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for a near name, otherwise the known names.

    Example:
        >>> suggest("non_locl", ["non_local", "ema"])
        "; did you mean 'non_local'?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def register(operator: _T) -> _T:
    """Class decorator: adds `operator` under `operator.spec.name`.

    Raises:
        TypeError: if it is not an `AttentionOperator` with a `spec`.
        ValueError: if another class has the name.
    """
    if not (inspect.isclass(operator) and issubclass(operator, AttentionOperator) and hasattr(operator, "spec")):
        raise TypeError(f"register: expected a subclass of AttentionOperator with a spec, got {operator!r}")
    name = operator.spec.name
    present = _registered.get(name)
    if present is not None and (present.__module__, present.__qualname__) != (
        operator.__module__,
        operator.__qualname__,
    ):
        raise ValueError(
            f"register: expected a free name, got {name!r}, which {present.__module__}.{present.__qualname__} has"
        )
    _registered[name] = operator
    return operator


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _registered}


def names() -> tuple[str, ...]:
    """Names of all operators, built-ins first in the order of their registration, then plugins; nothing is imported."""
    return (*_registered, *sorted(_plugins()))


def get(name: str) -> type[AttentionOperator]:
    """The operator class called `name`.

    Raises:
        UnknownOperatorError: if there is none; the message suggests a near name.
        BrokenOperatorError: if a plugin has the name and cannot be imported.

    Example:
        >>> get("ema").spec.source.year
        2019
    """
    if name in _registered:
        return _registered[name]
    plugin = _plugins().get(name)
    if plugin is None:
        raise UnknownOperatorError(f"unknown operator {name!r}{suggest(name, names())}")
    try:
        loaded = plugin.load()
    except Exception as error:
        raise BrokenOperatorError(
            f"operator {name!r} of plugin {plugin.value!r}: {type(error).__name__}: {error}"
        ) from error
    return _adopt(loaded, origin=f"plugin {plugin.value!r}", name=name)


def load_file(reference: str) -> type[AttentionOperator]:
    """Registers the operator at `path/to/file.py:Class` and returns it.

    Raises:
        BrokenOperatorError: if the file or the class is missing, or does not hold an operator.
    """
    path, separator, attribute = reference.rpartition(":")
    file = Path(path)
    if not separator or not attribute.isidentifier():
        raise BrokenOperatorError(f"operator file: expected path/to/file.py:Class, got {reference!r}")
    if not file.is_file():
        raise BrokenOperatorError(f"operator file: expected an existing file, got {path!r}")
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]
    name = f"attnbench_operator_{file.stem}_{digest}"
    module = sys.modules.get(name) or _import_file(file, name)
    if not hasattr(module, attribute):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise BrokenOperatorError(f"operator file {path!r}: no class {attribute!r}{suggest(attribute, classes)}")
    return _adopt(getattr(module, attribute), origin=f"file {path!r}")


def _import_file(file: Path, name: str) -> ModuleType:
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None or module_spec.loader is None:
        raise BrokenOperatorError(f"operator file: expected a Python file, got {str(file)!r}")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise BrokenOperatorError(f"operator file {str(file)!r}: {type(error).__name__}: {error}") from error
    return module


def _adopt(loaded: Any, *, origin: str, name: str | None = None) -> type[AttentionOperator]:
    if not (inspect.isclass(loaded) and issubclass(loaded, AttentionOperator) and hasattr(loaded, "spec")):
        raise BrokenOperatorError(f"{origin}: expected a subclass of AttentionOperator with a spec, got {loaded!r}")
    if name is not None and loaded.spec.name != name:
        raise BrokenOperatorError(f"{origin}: expected spec.name {name!r}, got {loaded.spec.name!r}")
    return register(loaded)
