"""Attention operators for dense prediction, one interface for all. Imports torch and nothing else of the project."""

from operators import controls as controls
from operators.interface import AttentionOperator, Auxiliary, OperatorSpec, Source
from operators.registry import (
    BrokenOperatorError,
    UnknownOperatorError,
    get,
    load_file,
    names,
    register,
    source_hash,
)

__all__ = [
    "AttentionOperator",
    "Auxiliary",
    "BrokenOperatorError",
    "OperatorSpec",
    "Source",
    "UnknownOperatorError",
    "get",
    "load_file",
    "names",
    "register",
    "source_hash",
]
