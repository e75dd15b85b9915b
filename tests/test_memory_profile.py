"""What a profile of memory says beside the peak, held against sizes worked out by hand, in bytes of float32."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnbench.measuring.memory import Moment, follow_memory, peak_bytes, profile_memory
from attnbench.measuring.prediction import materialise, predict_memory, pretending
from attnbench.workload import Workload

CPU = torch.device("cpu")
N = 1000


def backward(loss):
    loss.backward()


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(N, requires_grad=True)


def test_saved_is_what_outlives_the_forward_pass(x):
    """exp saves its result, twice; the sum saves nothing and is the output."""
    profile = follow_memory(lambda: x.exp().exp().sum(), backward)
    assert profile.saved_bytes == 2 * 4 * N


def test_an_addition_saves_nothing(x):
    assert follow_memory(lambda: (x + 1.0).sum(), backward).saved_bytes == 0


def test_outputs_are_not_saved_even_where_autograd_needs_them(x):
    """exp needs its result, which is the output; what lies beneath a view is the output too."""
    assert follow_memory(lambda: x.exp(), lambda out: out.sum().backward()).saved_bytes == 0
    assert follow_memory(lambda: x.exp()[:3], lambda out: out.sum().backward()).saved_bytes == 0


def test_inputs_and_parameters_are_not_saved(x):
    """A product needs both factors; they were there before."""
    weight = torch.randn(N, requires_grad=True)
    assert follow_memory(lambda: x * weight, lambda out: out.sum().backward()).saved_bytes == 0
    assert follow_memory(lambda: x, lambda out: out.sum().backward()).saved_bytes == 0


def test_linear_and_relu_save_the_map_between_them():
    module = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10))
    x = torch.randn(50, 100)
    profile = follow_memory(lambda: module(x), lambda out: out.sum().backward())
    assert profile.saved_bytes == 4 * 50 * 200


def test_attention_saves_its_weights_and_its_largest_tensor_is_the_map():
    q, k, v = (torch.randn(2, 90, 8, requires_grad=True) for _ in range(3))

    def attention():
        return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1), v)

    profile = follow_memory(attention, lambda out: out.sum().backward())
    assert profile.saved_bytes == profile.largest_bytes == 4 * 2 * 90 * 90
    assert profile.largest_by == "aten::bmm"


def test_without_a_backward_pass_nothing_is_saved(x):
    profile = follow_memory(lambda: x.exp())
    assert profile.saved_bytes is None
    assert not any(moment.backward for moment in profile.curve)


def test_largest_is_the_first_of_equals_and_not_what_was_there(x):
    big = torch.zeros(100 * N)
    profile = follow_memory(lambda: (big[:N] * 2).repeat(3).relu().sum())
    assert (profile.largest_bytes, profile.largest_by) == (3 * 4 * N, "aten::repeat")


def test_largest_may_grow_in_place():
    profile = follow_memory(lambda: torch.empty(0).resize_(5 * N))
    assert (profile.largest_bytes, profile.largest_by) == (5 * 4 * N, "aten::resize_")


def test_nothing_made_has_no_maker():
    profile = follow_memory(lambda: None)
    assert (profile.peak_bytes, profile.largest_bytes, profile.largest_by, profile.curve) == (0, 0, None, ())


def test_curve_tells_every_operation():
    with torch.no_grad():
        x = torch.zeros(N)
        curve = follow_memory(lambda: (x + 1).exp().relu_()).curve
    assert curve == (
        Moment("aten::add", 4 * N, False),
        Moment("aten::exp", 8 * N, False),
        Moment("aten::relu_", 4 * N, False),
    )


def test_curve_turns_where_the_backward_pass_begins(x):
    profile = follow_memory(lambda: x.exp().sum(), backward)
    turns = [moment.operation for moment in profile.curve if not moment.backward]
    assert turns == ["aten::exp", "aten::detach", "aten::sum"]
    assert profile.peak_bytes == max(moment.live_bytes for moment in profile.curve)
    assert profile.curve[-1].live_bytes == x.grad.nbytes + 4 + 4


def test_the_first_profile_of_a_process_is_like_the_others():
    code = """if True:
        import torch
        from torch import nn
        from attnbench.measuring.memory import follow_memory
        parts = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)) for _ in range(2)]
        class Head(nn.Module):
            def forward(self, x):
                return self.last(parts[1](nn.Identity()(parts[0](x))))
        head = Head()
        head.last = nn.Conv2d(4, 2, 1)
        x = torch.zeros(1, 4, 50, 50)
        with torch.no_grad():
            curves = [follow_memory(lambda: head(x)).curve for _ in range(2)]
        assert curves[0] == curves[1], curves
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_blocks_round_every_storage_up(x):
    profile = follow_memory(lambda: x.exp().exp().sum(), backward, block=512)
    whole = -(-4 * N // 512) * 512
    assert profile.saved_bytes == 2 * whole
    assert profile.largest_bytes == 4 * N
    assert all(moment.live_bytes % 512 == 0 for moment in profile.curve)


def test_other_devices_are_not_followed(x):
    assert follow_memory(lambda: x.exp(), device="cuda").peak_bytes == 0
    with pytest.raises(ValueError, match="profile_memory: expected a cpu or cuda device, got meta"):
        profile_memory(lambda: None, None, torch.device("meta"), release=lambda: None)


@pytest.mark.parametrize("mode", ["forward", "training"])
def test_both_passes_peak_as_the_step_does(mode):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    inputs = (torch.randn(2, 4, 20, 20, requires_grad=mode == "training"),)
    work = Workload(module.train(mode == "training"), inputs, mode)
    profile = profile_memory(work.forward, work.backward, CPU, release=work.release)
    assert profile.peak_bytes == peak_bytes(work.step, CPU, release=work.release) > 0
    assert (profile.saved_bytes is None) == (mode == "forward")


def test_prediction_of_passes_without_memory():
    with pretending():
        x = torch.empty(1 << 42, requires_grad=True)
        profile = predict_memory(lambda: F.relu(x).exp(), lambda out: out.sum().backward())
    assert profile.saved_bytes == 4 << 42
    assert profile.largest_by == "aten::relu"


def test_materialised_modules_keep_layout_type_and_sharing():
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Linear(3, 3), nn.Linear(3, 3))
        module[3].weight = module[2].weight
        module[0].weight.requires_grad_(False)
        module = module.to(dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    with pretending():
        materialise(module)
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"cpu"}
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert module[0].weight.dtype == module[1].running_mean.dtype == torch.bfloat16
    assert module[1].num_batches_tracked.dtype == torch.int64
    assert not module[0].weight.requires_grad and module[0].bias.requires_grad
    assert module[3].weight is module[2].weight
    assert isinstance(module[2].weight, nn.Parameter)


def test_materialising_is_refused_where_things_are_real():
    with pytest.raises(ValueError, match=r"materialise: expected to be called in a block of pretending\(\)"):
        materialise(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"predict_memory: expected to be called in a block of pretending\(\)"):
        predict_memory(lambda: None)
