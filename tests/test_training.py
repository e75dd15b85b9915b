from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import training_cases
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from attnbench.config import Network, Recipe
from attnbench.data.loading import training_batches
from attnbench.errors import UsageError
from attnbench.models.build import build_segmentor
from attnbench.training import (
    build_optimizer,
    fit,
    learning_rate,
    pixel_loss,
    poly_factor,
    repeatable,
    step,
    total_loss,
)

NETWORK = Network(slot_channels=8, head_channels=8, dropout=0.0)
RECIPE = Recipe(iterations=4, batch_size=3, crop_size=(16, 24), learning_rate=0.01)
SGD = replace(RECIPE, optimizer="sgd", momentum=0.0, weight_decay=0.0)


Stripes = partial(training_cases.Stripes, length=8, gap=0)


class Linear(nn.Module):
    """Backbone and head of one layer each; `logits` may be told to be broken from some iteration on."""

    def __init__(self, broken_from=None, value=float("nan")) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)
        self.calls, self.broken_from, self.value = 0, broken_from, value
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def forward_with_auxiliary(self, images):
        logits = self.head(self.backbone(images))
        self.inputs.append(images)
        self.outputs.append(logits)
        if self.broken_from is not None and self.calls >= self.broken_from:
            logits = logits * self.value
        self.calls += 1
        return logits, {}


def segmentor(name="identity", network=NETWORK, **settings):
    torch.manual_seed(0)
    return build_segmentor(name, network, 2, **settings)


def linear(**settings):
    torch.manual_seed(0)
    return Linear(**settings)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, module):
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


def trained(seed=0, recipe=RECIPE, model=None, **settings):
    model = segmentor(network=replace(NETWORK, dropout=0.3)) if model is None else model
    losses = fit(model, Stripes(), recipe, seed=seed, device="cpu", **settings)
    return losses, state(model)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_equal_seeds_give_equal_weights_bit_for_bit(optimizer):
    recipe = replace(RECIPE, optimizer=optimizer, scale_range=(0.5, 2.0))
    losses, weights = trained(recipe=recipe)
    again, weights_again = trained(recipe=recipe)
    assert losses == again
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)


def test_another_seed_gives_other_weights():
    losses, weights = trained(seed=0)
    others, other_weights = trained(seed=1)
    assert losses[0] != others[0]
    assert not any(torch.equal(weights[name], other_weights[name]) for name in weights if name.endswith("conv.weight"))


def test_the_seed_decides_dropout_too():
    # one image, whole and unmirrored: nothing but dropout is left to draw
    recipe = replace(RECIPE, crop_size=None, flip=False, batch_size=2, iterations=1)
    models = [segmentor(network=replace(NETWORK, dropout=0.5)) for _ in range(3)]
    losses = [
        fit(model, Stripes(length=1), recipe, seed=seed, device="cpu")
        for model, seed in zip(models, (0, 0, 1), strict=True)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_global_state_neither_matters_nor_changes():
    models = [segmentor(network=replace(NETWORK, dropout=0.3)) for _ in range(2)]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = trained(model=models[0])[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert trained(model=models[1])[0] == first
    assert not torch.are_deterministic_algorithms_enabled()


def test_repeatable_is_deterministic_inside_and_restores_all_outside():
    def settings():
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.utils.deterministic.fill_uninitialized_memory,
        )

    before, generator = settings(), torch.get_rng_state()
    numbers = []

    def fail():
        assert settings() == (True, True, False, False)
        numbers.append(torch.rand(4))
        raise RuntimeError("inside")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside"), repeatable(3, torch.device("cpu")):
            fail()
    assert torch.equal(*numbers)
    assert settings() == before and torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, optimizer="sgd", learning_rate=0.1)])
def test_the_loss_falls(recipe):
    losses = trained(recipe=replace(recipe, iterations=30, batch_size=4), model=segmentor())[0]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_bfloat16_trains_too():
    model = linear()
    losses = trained(recipe=replace(RECIPE, amp="bfloat16", iterations=20, learning_rate=0.05), model=model)[0]
    assert {logits.dtype for logits in model.outputs} == {torch.bfloat16}
    assert losses[-1] < losses[0]
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_float16_is_for_cuda():
    model = linear().eval()
    with pytest.raises(UsageError, match="amp: expected 'off' or 'bfloat16' on device 'cpu', got 'float16'"):
        fit(model, Stripes(), replace(RECIPE, amp="float16"), seed=0, device="cpu")
    assert not model.training


