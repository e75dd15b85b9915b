"""Products of every operator three ways, of the backward pass against formulas, and where plain counters are wrong."""

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import operators
from attnbench import worker
from attnbench.measuring.cost import MacCount, count_macs
from attnbench.measuring.flop_counter import count_work
from attnbench.workload import Workload
from operators.checks.products import product_counter

ROWS = [(name, way) for name in operators.names() for way in operators.get(name).spec.implementations]


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def work(function, *tensors, training=False):
    """The work of a function of tensors, or of a module, forward or in one training step."""
    module = function if isinstance(function, nn.Module) else Calls(function)
    tensors = tuple(tensor.requires_grad_(training) for tensor in tensors)
    return count_work(Workload(module, tensors, "training" if training else "forward").step, module, tensors)


def plain(function, *tensors, training=False):
    """MACs by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        out = function(*(tensor.requires_grad_(training) for tensor in tensors))
        if training:
            out.sum().backward()
    return counter.get_total_flops() // 2


def build(name, implementation, channels=64):
    settings = {} if implementation == "reference" else {"implementation": implementation}
    try:
        return operators.get(name)(channels, **settings).eval()
    except TypeError:
        return operators.get(name)(channels, num_classes=19, **settings).eval()


@pytest.mark.parametrize("size", [(9, 9), (13, 10)])
@pytest.mark.parametrize(("name", "implementation"), ROWS)
def test_closed_form_trace_and_dispatcher_agree(name, implementation, size):
    module, x = build(name, implementation), torch.randn(2, 64, *size)
    dispatched = work(module, x)
    assert 2 * module.macs(*size) == count_macs(module, (x,)).macs == dispatched.macs
    assert dispatched.unruled == dispatched.hidden == ()
    assert dispatched.macs_backward == dispatched.elementwise_backward == 0


@pytest.mark.parametrize(("name", "implementation"), ROWS)
def test_every_operation_of_a_training_step_has_a_rule(name, implementation):
    module = build(name, implementation).train()
    counted = work(module, torch.randn(2, 64, 7, 9), training=True)
    assert counted.unruled == counted.hidden == ()
    assert counted.bytes_moved >= counted.bytes_compulsory > 0


def conv(*shape, **options):
    return lambda x, w: F.conv2d(x, w, **options), [torch.randn(2, shape[0], 9, 7), torch.randn(shape[1:])]


# function and tensors, MACs of the backward pass: each product once for each of its two operands
BACKWARD = {
    "conv": (*conv(4, 6, 4, 3, 3), 2 * (2 * 7 * 5) * 6 * 4 * 9),
    "conv strided": (*conv(4, 6, 4, 3, 3, stride=2), 2 * (2 * 4 * 3) * 6 * 4 * 9),
    "conv dilated": (*conv(4, 6, 4, 3, 3, dilation=3), 2 * (2 * 3 * 1) * 6 * 4 * 9),
    "conv grouped": (*conv(4, 6, 2, 3, 3, groups=2), 2 * (2 * 7 * 5) * 6 * 2 * 9),
    "conv depthwise": (*conv(4, 4, 1, 3, 3, groups=4, padding=1), 2 * (2 * 9 * 7) * 4 * 9),
    "conv transposed": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=2),
        [torch.randn(2, 4, 5, 6), torch.randn(4, 3, 2, 2)],
        2 * (2 * 5 * 6) * 4 * 3 * 4,
    ),
    "linear": (F.linear, [torch.randn(2, 7, 4), torch.randn(5, 4)], 2 * 2 * 7 * 4 * 5),
    "bmm": (torch.bmm, [torch.randn(2, 3, 4), torch.randn(2, 4, 5)], 2 * 2 * 3 * 4 * 5),
    "baddbmm": (
        torch.baddbmm,
        [torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randn(2, 4, 5)],
        2 * 2 * 3 * 4 * 5,
    ),
    "einsum": (
        lambda a, b: torch.einsum("bnk,bnc->bkc", a, b),
        [torch.randn(2, 7, 3), torch.randn(2, 7, 5)],
        2 * 2 * 7 * 3 * 5,
    ),
    "inverse": (torch.inverse, [torch.randn(2, 4, 4) + 9 * torch.eye(4)], 2 * 2 * 4**3),
    "attention of the CPU": (
        F.scaled_dot_product_attention,
        [torch.randn(2, 3, 7, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)],
        5 * 2 * 3 * 7 * 5 * 8,
    ),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_backward_pass_equals_its_formula(name):
    function, tensors, macs = BACKWARD[name]
    counted = work(function, *tensors, training=True)
    assert counted.macs_backward == macs
    assert counted.hidden == ()


def test_gradient_that_nobody_wants_is_not_counted():
    module = nn.Conv2d(4, 6, 3, bias=False).requires_grad_(False)
    assert work(module, torch.randn(1, 4, 9, 7), training=True).macs_backward == 7 * 5 * 6 * 4 * 9


def test_attention_as_matrix_products_keeps_its_map_and_needs_four_products_backward():
    tensors = [torch.randn(2, 3, 7, 8) for _ in range(3)]
    with sdpa_kernel(SDPBackend.MATH):
        counted = work(F.scaled_dot_product_attention, *tensors, training=True)
    assert counted.macs == 2 * (2 * 3 * 7 * 7 * 8)
    assert counted.macs_backward == 4 * (2 * 3 * 7 * 7 * 8)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x @ x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad @ x.T + x.T @ grad


def test_products_inside_custom_functions_are_seen():
    assert count_macs(Calls(Squared.apply), (torch.randn(5, 5),)).macs == 0
    counted = work(Squared.apply, torch.randn(5, 5), training=True)
    assert (counted.macs, counted.macs_backward) == (125, 250)


def test_recomputed_products_belong_to_the_backward_pass():
    linear = nn.Linear(4, 5, bias=False)
    module = Calls(lambda x: checkpoint(lambda y: linear(y).exp(), x, use_reentrant=False))
    counted = work(module, torch.randn(3, 4), training=True)
    assert (counted.macs, counted.macs_backward) == (60, 60 + 120)


SDPA = 2 * 2 * 3 * 7 * 7 * 8
LAYOUTS = {
    "contiguous": lambda: torch.randn(2, 3, 7, 8),
    "heads inside": lambda: torch.randn(2, 7, 3, 8).transpose(1, 2),
    "channels first": lambda: torch.randn(2, 3, 8, 7).transpose(2, 3),
}


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_counts_the_same_in_every_layout(layout, training):
    leaves = [LAYOUTS[layout]() for _ in range(3)]
    assert work(F.scaled_dot_product_attention, *leaves, training=training).macs == SDPA


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.ones(7, 7, dtype=torch.bool)}])
def test_mask_changes_nothing(options):
    leaves = [torch.randn(2, 3, 7, 8) for _ in range(3)]
    assert work(lambda *qkv: F.scaled_dot_product_attention(*qkv, **options), *leaves).macs == SDPA


def test_plain_counter_takes_fused_attention_of_the_cpu_for_nothing():
    leaves = [torch.randn(2, 3, 7, 8) for _ in range(3)]
    assert plain(F.scaled_dot_product_attention, *leaves) == 0
    assert work(F.scaled_dot_product_attention, *leaves).macs == SDPA


def test_plain_counter_takes_depthwise_backward_for_dense():
    def depthwise():
        return [torch.randn(1, 64, 9, 9), torch.randn(64, 1, 3, 3)]

    def function(x, w):
        return F.conv2d(x, w, groups=64, padding=1)

    right = work(function, *depthwise(), training=True)
    assert right.macs + right.macs_backward == 3 * 81 * 64 * 9
    wrong = plain(function, *depthwise(), training=True)
    assert wrong == 22 * (right.macs + right.macs_backward)


@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (torch.mv, [(3, 4), (4,)], 12),
        (torch.dot, [(4,), (4,)], 4),
        (torch.addmv, [(3,), (3, 4), (4,)], 12),
        (torch.addr, [(3, 4), (3,), (4,)], 12),
        (lambda c, a, b: (c * 1).addmm_(a, b), [(3, 5), (3, 4), (4, 5)], 60),
        (lambda c, a, b: (c * 1).baddbmm_(a, b), [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 120),
        (torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)], 120),
        (torch.inverse, [(4, 4)], 64),
        (torch.linalg.solve, [(4, 4), (4, 2)], 64 + 32),
    ],
)
def test_what_the_plain_counter_lacks(function, shapes, macs):
    leaves = [torch.rand(shape) + (9 * torch.eye(4) if shape == (4, 4) else 0) for shape in shapes]
    assert plain(function, *leaves) < macs
    counted = work(function, *leaves)
    assert counted.macs == macs
    assert counted.hidden == ()


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("kind", ["attention", "layer"])
def test_fast_path_counts_what_the_slow_one_counts(kind):
    torch.manual_seed(0)
    if kind == "attention":
        call = SelfAttention(16, 4, batch_first=True)
    else:
        call = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    x = torch.randn(2, 7, 16)
    call.eval()
    with torch.no_grad():
        assert plain(call, x.clone()) == 0
    fast = work(call, x)
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        slow = work(call, x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert fast.macs == slow.macs == count_macs(call, (x,)).macs > 0
    assert fast.elementwise == pytest.approx(slow.elementwise, rel=0.3)


def test_einsum_is_exact_where_fvcore_alone_has_four_digits():
    module = Calls(lambda a, b: torch.einsum("bnc,bkc->bnk", a, b))
    tensors = (torch.randn(1, 4225, 512), torch.randn(1, 64, 512))
    exact = 4225 * 64 * 512
    alone = FlopCountAnalysis(module, tensors).unsupported_ops_warnings(False).total()
    assert (alone, exact) == (138_450_000, 138_444_800)
    assert count_macs(module, tensors).macs == work(module, *tensors).macs == exact


def test_product_without_a_rule_is_named_as_hidden():
    counted = work(torch.linalg.cholesky, 9 * torch.eye(4))
    assert counted.hidden == ("aten::linalg_cholesky_ex",)
    assert counted.unruled == ("aten::linalg_cholesky_ex x1",)


def test_counter_doubles_products():
    with product_counter() as counter:
        torch.mv(torch.ones(3, 4), torch.ones(4))
    assert counter.get_total_flops() == 24


# Bytes: float32, so four of them for each element.


def test_bytes_of_a_chain_of_operations():
    x = torch.randn(10, 10)
    counted = work(lambda x: (x + 1) * 2, x)
    assert counted.bytes_compulsory == 400 + 400
    assert counted.bytes_moved == 400 + 400 + 400 + 400
    assert counted.elementwise == 200


def test_views_move_nothing_and_expanded_tensors_are_read_once():
    counted = work(lambda x: x.t().reshape(5, 2, 10).transpose(0, 1), torch.randn(10, 10).t())
    assert (counted.bytes_moved, counted.bytes_compulsory) == (0, 0)
    counted = work(lambda row: row.expand(10, 10) + 1, torch.randn(10))
    assert counted.bytes_moved == counted.bytes_compulsory == 40 + 400


def test_in_place_work_reads_and_writes_its_operand():
    assert work(lambda x: (x + 0).relu_(), torch.randn(100)).bytes_moved == 4 * 400
    assert work(lambda x: torch.empty_like(x).copy_(x), torch.randn(100)).bytes_moved == 2 * 400


def test_picking_reads_what_it_returns():
    counted = work(lambda x: x[:, torch.tensor([1, 2])], torch.randn(100, 50))
    assert counted.bytes_moved == 2 * 800 + 16


def test_an_operand_that_stands_twice_is_read_once():
    assert work(lambda x: x * x, torch.randn(100)).bytes_moved == 800


def test_weights_and_buffers_that_are_read_must_move():
    module = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)).eval()
    module.unused = nn.Parameter(torch.zeros(1000))
    counted = work(module, torch.randn(1, 4, 5, 6))
    weights = 8 * 4 + 8 + 8 + 8 + 8 + 8
    assert counted.bytes_compulsory == 4 * (4 * 30 + 8 * 30 + weights)


def test_gradients_must_move_too():
    module = nn.Linear(4, 5, bias=False)
    counted = work(module, torch.randn(3, 4), training=True)
    read_and_written = 3 * 4 + 5 * 4 + 3 * 5
    assert counted.bytes_compulsory == 4 * 2 * read_and_written


def test_fields_hold_what_the_mode_has():
    forward = work(nn.Linear(4, 5), torch.randn(3, 4)).fields("forward")
    training = work(nn.Linear(4, 5), torch.randn(3, 4), training=True).fields("training")
    assert forward["macs_dispatched"] == 60
    assert "macs_backward" not in forward
    assert training["macs_backward"] == 120
    assert "macs_dispatched" not in training


def test_counters_that_disagree_make_a_note():
    module, x = Calls(Squared.apply), torch.randn(5, 5)
    workload = Workload(module, (x,), "forward")
    fields = worker._count_work(workload, count_macs(module, (x,)))
    assert fields["macs_dispatched"] == 125
    assert workload.notes == ["the trace counts 0 MACs, the dispatcher 125"]


def test_hidden_products_make_a_note():
    module, x = Calls(torch.linalg.cholesky), 9 * torch.eye(4)
    workload = Workload(module, (x,), "forward")
    worker._count_work(workload, MacCount(0, ()))
    assert workload.notes == [
        "MACs at the dispatcher are a lower bound: aten::linalg_cholesky_ex may hide products",
    ]


def test_counters_that_agree_make_none():
    module, x = nn.Linear(4, 5), torch.randn(3, 4)
    workload = Workload(module, (x,), "forward")
    assert worker._count_work(workload, count_macs(module, (x,)))["macs_dispatched"] == 60
    assert workload.notes == []
