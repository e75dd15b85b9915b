"""Hamburger against its updates, the authors' choices, and mmsegmentation."""

from __future__ import annotations

from functools import partial
from typing import Any

import golden
import oracle_hamburger as oracle
import pytest
import torch
import torch.nn.functional as F
from against_oracle import assert_same, rename

from operators import checks
from operators.hamburger import Hamburger, NonNegativeFactorization


def operator(channels: int = 6, **settings: Any) -> Hamburger:
    built = checks.construct(Hamburger, channels, **{"num_bases": 3, **settings})
    assert isinstance(built, Hamburger)
    return built


@pytest.mark.parametrize("gradient", ["one_step", "through_time"])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_block_is_the_papers(gradient: Any, steps: int) -> None:
    expected = partial(oracle.block, steps=steps, one_step=gradient == "one_step")
    assert_same(operator(gradient=gradient, eval_steps=steps), expected, checks.sample(2, 6, 3, 4))


def test_gradient_through_time_is_the_derivative() -> None:
    built = operator(gradient="through_time").double()
    assert torch.autograd.gradcheck(built, checks.sample(1, 6, 2, 3).requires_grad_())


def test_both_gradients_are_of_the_same_function() -> None:
    x = checks.sample(2, 6, 3, 4)
    outputs = [operator(gradient=gradient).double()(x) for gradient in ("one_step", "through_time")]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_updates_fit_better_with_every_step_and_stay_non_negative() -> None:
    core = NonNegativeFactorization(8, num_bases=3).double().eval()
    pixels = checks.sample(1, 8, 30).relu()
    errors = []
    for steps in range(6):
        bases, codes = core.factorise(pixels, steps)
        assert (bases >= 0).all()
        assert (codes >= 0).all()
        errors.append(float((pixels - bases @ codes.transpose(1, 2)).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


def test_rebuilt_map_has_the_rank_of_the_bases() -> None:
    core = NonNegativeFactorization(8, num_bases=3).double().eval()
    rebuilt = core(checks.sample(1, 8, 5, 6).relu()).flatten(2)[0]
    assert torch.linalg.matrix_rank(rebuilt) == 3


def test_steps_depend_on_the_mode() -> None:
    core = NonNegativeFactorization(8, num_bases=3, train_steps=2, eval_steps=5)
    assert (core.train().steps, core.eval().steps) == (2, 5)
    assert NonNegativeFactorization(8).train().steps == 6
    assert NonNegativeFactorization(8).eval().steps == 7


def test_stored_bases_are_those_of_the_seed() -> None:
    torch.manual_seed(3)
    first = Hamburger(8).core.bases
    torch.manual_seed(4)
    torch.testing.assert_close(Hamburger(8).core.bases, first, rtol=0, atol=0)
    assert not torch.equal(Hamburger(8, seed=1).core.bases, first)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(1, 64))
    assert (first >= 0).all()


def test_training_starts_from_random_bases_and_leaves_the_stored_ones() -> None:
    core, x = NonNegativeFactorization(8, num_bases=3).train(), checks.sample(2, 8, 5, 6).relu().float()
    stored = core.bases.clone()
    torch.manual_seed(0)
    first = core(x)
    assert not torch.equal(core(x), first)
    torch.manual_seed(0)
    torch.testing.assert_close(core(x), first, rtol=0, atol=0)
    torch.testing.assert_close(core.bases, stored, rtol=0, atol=0)
    of_equal_images = core(x[:1].expand(2, -1, -1, -1))
    assert not torch.allclose(of_equal_images[0], of_equal_images[1])


def test_training_may_start_from_the_stored_bases() -> None:
    core = NonNegativeFactorization(8, num_bases=3, train_steps=7, random_bases=False)
    x = checks.sample(2, 8, 5, 6).relu().float()
    torch.testing.assert_close(core.train()(x), core.eval()(x), rtol=0, atol=0)


def test_one_step_keeps_less_for_the_backward_pass() -> None:
    def saved(gradient: Any) -> int:
        built, count = operator(gradient=gradient), []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: count.append(tensor.numel()), lambda _: None):
            built(checks.sample(1, 6, 9, 9, dtype=torch.float32))
        return sum(count)

    assert 3 * saved("one_step") < saved("through_time")