def test_losses_are_those_of_the_batches():
    model, reference = (segmentor(auxiliary_weight=0.4) for _ in range(2))
    images, target = next(iter(training_batches(Stripes(), RECIPE, seed=5)))
    with torch.no_grad():
        expected = total_loss(*reference.train().forward_with_auxiliary(images), target)
    assert trained(seed=5, model=model)[0][0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout_of_images_and_weights(channels_last):
    model = linear()
    trained(recipe=replace(RECIPE, channels_last=channels_last), model=model)
    assert all(image.is_contiguous(memory_format=torch.channels_last) == channels_last for image in model.inputs)


def test_progress_tells_each_loss():
    seen = []
    losses, _ = trained(progress=seen.append)
    assert [(step.iteration, step.iterations, step.loss) for step in seen] == [
        (index + 1, 4, loss) for index, loss in enumerate(losses)
    ]
    rates = [learning_rate(RECIPE.learning_rate, iteration, RECIPE) for iteration in range(4)]
    assert [step.learning_rate for step in seen] == rates
    assert all(step.images == RECIPE.batch_size and 0 <= step.waited_s < step.step_s for step in seen)


def test_batches_without_labels_train_nothing():
    model = segmentor(auxiliary_weight=0.4)
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = fit(model, Stripes(labelled=False), replace(SGD, learning_rate=1.0), seed=0, device="cpu")
    assert losses == [0.0] * 4
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


def test_the_auxiliary_head_is_trained():
    model = segmentor(auxiliary_weight=0.4)
    before = state(model.auxiliary_head)
    trained(model=model)
    assert changed(before, model.auxiliary_head) == before.keys()


@pytest.mark.parametrize(
    ("iteration", "power", "expected"), [(0, 0.9, 1), (50, 1, 0.5), (75, 0.5, 0.5), (99, 2, 1e-4), (30, 0, 1)]
)
def test_poly_factor(iteration, power, expected):
    assert poly_factor(iteration, 100, power) == pytest.approx(expected)


def test_every_group_follows_the_schedule(monkeypatch):
    optimizers, rates = [], []

    def build(model, recipe):
        optimizers.append(build_optimizer(model, recipe))
        return optimizers[-1]

    monkeypatch.setattr(step, "build_optimizer", build)
    recipe = replace(RECIPE, head_learning_rate_factor=10.0, power=0.9, iterations=5)
    trained(recipe=recipe, progress=lambda *_: rates.append([group["lr"] for group in optimizers[0].param_groups]))
    for iteration, rate in enumerate(rates):
        factor = (1 - iteration / 5) ** 0.9
        assert rate == pytest.approx([0.01 * factor, 0.1 * factor])
    assert len(rates) == 5


@pytest.mark.parametrize(("optimizer", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizer_groups(optimizer, kind):
    model = linear()
    recipe = Recipe(optimizer=optimizer, learning_rate=0.3, head_learning_rate_factor=4, momentum=0.7, weight_decay=0.2)
    built = build_optimizer(model, recipe)
    assert type(built) is kind
    groups = [({id(p) for p in group["params"]}, group["lr"], group["weight_decay"]) for group in built.param_groups]
    assert groups == [
        ({id(p) for p in model.backbone.parameters()}, 0.3, 0.2),
        ({id(p) for p in model.head.parameters()}, pytest.approx(1.2), 0.2),
    ]
    if optimizer == "sgd":
        assert {group["momentum"] for group in built.param_groups} == {0.7}


def test_optimizer_leaves_out_what_needs_no_gradient():
    model = linear()
    model.backbone.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    (group,) = build_optimizer(model, Recipe(learning_rate=0.3, head_learning_rate_factor=4)).param_groups
    assert group["lr"] == pytest.approx(1.2)
    assert [id(p) for p in group["params"]] == [id(model.head.weight)]


def test_without_a_backbone_all_is_head():
    (group,) = build_optimizer(nn.Conv2d(3, 2, 1), Recipe(learning_rate=1.0, head_learning_rate_factor=3)).param_groups
    assert group["lr"] == 3 and len(group["params"]) == 2


def test_nothing_to_train_is_an_error():
    with pytest.raises(UsageError, match="model: expected at least one parameter to train, got none"):
        build_optimizer(linear().requires_grad_(False), Recipe())


def test_one_step_of_sgd_is_its_formula():
    model, reference = linear(), linear().train()
    images, target = next(iter(training_batches(Stripes(), SGD, seed=0)))
    pixel_loss(reference.forward_with_auxiliary(images)[0], target).backward()
    fit(model, Stripes(), replace(SGD, iterations=1), seed=0, device="cpu")
    for parameter, before in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, before - 0.01 * before.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("clip", "expected"), [(1e-3, 1e-3), (0.0, None), (1e6, None)])
def test_clipping_bounds_the_norm_of_a_step(clip, expected):
    def step(limit):
        model = linear()
        before = parameters_to_vector(model.parameters()).detach().double()
        recipe = replace(SGD, iterations=1, learning_rate=1.0, clip_gradient_norm=limit)
        fit(model, Stripes(), recipe, seed=0, device="cpu")
        return (parameters_to_vector(model.parameters()).double() - before).norm().item()

    unclipped = step(0.0)
    assert unclipped > 0.01
    assert step(clip) == pytest.approx(expected or unclipped, rel=1e-2)


def test_a_frozen_backbone_stays_as_it_is():
    model = segmentor()
    backbone, head = state(model.backbone), state(model.decode_head)
    trained(model=model, freeze_backbone=True)
    assert changed(backbone, model.backbone) == set()
    assert changed(head, model.decode_head) == head.keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_a_backbone_that_is_not_frozen_trains_with_its_statistics():
    model = segmentor()
    backbone = state(model.backbone)
    assert any(name.endswith("running_var") for name in backbone)
    trained(model=model)
    assert changed(backbone, model.backbone) == backbone.keys()


def test_a_parameter_that_was_frozen_before_stays_frozen():
    model = linear()
    model.backbone[0].bias.requires_grad_(False)
    trained(model=model, freeze_backbone=True)
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["backbone.0.bias"]


def test_freezing_wants_a_backbone():
    with pytest.raises(UsageError, match="freeze_backbone: expected a model with a backbone, got Conv2d"):
        trained(model=nn.Conv2d(3, 2, 1), freeze_backbone=True)


@pytest.mark.parametrize("freeze_backbone", [True, False])
def test_training_flags_are_as_before(freeze_backbone):
    model = linear().eval()
    model.backbone[1].train()
    flags = [module.training for module in model.modules()]
    before = state(model)
    trained(model=model, freeze_backbone=freeze_backbone)
    assert [module.training for module in model.modules()] == flags
    assert ("backbone.1.running_mean" in changed(before, model)) != freeze_backbone


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "nan"), (float("inf"), "(inf|nan)")])
def test_a_loss_that_is_not_finite_is_an_error_with_its_iteration(value, word):
    model, sound = linear(broken_from=2, value=value).eval(), linear()
    told = []
    with pytest.raises(FloatingPointError, match=f"fit: expected a finite loss, got {word} in iteration 2"):
        fit(model, Stripes(), RECIPE, seed=0, device="cpu", progress=lambda *values: told.append(values))
    assert len(told) == 2
    assert not model.training
    # the step of the broken iteration was not taken
    parameters = []
    fit(
        sound,
        Stripes(),
        RECIPE,
        seed=0,
        device="cpu",
        progress=lambda *_: parameters.append([value.detach().clone() for value in sound.parameters()]),
    )
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), parameters[1], strict=True))


@pytest.mark.parametrize(
    ("dataset", "recipe", "words"),
    [
        (Stripes(length=0), RECIPE, "dataset: expected at least one image to train on, got none"),
        (Stripes(), replace(RECIPE, batch_size=0), "batch_size: expected at least 1, got 0"),
        (Stripes(), replace(RECIPE, crop_size=None, scale_range=(0.5, 2.0)), "crop_size: expected a size"),
    ],
)
def test_a_recipe_that_does_not_fit_is_an_error(dataset, recipe, words):
    with pytest.raises(UsageError, match=words):
        fit(linear(), dataset, recipe, seed=0, device="cpu")
