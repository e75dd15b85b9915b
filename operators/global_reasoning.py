"""Global reasoning: pixels are projected to a few nodes, which reason on a graph and are broadcast back (GloRe)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, Implementation, OperatorSpec, Source, merge_positions
from operators.layers import branch_width
from operators.registry import register


class InteractionSpace(nn.Module):
    """Nodes gathered from pixels, a graph convolution of them, and their way back to the pixels.

    Equation, from pixels `X (C, N)` and projection weights `B (K, N)`::

        V = (W_s X + b_s 1^T) B^T / N
        Z = W_g ReLU(V (I - A_g)^T - a_g)
        Y = W_e Z B

    with learned adjacency `A_g (K, K)`, whose bias `a_g` is one number for each node.

    Args:
        channels: width `C` of the pixels.
        width: `S`, channels of a node's state.
        num_nodes: number `K` of nodes.
        normalize: whether `V` is divided by `N`.
        rectify: whether there is the ReLU.
        fused: whether `W_s` and `W_e` map the `K` nodes instead of the `N` pixels; both commute with the projection.

    Shape:
        `pixels (B, C, N), projection (B, K, N) -> (B, C, N)`.

    Cost:
        `2 N S (C + K) + S K (S + K)` multiply-accumulates; fused, `2 N C K + 2 C S K + S K (S + K)`.
    """

    def __init__(
        self, channels: int, width: int, num_nodes: int, *, normalize: bool, rectify: bool, fused: bool
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.rectify = rectify
        self.fused = fused
        self.state = nn.Conv1d(channels, width, 1)
        self.adjacency = nn.Conv1d(num_nodes, num_nodes, 1)
        self.update = nn.Conv1d(width, width, 1, bias=False)
        self.extend = nn.Conv1d(width, channels, 1, bias=False)

    def forward(self, pixels: Tensor, projection: Tensor) -> Tensor:
        """What the pixels get back from the nodes."""
        nodes = self.reason(self._gather(pixels, projection))  # (B, S, K)
        if self.fused:
            return torch.bmm(self.extend(nodes), projection)
        extended: Tensor = self.extend(torch.bmm(nodes, projection))
        return extended

    def _gather(self, pixels: Tensor, projection: Tensor) -> Tensor:
        weights = projection.transpose(1, 2)  # (B, N, K)
        if self.fused:
            gathered = F.conv1d(torch.bmm(pixels, weights), self.state.weight)  # (B, S, K)
            assert self.state.bias is not None
            nodes = gathered + self.state.bias.unsqueeze(1) * projection.sum(2).unsqueeze(1)
        else:
            nodes = torch.bmm(self.state(pixels), weights)
        return nodes / pixels.shape[2] if self.normalize else nodes

    def reason(self, nodes: Tensor) -> Tensor:
        """Graph convolution `(B, S, K) -> (B, S, K)`."""
        differences = nodes - self.adjacency(nodes.transpose(1, 2)).transpose(1, 2)
        updated: Tensor = self.update(F.relu(differences) if self.rectify else differences)
        return updated

    def macs(self, pixels: int) -> int:
        """Multiply-accumulates for `N` pixels."""
        nodes, width, channels = self.adjacency.in_channels, self.update.in_channels, self.state.in_channels
        graph = width * nodes * (width + nodes)
        if self.fused:
            return 2 * channels * nodes * (pixels + width) + graph
        return 2 * pixels * width * (channels + nodes) + graph


@register
class GlobalReasoning(AttentionOperator):
    """Global reasoning unit: a graph convolution between a few nodes that all pixels are projected to.

    Equation: `y = x + BN(Y)` with `Y` of `InteractionSpace` on the pixels and on the weights `B = W_p x + b_p`. The
    normalisation starts at zero. The weights are neither positive nor normalised, and a ReLU lies between gathering
    and broadcasting: there are no effective weights over positions to show.

    Args:
        channels: width `C` of the map.
        num_nodes: number `K` of nodes; by default `C / 4`.
        width: `S`, channels of a node's state; by default `C / 2`.
        normalize: whether the sums over pixels are means.
        rectify: whether a ReLU lies between the adjacency and the update of the states.
        implementation: `"reference"` maps the pixels to states and back; `"fused"` maps the nodes, which is leaner
            where `C K < S (C + K)`, as by default.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N C K + 2 N S (C + K) + S K (S + K)` multiply-accumulates; fused, `3 N C K + 2 C S K + S K (S + K)`.

    Raises:
        ValueError: if an argument is outside its range, or `channels` is not divisible where a share of it is the
            default.

    Source:
        Chen et al., "Graph-Based Global Reasoning Networks", CVPR 2019, arXiv:1811.12814, projection, graph
        convolution and reverse projection of section 3.

    Deviations:
        The sums over pixels are divided by `N`, which the authors' code has for maps whose size varies; by default it
        does not, nor do the equations (`normalize=False`). The ReLU between adjacency and update is the authors'
        code's, not the equation's (`rectify=False`). Their code adds the product with the adjacency to the nodes;
        here it is subtracted, as in the equation, with weights of opposite sign the same function.

    Example:
        >>> block = GlobalReasoning(16)
        >>> x = torch.randn(2, 16, 5, 7)
        >>> torch.equal(block(x), x)
        True
    """

    spec = OperatorSpec(
        name="global_reasoning",
        title="GloRe",
        source=Source(
            title="Graph-Based Global Reasoning Networks",
            venue="CVPR",
            year=2019,
            url="https://arxiv.org/abs/1811.12814",
            equations="section 3: projection, graph convolution, reverse projection",
        ),
        reach="global",
        growth=1.0,
        implementations=("reference", "fused"),
        deviations=(
            "Sums over pixels are divided by their number, as the authors' code does where sizes vary, but not the "
            "equations: `normalize`.",
            "A ReLU lies between adjacency and update as in the authors' code, not in the equation: `rectify`.",
            "The adjacency is subtracted as in the equation; the authors' code adds it.",
        ),
    )
    core: InteractionSpace

    def __init__(
        self,
        channels: int,
        *,
        num_nodes: int | None = None,
        width: int | None = None,
        normalize: bool = True,
        rectify: bool = True,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        if num_nodes is not None and num_nodes < 1:
            raise ValueError(f"GlobalReasoning: expected num_nodes >= 1, got {num_nodes!r}")
        if implementation not in self.spec.implementations:
            raise ValueError(
                f"GlobalReasoning: expected implementation in {self.spec.implementations}, got {implementation!r}"
            )
        nodes = branch_width("GlobalReasoning", channels, num_nodes, 4)
        state = branch_width("GlobalReasoning", channels, width, 2)
        self.projection = nn.Conv2d(channels, nodes, 1)
        self.core = InteractionSpace(
            channels, state, nodes, normalize=normalize, rectify=rectify, fused=implementation == "fused"
        )
        self.norm = nn.BatchNorm2d(channels, eps=1e-4)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Input plus what the nodes give back."""
        self.expect_map(x)
        read = self.core(merge_positions(x), merge_positions(self.projection(x)))  # (B, C, N)
        out: Tensor = x + self.norm(read.reshape(x.shape))
        return out

    def macs(self, height: int, width: int) -> int:
        """Projection weights, and the way through the nodes."""
        pixels = height * width
        return pixels * self.projection.weight.numel() + self.core.macs(pixels)
