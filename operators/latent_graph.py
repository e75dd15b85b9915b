"""LatentGNN: pixels exchange messages through a few latent nodes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, divide_channels, merge_positions
from operators.layers import conv_norm_relu
from operators.registry import register

Mode = Literal["asymmetric", "symmetric"]


class LatentPropagation(nn.Module):
    """Messages from pixels to latent nodes, among these, and back; without parameters.

    Equation: `y_i = sum_k b_ki sum_m softmax_m(cos(z_k, z_m)) z_m` with the nodes `z_m = sum_j a_mj x_j`.

    Shape:
        `x (B, d, N), to_latent a (B, K, N), from_latent b (B, K, N) -> (B, d, N)`.

    Cost:
        `2 N K d + 2 K^2 d` multiply-accumulates.
    """

    def forward(self, x: Tensor, to_latent: Tensor, from_latent: Tensor) -> Tensor:
        """What the pixels receive."""
        nodes = torch.bmm(to_latent, x.transpose(1, 2))  # (B, K, d)
        received = torch.bmm(self.affinity(nodes), nodes)
        return torch.bmm(received.transpose(1, 2), from_latent)

    @staticmethod
    def affinity(nodes: Tensor) -> Tensor:
        """Weights `(B, K, K)` of the nodes among each other; each row sums to one."""
        directions = F.normalize(nodes, dim=2)
        return torch.softmax(torch.bmm(directions, directions.transpose(1, 2)), dim=2)

    def weights(self, x: Tensor, to_latent: Tensor, from_latent: Tensor) -> Tensor:
        """Effective weights `(B, M, N)` of the pixels for `M` of them, whose `from_latent` is `(B, K, M)`."""
        nodes = torch.bmm(to_latent, x.transpose(1, 2))  # (B, K, d)
        return torch.bmm(torch.bmm(from_latent.transpose(1, 2), self.affinity(nodes)), to_latent)


@register
class LatentGraph(AttentionOperator):
    """LatentGNN: a graph of all pixels as a product of sparse ones, from pixels to latent nodes and back.

    Equation: `y = x + gamma BN(W_o [Y_1; ...; Y_G])`, `gamma` starting at zero, with `Y_g` of `LatentPropagation` on
    `u` and on the weights of its group::

        u_i = BN(W_u x_i) / |BN(W_u x_i)|
        a_k = ReLU(BN(W_a u))_k / |ReLU(BN(W_a u))_k|        over the pixels
        b_i = ReLU(BN(W_b w))_i / |ReLU(BN(W_b w))_i|        over the nodes

    where `w` is made of `x` as `u` is, by weights of its own. With `mode="symmetric"`, `w = u` and `a = b`.

    Args:
        channels: width `C` of the map.
        latent_nodes: number `K_g` of latent nodes of each group.
        reduction: divisor of the width inside the block, `d = C / reduction`.
        mode: whether the weights to the nodes and from them are `"asymmetric"` or `"symmetric"`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `2 N C d + 4 N K d + N G d C + 2 d sum_g K_g^2` multiply-accumulates with `K = sum_g K_g`; with
        `mode="symmetric"`, `N C d + N K d` less.

    Raises:
        ValueError: if `latent_nodes` is empty or holds a number below 1, `reduction` does not divide `channels`, or
            `mode` is unknown.

    Source:
        Zhang et al., "LatentGNN: Learning Efficient Non-local Relations for Visual Recognition", ICML 2019,
        arXiv:1905.11634, latent graph neural network and mixture of low-rank kernels.

    Deviations:
        All normalisations are those of the authors' code: by Euclidean norms, of the weights to a node over the pixels
        and of the weights of a pixel over the nodes; in the symmetric mode all over the nodes. The nodes' affinity is
        a softmax of cosines. The convolution that their code can add to each group is left out, as by default there.

    Example:
        >>> block = LatentGraph(16, latent_nodes=(3, 4))
        >>> x = torch.randn(2, 16, 5, 7)
        >>> torch.equal(block(x), x)
        True
        >>> block.responsibilities(x).shape, block.attention(x, (0, 0)).shape
        (torch.Size([2, 7, 5, 7]), torch.Size([2, 2, 5, 7]))
    """

    spec = OperatorSpec(
        name="latent_graph",
        title="LatentGNN",
        source=Source(
            title="LatentGNN: Learning Efficient Non-local Relations for Visual Recognition",
            venue="ICML",
            year=2019,
            url="https://arxiv.org/abs/1905.11634",
            equations="section 3: latent graph neural network, mixture of low-rank kernels",
        ),
        reach="global",
        growth=1.0,
        deviations=(
            "Weights are normalised by Euclidean norms, to a node over the pixels and of a pixel over the nodes, and "
            "the nodes' affinity is a softmax of cosines, as in the authors' code.",
            "The convolution that the authors' code can add to each group is left out, as by default there.",
        ),
    )
    core: LatentPropagation

    def __init__(
        self, channels: int, *, latent_nodes: Sequence[int] = (100,), reduction: int = 4, mode: Mode = "asymmetric"
    ) -> None:
        super().__init__(channels)
        if not latent_nodes or min(latent_nodes) < 1:
            raise ValueError(f"LatentGraph: expected latent_nodes >= 1, got {tuple(latent_nodes)}")
        if mode not in get_args(Mode):
            raise ValueError(f"LatentGraph: expected mode in {get_args(Mode)}, got {mode!r}")
        self.width = divide_channels("LatentGraph", channels, reduction)
        self.latent_nodes = tuple(latent_nodes)
        self.symmetric = mode == "symmetric"
        self.down = _conv_norm(channels, self.width)
        self.to_latent = nn.ModuleList(conv_norm_relu(self.width, nodes) for nodes in latent_nodes)
        if not self.symmetric:
            self.down_from = _conv_norm(channels, self.width)
            self.from_latent = nn.ModuleList(conv_norm_relu(self.width, nodes) for nodes in latent_nodes)
        self.core = LatentPropagation()
        self.up = _conv_norm(len(self.latent_nodes) * self.width, channels)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Input plus what the pixels receive."""
        self.expect_map(x)
        pixels, weights = self._weights(x)
        received = torch.cat([self.core(pixels, *pair) for pair in weights], dim=1)  # (B, G d, N)
        out: Tensor = x + self.gamma * self.up(received.reshape(len(x), -1, *x.shape[-2:]))
        return out

    def _weights(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Pixels `(B, d, N)`, and for each group the weights `(B, K, N)` to its nodes and from them."""
        features = F.normalize(self.down(x), dim=1)  # (B, d, H, W)
        to_latent = [merge_positions(layer(features)) for layer in self.to_latent]
        if self.symmetric:
            shared = [F.normalize(weights, dim=1) for weights in to_latent]
            return merge_positions(features), list(zip(shared, shared, strict=True))
        others = F.normalize(self.down_from(x), dim=1)  # (B, d, H, W)
        from_latent = [F.normalize(merge_positions(layer(others)), dim=1) for layer in self.from_latent]
        normalised = [F.normalize(weights, dim=2) for weights in to_latent]
        return merge_positions(features), list(zip(normalised, from_latent, strict=True))

    def macs(self, height: int, width: int) -> int:
        """Convolutions, messages to the nodes and back, and those among the nodes."""
        pixels, nodes, sides = height * width, sum(self.latent_nodes), 1 if self.symmetric else 2
        convolutions = self.channels * (sides + len(self.latent_nodes)) + sides * nodes
        among = 2 * sum(count**2 for count in self.latent_nodes)
        return self.width * (pixels * (convolutions + 2 * nodes) + among)

    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        """Weights `(B, K, H, W)` of each pixel from the nodes of all groups, scaled to sum to one.

        A pixel whose weights all vanish belongs to all nodes alike.

        Raises:
            IndexError: if `stage` is not the only one there is.
        """
        self.expect_map(x)
        if stage not in (-1, 0):
            raise IndexError(f"LatentGraph: expected stage 0 or -1, got {stage!r}")
        weights = torch.cat([from_latent for _, from_latent in self._weights(x)[1]], dim=1)  # (B, K, N)
        total = weights.sum(dim=1, keepdim=True)
        shares = torch.where(total > 0, weights / total, 1 / weights.shape[1])
        return shares.reshape(len(x), -1, *x.shape[-2:])

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, G, H, W)` over the pixels through the nodes of each group; they need not sum to one."""
        self.expect_position(x, position)
        height, width = x.shape[-2:]
        index = position[0] * width + position[1]
        pixels, groups = self._weights(x)
        read = [self.core.weights(pixels, to, back[:, :, index : index + 1]) for to, back in groups]
        return torch.cat(read, dim=1).reshape(len(x), -1, height, width)


def _conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))
