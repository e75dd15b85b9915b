"""The whole network, image in, logits at image size out."""

from __future__ import annotations

from torch import Tensor, nn

from attnbench.models.heads import DecodeHead, FCNHead, LinearHead
from attnbench.models.layers import resize
from attnbench.models.small import Backbone
from operators.interface import Auxiliary

AUXILIARY_HEAD = "auxiliary_head"
"""Name of the auxiliary head's loss among the operator's."""


class Segmentor(nn.Module):
    """Backbone, decode head, bilinear resize to the image; an auxiliary head in training.

    Equation: `logits = resize(decode_head(features))` with `auxiliary_features, features = backbone(images)`.

    Args:
        backbone: from images to features.
        decode_head: from features to logits.
        auxiliary_head: from auxiliary features to logits of an extra loss; none for no such loss.
        auxiliary_weight: weight of that loss.

    Shape:
        `(B, 3, H, W) -> (B, num_classes, H, W)`.

    Raises:
        ValueError: if the operator names a loss of its own as the auxiliary head's is named.

    Deviations:
        Logits are resized with `align_corners=False`, as mmsegmentation does; EMANet and CCNet align corners.

    Example:
        >>> import torch
        >>> from operators.controls import Identity
        >>> from attnbench.models.small import SmallBackbone
        >>> segmentor = Segmentor(SmallBackbone(), DecodeHead(64, 5, Identity(16), channels=8))
        >>> tuple(segmentor(torch.zeros(2, 3, 33, 47)).shape)
        (2, 5, 33, 47)
    """

    def __init__(
        self,
        backbone: Backbone,
        decode_head: DecodeHead | LinearHead,
        auxiliary_head: FCNHead | None = None,
        *,
        auxiliary_weight: float = 0.4,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head
        self.auxiliary = dict(decode_head.auxiliary)
        if AUXILIARY_HEAD in self.auxiliary:
            raise ValueError(f"Segmentor: expected operator losses of other names, got {AUXILIARY_HEAD!r}")
        if auxiliary_head is not None:
            self.auxiliary[AUXILIARY_HEAD] = Auxiliary("pixel", auxiliary_weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits at image size; the auxiliary head does not run."""
        _, features = self.backbone(images)
        return resize(self.decode_head(features), _size(images))

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Auxiliary]]]:
        """Logits at image size, and for each extra loss its logits, its target and its weight.

        Raises:
            ValueError: if the operator returns other losses than its spec declares.
        """
        auxiliary_features, features = self.backbone(images)
        logits, extra = self.decode_head.forward_with_auxiliary(features)
        if self.auxiliary_head is not None:
            extra = {**extra, AUXILIARY_HEAD: self.auxiliary_head(auxiliary_features)}
        if extra.keys() != self.auxiliary.keys():
            raise ValueError(f"Segmentor: expected auxiliary logits {sorted(self.auxiliary)}, got {sorted(extra)}")
        size = _size(images)
        losses = {
            name: (
                resize(value, size) if self.auxiliary[name].target == "pixel" else value,
                self.auxiliary[name],
            )
            for name, value in extra.items()
        }
        return resize(logits, size), losses


def _size(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return height, width
