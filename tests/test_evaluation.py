from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from attnbench.config import Inference, Network
from attnbench.data.transforms import normalise
from attnbench.errors import UsageError
from attnbench.evaluation import BoundaryScore, evaluate, segment
from attnbench.metrics import ConfusionMatrix
from attnbench.models.build import build_segmentor

SIZES = ((7, 5), (7, 5), (9, 11), (9, 11), (9, 11), (1, 3), (7, 5))


@dataclass
class Colours:
    """Noise, labelled by the strongest channel; `wrong` of the labels are drawn and `ignored` are 255."""

    sizes: tuple[tuple[int, int], ...] = SIZES
    wrong: float = 0.0
    ignored: float = 0.0
    name: str = "colours"
    classes: tuple[str, ...] = ("red", "green", "blue")
    palette: tuple[tuple[int, int, int], ...] = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(index)
        size = self.sizes[index]
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        target = image.argmax(0)
        drawn = torch.randint(0, 3, size, generator=generator)
        target = torch.where(torch.rand(size, generator=generator) < self.wrong, drawn, target)
        return image, torch.where(torch.rand(size, generator=generator) < self.ignored, 255, target).to(torch.uint8)


class Recorder(nn.Module):
    """Logits are the image; keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.flags: list[tuple[bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        self.flags.append((self.training, torch.is_grad_enabled()))
        return images


class Normed(nn.Module):
    """Batch norm with statistics of its own, and dropout: another result wherever one of them trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean.copy_(torch.tensor([0.3, -0.4, 0.1]))
        self.norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
        self.dropout = nn.Dropout2d(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.norm(images))


def test_what_is_right_everywhere_scores_one():
    scores = evaluate(Recorder(), Colours(ignored=0.3), device="cpu")
    assert (scores.miou, scores.macc, scores.aacc, scores.iou) == (1.0, 1.0, 1.0, (1.0, 1.0, 1.0))


def test_scores_are_those_of_one_matrix_over_all_pixels():
    dataset = Colours(wrong=0.6, ignored=0.3)
    matrix = ConfusionMatrix(3)
    for index in range(len(dataset)):
        image, target = dataset[index]
        matrix.update(image.argmax(0)[None], target[None])
    scores = evaluate(Recorder(), dataset, device=torch.device("cpu"))
    assert scores == matrix.scores()
    assert 0.3 < scores.miou < 0.8


def test_images_arrive_normalised_at_their_own_size():
    model, dataset = Recorder(), Colours()
    evaluate(model, dataset, device="cpu", batch_size=1)
    for index, images in enumerate(model.seen):
        assert torch.equal(images, normalise(dataset[index][0], dataset.mean, dataset.std)[None])


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [
        (2, [(2, 7, 5), (2, 9, 11), (1, 9, 11), (1, 1, 3), (1, 7, 5)]),
        (8, [(2, 7, 5), (3, 9, 11), (1, 1, 3), (1, 7, 5)]),
    ],
)
def test_neighbours_of_equal_size_share_a_batch(batch_size, expected):
    model = Recorder()
    evaluate(model, Colours(), device="cpu", batch_size=batch_size)
    assert [(len(images), *images.shape[-2:]) for images in model.seen] == expected


@pytest.mark.parametrize("sizes", [SIZES, ((6, 4),) * 17])
def test_scores_do_not_depend_on_the_batch_size(sizes):
    dataset, model = Colours(sizes, wrong=0.3, ignored=0.1), Normed()
    one, eight = (evaluate(model, dataset, device="cpu", batch_size=size) for size in (1, 8))
    assert one == eight
    assert 0 < one.miou < 1


def test_a_segmentor_is_scored_at_odd_sizes():
    torch.manual_seed(0)
    model = build_segmentor("identity", Network(slot_channels=8, head_channels=8), 3)
    dataset = Colours(((33, 47), (33, 47), (17, 5), (64, 64)))
    model.eval()
    matrix = ConfusionMatrix(3)
    with torch.no_grad():
        for image, target in (dataset[index] for index in range(4)):
            matrix.update(model(normalise(image, dataset.mean, dataset.std)[None]), target[None])
    assert int(matrix.counts.sum()) == 2 * 33 * 47 + 17 * 5 + 64 * 64
    model.train()
    assert evaluate(model, dataset, device="cpu", batch_size=1) == matrix.scores()


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(Normed(), Recorder(), Normed()).train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    evaluate(model, Colours(), device="cpu")
    assert [module.training for module in model.modules()] == flags
    assert True in flags and False in flags
    assert model[1].flags == [(False, False)] * 4
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_flags_are_restored_after_an_error():
    class Failing(Recorder):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("no logits today")

    model = Failing().train()
    with pytest.raises(RuntimeError, match="no logits today"):
        evaluate(model, Colours(), device="cpu")
    assert model.training


def test_progress_counts_images():
    seen = []
    evaluate(Recorder(), Colours(), device="cpu", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 7), (5, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bfloat16", torch.bfloat16)])
def test_amp_is_the_precision_of_the_forward_pass(amp, dtype):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Recorder())
    evaluate(model, Colours(), device="cpu", amp=amp)
    assert {images.dtype for images in model[1].seen} == {dtype}


