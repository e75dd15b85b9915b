"""What count_macs counts, lists, refuses and leaves alone; every operator's closed form against its count."""

import logging
import warnings

import pytest
import torch
from torch import nn

import operators
from attnbench.measuring.cost import MacCount, count_macs, count_params


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


def test_normalisation_pooling_and_resampling_are_set_aside():
    module = nn.Sequential(
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.AdaptiveAvgPool2d(3),
        nn.Upsample((6, 6), mode="bilinear"),
    )
    assert count(module, (2, 4, 8, 8)) == MacCount(0, ())
    assert count(nn.LayerNorm(4), (2, 4)) == MacCount(0, ())


def test_what_is_not_counted_is_listed():
    counted = count(lambda x: (torch.softmax(x, 1) * x).exp() + torch.softmax(x, 0), (3, 4))
    assert counted == MacCount(0, ("aten::add x1", "aten::exp x1", "aten::mul x1", "aten::softmax x2"))


def test_arithmetic_on_sizes_is_not_listed():
    assert count(lambda x: x.reshape(x.shape[0] * x.shape[1], x.shape[2] // 2, 2), (3, 4, 6)) == MacCount(0, ())


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x @ x

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_custom_function_makes_a_lower_bound():
    counted = count(lambda x: Squared.apply(x) @ x, (3, 3))
    assert counted == MacCount(27, ("prim::PythonOp.Squared x1",), lower_bound=True)


def test_fourier_transform_makes_a_lower_bound():
    assert count(lambda x: torch.fft.fft(x).real, (3, 4)).lower_bound


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (torch.linalg.pinv, "aten::linalg_pinv"),
        (lambda x: torch.linalg.matrix_power(x, 3), "aten::linalg_matrix_power"),
        (lambda x: torch.cdist(x, x), "aten::cdist"),
        (lambda x: nn.LSTM(4, 5)(x)[0], "aten::lstm"),
        (lambda x: torch.linalg.multi_dot([x, x, x]), "aten::linalg_multi_dot"),
    ],
)
def test_unknown_product_is_an_error(function, operation):
    with pytest.raises(ValueError, match=f"'{operation}', which multiplies and has no handle"):
        count(function, (4, 4))


class Recording(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.frozen = nn.BatchNorm2d(4).eval()
        self.norm = nn.BatchNorm2d(4)
        self.modes = []

    def forward(self, x):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return {"out": [self.norm(self.frozen(self.conv(x)))], "none": None}


def test_mode_state_and_inputs_are_left_alone():
    module = Recording().train()
    module.frozen.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.randn(1, 4, 5, 6, requires_grad=True)
    assert count_macs(module, (x,)).macs == 16 * 30
    assert module.modes == [(False, False)]
    assert (module.training, module.norm.training, module.frozen.training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert x.grad is None
    assert x.requires_grad
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_mode_is_restored_after_an_error():
    module = Calls(lambda x: x.missing).train()
    with pytest.raises(AttributeError):
        count_macs(module, (torch.zeros(2),))
    assert module.training


def test_counting_is_silent(caplog, capsys):
    def branching(x):
        return torch.softmax(x, 0) if x.sum() > 0 else x

    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        count(branching, (3, 4))
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_output_without_tensors_is_an_error():
    with pytest.raises(ValueError, match="expected tensors as output, got none from Calls"):
        count(lambda x: None, (3,))


def test_parameters_are_counted_once():
    shared = nn.Linear(3, 4)
    assert count_params(nn.Sequential(shared, nn.BatchNorm1d(4), shared)) == 12 + 4 + 8
    assert count_params(nn.Conv2d(4, 6, 3, groups=2, bias=False).requires_grad_(False)) == 6 * 2 * 9


def build(name, channels):
    operator = operators.get(name)
    try:
        return operator(channels)
    except TypeError:
        return operator(channels, num_classes=19)


@pytest.mark.parametrize("size", [(9, 9), (13, 10)])
@pytest.mark.parametrize("name", operators.names())
def test_closed_form_of_each_operator_is_what_is_counted(name, size):
    module = build(name, 64)
    counted = count(module, (2, 64, *size))
    assert counted.macs == 2 * module.macs(*size)
    assert not counted.lower_bound


def test_published_block_of_ema_at_the_usual_size():
    height = width = 65
    block = operators.get("ema")(512)
    assert block.macs(height, width) == 969_113_600 + 2 * 512 * 512 * height * width
