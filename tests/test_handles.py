"""MACs of each operation that has a handle, held against hand formulas and against torch's own counter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attnbench.measuring.cost import MacCount, count_macs
from attnbench.measuring.einsum import einsum_macs
from attnbench.measuring.handles import HANDLES, hides_products, is_matmul_class


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def count(function, *shapes):
    """Counts a function of tensors of these shapes; square matrices are kept invertible."""
    tensors = tuple(torch.rand(shape) for shape in shapes)
    for tensor in tensors:
        if tensor.ndim >= 2 and tensor.shape[-1] == tensor.shape[-2]:
            tensor += 10 * torch.eye(tensor.shape[-1])
    return count_macs(function if isinstance(function, nn.Module) else Calls(function), tensors)


def counted_by_torch(function, *shapes):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*(torch.rand(shape) for shape in shapes))
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


PRODUCTS = {
    "mm": (torch.mm, [(3, 4), (4, 5)], 60),
    "bmm": (torch.bmm, [(2, 3, 4), (2, 4, 5)], 120),
    "addmm": (torch.addmm, [(3, 5), (3, 4), (4, 5)], 60),
    "baddbmm": (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 120),
    "baddbmm of a row": (torch.baddbmm, [(1, 1, 5), (2, 3, 4), (2, 4, 5)], 120),
    "linear": (F.linear, [(2, 7, 4), (5, 4), (5,)], 280),
    "matmul": (torch.matmul, [(3, 4), (4, 5)], 60),
    "matmul batch x matrix": (torch.matmul, [(2, 3, 4), (4, 5)], 120),
    "matmul broadcast": (torch.matmul, [(7, 1, 3, 4), (2, 4, 5)], 840),
    "conv2d": (F.conv2d, [(2, 4, 9, 7), (6, 4, 3, 3)], 2 * 7 * 5 * 6 * 4 * 9),
    "conv2d with bias": (F.conv2d, [(2, 4, 9, 7), (6, 4, 3, 3), (6,)], 2 * 7 * 5 * 6 * 4 * 9),
    "conv2d strided": (lambda x, w: F.conv2d(x, w, stride=2), [(2, 4, 9, 7), (6, 4, 3, 3)], 2 * 4 * 3 * 6 * 4 * 9),
    "conv2d dilated": (lambda x, w: F.conv2d(x, w, dilation=3), [(1, 4, 9, 8), (6, 4, 3, 3)], 3 * 2 * 6 * 4 * 9),
    "conv2d grouped": (lambda x, w: F.conv2d(x, w, groups=2), [(1, 4, 9, 8), (6, 2, 3, 3)], 7 * 6 * 6 * 2 * 9),
    "conv2d depthwise": (lambda x, w: F.conv2d(x, w, groups=4, padding=1), [(1, 4, 9, 8), (4, 1, 3, 3)], 72 * 36),
    "conv2d same": (lambda x, w: F.conv2d(x, w, padding="same"), [(2, 4, 9, 7), (6, 4, 3, 3)], 2 * 63 * 216),
    "conv2d unbatched": (F.conv2d, [(4, 9, 7), (6, 4, 3, 3)], 7 * 5 * 6 * 4 * 9),
    "conv1d": (F.conv1d, [(2, 4, 9), (6, 4, 3)], 2 * 7 * 6 * 4 * 3),
    "conv3d": (F.conv3d, [(2, 4, 5, 6, 7), (6, 4, 3, 3, 1)], 2 * 3 * 4 * 7 * 6 * 4 * 9),
    "conv_transpose2d": (F.conv_transpose2d, [(2, 4, 5, 6), (4, 3, 2, 2)], 2 * 30 * 4 * 3 * 4),
    "conv_transpose2d strided": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=2),
        [(2, 4, 5, 6), (4, 3, 2, 2)],
        2 * 30 * 4 * 3 * 4,
    ),
    "einsum": (lambda a, b: torch.einsum("bnk,bnc->bkc", a, b), [(2, 7, 3), (2, 7, 5)], 210),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_product_equals_its_formula_and_torch(name):
    function, shapes, macs = PRODUCTS[name]
    assert count(function, *shapes).macs == macs
    assert counted_by_torch(function, *shapes) == macs


BEYOND_TORCH = {
    "addmm_": (lambda c, a, b: (c * 1).addmm_(a, b), [(3, 5), (3, 4), (4, 5)], 60),
    "matmul vector x vector": (torch.matmul, [(4,), (4,)], 4),
    "matmul matrix x vector": (torch.matmul, [(3, 4), (4,)], 12),
    "matmul vector x matrix": (torch.matmul, [(4,), (4, 3)], 12),
    "matmul batch x vector": (torch.matmul, [(2, 3, 4), (4,)], 24),
    "matmul vector x batch": (torch.matmul, [(4,), (2, 4, 3)], 24),
    "linear with a vector": (F.linear, [(2, 4), (4,)], 8),
    "mv": (torch.mv, [(3, 4), (4,)], 12),
    "addmv": (torch.addmv, [(3,), (3, 4), (4,)], 12),
    "dot": (torch.dot, [(4,), (4,)], 4),
    "vdot": (torch.vdot, [(4,), (4,)], 4),
    "vecdot": (torch.linalg.vecdot, [(2, 1, 4), (3, 4)], 24),
    "inner": (torch.inner, [(2, 3, 4), (5, 4)], 120),
    "outer": (torch.outer, [(3,), (4,)], 12),
    "addr": (torch.addr, [(3, 4), (3,), (4,)], 12),
    "addbmm": (torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)], 120),
    "tensordot": (lambda a, b: torch.tensordot(a, b, dims=([1, 2], [1, 0])), [(2, 3, 4), (4, 3, 5)], 120),
    "inverse": (torch.inverse, [(7, 3, 3)], 7 * 27),
    "linalg.inv": (torch.linalg.inv, [(5, 5)], 125),
    "linalg.inv_ex": (lambda a: torch.linalg.inv_ex(a).inverse, [(5, 5)], 125),
    "solve": (torch.linalg.solve, [(7, 3, 3), (7, 3, 4)], 7 * (27 + 36)),
    "solve for a vector": (torch.linalg.solve, [(3, 3), (3,)], 27 + 9),
    "solve from the right": (lambda a, b: torch.linalg.solve(a, b, left=False), [(3, 3), (4, 3)], 27 + 36),
    "solve_ex": (lambda a, b: torch.linalg.solve_ex(a, b).result, [(3, 3), (3, 2)], 27 + 18),
}


@pytest.mark.parametrize("name", BEYOND_TORCH)
def test_product_equals_its_formula(name):
    function, shapes, macs = BEYOND_TORCH[name]
    counted = count(function, *shapes)
    assert counted.macs == macs
    assert type(counted.macs) is int


EINSUMS = {
    "bij,bjk->bik": ([(2, 3, 4), (2, 4, 5)], 120),
    "b i j , b j k -> b i k": ([(2, 3, 4), (2, 4, 5)], 120),
    "ij,jk": ([(3, 4), (4, 5)], 60),
    "...ij,...jk->...ik": ([(7, 1, 3, 4), (2, 4, 5)], 840),
    "...ij,jk": ([(7, 2, 3, 4), (4, 5)], 840),
    "ij,jk,kl->il": ([(3, 4), (4, 5), (5, 6)], 60 + 90),
    "i,j->ij": ([(3,), (4,)], 12),
    "ij,ij->": ([(3, 4), (3, 4)], 12),
    "ij,kl->il": ([(3, 4), (5, 6)], 18),
    "bij,bjk->ik": ([(2, 3, 4), (2, 4, 5)], 120),
    "bij,jk->ik": ([(2, 3, 4), (4, 5)], 60),
    "ij,jk->ik": ([(3, 1), (4, 5)], 15),
    "ii,i->i": ([(3, 3), (3,)], 3),
    "ij->ji": ([(3, 4)], 0),
}


@pytest.mark.parametrize("equation", EINSUMS)
def test_einsum_is_counted_as_torch_contracts(equation):
    shapes, macs = EINSUMS[equation]
    assert einsum_macs(equation, shapes) == macs
    if len(shapes) < 3:
        assert count(lambda *tensors: torch.einsum(equation, *tensors), *shapes).macs == macs


@pytest.mark.skipif(torch.backends.opt_einsum.is_available(), reason="opt_einsum chooses another order")
def test_einsum_of_three_goes_from_left_to_right():
    shapes = [(3, 4), (4, 5), (5, 6)]
    assert count(lambda *tensors: torch.einsum("ij,jk,kl->il", *tensors), *shapes).macs == 150


def test_einsum_follows_a_path():
    shapes = [(3, 4), (4, 5), (5, 1), (1, 6)]
    assert einsum_macs("ij,jk,kl,lm->im", shapes, [2, 3, 1, 2, 0, 1]) == 5 * 6 + 4 * 5 * 6 + 3 * 4 * 6


def test_einsum_needs_all_digits():
    """The order of EMA's loop at 65 x 65: fvcore's own parse of four digits gives 969 134 400."""

    def loop(x, mu):
        for _ in range(3):
            z = torch.softmax(torch.einsum("bcn,bck->bnk", x, mu), dim=2)
            mu = torch.einsum("bcn,bnk->bck", x, z)
        return torch.einsum("bck,bnk->bcn", mu, z)

    assert count(loop, (1, 512, 4225), (1, 512, 64)).macs == 7 * 512 * 64 * 4225 == 969_113_600


def test_bmm_loop_is_exact():
    def loop(x, mu):
        for _ in range(3):
            z = torch.softmax(torch.bmm(x.transpose(1, 2), mu), dim=2)
            mu = torch.bmm(x, z)
        return torch.bmm(mu, z.transpose(1, 2))

    counted = count(loop, (1, 512, 4225), (1, 512, 64))
    assert counted == MacCount(969_113_600, ("aten::softmax x3",))


def explicit(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def fused_transposed(q, k, v):
    return F.scaled_dot_product_attention(q.transpose(1, 2).contiguous().transpose(1, 2), k, v)


@pytest.mark.parametrize("attention", [explicit, fused, fused_transposed])
def test_attention_costs_the_same_however_it_is_computed(attention):
    assert count(attention, (2, 3, 9, 8), (2, 3, 7, 8), (2, 3, 7, 5)).macs == 6 * 9 * 7 * (8 + 5)


def test_attention_mask_and_causality_do_not_change_the_count():
    shapes = [(2, 3, 9, 8)] * 3
    causal = count(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), *shapes)
    masked = count(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(9, 9) > 0), *shapes)
    assert causal.macs == masked.macs == 6 * 81 * 16


def test_grouped_query_attention():
    def attention(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    assert count(attention, (2, 6, 9, 8), (2, 3, 7, 8), (2, 3, 7, 8)).macs == 12 * 9 * 7 * 16


class SelfAttention(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, **settings)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def test_multi_head_attention_on_its_fast_and_slow_path():
    macs = 2 * (4 * 5 * 16 * 16 + 2 * 5 * 5 * 16)
    fast = count(SelfAttention(batch_first=True), (2, 5, 16))
    slow = count(SelfAttention(batch_first=False), (5, 2, 16))
    assert fast.macs == slow.macs == macs


def test_multi_head_attention_with_keys_of_another_width():
    module = nn.MultiheadAttention(16, 2, kdim=8, vdim=12, batch_first=True)
    projections = 5 * 16 * 16 + 7 * 8 * 16 + 7 * 12 * 16 + 5 * 16 * 16
    assert count(module, (2, 5, 16), (2, 7, 8), (2, 7, 12)).macs == 2 * (projections + 2 * 5 * 7 * 16)


def test_transformer_layer_fast_path():
    module = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    macs = 2 * (4 * 5 * 16 * 16 + 2 * 5 * 5 * 16 + 2 * 5 * 16 * 32)
    assert count(module, (2, 5, 16)).macs == macs


def test_classes_of_operations():
    assert all(is_matmul_class(name) or name.endswith(("outer", "ger", "addr", "inner", "_fwd")) for name in HANDLES)
    harmless = (
        "upsample_bilinear2d linalg_vector_norm norm _weight_norm resolve_conj im2col softmax cummax igamma lgamma"
    )
    assert not [
        name for name in harmless.split() if is_matmul_class(f"aten::{name}") or hides_products(f"aten::{name}")
    ]
    assert hides_products("torchvision::deform_conv2d")
    assert not hides_products("prim::ListConstruct")
