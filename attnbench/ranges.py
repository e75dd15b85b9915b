"""What numbers an experiment may hold: checked before anything runs, whatever file or option they come from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from attnbench.config import Experiment, Inference, Recipe
from attnbench.errors import UsageError

_LARGEST = 2**31 - 1
_COUNT = (1, _LARGEST)
_SHARE = (0.0, 1.0)
_FROM_ZERO = (0.0, 1e12)
_POSITIVE = (1e-12, 1e12)
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("sizes", "channels", "batches", "num_classes", "in_channels", "image_size", "crop_size"), _COUNT),
    **dict.fromkeys(("output_stride", "multi_grid", "feature_stages", "slot_channels", "head_channels"), _COUNT),
    **dict.fromkeys(("iterations", "batch_size", "accumulate", "base_scale"), _COUNT),
    **dict.fromkeys(("ohem_min_kept", "warmup_iterations"), (0, _LARGEST)),
    **dict.fromkeys(("timeout", "target_width", "scale_range"), _POSITIVE),
    **dict.fromkeys(("seconds_per_trial", "learning_rate", "head_learning_rate_factor", "weight_decay"), _FROM_ZERO),
    **dict.fromkeys(("power", "auxiliary_weight", "clip_gradient_norm"), _FROM_ZERO),
    **dict.fromkeys(("class_weights", "min_learning_rate", "bias_learning_rate_factor"), _FROM_ZERO),
    **dict.fromkeys(("momentum", "dropout", "batch_norm_momentum", "ohem_threshold", "warmup_ratio"), _SHARE),
    "category_max_ratio": (1e-12, 1.0),
    "stride": _COUNT,
    "scales": (0.01, 100.0),
    "min_samples": (1, 200),
    "seeds": (0, 2**63 - 1),
    "jobs": (0, 4096),
    "workers": (0, 4096),
}


def check_ranges(experiment: Experiment) -> None:
    """Holds every number of `experiment` against its range.

    Raises:
        UsageError: naming the key, the range and what came.
    """
    for path, value in _leaves("", dataclasses.asdict(experiment)):
        low, high = _RANGES.get(path.rpartition(".")[2], (-math.inf, math.inf))
        if not (math.isfinite(value) and low <= value <= high):
            raise UsageError(f"{path}: expected a number from {low:g} to {high:g}, got {value!r}")
    if experiment.accuracy is not None:
        check_recipe(experiment.accuracy.recipe)
        check_inference(experiment.accuracy.inference)


def check_recipe(recipe: Recipe) -> None:
    """Holds what belongs together in `recipe` against one another.

    Raises:
        UsageError: naming the field, what was expected and what came.

    Example:
        >>> check_recipe(Recipe(batch_size=16, accumulate=4))
    """
    if recipe.batch_size % recipe.accumulate:
        raise UsageError(
            f"accumulate: expected a divisor of batch_size {recipe.batch_size}, got {recipe.accumulate} micro-batches"
        )
    if recipe.warmup_iterations >= recipe.iterations:
        raise UsageError(
            f"warmup_iterations: expected fewer than the {recipe.iterations} iterations, got {recipe.warmup_iterations}"
        )
    factors = (recipe.head_learning_rate_factor, recipe.bias_learning_rate_factor)
    least = recipe.learning_rate * math.prod(min(1.0, factor) for factor in factors)
    if recipe.min_learning_rate > least:
        raise UsageError(
            f"min_learning_rate: expected at most {least:g}, the smallest learning rate that a parameter starts with, "
            f"got {recipe.min_learning_rate:g}"
        )
    if recipe.class_weights and recipe.class_balance != "none":
        raise UsageError(
            f"class_weights: expected none beside class_balance {recipe.class_balance!r}, got {recipe.class_weights}"
        )
    cut = {
        "base_scale": recipe.base_scale is not None,
        "scale_range": recipe.scale_range != (1.0, 1.0),
        "category_max_ratio": recipe.category_max_ratio < 1,
    }
    if recipe.crop_size is None and any(cut.values()):
        name = next(name for name, given in cut.items() if given)
        raise UsageError(f"crop_size: expected a size where {name} is {getattr(recipe, name)}, got none")


def check_inference(inference: Inference) -> None:
    """Holds what belongs together in `inference` against one another.

    Raises:
        UsageError: naming the field, what was expected and what came.

    Example:
        >>> check_inference(Inference("slide", crop_size=(512, 512), stride=(341, 341)))
    """
    window, stride = inference.crop_size, inference.stride
    if inference.mode == "slide":
        for name, given in (("crop_size", window), ("stride", stride)):
            if given is None or min(given) < 1:
                raise UsageError(f"inference, {name}: expected a height and width for mode 'slide', got {given}")
        assert window is not None and stride is not None
        if any(step > side for step, side in zip(stride, window, strict=True)):
            raise UsageError(f"inference, stride: expected at most the window {window}, got {stride}: pixels between")
    elif window is not None or stride is not None:
        name = "crop_size" if window is not None else "stride"
        raise UsageError(f"inference, {name}: expected mode 'slide' beside it, got mode {inference.mode!r}")
    low, high = _RANGES["scales"]
    if not inference.scales or not all(low <= scale <= high for scale in inference.scales):
        raise UsageError(f"inference, scales: expected at least one, from {low:g} to {high:g}, got {inference.scales}")


def _leaves(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}" if path else key, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(path, inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value
