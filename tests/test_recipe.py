"""The field's recipe: parameter groups, schedule, class weights, presets, and what old records are called."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import operators
from attnbench import planning, records
from attnbench.config import Experiment, Network, Recipe, load_preset, updated
from attnbench.data.synthetic import ContextDataset
from attnbench.errors import UsageError
from attnbench.models.build import build_segmentor
from attnbench.ranges import check_ranges
from attnbench.records import Trial
from attnbench.training import build_optimizer, fit, learning_rate, pixel_weights, set_batch_norm_momentum
from attnbench.training.balance import balanced, label_counts

ROOT = Path(__file__).parents[1]
FIELD = ("voc", "cityscapes", "ade20k", "emanet")
APART = Recipe(
    optimizer="sgd",
    learning_rate=0.1,
    head_learning_rate_factor=10.0,
    bias_learning_rate_factor=2.0,
    weight_decay=0.01,
    decay_weights_only=True,
)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def built(name, slot_channels=64):
    torch.manual_seed(0)
    network = Network(slot_channels=slot_channels, head_channels=8)
    return build_segmentor(name, network, len(ContextDataset("train").classes), auxiliary_weight=0.4)


@pytest.mark.parametrize("name", operators.names())
def test_every_parameter_is_in_the_group_where_it_belongs(name):
    model = built(name)
    optimizer = build_optimizer(model, APART)
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = (group["lr"], group["weight_decay"], group["initial_lr"])
    wanted = {id(p): key for key, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == wanted.keys()
    owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    for key, path in wanted.items():
        owner = owners[key]
        rate = 0.1 if path.startswith("backbone.") else 1.0
        bias = path.endswith(".bias")
        layer = isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
        expected = rate * 2 if bias else rate
        decay = 0.01 if layer and not bias else 0.0
        assert found[key] == (pytest.approx(expected), decay, pytest.approx(expected)), path
        if isinstance(owner, NORMS):
            assert found[key][1] == 0.0, path
    # backbone and head, each with decaying weights, biases, and what neither decays nor is a bias
    assert len(optimizer.param_groups) == 6


@pytest.mark.parametrize("name", ["ema", "dual"])
def test_without_the_options_there_are_two_groups_in_the_old_order(name):
    model = built(name)
    groups = build_optimizer(model, Recipe(learning_rate=0.1, head_learning_rate_factor=10.0)).param_groups
    inner = [id(p) for p in model.backbone.parameters()]
    outer = [id(p) for p in model.parameters() if p.requires_grad and id(p) not in set(inner)]
    assert [[id(p) for p in group["params"]] for group in groups] == [inner, outer]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.01), (1.0, 0.01)]


def test_bias_factor_alone_leaves_weight_decay_to_all():
    groups = build_optimizer(built("conv3x3"), replace(APART, decay_weights_only=False)).param_groups
    assert {group["weight_decay"] for group in groups} == {0.01}
    assert len(groups) == 4


SCHEDULED = Recipe(
    learning_rate=0.01, iterations=1000, power=0.9, min_learning_rate=1e-4, warmup_iterations=100, warmup_ratio=0.1
)


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [
        (0, 0.1 * 0.01),
        (50, 0.55 * (1e-4 + 0.0099 * 0.95**0.9)),
        (100, 1e-4 + 0.0099 * 0.9**0.9),
        (500, 1e-4 + 0.0099 * 0.5**0.9),
        (999, 1e-4 + 0.0099 * 0.001**0.9),
        (1000, 1e-4),
    ],
)
def test_learning_rate_at_warm_up_middle_and_end(iteration, expected):
    assert learning_rate(0.01, iteration, SCHEDULED) == pytest.approx(expected, rel=1e-12)


def test_minimal_learning_rate_is_that_of_every_group():
    assert learning_rate(0.1, 1000, SCHEDULED) == learning_rate(0.01, 1000, SCHEDULED) == pytest.approx(1e-4)


@pytest.mark.parametrize("initial", [0.005, 0.1, 1 / 3])
def test_without_minimum_and_warm_up_the_rate_is_bit_for_bit_the_old_one(initial):
    recipe = Recipe(iterations=300)
    assert all(learning_rate(initial, t, recipe) == initial * (1 - t / 300) ** 0.9 for t in range(300))


def test_batch_norm_momentum_reaches_every_batch_norm():
    model = built("ema")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    set_batch_norm_momentum(model, None)
    assert {norm.momentum for norm in norms} == {0.1}
    fit(model, ContextDataset("train"), replace(SMALL, batch_norm_momentum=3e-4), seed=0, device="cpu")
    assert {norm.momentum for norm in norms} == {3e-4}
    moved = model.backbone.state_dict()
    assert all((value - 1).abs().max() < 0.1 for key, value in moved.items() if key.endswith("running_var"))


SMALL = Recipe(iterations=2, batch_size=2, crop_size=(48, 48))
EVERYTHING = replace(
    SMALL,
    optimizer="sgd",
    learning_rate=0.01,
    scale_range=(0.5, 2.0),
    base_scale=(96, 80),
    category_max_ratio=0.75,
    photometric=True,
    auxiliary_weight=0.4,
    ohem_threshold=0.15,
    ohem_min_kept=200,
    class_balance="enet",
    warmup_iterations=1,
    min_learning_rate=1e-4,
    bias_learning_rate_factor=2.0,
    decay_weights_only=True,
    batch_norm_momentum=3e-4,
    clip_gradient_norm=10.0,
)


class Few(ContextDataset):
    """The embedded task, cut short, so that counting its classes takes no time."""

    def __len__(self) -> int:
        return 6


@pytest.mark.parametrize("amp", ["off", "bfloat16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_all_of_it_composes_and_repeats_bit_for_bit(amp, channels_last):
    recipe = replace(EVERYTHING, amp=amp, channels_last=channels_last)
    runs = []
    for workers in (0, 0, 2):
        model = built("ema", slot_channels=16)
        losses = fit(model, Few("train"), recipe, seed=5, device="cpu", num_workers=workers)
        runs.append((losses, model.state_dict()))
    assert all(math.isfinite(loss) for loss in runs[0][0])
    for losses, state in runs[1:]:
        assert losses == runs[0][0]
        assert all(torch.equal(value, state[key]) for key, value in runs[0][1].items())


@pytest.mark.parametrize("change", [{"ohem_threshold": 0.0}, {"class_balance": "none"}, {"photometric": False}])
def test_each_part_of_the_loss_and_of_the_data_counts(change):
    def first(recipe):
        model = built("ema", slot_channels=16)
        return fit(model, Few("train"), recipe, seed=5, device="cpu")[0]

    assert first(EVERYTHING) != first(replace(EVERYTHING, **change))


def test_label_counts_are_those_of_a_literal_loop():
    data = Few("train")
    counts = label_counts(data)
    for label in range(len(data.classes)):
        targets = [data[index][1] for index in range(len(data))]
        pixels = sum(int((target == label).sum()) for target in targets)
        beside = sum(int((target != 255).sum()) for target in targets if (target == label).any())
        everything = sum(int((target != 255).sum()) for target in targets)
        assert counts[label].tolist() == [pixels, beside, everything]


def test_balance_is_its_formula():
    counts = torch.tensor([[600, 1000, 1000], [300, 800, 1000], [100, 400, 1000], [0, 0, 1000]])
    shares = [0.6, 0.375, 0.25]
    assert balanced(counts, "median_frequency") == pytest.approx([*(0.375 / share for share in shares), 0.0])
    enet = [1 / math.log(1.02 + share) for share in (0.6, 0.3, 0.1)]
    assert balanced(counts, "enet") == pytest.approx([*enet, 0.0])


def test_median_of_an_even_number_of_classes_is_between_the_middle_ones():
    counts = torch.tensor([[80, 100, 100], [20, 100, 100]])
    assert balanced(counts, "median_frequency") == pytest.approx([0.5 / 0.8, 0.5 / 0.2])


def test_classes_that_never_occur_weigh_nothing():
    assert balanced(torch.zeros(3, 3, dtype=torch.int64), "median_frequency") == [0.0, 0.0, 0.0]
    assert balanced(torch.zeros(3, 3, dtype=torch.int64), "enet") == [0.0, 0.0, 0.0]


def test_class_weights_are_one_for_each_class():
    data = ContextDataset("train")
    with pytest.raises(UsageError, match=f"class_weights: expected {len(data.classes)}, one for each class .* got 2"):
        pixel_weights(data, Recipe(class_weights=(1.0, 2.0)), torch.device("cpu"))
    weights = tuple(float(index) for index in range(len(data.classes)))
    made = pixel_weights(data, Recipe(class_weights=weights, ohem_threshold=0.6, ohem_min_kept=7), torch.device("cpu"))
    assert tuple(made.classes.tolist()) == weights
    assert (made.ohem_threshold, made.ohem_min_kept) == (0.6, 7)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"accumulate": 3}, "accumulate: expected a divisor of batch_size 16, got 3 micro-batches"),
        ({"warmup_iterations": 300}, "warmup_iterations: expected fewer than the 300 iterations, got 300"),
        ({"min_learning_rate": 0.1}, "min_learning_rate: expected at most 0.005, the smallest"),
        (
            {"min_learning_rate": 1e-4, "bias_learning_rate_factor": 0.0},
            "expected at most 0, the smallest learning rate",
        ),
        ({"class_weights": [1.0], "class_balance": "enet"}, "class_weights: expected none beside class_balance 'enet'"),
        ({"category_max_ratio": 0.75}, "crop_size: expected a size where category_max_ratio is 0.75, got none"),
        ({"base_scale": [64, 48]}, "crop_size: expected a size where base_scale is (64, 48), got none"),
        ({"scale_range": [0.5, 2.0]}, "crop_size: expected a size where scale_range is (0.5, 2.0), got none"),
        ({"category_max_ratio": 0.0}, "category_max_ratio: expected a number from"),
        ({"ohem_threshold": 1.5}, "ohem_threshold: expected a number from 0 to 1"),
        ({"accumulate": 0}, "accumulate: expected a number from 1"),
        ({"class_weights": [-1.0]}, "class_weights: expected a number from 0"),
    ],
)
def test_recipes_that_contradict_themselves_are_one_line_before_anything_runs(recipe, words):
    with pytest.raises(UsageError) as caught:
        check_ranges(updated(Experiment(), {"accuracy": {"recipe": recipe}}, "options"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FIELD)
def test_presets_of_the_field_plan_every_operator_without_data(name):
    preset = load_preset(name)
    assert preset.about and preset.cost is None
    trials = planning.plan(preset)
    names = operators.names() if preset.operators == ("all",) else preset.operators
    assert [trial.operator for trial in trials] == list(names)


@pytest.mark.parametrize(
    ("name", "dataset", "crop", "base", "batch", "iterations"),
    [
        ("voc", "voc", (512, 512), (2048, 512), 16, 20_000),
        ("cityscapes", "cityscapes", (512, 1024), (2048, 1024), 8, 40_000),
        ("ade20k", "ade20k", (512, 512), (2048, 512), 16, 80_000),
    ],
)
def test_presets_of_mmsegmentation(name, dataset, crop, base, batch, iterations):
    accuracy = load_preset(name).accuracy
    assert accuracy.dataset == dataset
    assert accuracy.train_split == ("trainaug" if name == "voc" else "train")
    assert accuracy.recipe == Recipe(
        optimizer="sgd",
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        power=0.9,
        min_learning_rate=1e-4,
        iterations=iterations,
        batch_size=batch,
        crop_size=crop,
        base_scale=base,
        scale_range=(0.5, 2.0),
        category_max_ratio=0.75,
        photometric=True,
        auxiliary_weight=0.4,
    )
    assert accuracy.network == Network(
        backbone="resnet50",
        output_stride=8,
        stem="32-32-64",
        slot_channels=512,
        head_channels=512,
        concat_input=True,
    )


def test_preset_of_emanet():
    preset = load_preset("emanet")
    recipe, network = preset.accuracy.recipe, preset.accuracy.network
    assert recipe == Recipe(
        optimizer="sgd",
        learning_rate=9e-3,
        momentum=0.9,
        weight_decay=1e-4,
        bias_learning_rate_factor=2.0,
        decay_weights_only=True,
        power=0.9,
        iterations=30_000,
        batch_size=16,
        scale_range=(0.5, 2.0),
        crop_size=(513, 513),
        flip=True,
        batch_norm_momentum=3e-4,
    )
    assert network == Network(
        backbone="resnet101",
        stem="64-64-128",
        multi_grid=(1, 2, 4),
        output_stride=8,
        slot_channels=512,
        head_channels=256,
    )
    trials = {trial.operator: trial for trial in planning.plan(preset)}
    assert json.loads(trials["ema"].settings) == {"momentum": 0.1, "update": "unnormalized"}
    assert trials["conv3x3"].settings == "{}"


def test_settings_reach_cost_and_accuracy_of_their_operator_alone():
    experiment = updated(
        Experiment(), {"operators": ["ema", "conv3x3"], "settings": {"ema": {"num_bases": 7}}}, where="options"
    )
    given = {(trial.task, trial.operator, trial.settings) for trial in planning.plan(experiment)}
    assert given == {(task, "ema", '{"num_bases": 7}') for task in ("cost", "accuracy")} | {
        (task, "conv3x3", "{}") for task in ("cost", "accuracy")
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"emma": {}}, "did you mean 'ema'?"),
        ({"ema": {"momentun": 0.1}}, "operator 'ema': unknown setting 'momentun'; did you mean 'momentum'?"),
        ({"ema": {"update": "sometimes"}}, "expected update in"),
        ({"ema": 3}, "settings, ema: expected a table, got 3"),
        ({"ema": {"momentum": 7.0}}, "settings.ema.momentum: expected a number from 0 to 1, got 7.0"),
        ({"conv3x3": {"momentum": 0.1}}, "operator 'conv3x3': unknown setting 'momentum'; it has none"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings, words):
    with pytest.raises(UsageError) as caught:
        planning.plan(updated(Experiment(operators=("ema", "conv3x3")), {"settings": settings}, where="options"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def committed():
    for path in sorted((ROOT / "results" / "reference").rglob("records/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["task"] == "accuracy":
                yield record


def rebuilt(record):
    """The trial that a record is of; what the record does not say has its default."""

    def tuples(values):
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    def part(prefix):
        return tuples({key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)})

    names = {item.name for item in dataclasses.fields(Trial)} - {"network", "recipe"}
    plain = tuples({key: value for key, value in record.items() if key in names})
    return Trial(**plain, network=Network(**part("network.")), recipe=Recipe(**part("recipe.")))


def test_committed_records_keep_their_identity():
    found = list(committed())
    assert len(found) > 100
    for record in found:
        trial = rebuilt(record)
        assert records.identity(trial, record["environment"], record["source"]) == record["identity"]
        fields = trial.fields()
        assert {key: record[key] for key in fields} == fields


LATER = [item.name for item in dataclasses.fields(Recipe) if item.metadata.get("later")]


@pytest.mark.parametrize("name", LATER)
def test_a_later_field_is_recorded_and_identifies_where_it_is_not_its_default(name):
    hint = typing.get_type_hints(Recipe)[name]
    choices = {bool: True, int: 5, float: 0.5}
    special = {"base_scale": (64, 64), "class_weights": (1.0, 2.0), "class_balance": "enet", "batch_norm_momentum": 0.5}
    special["batch_norm"] = "frozen"
    value = special[name] if name in special else choices[hint]
    trial = Trial("accuracy", "ema", "reference", "cpu", recipe=Recipe())
    changed = replace(trial, recipe=replace(Recipe(), **{name: value}))
    assert f"recipe.{name}" not in trial.fields()
    assert changed.fields()[f"recipe.{name}"] == (list(value) if isinstance(value, tuple) else value)
    assert records.identity(trial, "e", "s") != records.identity(changed, "e", "s")
    assert rebuilt(changed.fields()) == replace(changed, network=Network())
