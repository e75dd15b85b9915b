"""What mmsegmentation's decode heads have and the shared `DecodeHead` does not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.models.layers import ConvNormReLU, classifier
from operators.dual import DualAttention
from operators.dual_branches import ChannelAttention, PositionAttention
from operators.interface import Auxiliary


class MMSegHead(nn.Module):
    """Picks its feature maps out of a backbone's and gives them to a head.

    Args:
        head: from feature maps to logits.
        in_index: which maps it takes, in order.
        concat: whether they are resized to the first and concatenated.
        align_corners: how they are resized, and how a segmentor resizes the logits.

    Shape:
        A list of `(B, C_i, H_i, W_i)` -> `(B, num_classes, H, W)`.
    """

    def __init__(self, head: nn.Module, in_index: Sequence[int], *, concat: bool, align_corners: bool) -> None:
        super().__init__()
        self.head = head
        self.in_index = tuple(in_index)
        self.concat = concat
        self.align_corners = align_corners
        self.auxiliary: Mapping[str, Auxiliary] = getattr(head, "auxiliary", {})

    def forward(self, inputs: Sequence[Tensor], prior_logits: Tensor | None = None) -> Tensor:
        """Logits at the size of the head's features."""
        logits: Tensor = self.head(*self._chosen(inputs, prior_logits))
        return logits

    def forward_with_auxiliary(
        self, inputs: Sequence[Tensor], prior_logits: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the logits of each extra loss."""
        chosen = self._chosen(inputs, prior_logits)
        return _with_auxiliary(self.head, *chosen)

    def _chosen(self, inputs: Sequence[Tensor], prior_logits: Tensor | None) -> list[Tensor]:
        maps = [inputs[index] for index in self.in_index]
        if self.concat:
            size = maps[0].shape[-2:]
            maps = [torch.cat([self._resized(item, size) for item in maps], dim=1)]
        return maps if prior_logits is None else [*maps, prior_logits]

    def _resized(self, x: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)


class ChainHead(nn.Module):
    """A body from feature maps to features, and the classifier on them.

    Equation: `logits = W Dropout2d(body(features)) + b`.

    Args:
        body: from feature maps to `(B, channels, H, W)`; its `forward_with_auxiliary`, if it has one, gives the logits
            of extra losses.
        channels: channels in front of the classifier.
        num_classes: classes of the logits.
        dropout: rate at which whole channels are dropped in front of the classifier.
        auxiliary: target and weight of the body's extra losses.
    """

    def __init__(
        self,
        body: nn.Module,
        channels: int,
        num_classes: int,
        *,
        dropout: float = 0.1,
        auxiliary: Mapping[str, Auxiliary] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.auxiliary: Mapping[str, Auxiliary] = auxiliary or {}
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, num_classes)

    def forward(self, *features: Tensor) -> Tensor:
        """Logits at the size of the body's features."""
        logits: Tensor = self.classifier(self.dropout(self.body(*features)))
        return logits

    def forward_with_auxiliary(self, *features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the logits of each extra loss of the body."""
        out, logits = _with_auxiliary(self.body, *features)
        return self.classifier(self.dropout(out)), logits


def _with_auxiliary(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    forward: Callable[..., tuple[Tensor, dict[str, Tensor]]] | None = getattr(module, "forward_with_auxiliary", None)
    return (module(*inputs), {}) if forward is None else forward(*inputs)


def chain(**parts: nn.Module) -> nn.Sequential:
    """The named parts one behind the other."""
    return nn.Sequential(OrderedDict(parts))


class DualHead(nn.Module):
    """DANet's head: each attention between its own 3x3 convolutions, their sum classified.

    Equation: `logits = W (f_p + f_c) + b` with `f_p = conv_p2(position(conv_p1(x)))` and `f_c` likewise; each `f` has
    a classifier of its own for an extra loss. Only those drop channels, and the sum's.

    Args:
        in_channels: channels of the features.
        channels: channels of the branches.
        num_classes: classes of the logits.
        reduction: queries and keys of the position branch have `channels / reduction` channels.
        dropout: rate at which whole channels are dropped in front of a classifier.

    Source:
        Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019, figure 2, as mmsegmentation has it.
    """

    auxiliary = DualAttention.spec.auxiliary

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, *, reduction: int, dropout: float = 0.1
    ) -> None:
        super().__init__()
        attentions = {
            "position": PositionAttention(channels, reduction=reduction),
            "channel": ChannelAttention(channels),
        }
        self.branches = nn.ModuleDict(
            {
                name: chain(
                    reduction=ConvNormReLU(in_channels, channels),
                    operator=attention,
                    bottleneck=ConvNormReLU(channels, channels),
                )
                for name, attention in attentions.items()
            }
        )
        self.classifiers = nn.ModuleDict({name: classifier(channels, num_classes) for name in attentions})
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the branches' sum."""
        position, channel = (branch(features) for branch in self.branches.values())
        logits: Tensor = self.classifier(self.dropout(position + channel))
        return logits

    def forward_with_auxiliary(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of the sum, and of each branch."""
        out = {name: branch(features) for name, branch in self.branches.items()}
        logits = {name: self.classifiers[name](self.dropout(value)) for name, value in out.items()}
        return self.classifier(self.dropout(out["position"] + out["channel"])), logits