def test_responsibilities_are_the_codes_of_a_step() -> None:
    built = operator().double()
    x = checks.sample(1, 6, 3, 4)
    pixels = list(F.relu(built.lower(x)).detach().flatten(2)[0].unbind(1))
    bases = list(built.core.bases[0].unbind(1))
    for stage in range(8):
        codes = torch.tensor(oracle.factorise(pixels, bases, stage, one_step=True)[1], dtype=torch.float64)
        expected = (codes / codes.sum(1, keepdim=True)).t().reshape(1, 3, 3, 4)
        torch.testing.assert_close(built.responsibilities(x, stage), expected)
        torch.testing.assert_close(built.responsibilities(x, stage - 8), expected)
    for stage in (8, -9):
        with pytest.raises(IndexError, match=r"Hamburger: expected a stage in \[-8, 7\]"):
            built.responsibilities(x, stage)


def test_empty_pixel_belongs_to_all_bases_alike() -> None:
    built = operator()
    with torch.no_grad():
        built.lower.bias.fill_(-1e3)
    torch.testing.assert_close(built.responsibilities(torch.zeros(1, 6, 2, 2)), torch.full((1, 3, 2, 2), 1 / 3))


@pytest.mark.parametrize("settings", [{"eval_steps": 2}, {"num_bases": 5, "num_groups": 4}])
def test_closed_form_follows_the_settings(settings: dict[str, Any]) -> None:
    assert checks.run_checks(Hamburger, only=("macs",), settings=settings) == {"macs": None}


def test_groups_let_a_single_pixel_train() -> None:
    x = checks.sample(1, 8, 1, 1, dtype=torch.float32)
    assert Hamburger(8, num_groups=2).train()(x).isfinite().all()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        Hamburger(8).train()(x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_bases": 0}, "NonNegativeFactorization: expected num_bases >= 1, got 0"),
        ({"train_steps": -1}, "NonNegativeFactorization: expected train_steps >= 0, got -1"),
        ({"eval_steps": -1}, "NonNegativeFactorization: expected eval_steps >= 0, got -1"),
        ({"gradient": "none"}, "NonNegativeFactorization: expected gradient in .*, got 'none'"),
        ({"num_groups": 3}, "Hamburger: expected num_groups that divides 8 channels, got 3"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hamburger(8, **settings)


def test_head_is_mmsegmentations() -> None:
    head = golden.load("ham")
    state, config, inputs = head["state_dict"], head["config"], head["inputs"]
    built = Hamburger(
        config["ham_channels"],
        num_bases=config["ham_kwargs"]["MD_R"],
        num_groups=config["norm_cfg"]["num_groups"],
        gradient="through_time",
        random_bases=config["ham_kwargs"]["rand_init"],
    ).eval()
    names = {"ham_in.conv": "lower", "ham_out.conv": "upper", "ham_out.gn": "norm", "ham": "core"}
    built.load_state_dict(rename(state, {f"hamburger.{theirs}": ours for theirs, ours in names.items()}))

    def group_norm_relu(x: torch.Tensor, prefix: str) -> torch.Tensor:
        x = F.conv2d(x, state[f"{prefix}.conv.weight"])
        return F.relu(F.group_norm(x, 4, state[f"{prefix}.gn.weight"], state[f"{prefix}.gn.bias"]))

    with torch.no_grad():
        size = inputs[0].shape[-2:]
        levels = [F.interpolate(level, size, mode="bilinear", align_corners=False) for level in inputs]
        y = built(group_norm_relu(torch.cat(levels, 1), "squeeze"))
        logits = golden.classify(group_norm_relu(y, "align"), state)
    torch.testing.assert_close(logits, head["logits"], rtol=0, atol=1e-4)
