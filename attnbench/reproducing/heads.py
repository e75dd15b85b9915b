"""What mmsegmentation's heads cost at the sizes that its zoo trains them at."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.models.mmseg import decode_head
from attnbench.models.mmseg.config import published_head
from attnbench.published import HEADS, ZooEntry, ZooRow, shown
from attnbench.published.zoo import CLASSES
from attnbench.reproducing.build import Built
from attnbench.reproducing.compute import compute
from attnbench.reproducing.networks import first_head

_STRIDE = 8
_PSA_MASKS = {"Cityscapes": (97, 97), "ADE20K": (66, 66), "VOC12aug": (97, 97)}


class _Heads(nn.Module):
    """One head, or two of which the second reads the logits of the first, on a backbone's four feature maps."""

    def __init__(self, configs: Iterable[dict[str, Any]]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(decode_head(config) for config in configs)

    def forward(self, *maps: Tensor) -> Tensor:
        """The logits of the last head."""
        logits: Tensor | None = None
        for head in self.heads:
            logits = head(list(maps), logits)
        assert logits is not None
        return logits


def zoo_entries(rows: Iterable[ZooRow]) -> list[ZooEntry]:
    """The runs of each method on each data set, beside what the project computes for the method's head.

    Args:
        rows: the zoo.
    """
    return [ZooEntry(runs, compute(partial(_head, runs[0]))) for runs in shown(rows)]


def _head(row: ZooRow) -> Built:
    kind, classes = HEADS[row.method][0], CLASSES[row.dataset]
    config = published_head(kind, classes)
    if kind == "PSAHead":
        config["mask_size"] = _PSA_MASKS[row.dataset]
    configs = [first_head(classes), config] if kind == "OCRHead" else [config]
    height, width = (side // _STRIDE for side in row.crop)
    shapes = [(256, 2 * height, 2 * width), *((channels, height, width) for channels in (512, 1024, 2048))]
    return Built(_Heads(configs), tuple(torch.empty(1, *shape) for shape in shapes))
