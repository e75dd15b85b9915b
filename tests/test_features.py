"""Cached features: what is kept is what the backbone computes, crops fit their labels, and runs repeat themselves."""

import dataclasses
import multiprocessing
import os

import pytest
import torch
from torch.nn import functional as F

from attnbench import planning, runner
from attnbench.config import Accuracy, Experiment, Network, Recipe
from attnbench.data import build_dataset
from attnbench.data.features import ABOUT
from attnbench.data.loading import training_batches
from attnbench.data.transforms import collate, normalise
from attnbench.errors import UsageError
from attnbench.evaluation import evaluate
from attnbench.models.build import build_segmentor
from attnbench.training import features, fit
from attnbench.training.features import HeadOnFeatures, cached_features

NETWORK = Network()
RECIPE = Recipe(iterations=4, batch_size=3, crop_size=(24, 32))
CPU = torch.device("cpu")


class Some:
    """The first images of the embedded task."""

    def __init__(self, split="train", count=5):
        self._all = build_dataset("context", split=split)
        self._count = count
        self.name, self.classes, self.palette = self._all.name, self._all.classes, self._all.palette
        self.mean, self.std = self._all.mean, self._all.std

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return self._all[index]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def segmentor(name="conv3x3", seed=0):
    torch.manual_seed(seed)
    return build_segmentor(name, NETWORK, 5)


def computed(model, dataset=None, **options):
    options = {"split": "train", "image_size": None, "mirrored": True, "device": CPU, **options}
    return cached_features(model, NETWORK, dataset or Some(), **options)


def test_features_are_what_the_backbone_computes():
    model, dataset = segmentor().eval(), Some()
    found = computed(model)
    assert len(found) == 5
    assert (found.image_size, found.output_stride) == ((48, 48), 4)
    for index in range(5):
        image, target = dataset[index]
        with torch.no_grad():
            _, expected = model.backbone(normalise(image[None], dataset.mean, dataset.std))
        kept, labels = found[index]
        torch.testing.assert_close(kept, expected[0], rtol=1e-3, atol=1e-6)
        assert torch.equal(labels, target)


def test_logits_on_features_are_those_of_the_network():
    """To the precision of float16; the head sees whole images."""
    model = segmentor().eval()
    found = computed(model)
    images, _ = collate([Some()[index] for index in range(5)])
    with torch.no_grad():
        expected = model(normalise(images, Some().mean, Some().std))
        got = HeadOnFeatures(model, found.image_size).eval()(torch.stack([found[index][0] for index in range(5)]))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))
    assert evaluate(HeadOnFeatures(model, found.image_size), found, device=CPU).aacc == pytest.approx(
        evaluate(model, Some(), device=CPU).aacc, abs=2e-3
    )


