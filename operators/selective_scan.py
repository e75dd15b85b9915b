"""Selective scans over rows and columns, forwards and backwards: state-space attention of linear cost (VMamba)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source
from operators.registry import register

_DIRECTIONS = 4
# The authors' range of the steps at the start.
_SHORTEST, _LONGEST = 1e-3, 1e-1


def scan(decay: Tensor, step: Tensor) -> Tensor:
    """All states `h_t = decay_t h_{t-1} + step_t` with `h_{-1} = 0`, along the last dimension.

    Two successive steps are one step of half as many: `h_t = (decay_t decay_{t-1}) h_{t-2} + (decay_t step_{t-1} +
    step_t)`. So the odd states come from a scan of half the length, and the even ones from those before them. Nothing
    is divided, and products of decays in (0, 1] do not overflow.

    Args:
        decay: `(*, N)`.
        step: `(*, N)`.

    Cost:
        No matrix product; about `3 N` multiplications and `ceil(log2 N)` rounds.

    Example:
        >>> scan(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([4.0, 0.0, 1.0]))
        tensor([4., 2., 2.])
    """
    length = step.shape[-1]
    if length == 1:
        return step
    padded = F.pad(decay, (0, length % 2)), F.pad(step, (0, length % 2))
    (even_decay, odd_decay), (even_step, odd_step) = (x.reshape(*x.shape[:-1], -1, 2).unbind(-1) for x in padded)
    odd = scan(even_decay * odd_decay, odd_decay * even_step + odd_step)
    even = torch.cat((even_step[..., :1], even_decay[..., 1:] * odd[..., :-1] + even_step[..., 1:]), dim=-1)
    return torch.stack((even, odd), dim=-1).flatten(-2)[..., :length]


class SelectiveScan(nn.Module):
    """State-space recurrence along four sequences, whose step widths, inputs and outputs depend on the features.

    Equation: `h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t`, `y_t = C_t . h_t + D u_t` for each channel of each
    direction, with `A = -exp(log_decay)`, `delta = softplus(rate + bias)`, and `B` and `C` given as `enter` and
    `leave`.

    Args:
        width: `E`, channels.
        num_states: `n`, entries of a state.

    Shape:
        `sequence (B, 4, E, N), rate (B, 4, E, N), enter (B, 4, n, N), leave (B, 4, n, N) -> (B, 4, E, N)`.

    Cost:
        No matrix product; about `4 N E (6 n + 2)` multiplications.
    """

    def __init__(self, width: int, num_states: int) -> None:
        super().__init__()
        decay = torch.arange(1, num_states + 1, dtype=torch.get_default_dtype())
        self.log_decay = nn.Parameter(decay.log().expand(_DIRECTIONS, width, -1).clone())
        self.skip = nn.Parameter(torch.ones(_DIRECTIONS, width))
        shortest, longest = math.log(_SHORTEST), math.log(_LONGEST)
        delta = torch.empty(_DIRECTIONS, width).uniform_(shortest, longest).exp()
        self.bias = nn.Parameter(delta + torch.log(-torch.expm1(-delta)))

    def forward(self, sequence: Tensor, rate: Tensor, enter: Tensor, leave: Tensor) -> Tensor:
        """The outputs `y`."""
        delta = self.steps(rate)
        decay = torch.exp(delta[..., None, :] * -self.log_decay.exp()[..., None])  # (B, 4, E, n, N)
        states = scan(decay, (delta * sequence)[..., None, :] * enter[:, :, None])
        return (states * leave[:, :, None]).sum(3) + self.skip[..., None] * sequence

    def steps(self, rate: Tensor) -> Tensor:
        """Step widths `delta`, in the precision of the parameters: products of many decays lose too much in half."""
        return F.softplus(rate.to(self.bias.dtype) + self.bias[..., None])

    def weights(self, rate: Tensor, enter: Tensor, leave: Tensor, index: Tensor) -> Tensor:
        """Weights `(B, 4, E, N)` with which the output at `index` `(4)` of each sequence reads that sequence."""
        delta = self.steps(rate)
        passed = delta.cumsum(3)
        at = index.view(1, -1, 1, 1)
        until = passed.take_along_dim(at, 3) - passed  # (B, 4, E, N)
        decay = torch.exp(-until.clamp(min=0)[..., None, :] * self.log_decay.exp()[..., None])  # (B, 4, E, n, N)
        seen = leave.take_along_dim(at, 3)[:, :, None] * decay * enter[:, :, None]
        place = torch.arange(rate.shape[3], device=rate.device)
        past = torch.where(place <= at, seen.sum(3) * delta, 0)
        return past + (place == at) * self.skip[..., None]


def cross_scan(x: Tensor) -> Tensor:
    """Map `(B, C, H, W)` as sequences `(B, 4, C, N)`: along rows, along columns, and both backwards."""
    forwards = torch.stack((x.flatten(2), x.transpose(2, 3).flatten(2)), dim=1)
    return torch.cat((forwards, forwards.flip(3)), dim=1)


def cross_merge(x: Tensor, height: int, width: int) -> Tensor:
    """Sum `(B, C, H, W)` of four sequences `(B, 4, C, N)`, each back in its place."""
    rows, columns = (x[:, :2] + x[:, 2:].flip(3)).unbind(1)
    return rows.reshape(*rows.shape[:2], height, width) + columns.reshape(*rows.shape[:2], width, height).transpose(
        2, 3
    )


@register
class SelectiveScan2D(AttentionOperator):
    """Two-dimensional selective scan (SS2D) in its block: four recurrences by which every pixel reads all others.

    Equation: `y = x + W_o LN(sum_k unscan_k(S_k(scan_k(u))))`, `u = SiLU(K * (W_i LN(x)))` with a depthwise 3x3 kernel
    `K` and the recurrences `S_k` of `SelectiveScan` along rows, columns, and both backwards. Their rates, `B` and `C`
    are linear in `u`, the rates through `R` channels.

    Args:
        channels: width `C` of the map.
        expansion: `E / C`.
        num_states: `n`, entries of the state of each channel and direction.
        rank: `R`; by default `ceil(C / 16)`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N (2 C E + 9 E + 8 E (R + n))` multiply-accumulates. Not among them, as they are no matrix products: about
        `4 N E (6 n + 2)` multiplications element by element, in `ceil(log2 N)` rounds.

    Raises:
        ValueError: if an argument is below 1.

    Source:
        Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, arXiv:2401.10166, section 4.2, figures 2 and 3.

    Deviations:
        The operator is the first half of the block, without the feed-forward part. It is the final block: the product
        with a gate, which the first version had, is left out, and `n = 1`, `E = C`; the first version had 16 and `2 C`.
        As in the authors' code, `B` is discretised by `delta B`, and the projections and the convolution have no bias.
        The recurrence runs as a scan of logarithmic depth; the authors have a kernel that runs it in order.

    Example:
        >>> SelectiveScan2D(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="selective_scan",
        title="VMamba (SS2D)",
        source=Source(
            title="VMamba: Visual State Space Model",
            venue="NeurIPS",
            year=2024,
            url="https://arxiv.org/abs/2401.10166",
            equations="section 4.2, figures 2 and 3",
        ),
        reach="global",
        growth=1.0,
        deviations=(
            "The final block without its feed-forward part: no gate, one state, no expansion; the first version had a "
            "gate, 16 states and twice the channels.",
            "The recurrence runs as a scan of logarithmic depth; the authors have a kernel that runs it in order.",
        ),
    )
    core: SelectiveScan

    def __init__(self, channels: int, *, expansion: int = 1, num_states: int = 1, rank: int | None = None) -> None:
        super().__init__(channels)
        self.rank = -(-channels // 16) if rank is None else rank
        for name, value in {"expansion": expansion, "num_states": num_states, "rank": self.rank}.items():
            if value < 1:
                raise ValueError(f"SelectiveScan2D: expected {name} >= 1, got {value!r}")
        self.width, self.num_states = expansion * channels, num_states
        self.norm = nn.LayerNorm(channels)
        self.enter = nn.Linear(channels, self.width, bias=False)
        self.conv = nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.width, bias=False)
        bounds = 1 / math.sqrt(self.width), 1 / math.sqrt(self.rank)
        select = torch.empty(_DIRECTIONS, self.rank + 2 * num_states, self.width).uniform_(-bounds[0], bounds[0])
        self.select = nn.Parameter(select)
        self.rate = nn.Parameter(torch.empty(_DIRECTIONS, self.width, self.rank).uniform_(-bounds[1], bounds[1]))
        self.core = SelectiveScan(self.width, num_states)
        self.out_norm = nn.LayerNorm(self.width)
        self.leave = nn.Linear(self.width, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The map with what its pixels read along the four scans."""
        self.expect_map(x)
        sequences = self.core(*self.project(x))  # (B, 4, E, N)
        merged = cross_merge(sequences, x.shape[2], x.shape[3])  # (B, E, H, W)
        out: Tensor = self.leave(self.out_norm(merged.permute(0, 2, 3, 1)))  # (B, H, W, C)
        return x + out.permute(0, 3, 1, 2)

    def features(self, x: Tensor) -> Tensor:
        """What is scanned: `u` `(B, E, H, W)`."""
        entered = self.enter(self.norm(x.permute(0, 2, 3, 1)))  # (B, H, W, E)
        return F.silu(self.conv(entered.permute(0, 3, 1, 2).contiguous()))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sequences and rates `(B, 4, E, N)`, inputs and outputs `(B, 4, n, N)` of the recurrences."""
        sequence = cross_scan(self.features(x))  # (B, 4, E, N)
        selected = torch.matmul(self.select, sequence)  # (B, 4, R + 2 n, N)
        low, enter, leave = torch.split(selected, [self.rank, self.num_states, self.num_states], dim=2)
        return sequence, torch.matmul(self.rate, low), enter, leave

    def macs(self, height: int, width: int) -> int:
        """Both projections, the convolution, and what selects in four directions."""
        select = _DIRECTIONS * 2 * (self.rank + self.num_states)
        return height * width * self.width * (2 * self.channels + 9 + select)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, E, H, W)` with which each channel at `position` reads `u`, all four scans together.

        They follow from the recurrence, are signed and do not sum to one.
        """
        self.expect_position(x, position)
        (height, width), (row, column) = x.shape[-2:], position
        _, rate, enter, leave = self.project(x)
        along = row * width + column, column * height + row
        last = height * width - 1
        index = torch.tensor((*along, last - along[0], last - along[1]), device=x.device)
        return cross_merge(self.core.weights(rate, enter, leave, index), height, width)
