"""Scaling of float16's gradients: the scaler's path, on a CPU, where nothing is rounded away and all is comparable."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from training_cases import RECIPE, Stripes, segmentor

from attnbench.training import Checkpoints, fit, step

CLIPPED = replace(RECIPE, iterations=6, clip_gradient_norm=0.05, accumulate=2)
_REAL = torch.amp.GradScaler


@pytest.fixture
def scaled(monkeypatch):
    """Makes every trainer scale, and returns the scalers: `scaled(start)` begins with that factor."""
    made = []

    def begin(start):
        def scaler(device, enabled):
            assert not enabled  # on a CPU, recipes have no float16
            made.append(_REAL(device, init_scale=start, growth_interval=2, enabled=True))
            return made[-1]

        monkeypatch.setattr(step.torch.amp, "GradScaler", scaler)
        return made

    return begin


def trained(recipe, **settings):
    model = segmentor()
    return fit(model, Stripes(), recipe, seed=0, device="cpu", **settings), model.state_dict()


def expect_equal(found, expected):
    assert found[0] == expected[0]
    for name, value in expected[1].items():
        assert torch.equal(found[1][name], value), name


@pytest.mark.parametrize("recipe", [RECIPE, CLIPPED, replace(CLIPPED, optimizer="adamw", learning_rate=0.01)])
def test_a_scaled_loss_trains_as_an_unscaled_one(scaled, recipe):
    """A power of two changes no bit of a mantissa; gradients are scaled back before they are clipped."""
    expected = trained(recipe)
    made = scaled(2.0**10)
    expect_equal(trained(recipe), expected)
    assert [scaler.get_scale() for scaler in made] == [2.0 ** (10 + recipe.iterations // 2)]


def test_the_factor_is_resumed(scaled, tmp_path):
    made = scaled(2.0**10)
    expected = trained(CLIPPED)
    asked = iter([False, False, True])
    keep = partial(Checkpoints, tmp_path, {"recipe": "scaled"}, every=1)
    with pytest.raises(KeyboardInterrupt):
        trained(CLIPPED, checkpoints=keep(), stop=lambda: next(asked))
    expect_equal(trained(CLIPPED, checkpoints=keep()), expected)
    through, _, resumed = made
    assert resumed.get_scale() == through.get_scale() == 2.0**13
    assert resumed.state_dict() == through.state_dict()


def test_a_gradient_that_overflows_costs_its_step_alone(scaled):
    made = scaled(2.0**10)
    model = segmentor()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.decode_head.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    losses = fit(model, Stripes(), replace(RECIPE, iterations=1), seed=0, device="cpu")
    assert len(losses) == 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [scaler.get_scale() for scaler in made] == [2.0**9]


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, optimizer="adamw", learning_rate=0.01)])
def test_a_first_gradient_that_overflows_leaves_nothing_behind(scaled, monkeypatch, recipe):
    """What follows is the run whose first step is left out: momentum is none, not whatever lies in memory."""
    asked = iter(range(recipe.iterations))
    plain = step.optimizer_step
    with monkeypatch.context() as context:
        context.setattr(step, "optimizer_step", lambda *given: plain(*given) if next(asked) else None)
        expected = trained(recipe)
    scaled(2.0**10)
    model, seen = segmentor(), []

    def first_alone(gradient):
        seen.append(gradient)
        return gradient * float("inf") if len(seen) == 1 else gradient

    model.decode_head.classifier.weight.register_hook(first_alone)
    expect_equal((fit(model, Stripes(), recipe, seed=0, device="cpu"), model.state_dict()), expected)
    assert len(seen) == recipe.iterations > 2
