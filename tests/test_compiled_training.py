"""Training a compiled model: the same losses and weights, to rounding."""

import shutil
from dataclasses import replace

import pytest
import torch
from training_cases import RECIPE, Stripes, segmentor

from attnbench.training import fit


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler (g++) on CPU")
def test_a_compiled_model_trains_like_the_one_that_is_not():
    torch._dynamo.reset()
    compiled, plain = segmentor(), segmentor()
    losses = fit(compiled, Stripes(), replace(RECIPE, compile=True), seed=0, device="cpu")
    assert losses == pytest.approx(fit(plain, Stripes(), RECIPE, seed=0, device="cpu"), rel=1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for key, weights in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[key], weights, rtol=1e-4, atol=1e-6, msg=key)
