from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from attnbench.config import Recipe
from attnbench.data import transforms
from attnbench.data.loading import BatchOrder, training_batches
from attnbench.data.transforms import Augmentation, collate, normalise
from attnbench.errors import UsageError

HEIGHT, WIDTH = 40, 56
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
# the image of coordinates is read back as it is where mean and deviation change nothing
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
# where labels start, so that none is taken for 255
BASE = 1000


def coordinates(height=HEIGHT, width=WIDTH):
    """An image whose first channels are row and column, and a target that tells both."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.full_like(rows, 200)]).to(torch.uint8)
    return image, BASE + rows * width + columns


def decoded(target, width=WIDTH):
    return (target - BASE) // width, (target - BASE) % width


def draws(augmentation, number=60, **size):
    sample = coordinates(**size)
    return [augmentation(*sample, iteration=index // 4, slot=index % 4) for index in range(number)]


def plain(seed=0, **settings):
    return Augmentation(**PLAIN, seed=seed, **settings)


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(image, image_too) and torch.equal(target, target_too)
        for (image, target), (image_too, target_too) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 5, 7)])
def test_normalise_is_its_formula(shape):
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = normalise(images, MEAN, STD)
    assert result.dtype == torch.float32
    for channel in range(3):
        expected = (images.select(-3, channel).double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(result.select(-3, channel).double(), expected, atol=1e-5, rtol=1e-5)


def test_without_any_change_the_image_is_normalised_alone():
    image, target = coordinates()
    changed, labels = Augmentation(MEAN, STD, seed=0, flip=False)(image, target.int(), iteration=3, slot=1)
    assert torch.equal(changed, normalise(image, MEAN, STD))
    assert labels.dtype == torch.int64 and torch.equal(labels, target)


@pytest.mark.parametrize("crop_size", [None, (16, 24), (40, 56), (17, 80), (64, 72)])
@pytest.mark.parametrize("flip", [True, False])
def test_image_and_target_stay_aligned(crop_size, flip):
    for image, target in draws(plain(crop_size=crop_size, flip=flip)):
        assert image.shape[-2:] == target.shape == (crop_size or (HEIGHT, WIDTH))
        assert image.is_contiguous() and target.is_contiguous()
        inside = target != 255
        rows, columns = decoded(target[inside])
        torch.testing.assert_close(image[0][inside], rows.float())
        torch.testing.assert_close(image[1][inside], columns.float())


@pytest.mark.parametrize("scale_range", [(0.5, 2.0), (0.4, 0.9), (1.1, 1.9)])
def test_resized_image_and_target_stay_aligned(scale_range):
    for image, target in draws(plain(crop_size=(48, 48), scale_range=scale_range), number=30):
        inside = target != 255
        rows, columns = decoded(target[inside])
        # nearest lies within half a pixel of bilinear; at the border less is averaged
        assert (image[0][inside] - rows).abs().max() < 1.01
        assert (image[1][inside] - columns).abs().max() < 1.01
        torch.testing.assert_close(image[2][inside], torch.full_like(image[2][inside], 200.0), atol=1e-3, rtol=0)


def test_labels_are_not_shifted_by_the_resize():
    """At a third, the middle of each 3x3 block is both the nearest pixel and the mean."""
    image, target = plain(crop_size=(14, 20), scale_range=(1 / 3, 1 / 3), flip=False)(
        *coordinates(42, 60), iteration=0, slot=0
    )
    rows, columns = decoded(target, 60)
    assert torch.equal(rows, (3 * torch.arange(14) + 1)[:, None].expand(14, 20))
    assert torch.equal(columns, (3 * torch.arange(20) + 1).expand(14, 20))
    torch.testing.assert_close(image[0][1:-1], rows[1:-1].float(), atol=1e-3, rtol=0)


def test_fine_stripes_average_out_where_images_shrink():
    image = (255 * (torch.arange(60) % 2)).to(torch.uint8).expand(3, 42, 60)
    augmentation = plain(crop_size=(14, 20), scale_range=(1 / 3, 1 / 3))
    small, _ = augmentation(image, torch.zeros(42, 60), iteration=0, slot=0)
    # every third pixel alone would be 0 or 255
    assert (small - 127.5).abs().max() < 64


def test_small_images_are_padded_with_the_mean_and_255():
    augmentation = Augmentation(MEAN, STD, seed=0, crop_size=(60, 70))
    for image, target in draws(augmentation):
        outside = target == 255
        assert int(outside.sum()) == 60 * 70 - HEIGHT * WIDTH
        # zero is the mean after normalisation
        assert not image[:, outside].any()
        assert image[:, ~outside].abs().sum(0).min() > 0


def test_crops_come_from_everywhere():
    starts = {tuple(int(part[0, 0]) for part in decoded(target)) for _, target in draws(plain(crop_size=(38, 53)), 300)}
    mirrored_or_not = {(top, left) for top in range(3) for left in (0, 1, 2, 3, 52, 53, 54, 55)}
    assert starts == mirrored_or_not


@pytest.mark.parametrize("crop_size", [None, (20, 20), (64, 60)])
def test_half_of_the_images_are_mirrored_whole(crop_size):
    straight, mixed = (draws(plain(crop_size=crop_size, flip=flip), 200) for flip in (False, True))
    mirrored = 0
    for (image, target), (image_too, target_too) in zip(straight, mixed, strict=True):
        if torch.equal(target, target_too):
            assert torch.equal(image, image_too)
        else:
            assert torch.equal(target.flip(-1), target_too) and torch.equal(image.flip(-1), image_too)
            mirrored += 1
    assert 70 < mirrored < 130


def test_scales_fill_their_range():
    areas = [int((target != 255).sum()) for _, target in draws(plain(crop_size=(90, 120), scale_range=(0.5, 2)), 200)]
    scales = np.sqrt(np.array(areas) / (HEIGHT * WIDTH))
    assert 0.49 < scales.min() < 0.55 and 1.95 < scales.max() < 2.01
    assert abs(scales.mean() - 1.25) < 0.1


def test_a_sample_depends_on_seed_iteration_and_slot_alone():
    settings = {"crop_size": (16, 16), "scale_range": (0.5, 2.0)}
    sample = coordinates()
    augmentation = plain(**settings)
    forwards = [augmentation(*sample, iteration=i, slot=s) for i in range(3) for s in range(3)]
    torch.manual_seed(5)
    np.random.seed(5)
    again = plain(**settings)
    backwards = [again(*sample, iteration=i, slot=s) for i in (2, 1, 0) for s in (2, 1, 0)]
    assert same(forwards, backwards[::-1])
    assert len({image.numpy().tobytes() for image, _ in forwards}) == 9
    assert not same(forwards[:1], [plain(seed=1, **settings)(*sample, iteration=0, slot=0)])


def test_what_was_given_is_left_as_it_was():
    image, target = coordinates()
    plain(crop_size=(64, 64), scale_range=(0.5, 2.0))(image, target, iteration=0, slot=0)
    assert same([(image, target)], [coordinates()])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale_range": (0.0, 1.0), "crop_size": (8, 8)}, r"scale_range: expected 0 < smallest .*got \(0.0, 1.0\)"),
        ({"scale_range": (2.0, 0.5), "crop_size": (8, 8)}, r"scale_range: expected .*got \(2.0, 0.5\)"),
        ({"scale_range": (0.5, 2.0)}, r"crop_size: expected a size where images are resized .*got none"),
        ({"crop_size": (0, 8)}, r"crop_size: expected a positive height and width, got \(0, 8\)"),
    ],
)
def test_settings_that_do_not_fit_are_errors(settings, words):
    with pytest.raises(UsageError, match=words):
        plain(**settings)


def test_collate_stacks():
    samples = [(torch.full((3, 2, 4), float(index)), torch.full((2, 4), index)) for index in range(3)]
    images, targets = collate(samples)
    assert images.shape == (3, 3, 2, 4) and targets.shape == (3, 2, 4)
    assert images[:, 0, 0, 0].tolist() == targets[:, 0, 0].tolist() == [0, 1, 2]


def test_collate_wants_one_size():
    samples = [(torch.zeros(3, *size), torch.zeros(size)) for size in ((2, 4), (4, 2))]
    with pytest.raises(
        UsageError, match=r"batch: expected images of one size \(--image-size, or .*\), got \[\(2, 4\), \(4"
    ):
        collate(samples)


def test_batches_run_through_one_permutation_after_the_other():
    order = BatchOrder(5, batch_size=4, iterations=5, seed=0)
    batches = list(order)
    assert len(batches) == len(order) == 5
    assert [[place[:2] for place in batch] for batch in batches] == [[(i, s) for s in range(4)] for i in range(5)]
    indices = [index for batch in batches for _, _, index in batch]
    epochs = [tuple(indices[start : start + 5]) for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len(set(epochs)) > 1


def test_the_seed_decides_the_order():
    orders = [list(BatchOrder(50, batch_size=8, iterations=3, seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_batch_may_be_larger_than_the_dataset():
    ((*places,),) = BatchOrder(2, batch_size=6, iterations=1, seed=0)
    assert sorted(index for _, _, index in places) == [0, 0, 0, 1, 1, 1]


@dataclass
class Coordinates:
    """Images of coordinates whose third channel is their index."""

    length: int = 6
    sizes: tuple[tuple[int, int], ...] = ((HEIGHT, WIDTH),)
    name: str = "coordinates"
    classes: tuple[str, ...] = ("one", "two")
    palette: tuple[tuple[int, int, int], ...] = ((0, 0, 0), (255, 255, 255))
    mean: tuple[float, float, float] = PLAIN["mean"]
    std: tuple[float, float, float] = PLAIN["std"]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = coordinates(*self.sizes[index % len(self.sizes)])
        image[2] = index
        return image, target


RECIPE = Recipe(iterations=5, batch_size=4, crop_size=(16, 24), scale_range=(0.5, 2.0))


def test_batches_have_the_recipes_form():
    batches = list(training_batches(Coordinates(), RECIPE, seed=0))
    assert len(batches) == 5
    for images, targets in batches:
        assert images.shape == (4, 3, 16, 24) and images.dtype == torch.float32
        assert targets.shape == (4, 16, 24) and targets.dtype == torch.int64


def test_batches_follow_order_and_augmentation():
    recipe = Recipe(iterations=5, batch_size=4, crop_size=(16, 24))
    augmentation = plain(seed=3, crop_size=(16, 24))
    dataset = Coordinates()
    order = BatchOrder(6, batch_size=4, iterations=5, seed=3)
    for places, (images, targets) in zip(order, training_batches(dataset, recipe, seed=3), strict=True):
        expected = [augmentation(*dataset[index], iteration=i, slot=s) for i, s, index in places]
        assert same(list(zip(images, targets, strict=True)), expected)


def test_batches_do_not_depend_on_the_number_of_workers():
    here, elsewhere = (list(training_batches(Coordinates(), RECIPE, seed=0, num_workers=number)) for number in (0, 2))
    assert same(here, elsewhere)


def test_batches_depend_on_the_seed_and_leave_global_generators_alone():
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = list(training_batches(Coordinates(), RECIPE, seed=0))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    torch.manual_seed(1)
    assert same(first, list(training_batches(Coordinates(), RECIPE, seed=0)))
    assert not same(first, list(training_batches(Coordinates(), RECIPE, seed=1)))


@pytest.mark.parametrize(
    ("dataset", "recipe", "words"),
    [
        (Coordinates(length=0), RECIPE, "dataset: expected at least one image to train on, got none"),
        (Coordinates(), Recipe(batch_size=0), "batch_size: expected at least 1, got 0"),
        (Coordinates(), Recipe(scale_range=(0.5, 2.0)), "crop_size: expected a size where images are resized"),
        (
            Coordinates(sizes=((8, 9), (9, 8))),
            Recipe(iterations=3),
            r"expected images of one size \(--image-size, or crop_size in the recipe",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_an_error(dataset, recipe, words):
    with pytest.raises(UsageError, match=words):
        list(training_batches(dataset, recipe, seed=0))


@pytest.mark.parametrize(
    ("size", "base", "expected"),
    [((40, 56), (112, 80), (80, 112)), ((40, 56), (1000, 20), (20, 28)), ((56, 40), (28, 1000), (39, 28))],
)
def test_base_scale_keeps_the_aspect(size, base, expected):
    augmentation = plain(crop_size=(130, 130), base_scale=base)
    _, target = augmentation(*coordinates(*size), iteration=0, slot=0)
    inside = target != 255
    assert (int(inside.any(1).sum()), int(inside.any(0).sum())) == expected


def test_random_scale_multiplies_the_base_scale():
    settings = {"crop_size": (300, 300), "scale_range": (0.5, 2.0)}
    without, fitted = (plain(**settings, base_scale=base) for base in (None, (2 * WIDTH, 2 * HEIGHT)))
    for slot in range(10):
        areas = [int((made(*coordinates(), iteration=0, slot=slot)[1] != 255).sum()) for made in (without, fitted)]
        assert areas[1] / areas[0] == pytest.approx(4, rel=0.1)


def half_and_half():
    """Left of the middle label 0, right of it labels 1 and 2 in turns; the lowest rows are not labelled."""
    target = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    target[:, WIDTH // 2 :] = 1 + torch.arange(WIDTH // 2) % 2
    target[-8:] = 255
    return coordinates()[0], target


def largest_share(target):
    counts = torch.bincount(target[target != 255])
    return float(counts.max() / counts.sum()) if len(counts) else 1.0


def test_crops_of_one_class_are_drawn_again():
    shares = {
        ratio: [
            largest_share(plain(crop_size=(8, 8), category_max_ratio=ratio)(*half_and_half(), iteration=i, slot=0)[1])
            for i in range(200)
        ]
        for ratio in (1.0, 0.75)
    }
    filled = {ratio: sum(share >= 0.75 for share in found) for ratio, found in shares.items()}
    assert filled[1.0] > 60 and filled[0.75] <= 2


def test_the_first_crop_stays_where_it_will_do():
    settings = {"crop_size": (8, 8), "flip": True, "scale_range": (0.8, 1.5)}
    free, choosy = (plain(**settings, category_max_ratio=ratio) for ratio in (1.0, 0.75))
    stayed = 0
    for index in range(60):
        one, other = (made(*half_and_half(), iteration=index, slot=1) for made in (free, choosy))
        if len(torch.unique(one[1][one[1] != 255])) > 1 and largest_share(one[1]) < 0.75:
            assert same([one], [other])
            stayed += 1
    assert stayed > 15


@pytest.mark.parametrize("label", [0, 255])
def test_an_image_of_one_class_is_cropped_all_the_same(label):
    image, _ = coordinates()
    augmentation = plain(crop_size=(8, 8), category_max_ratio=0.75)
    _, target = augmentation(image, torch.full((HEIGHT, WIDTH), label, dtype=torch.uint8), iteration=0, slot=0)
    assert target.unique().tolist() == [label]


def test_ten_crops_are_drawn_at_most(monkeypatch):
    looked = []
    monkeypatch.setattr(transforms, "_varied", lambda target, largest: looked.append(largest) is not None)
    plain(crop_size=(8, 8), category_max_ratio=0.6)(*coordinates(), iteration=0, slot=0)
    assert looked == [0.6] * 10


def test_base_scale_needs_a_crop():
    with pytest.raises(UsageError, match=r"crop_size: expected a size where images are fitted into \(2048, 512\)"):
        plain(base_scale=(2048, 512))
