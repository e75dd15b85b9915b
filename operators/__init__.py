"""Attention operators for dense prediction, one interface for all. Imports torch and nothing else of the project."""

from operators import controls as controls
from operators import criss_cross as criss_cross
from operators import dual as dual
from operators import ema as ema
from operators import global_context as global_context
from operators import non_local as non_local
from operators import pyramid_pooling as pyramid_pooling
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
