"""Hamburger by vector quantisation and by concept decomposition, against their steps and the authors' choices."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_hamburger as oracle
import pytest
import torch
from against_oracle import assert_same

from operators import AttentionOperator, checks, get
from operators.hamburger import ConceptDecompositionHamburger, VectorQuantizationHamburger
from operators.soft_clustering import ConceptDecomposition, VectorQuantization

NAMES = ["hamburger_vq", "hamburger_cd"]
CORES = [VectorQuantization, ConceptDecomposition]


def operator(name: str, channels: int = 6, **settings: Any) -> Any:
    # A softmax of inv_t = 100 would leave most codes without a gradient to compare.
    return checks.construct(get(name), channels, **{"num_bases": 3, "inv_t": 5.0, **settings})


def expected(name: str, steps: int, gradient: str, inv_t: float = 5.0, beta: float = 0.1) -> Any:
    return partial(
        oracle.clustering_block,
        steps=steps,
        inv_t=inv_t,
        beta=beta if name == "hamburger_cd" else None,
        one_step=gradient == "one_step",
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gradient", ["one_step", "through_time"])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_block_is_the_papers(name: str, gradient: Any, steps: int) -> None:
    built = operator(name, gradient=gradient, eval_steps=steps)
    assert_same(built, expected(name, steps, gradient), checks.sample(2, 6, 3, 4))


@pytest.mark.parametrize("name", NAMES)
def test_default_temperature_is_the_authors(name: str) -> None:
    built: Any = checks.construct(get(name), 6, num_bases=3)
    assert (built.core.inv_t, built.core.train_steps, built.core.eval_steps) == (100, 6, 7)
    assert_same(built, expected(name, 7, "one_step", inv_t=100.0), checks.sample(1, 6, 3, 4))


def test_beta_is_that_of_the_least_squares() -> None:
    x = checks.sample(1, 6, 3, 4)
    assert_same(operator("hamburger_cd", beta=2.0), expected("hamburger_cd", 7, "one_step", beta=2.0), x)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_through_time_is_the_derivative(name: str) -> None:
    built = operator(name, gradient="through_time").double()
    assert torch.autograd.gradcheck(built, checks.sample(1, 6, 2, 3).requires_grad_())
    assert checks.run_checks(get(name), only=("parameter_gradients",), settings={"gradient": "through_time"}) == {
        "parameter_gradients": None
    }


@pytest.mark.parametrize("name", NAMES)
def test_one_step_cuts_the_gradient_and_nothing_else(name: str) -> None:
    x = checks.sample(2, 6, 3, 4)
    outputs, gradients = [], []
    for gradient in ("one_step", "through_time"):
        leaf = x.clone().requires_grad_()
        outputs.append(operator(name, gradient=gradient).double()(leaf))
        gradients.append(torch.autograd.grad(outputs[-1].sum(), leaf)[0])
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    assert (gradients[0] - gradients[1]).abs().amax() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_one_step_keeps_less_for_the_backward_pass(name: str) -> None:
    def saved(gradient: Any) -> int:
        built, count = operator(name, gradient=gradient), []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: count.append(tensor.numel()), lambda _: None):
            built(checks.sample(1, 6, 9, 9, dtype=torch.float32))
        return sum(count)

    assert 3 * saved("one_step") < saved("through_time")


@pytest.mark.parametrize("name", NAMES)
def test_pixels_keep_their_sign(name: str) -> None:
    built = operator(name).double()
    seen: list[torch.Tensor] = []
    built.core.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = checks.sample(1, 6, 5, 7)
    built(x)
    torch.testing.assert_close(seen[0], built.lower(x), rtol=0, atol=0)
    assert (seen[0] < 0).any()


def test_clusters_are_found() -> None:
    centres = torch.linalg.qr(checks.sample(8, 8))[0][:, :3].T
    labels = torch.arange(30) % 3
    pixels = (3 * centres[labels] + 0.02 * checks.sample(30, 8)).T[None]
    for core in (VectorQuantization(8, num_bases=3), ConceptDecomposition(8, num_bases=3, beta=1e-6)):
        core = core.double().eval()
        core.bases.copy_((centres + 0.3 * checks.sample(3, 8)).T)
        bases, codes = core.factorise(pixels, 7)
        rebuilt = bases @ codes.transpose(1, 2)
        assert (rebuilt - pixels).norm() < 0.05 * pixels.norm()
        assert torch.equal(core.shares(pixels, 7)[0].argmax(1), labels)


def test_concepts_are_directions_and_means_are_not() -> None:
    pixels = 3 * checks.sample(1, 8, 30)
    concepts, _ = ConceptDecomposition(8, num_bases=3).double().eval().factorise(pixels, 4)
    torch.testing.assert_close(concepts.norm(dim=1), torch.ones(1, 3).double())
    quantised = VectorQuantization(8, num_bases=3).double().eval()
    bases, _ = quantised.factorise(pixels, 4)
    weights = quantised.assign(pixels, quantised.factorise(pixels, 3)[0])[0]
    torch.testing.assert_close(bases[0], pixels[0] @ (weights / weights.sum(0)), rtol=1e-5, atol=1e-5)


def test_quantised_pixels_are_mixtures_and_concepts_fit_better() -> None:
    pixels = checks.sample(1, 8, 30)
    quantised = VectorQuantization(8, num_bases=3).double().eval()
    _, codes = quantised.factorise(pixels, 7)
    assert (codes >= 0).all()
    torch.testing.assert_close(codes.sum(2), torch.ones(1, 30).double())
    concepts = ConceptDecomposition(8, num_bases=3, beta=1e-9).double().eval()
    bases, codes = concepts.factorise(pixels, 7)
    residual = pixels - bases @ codes.transpose(1, 2)
    torch.testing.assert_close(bases.transpose(1, 2) @ residual, torch.zeros(1, 3, 30).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("core", CORES)
def test_rebuilt_map_has_the_rank_of_the_bases(core: Any) -> None:
    rebuilt = core(8, num_bases=3, inv_t=5.0).double().eval()(checks.sample(1, 8, 5, 6)).flatten(2)[0]
    assert torch.linalg.matrix_rank(rebuilt) == 3


@pytest.mark.parametrize("core", CORES)
def test_bases_are_stored_and_drawn_in_training_alone(core: Any) -> None:
    built, x = core(8, num_bases=3), checks.sample(2, 8, 5, 6, dtype=torch.float32)
    torch.testing.assert_close(built.bases.norm(dim=1), torch.ones(1, 3))
    assert (core(8, num_bases=64).bases < 0).any()
    assert not torch.equal(core(8, num_bases=3, seed=1).bases, built.bases)
    stored = built.bases.clone()
    torch.manual_seed(0)
    first = built.train()(x)
    assert not torch.equal(built(x), first)
    torch.manual_seed(0)
    torch.testing.assert_close(built(x), first, rtol=0, atol=0)
    torch.testing.assert_close(built.bases, stored, rtol=0, atol=0)
    fixed = core(8, num_bases=3, train_steps=7, random_bases=False)
    torch.testing.assert_close(fixed.train()(x), fixed.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("core", CORES)
def test_empty_pixels_are_finite(core: Any) -> None:
    x = torch.zeros(1, 8, 2, 3, requires_grad=True)
    built = core(8, num_bases=3, gradient="through_time").eval()
    y = built(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all() and gradient.isfinite().all()
    torch.testing.assert_close(built.shares(x.flatten(2), 0), torch.full((1, 6, 3), 1 / 3))


@pytest.mark.parametrize("name", NAMES)
def test_responsibilities_are_the_assignment_after_a_step(name: str) -> None:
    built = operator(name).double()
    x = checks.sample(1, 6, 3, 4)
    pixels = list(built.lower(x).detach().flatten(2)[0].unbind(1))
    stored = list(built.core.bases[0].unbind(1))
    spherical = name == "hamburger_cd"
    for stage in range(8):
        bases = oracle.cluster(pixels, stored, stage, 5.0, spherical=spherical, one_step=True)
        codes = oracle.soft_assignment(pixels, bases, 5.0, constant_norms=True)
        wanted = torch.tensor(codes, dtype=torch.float64).t().reshape(1, 3, 3, 4)
        torch.testing.assert_close(built.responsibilities(x, stage), wanted)
        torch.testing.assert_close(built.responsibilities(x, stage - 8), wanted)
    with pytest.raises(IndexError, match=r"Hamburger: expected a stage in \[-8, 7\], got 8"):
        built.responsibilities(x, 8)


@pytest.mark.parametrize("core", CORES)
def test_half_precision_leaves_cosines_their_digits(core: Any) -> None:
    built = core(64).eval()
    pixels = checks.sample(1, 64, 50, dtype=torch.bfloat16)
    bases = built.bases.bfloat16()
    expected = built.assign(pixels.double(), bases.double()).float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(built.assign(pixels, bases), expected, rtol=0, atol=1e-4)


def test_half_precision_leaves_the_system_its_digits() -> None:
    core = ConceptDecomposition(64).eval()
    pixels = checks.sample(1, 64, 50, dtype=torch.bfloat16)
    bases = core.bases.bfloat16()
    expected = core.code(pixels.double(), bases.double())
    with torch.autocast("cpu", torch.bfloat16):
        got = core.code(pixels, bases)
    assert (got.double() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("core", CORES)
def test_core_runs_in_half_precision_throughout(core: Any) -> None:
    x = checks.sample(1, 16, 5, 6, dtype=torch.bfloat16)
    built = core(16, num_bases=4).eval().to(torch.bfloat16)
    assert built(x).dtype == torch.bfloat16
    assert built(x).isfinite().all()


def test_quantisation_of_noise_tips_when_the_first_convolution_is_rounded() -> None:
    built = checks.construct(VectorQuantizationHamburger)
    x = checks.sample(2, checks.CHANNELS, 13, 11, dtype=torch.float32)
    with torch.no_grad():
        lower = built.lower(x)
        exact, rounded = (built.norm(built.upper(built.core(low))) for low in (lower, lower.bfloat16().float()))
    assert (exact - rounded).abs().amax() > 0.1 * exact.abs().amax()


@pytest.mark.parametrize(("name", "published"), [("hamburger", 17.6), ("hamburger_cd", 16.2)])
def test_published_cost(name: str, published: float) -> None:
    built: Any = get(name)(512, eval_steps=6)
    assert built.macs(128, 128) == pytest.approx(published * 1e9, rel=0.005)
    assert sum(parameter.numel() for parameter in built.parameters()) / 2**20 == pytest.approx(0.50, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{"eval_steps": 2}, {"num_bases": 5, "num_groups": 4}])
def test_conformance_of_settings(name: str, settings: dict[str, Any]) -> None:
    results = checks.run_checks(get(name), only=("shapes", "macs", "core", "responsibilities"), settings=settings)
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize("build", [VectorQuantizationHamburger, ConceptDecompositionHamburger])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_bases": 0}, "expected num_bases >= 1, got 0"),
        ({"train_steps": -1}, "expected train_steps >= 0, got -1"),
        ({"gradient": "none"}, "expected gradient in .*, got 'none'"),
        ({"inv_t": 0}, "expected inv_t > 0, got 0"),
        ({"num_groups": 3}, "Hamburger: expected num_groups that divides 8 channels, got 3"),
    ],
)
def test_arguments_out_of_range(build: type[AttentionOperator], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(8, **settings)


def test_beta_has_to_be_positive() -> None:
    with pytest.raises(ValueError, match="ConceptDecomposition: expected beta > 0, got 0"):
        ConceptDecompositionHamburger(8, beta=0)
