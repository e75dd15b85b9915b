"""Attention operators for dense prediction, one interface for all. Imports torch and nothing else of the project."""

# Names are listed in the order of registration; the controls come first.
from operators import controls as controls

# isort: split
from operators import adaptive_pyramid as adaptive_pyramid
from operators import asymmetric as asymmetric
from operators import atrous_object_context as atrous_object_context
from operators import atrous_pyramid as atrous_pyramid
from operators import attentional_class_feature as attentional_class_feature
from operators import axial_attention as axial_attention
from operators import cbam as cbam
from operators import compact_generalized_non_local as compact_generalized_non_local
from operators import context_encoding as context_encoding
from operators import coordinate_attention as coordinate_attention
from operators import criss_cross as criss_cross
from operators import disentangled as disentangled
from operators import double_attention as double_attention
from operators import dual as dual
from operators import dual_branches as dual_branches
from operators import dynamic_multi_scale as dynamic_multi_scale
from operators import efficient_attention as efficient_attention
from operators import efficient_channel as efficient_channel
from operators import ema as ema
from operators import external_attention as external_attention
from operators import global_context as global_context
from operators import global_reasoning as global_reasoning
from operators import hamburger as hamburger
from operators import interlaced as interlaced
from operators import large_kernel as large_kernel
from operators import latent_graph as latent_graph
from operators import linear_attention as linear_attention
from operators import multi_head_attention as multi_head_attention
from operators import multi_scale_convolutional as multi_scale_convolutional
from operators import neighborhood_attention as neighborhood_attention
from operators import non_local as non_local
from operators import nystrom_attention as nystrom_attention
from operators import object_context as object_context
from operators import object_context_pooling as object_context_pooling
from operators import point_wise as point_wise
from operators import pyramid_pooling as pyramid_pooling
from operators import selective_scan as selective_scan
from operators import shifted_window as shifted_window
from operators import spatial_reduction as spatial_reduction
from operators import squeeze_excitation as squeeze_excitation
from operators import strip_pooling as strip_pooling
from operators.interface import AttentionOperator, Auxiliary, OperatorSpec, PairOperator, Source
from operators.registry import (
    BrokenOperatorError,
    UnknownOperatorError,
    get,
    load_file,
    names,
    register,
)
from operators.sources import source_hash

__all__ = [
    "AttentionOperator",
    "Auxiliary",
    "BrokenOperatorError",
    "OperatorSpec",
    "PairOperator",
    "Source",
    "UnknownOperatorError",
    "get",
    "load_file",
    "names",
    "register",
    "source_hash",
]
