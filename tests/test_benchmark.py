"""A benchmark of each operator in each mode; under --benchmark-disable each runs once, as a test."""

import pytest
import torch

import operators

CHANNELS, HEIGHT, WIDTH, CLASSES = 64, 17, 19, 19
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(name):
    torch.manual_seed(0)
    operator = operators.get(name)
    try:
        return operator(CHANNELS).to(DEVICE)
    except TypeError:
        return operator(CHANNELS, num_classes=CLASSES).to(DEVICE)


def synchronise():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("name", operators.names())
@pytest.mark.parametrize("mode", ["forward", "training"])
def test_operator(benchmark, mode, name):
    benchmark.group = mode
    module = build(name).train(mode == "training")
    x = torch.randn(2, CHANNELS, HEIGHT, WIDTH, device=DEVICE, requires_grad=mode == "training")
    outputs = []

    def setup():
        module.zero_grad()
        x.grad = None
        outputs.clear()
        synchronise()

    def step():
        with torch.set_grad_enabled(mode == "training"):
            y = module(x)
        if mode == "training":
            y.backward(torch.ones_like(y))
        synchronise()
        outputs.append(y.detach())

    benchmark.pedantic(step, setup=setup, rounds=20, warmup_rounds=3)
    assert outputs[0].shape == x.shape
    assert outputs[0].isfinite().all()
    assert mode == "forward" or x.grad is not None
