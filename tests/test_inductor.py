"""Inductor compiles operators in one graph and computes the same: eight in every run, all under `make test-full`."""

import shutil

import pytest
import torch

import operators
from operators.checks import construct

ALWAYS = (
    "ema",
    "non_local",
    "criss_cross",
    "global_context",
    "pyramid_pooling",
    "context_encoding",
    "hamburger",
    "aspp",
)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler (g++) on CPU")
@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.full) for name in operators.names()]
)
def test_inductor(name):
    torch._dynamo.reset()
    module = construct(operators.get(name), 64).eval()
    x = torch.randn(2, 64, 9, 11)
    with torch.no_grad():
        compiled = torch.compile(module, backend="inductor", fullgraph=True)(x)
        torch.testing.assert_close(compiled, module(x), rtol=1e-4, atol=1e-4)