def test_crops_of_features_lie_on_crops_of_labels():
    """Features that say where they are: each crop's labels are the ones under it, mirrored ones among them."""
    model = segmentor()

    class Marked(torch.nn.Module):
        output_stride = 4

        def forward(self, images):
            return None, F.avg_pool2d(images, 4)

    class Painted(Some):
        def __init__(self):
            super().__init__()
            self.mean, self.std = (0.0, 0.0, 0.0), (1 / 255,) * 3

        def __getitem__(self, index):
            target = torch.arange(12 * 12, dtype=torch.uint8).view(12, 12) + index
            target = target.repeat_interleave(4, 0).repeat_interleave(4, 1)
            return target.expand(3, 48, 48).clone(), target

    model.backbone = Marked()
    found = computed(model, Painted())
    places = set()
    for inputs, target in training_batches(found, dataclasses.replace(RECIPE, iterations=12), seed=0):
        assert inputs.shape == (3, 3, 6, 8)
        assert target.shape == (3, 24, 32)
        assert torch.equal(inputs[:, 0].long(), target[:, ::4, ::4])
        places |= {(int(row[0, 1] - row[0, 0]), int(row[0, 0]) // 12) for row in inputs[:, 0]}
    assert {direction for direction, _ in places} == {1, -1}
    assert len(places) > 6


def test_a_copy_of_the_files_has_the_same_features_and_another_content_has_not(tmp_path, cache):
    def folder(name, image):
        pair = (tmp_path / name / "0.png", tmp_path / name / "0_mask.png")
        pair[0].parent.mkdir()
        for path, content in zip(pair, (image, b"mask"), strict=True):
            path.write_bytes(content)
            os.utime(path, (len(name), len(name)))
        dataset = Some()
        dataset.pairs = [pair]
        return dataset

    def kept():
        return {path.parent for path in cache.glob(f"features/*/{ABOUT}")}

    model = segmentor()
    computed(model, folder("here", b"image"))
    first = kept()
    computed(model, folder("elsewhere", b"image"))
    assert kept() == first
    computed(model, folder("else", b"IMAGE"))
    assert len(kept()) == 2


def test_two_runs_are_equal_whoever_filled_the_cache(cache, monkeypatch):
    def run(name):
        model = segmentor(name)
        found = computed(model)
        learner = HeadOnFeatures(model, found.image_size)
        losses = fit(learner, found, RECIPE, seed=3, device=CPU)
        return losses, evaluate(learner, found, device=CPU)

    first = run("ema")
    assert run("ema") == first
    monkeypatch.setenv("ATTNBENCH_CACHE", str(cache.with_name("other")))
    assert run("ema") == first


def test_features_are_computed_once(cache, monkeypatch):
    calls = []
    write = features._write
    monkeypatch.setattr(features, "_write", lambda *arguments: calls.append(1) or write(*arguments))
    computed(segmentor())
    computed(segmentor("ema"))
    assert len(calls) == 1
    computed(segmentor(seed=1))
    computed(segmentor(), mirrored=False)
    computed(segmentor(), Some("val"), split="val")
    assert len(calls) == 4
    assert not [path for path in (cache / "features").iterdir() if path.name.startswith(".") and path.is_dir()]


def test_half_written_features_are_not_taken(cache, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(features, "_features", fail)
        with pytest.raises(KeyboardInterrupt):
            computed(segmentor())
    assert not list((cache / "features").glob("*/about.json"))
    assert len(computed(segmentor())) == 5


def _fill(queue, begin):
    torch.set_num_threads(1)
    calls, write = [], features._write
    features._write = lambda *given: calls.append(given) or write(*given)
    model = segmentor()
    begin.wait(60)
    found = computed(model)
    queue.put((float(found[0][0].sum()), len(calls)))


def test_of_two_processes_at_once_one_computes():
    context = multiprocessing.get_context("fork")
    queue, begin = context.Queue(), context.Barrier(2)
    running = [context.Process(target=_fill, args=(queue, begin)) for _ in range(2)]
    for process in running:
        process.start()
    (first, computed_here), (second, computed_there) = [queue.get(timeout=60) for _ in running]
    for process in running:
        process.join()
    assert first == second
    assert sorted((computed_here, computed_there)) == [0, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale_range": (0.5, 2.0)}, "scale_range: cached features are those of whole images"),
        ({"photometric": True}, "photometric: cached features"),
        ({"auxiliary_weight": 0.4}, "auxiliary_weight: cached features"),
        ({"crop_size": (25, 32)}, r"crop_size: expected multiples of the output stride 4, got \(25, 32\)"),
    ],
)
def test_recipes_that_do_not_fit(changes, said):
    accuracy = Accuracy(
        freeze_backbone=True, cache_features=True, network=NETWORK, recipe=dataclasses.replace(RECIPE, **changes)
    )
    with pytest.raises(UsageError, match=said):
        planning.plan(Experiment(operators=("conv1x1",), cost=None, accuracy=accuracy, device="cpu"))


def test_trained_backbones_and_large_crops_are_refused():
    experiment = Experiment(operators=("conv1x1",), cost=None, accuracy=Accuracy(cache_features=True), device="cpu")
    with pytest.raises(UsageError, match="expected a frozen backbone"):
        planning.plan(experiment)
    with pytest.raises(UsageError, match=r"crop_size: expected at most the images' \(48, 48\), got \(52, 48\)"):
        computed(segmentor()).crops(dataclasses.replace(RECIPE, crop_size=(52, 48)), 0)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATTNBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="ATTNBENCH_CACHE"):
        computed(segmentor())


def test_images_of_several_sizes_are_refused():
    class Ragged(Some):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return (image[:, :40], target[:40]) if index == 4 else (image, target)

    with pytest.raises(UsageError, match="expected images of one size for cached features"):
        computed(segmentor(), Ragged())


def test_a_run_on_cached_features_has_rows_of_its_own(tmp_path):
    def trial(**options):
        accuracy = Accuracy(freeze_backbone=True, network=NETWORK, recipe=Recipe(iterations=2, batch_size=2), **options)
        return Experiment(operators=("conv1x1",), cost=None, accuracy=accuracy, device="cpu")

    plain, cached = (planning.plan(trial(cache_features=flag))[0] for flag in (False, True))
    assert plain.fields().keys() ^ cached.fields().keys() == {"cache_features"}
    events = [event for event in runner.run(trial(cache_features=True), [cached], tmp_path) if event.kind == "finished"]
    assert events[0].data["status"] == "ok", events[0].data
    assert events[0].data["cache_features"] is True