def test_an_empty_dataset_is_an_error():
    with pytest.raises(UsageError, match="dataset 'colours': expected at least one image to score, got none"):
        evaluate(Recorder(), Colours(()), device="cpu")


def test_a_precision_that_the_device_lacks_is_an_error():
    model = Recorder().train()
    with pytest.raises(UsageError, match="amp: expected 'off' or 'bfloat16' on device 'cpu', got 'float16'"):
        evaluate(model, Colours(), device="cpu", amp="float16")
    assert model.training


def test_logits_of_other_classes_are_an_error():
    with pytest.raises(ValueError, match=r"expected logits \(B, 3, H, W\).*got \(2, 5, 7, 5\)"):
        evaluate(nn.Conv2d(3, 5, 1), Colours(), device="cpu")


def test_a_dataset_without_labelled_pixels_is_an_error():
    with pytest.raises(UsageError, match="expected at least one labelled pixel to score, got none"):
        evaluate(Recorder(), Colours(ignored=1.1), device="cpu")


class Shifted(nn.Module):
    """Logits are the image moved one pixel down: boundaries are near, and not where they were."""

    def forward(self, images: Tensor) -> Tensor:
        return images.roll(1, -2)


def test_windows_scales_and_mirrors_are_followed():
    dataset, model = Colours(((40, 30), (40, 30), (9, 7))), nn.Conv2d(3, 3, 5, padding=2).train()
    inference = Inference("slide", (16, 16), (11, 11), scales=(0.5, 1.0), flip=True)
    matrix = ConfusionMatrix(3)
    with torch.no_grad():
        for image, target in (dataset[index] for index in range(3)):
            scores = segment(model, normalise(image, dataset.mean, dataset.std)[None], inference)
            matrix.update(scores, target[None])
    found = evaluate(model, dataset, device="cpu", inference=inference)
    assert found == matrix.scores() != evaluate(model, dataset, device="cpu")
    assert model.training


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_boundary_score_leaves_the_others_as_they_are(batch_size):
    dataset = Colours(ignored=0.05)
    plain = evaluate(Shifted(), dataset, device="cpu", batch_size=batch_size)
    scores = evaluate(Shifted(), dataset, device="cpu", batch_size=batch_size, boundary=True)
    wanted = BoundaryScore(3)
    for image, target in (dataset[index] for index in range(len(dataset))):
        wanted.update(image.roll(1, -2).argmax(0)[None], target[None])
    assert scores.boundary_f_of_class == wanted.of_class()
    assert scores.boundary_f == pytest.approx(sum(wanted.of_class()) / 3)
    assert dataclasses.replace(scores, boundary_f=None, boundary_f_of_class=()) == plain
    assert plain.boundary_fields() == {}
    assert scores.boundary_fields() == {
        "boundary_f": scores.boundary_f,
        "boundary_f_of_class": list(wanted.of_class()),
    }


def test_a_perfect_boundary_scores_one():
    assert evaluate(Recorder(), Colours(), device="cpu", boundary=True).boundary_f == 1.0


def test_a_label_beyond_the_classes_is_one_line_that_names_the_image():
    class Strange(Colours):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            image, target = super().__getitem__(index)
            return image, target.index_fill(0, torch.tensor(0), 7) if index == 3 else target

    model = Recorder().train()
    with pytest.raises(UsageError, match=r"^dataset 'colours', image 3: expected labels 0\.\.2 and 255, got 7$"):
        evaluate(model, Strange(), device="cpu")
    assert model.training


def test_parts_add_up_to_the_whole():
    whole = Colours(wrong=0.3, ignored=0.05)
    parts = [Subset(whole, range(3)), Subset(whole, range(3, 7))]
    counted = []

    def keep(counts: Tensor) -> Tensor:
        counted.append(counts)
        return counts

    evaluate(Shifted(), parts[0], device="cpu", boundary=True, add_up=keep)
    others = iter(counted)
    found = evaluate(Shifted(), parts[1], device="cpu", boundary=True, add_up=lambda counts: counts + next(others))
    wanted = evaluate(Shifted(), whole, device="cpu", boundary=True)
    assert dataclasses.replace(found, boundary_f=0, boundary_f_of_class=()) == dataclasses.replace(
        wanted, boundary_f=0, boundary_f_of_class=()
    )
    assert found.boundary_f_of_class == pytest.approx(wanted.boundary_f_of_class, rel=1e-12)
    assert found.boundary_f != evaluate(Shifted(), parts[1], device="cpu", boundary=True).boundary_f


class Subset(Colours):
    """Some images of another dataset."""

    def __init__(self, whole: Colours, indices: range) -> None:
        super().__init__(whole.sizes)
        self.whole, self.indices = whole, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.whole[self.indices[index]]


def test_loading_processes_change_nothing():
    data = Colours(wrong=0.3, ignored=0.1)
    alone, loaded = (evaluate(Recorder(), data, device="cpu", batch_size=2, num_workers=count) for count in (0, 2))
    assert loaded == alone


def test_an_image_that_breaks_in_a_loading_process_is_named_as_it_would_be_here():
    class Broken(Colours):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            if index == 3:
                raise UsageError("image 'three.png': expected an image, got half of one")
            return super().__getitem__(index)

    for count in (0, 2):
        with pytest.raises(UsageError, match=r"three\.png"):
            evaluate(Recorder(), Broken(), device="cpu", num_workers=count)
