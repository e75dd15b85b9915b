"""States of every random generator that a training run may draw from, as tensors and plain data."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

States = dict[str, Any]


def random_states(device: torch.device) -> States:
    """States of the global generators of torch, of `device` where it is CUDA, of python and of numpy."""
    version, words, gauss = random.getstate()
    drawn: Any = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, list(words), gauss],
        "numpy": {
            "words": torch.from_numpy(drawn["state"]["key"].astype(np.int64)),
            "place": int(drawn["state"]["pos"]),
            "has_gauss": int(drawn["has_gauss"]),
            "gauss": float(drawn["gauss"]),
        },
    }


def set_random_states(states: States, device: torch.device) -> None:
    """Sets what `random_states` returned.

    Example:
        >>> states = random_states(torch.device("cpu"))
        >>> drawn = random.random(), np.random.rand(), torch.rand(())
        >>> set_random_states(states, torch.device("cpu"))
        >>> drawn == (random.random(), np.random.rand(), torch.rand(()))
        True
    """
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    drawn = states["numpy"]
    words = drawn["words"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, drawn["place"], drawn["has_gauss"], drawn["gauss"]))
