"""What is predicted without memory equals what is measured, to the byte and to the product."""

import inspect

import pytest
import torch
from torch import nn

import operators
from attnbench.measuring.cost import count_macs
from attnbench.measuring.memory import peak_bytes
from attnbench.measuring.prediction import materialise, predict_macs, predict_peak_bytes, pretending
from attnbench.models.backbone import ResNet
from attnbench.workload import Workload, settle_batch_norms

CPU = torch.device("cpu")
SEVERAL = ["conv3x3", "non_local", "criss_cross", "ema", "hamburger", "pyramid_pooling", "object_contextual", "dual"]
CASES = [
    (name, implementation) for name in operators.names() for implementation in operators.get(name).spec.implementations
]


def build(name, implementation="reference"):
    operator = operators.get(name)
    parameters = inspect.signature(operator.__init__).parameters
    given = {"num_classes": 5, "implementation": implementation}
    return operator(64, **{key: value for key, value in given.items() if key in parameters})


def workload(module, mode, *shape):
    x = torch.empty(shape).fill_(0.5).requires_grad_(mode == "training")
    made = Workload(module.train(mode == "training"), (x,), mode)
    if mode == "training":
        settle_batch_norms(made)
    return made


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_products_are_the_closed_form(name, implementation):
    with torch.device("meta"):
        operator = build(name, implementation).train()
    with pretending():
        materialise(operator)
        assert predict_macs(operator, (torch.empty(2, 64, 9, 7),)) == 2 * operator.macs(9, 7)
        assert operator.training


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("name", SEVERAL)
def test_peak_is_the_measured_one(name, mode):
    measured = workload(build(name), mode, 2, 64, 12, 9)
    with pretending():
        pretended = workload(build(name), mode, 2, 64, 12, 9)
        predicted = predict_peak_bytes(pretended.step, release=pretended.release)
    assert predicted == peak_bytes(measured.step, CPU, release=measured.release) > 4 * 2 * 64 * 12 * 9


@pytest.mark.parametrize("mode", ["forward", "training"])
def test_peak_of_a_fused_form(mode):
    measured = workload(build("non_local", "fused"), mode, 1, 64, 12, 9)
    with pretending():
        pretended = workload(build("non_local", "fused"), mode, 1, 64, 12, 9)
        predicted = predict_peak_bytes(pretended.step, release=pretended.release)
    assert predicted == peak_bytes(measured.step, CPU, release=measured.release)


def test_network_counts_and_peaks_alike():
    def network():
        return ResNet(50, base_channels=4, stem="64-64-128", multi_grid=(1, 2, 4))

    measured = workload(network(), "forward", 1, 3, 65, 49)
    with pretending():
        pretended = workload(network(), "forward", 1, 3, 65, 49)
        predicted = predict_peak_bytes(pretended.step), predict_macs(pretended.module, pretended.inputs)
    assert predicted[0] == peak_bytes(measured.step, CPU)
    assert predicted[1] == count_macs(measured.module, measured.inputs).macs


class Products(nn.Module):
    """Every kind of product that torch's own counter passes over."""

    def forward(self, x):
        attended = nn.functional.scaled_dot_product_attention(x, x, x)
        return torch.linalg.solve(x, x @ x), torch.linalg.inv(x), x[0] @ x[0, 0], x[0, 0] @ x[0, 0], attended


def test_what_torch_passes_over_is_counted():
    x = torch.rand(3, 4, 4) + 10 * torch.eye(4)
    with pretending():
        predicted = predict_macs(Products(), (torch.empty(3, 4, 4),))
    assert predicted == count_macs(Products(), (x,)).macs == 3 * (2 * 64 + 64 + 64 + 2 * 64) + 16 + 4


class Factors(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x)


def test_unknown_product_is_an_error():
    with pretending(), pytest.raises(ValueError, match=r"torch or the project counts, got aten\._linalg_svd"):
        predict_macs(Factors(), (torch.empty(3, 4, 4),))


def test_no_memory_is_taken():
    with pretending():
        x = torch.zeros(1 << 42)
        assert predict_peak_bytes(lambda: (x + 1) * 2) == 8 << 42


@pytest.mark.parametrize(
    "call", [lambda: predict_peak_bytes(lambda: None), lambda: predict_macs(nn.Identity(), (torch.zeros(2),))]
)
def test_only_where_nothing_is_real(call):
    with pytest.raises(ValueError, match=r"predict_\w+: expected to be called in a block of pretending\(\)"):
        call()
