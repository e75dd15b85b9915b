"""Peaks held against sizes worked out by hand, in bytes of float32."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import operators
from attnbench.measuring.memory import peak_bytes

CPU = torch.device("cpu")
N = 1000


def peak(step, **settings):
    """The peak of a step, which must be the same three times over."""
    found = {peak_bytes(step, CPU, **settings) for _ in range(3)}
    assert len(found) == 1
    return found.pop()


def inference(function):
    @torch.no_grad()
    def step():
        return function()

    return step


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(N)


def test_nothing_made_is_nothing_counted(x):
    assert peak(lambda: None) == 0
    assert peak(lambda: x) == 0


def test_views_and_in_place_work_are_free(x):
    def step():
        x.view(10, 100).t()[1:3].unsqueeze(0)
        x.mul_(1.0).add_(0.0)

    assert peak(step) == 0


def test_a_chain_holds_two_at_a_time(x):
    assert peak(lambda: (((x + 1) * 2).exp() - 3).relu()) == 2 * 4 * N


def test_names_keep_alive(x):
    def step():
        a = x + 1
        b = a * 2
        c = b.exp()
        return a, b, c

    assert peak(step) == 3 * 4 * N


def test_what_is_let_go_is_let_go(x):
    def step():
        a = x.repeat(8)
        del a
        b = x.repeat(4)
        return b + 1

    assert peak(step) == 8 * 4 * N


def test_a_view_keeps_its_storage_alive(x):
    def step():
        last = x.repeat(8)[-1:]
        return last, x + 1

    assert peak(step) == 9 * 4 * N


def test_types_have_their_widths(x):
    assert peak(lambda: x.double()) == 8 * N
    assert peak(lambda: x.bfloat16()) == 2 * N
    assert peak(lambda: x > 0) == N


def test_resized_storage_counts_what_it_grew_by(x):
    def step():
        buffer = torch.empty(0)
        buffer.resize_(5 * N)

    assert peak(step) == 5 * 4 * N


def test_tensors_made_from_numbers_count():
    assert peak(lambda: torch.tensor([1.0, 2.0, 3.0])) == 12
    assert peak(lambda: torch.zeros(N)) == 4 * N


def test_attention_materialises_logits_and_weights():
    q, k, v = (torch.randn(2, 90, 8) for _ in range(3))
    scores = 4 * 2 * 90 * 90

    def attention():
        return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1), v)

    assert peak(inference(attention)) == 2 * scores


def test_fused_attention_does_not():
    q, k, v = (torch.randn(1, 2, 400, 8) for _ in range(3))
    assert peak(inference(lambda: F.scaled_dot_product_attention(q, k, v))) < 4 * 2 * 400 * 400 / 4


class Trained:
    """A module trained on one input, its gradients made anew in each step."""

    def __init__(self, module, x):
        self.module, self.x = module, x.requires_grad_()

    def release(self):
        self.module.zero_grad()
        self.x.grad = None

    def __call__(self):
        self.release()
        self.module(self.x).sum().backward()


def test_training_keeps_what_the_backward_pass_needs():
    """exp saves its result: three of them live when the sum is taken, beside the scalar."""
    torch.manual_seed(0)
    x = torch.zeros(N, requires_grad=True)

    def step():
        x.grad = None
        return x.exp().exp().exp().sum()

    assert peak(step) == 3 * 4 * N + 4


def test_training_of_a_linear_layer():
    """Once the gradient of relu(Wx) has passed the relu, it lives beside the gradients of x and W, and two scalars."""
    step = Trained(nn.Sequential(nn.Linear(100, 200, bias=False), nn.ReLU()), torch.randn(50, 100))
    hidden, weight, inputs, scalars = 4 * 50 * 200, 4 * 200 * 100, 4 * 50 * 100, 2 * 4
    assert peak(step) == hidden + weight + inputs + scalars


def test_gradients_left_behind_count():
    step = Trained(nn.Linear(300, 300, bias=False), torch.randn(1, 300))
    inputs, scalars = 4 * 300, 2 * 4
    assert peak(step, release=step.release) == 4 * 300 * 300 + inputs + scalars


def test_release_comes_before_the_step():
    log = []
    peak_bytes(lambda: log.append("step"), CPU, release=lambda: log.append("release"))
    assert log == ["release", "step"]


def test_backward_temporaries_are_seen(x):
    """The backward of x * y makes two gradients at once; a step that makes none has none."""
    a = torch.randn(N, requires_grad=True)
    b = torch.randn(N, requires_grad=True)

    def step():
        a.grad = b.grad = None
        (a * b).backward(x)

    assert peak(step) == 3 * 4 * N


def test_gradient_accumulated_in_place():
    """The product and its gradient live; the sum goes into the gradient that was there before."""
    a = torch.randn(N, requires_grad=True)
    a.grad = torch.zeros(N)
    ones = torch.ones(N)
    assert peak(lambda: (a * 2.0).backward(ones)) == 2 * 4 * N


def test_measuring_leaves_nothing_behind(x):
    peak(lambda: x.exp())
    assert gc.isenabled()
    kept = []
    assert peak_bytes(lambda: kept.append(x.exp()), CPU) == 4 * N
    assert kept[0].shape == (N,)


def test_a_failing_step_raises_its_own_error(x):
    def step():
        raise MemoryError("full")

    with pytest.raises(MemoryError, match="full"):
        peak_bytes(step, CPU)
    assert gc.isenabled()
    assert peak(lambda: x + 1) == 4 * N


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="peak_bytes: expected a cpu or cuda device, got meta"):
        peak_bytes(lambda: None, torch.device("meta"))


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("name", ["conv3x3", "non_local", "ema"])
def test_operators_repeat_to_the_byte(name, mode):
    module = operators.get(name)(32).train(mode == "training")
    step = Trained(module, torch.randn(1, 32, 12, 9))
    if mode == "training":
        assert peak(step) > 4 * 32 * 12 * 9
    else:
        assert peak(inference(lambda: module(step.x))) >= 4 * 32 * 12 * 9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_on_the_device():
    x = torch.zeros(1 << 20, device="cuda")
    assert peak_bytes(lambda: (x + 1) * 2, torch.device("cuda")) == 8 << 20
