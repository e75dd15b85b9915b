"""Pictures: colours, places, weights and bases on cases whose answer is known."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from attnbench import pictures
from attnbench.config import Network
from attnbench.data.synthetic import ContextDataset
from attnbench.errors import UsageError
from attnbench.models.build import build_segmentor
from attnbench.pictures.attention import NO_WEIGHTS, weights_of
from attnbench.pictures.bases import shares_of
from attnbench.pictures.colours import IGNORED, WRONG, sketch

DOCS = Path(__file__).parents[1] / "docs"
PALETTE = ((10, 20, 30), (200, 100, 0), (0, 150, 255))


@pytest.fixture(scope="module")
def dataset():
    return ContextDataset("val")


def network(name, settings=None):
    torch.manual_seed(0)
    model = build_segmentor(name, Network(slot_channels=16, head_channels=8), 5, settings=settings or {}).eval()
    return pictures.Trained(name, name, model, 0.5)


def asked(dataset, names, indices=(0,), pixels=None):
    networks = [name if isinstance(name, pictures.Trained) else network(name) for name in names]
    scenes = pictures.scenes_of(dataset, indices, pixels)
    answers = {(each.title, scene.index): pictures.look(each, dataset, scene) for each in networks for scene in scenes}
    return networks, scenes, answers


def texts(sheet):
    return [text.get_text() for axes in sheet.figure.axes for text in (axes.title, axes.xaxis.label, *axes.texts)]


def drawn(sheet):
    """What each panel with a picture shows, in the order of rows and columns."""
    return [np.asarray(axes.images[0].get_array()) for axes in sheet.figure.axes if axes.images]


def test_labels_have_the_colours_of_their_classes():
    picture = pictures.coloured(np.array([[0, 2], [255, 1]]), PALETTE)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[list(PALETTE[0]), list(PALETTE[2])], [[255] * 3, list(PALETTE[1])]]


def test_errors_are_marked_and_what_does_not_count_is_grey():
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 0] = 255
    target, labels = np.array([[0, 1, 2], [255, 255, 0]]), np.array([[0, 2, 2], [0, 1, 1]])
    picture = pictures.error_map(image, target, labels)
    assert picture.shape == (2, 3, 3)
    assert picture[0, 1].tolist() == picture[1, 2].tolist() == list(WRONG)
    assert picture[1, 0].tolist() == picture[1, 1].tolist() == list(IGNORED)
    assert picture[0, 0].tolist() == [255] * 3
    assert picture[0, 2].tolist() == [round(255 * float(sketch(image)[0, 2]))] * 3
    assert IGNORED[0] < picture[0, 2, 0] < 255


def test_weights_are_enlarged_to_the_pixels_that_positions_stand_for():
    weights = np.arange(6).reshape(2, 3)
    found = pictures.enlarged(weights, (5, 7))
    for row in range(5):
        for column in range(7):
            assert found[row, column] == weights[pictures.place_on_map((row, column), (5, 7), (2, 3))]


@pytest.mark.parametrize("size", [(48, 48), (33, 47), (9, 100)])
def test_the_position_of_a_pixel_is_the_one_that_weighs_most_in_its_logits(size):
    shape = (-(-size[0] // 8), -(-size[1] // 8))
    for pixel in [(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, 5), (4, size[1] // 3)]:
        marked = torch.eye(shape[0] * shape[1]).reshape(1, -1, *shape)
        resized = nn.functional.interpolate(marked, size=size, mode="bilinear", align_corners=False)
        row, column = pictures.place_on_map(pixel, size, shape)
        of_pixel = resized[0, :, pixel[0], pixel[1]]
        assert of_pixel[row * shape[1] + column] == pytest.approx(float(of_pixel.max()))


def test_the_largest_weight_is_darkest_and_none_is_the_image_alone():
    image = np.full((4, 4, 3), 255, np.uint8)
    picture = pictures.overlay(image, np.array([[0.0, 0.2], [0.1, 0.0]]), largest=0.2).astype(int).sum(axis=2)
    assert picture[:2, 2:].max() < picture[2:, :2].min() < picture[:2, :2].min()
    assert (picture[:2, :2] == picture[2:, 2:].max()).all()
    signed = pictures.overlay(image, np.array([[-1.0, 1.0]]), largest=1.0, signed=True)
    assert signed[0, 0, 2] > signed[0, 0, 0] and signed[0, 3, 0] > signed[0, 3, 2]


def test_weights_of_zero_everywhere_are_drawn():
    picture = pictures.overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((1, 1)), largest=0.0)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1


def test_one_pass_of_criss_cross_attention_is_a_cross_through_the_pixel(dataset):
    one_pass = network("criss_cross", {"recurrence": 1})
    pixel = (9, 30)
    networks, scenes, answers = asked(dataset, [one_pass], pixels=[pixel])
    weights = weights_of(networks[0], answers, scenes[0], pixel)
    assert weights.shape == (1, 12, 12)
    row, column = 9 // 4, 30 // 4
    on_the_cross = np.zeros((12, 12), bool)
    on_the_cross[row, :] = on_the_cross[:, column] = True
    assert ((weights[0] > 0) == on_the_cross).all()
    found = drawn(pictures.attention_sheet(networks, dataset, scenes, answers))[1]
    blank = pictures.overlay(scenes[0].picture, np.zeros((1, 1)), largest=1.0)
    coloured = (found != blank).any(axis=2)
    expected = np.zeros((48, 48), bool)
    expected[4 * row : 4 * row + 4, :] = expected[:, 4 * column : 4 * column + 4] = True
    assert not coloured[~expected].any() and coloured[4 * row, 4 * column : 4 * column + 4].all()


def test_the_operator_is_given_what_the_network_gives_it(dataset):
    networks, scenes, answers = asked(dataset, ["ema"])
    answer, model = answers["ema", 0], networks[0].model
    images = (scenes[0].image[None].float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        _, features = model.backbone(images)
        assert torch.allclose(answer.features, model.decode_head.reduction(features), atol=1e-5)
        assert torch.equal(answer.labels, model(images).argmax(1)[0])
    assert not pictures.slot(model)._forward_pre_hooks


def test_a_network_without_a_slot_has_nothing_to_show(dataset):
    model = build_segmentor("identity", Network(head="linear"), 5).eval()
    linear = pictures.Trained("identity", "linear", model, 0.5)
    networks, scenes, answers = asked(dataset, [linear])
    assert pictures.slot(model) is None and answers["linear", 0].features is None
    assert NO_WEIGHTS in texts(pictures.attention_sheet(networks, dataset, scenes, answers))
    assert "no bases" in pictures.bases_sheet(linear, dataset, scenes, answers, 3)


def test_predictions_have_a_column_for_each_operator_and_two_rows_for_each_image(dataset):
    networks, scenes, answers = asked(dataset, ["conv3x3", "ema"], indices=(0, 2))
    sheet = pictures.predictions_sheet(networks, dataset, scenes, answers)
    panels = drawn(sheet)
    # an error row has no input, and where the task knows them the pixels that the backbone cannot decide
    assert len(panels) == 2 * (4 + 3)
    scene, answer = scenes[0], answers["conv3x3", 0]
    assert (panels[0] == scene.picture).all()
    assert (panels[1] == pictures.coloured(scene.target.numpy(), dataset.palette)).all()
    assert (panels[2] == pictures.coloured(answer.labels.numpy(), dataset.palette)).all()
    assert ((panels[4] == WRONG).all(axis=2) == ~dataset.decided(0, 7)).all()
    assert (panels[5] == pictures.error_map(scene.picture, scene.target.numpy(), answer.labels.numpy())).all()
    assert f"mIoU {100 * answer.miou:.1f}" in texts(sheet)
    named = {text.get_text() for text in sheet.figure.legends[0].texts}
    assert "wrong" in named and not any(name.startswith("does not count") for name in named)
    shown = np.unique([scene.target.numpy() for scene in scenes] + [a.labels.numpy() for a in answers.values()])
    assert named - {"wrong"} == {dataset.classes[index] for index in shown}


def test_the_miou_of_an_image_is_that_of_its_labelled_pixels(dataset):
    half = pictures.scenes_of(dataset, [0])[0]
    target = half.target.clone()
    target[:24] = 255
    answers = [
        pictures.look(network("conv3x3"), dataset, dataclasses.replace(half, target=aim))
        for aim in (target, torch.full_like(target, 255))
    ]
    labels = answers[0].labels[24:]
    found = [
        float(((labels == index) & (target[24:] == index)).sum() / ((labels == index) | (target[24:] == index)).sum())
        for index in np.union1d(labels.unique(), target[24:].unique())
    ]
    assert answers[0].miou == pytest.approx(sum(found) / len(found))
    assert answers[1].miou is None


def test_operators_without_weights_say_so_and_heads_have_columns(dataset):
    networks, scenes, answers = asked(dataset, ["conv3x3", "multi_head_attention"])
    sheet = pictures.attention_sheet(networks, dataset, scenes, answers)
    assert texts(sheet).count(NO_WEIGHTS) == 1 and len(drawn(sheet)) == 2
    heads = pictures.heads_sheet(networks[1], dataset, scenes, answers)
    count = len(weights_of(networks[1], answers, scenes[0], scenes[0].pixels[0]))
    assert count > 1 and len(drawn(heads)) == 1 + min(count, 8)
    assert "no weights" in pictures.heads_sheet(networks[0], dataset, scenes, answers)
    networks, scenes, answers = asked(dataset, ["non_local"])
    assert "one head" in pictures.heads_sheet(networks[0], dataset, scenes, answers)


@pytest.mark.parametrize(("name", "stages"), [("ema", 3), ("hamburger", 8)])
def test_bases_have_columns_and_stages_have_rows(dataset, name, stages):
    networks, scenes, answers = asked(dataset, [name], indices=(0, 1))
    sheet = pictures.bases_sheet(networks[0], dataset, scenes, answers, 4)
    assert len(drawn(sheet)) == 2 * (1 + 4)
    found = pictures.stages_sheet(networks[0], dataset, scenes, answers, 4)
    assert len(drawn(found)) == min(stages, pictures.ROWS) * (1 + 4)
    last = shares_of(networks[0], answers, scenes[0], -1)
    chosen = [int(word.split()[1]) - 1 for word in texts(found) if word.startswith("base ")]
    largest = max(float(shares_of(networks[0], answers, scenes[0], t)[chosen].max()) for t in range(stages))
    assert (drawn(found)[-4] == pictures.overlay(scenes[0].picture, last[chosen[0]], largest=largest)).all()


def test_regions_of_classes_carry_their_names(dataset):
    networks, scenes, answers = asked(dataset, ["object_contextual", "conv3x3"])
    sheet = pictures.bases_sheet(networks[0], dataset, scenes, answers, 7)
    assert set(dataset.classes) <= {" ".join(text.split()) for text in texts(sheet)}
    assert "one stage" in pictures.stages_sheet(networks[0], dataset, scenes, answers, 7)
    assert "no bases" in pictures.bases_sheet(networks[1], dataset, scenes, answers, 7)
    assert "no bases" in pictures.stages_sheet(networks[1], dataset, scenes, answers, 7)


def test_telling_bases_leave_out_what_is_flat_or_told_already():
    left, right = np.zeros((2, 4)), np.zeros((2, 4))
    left[:, :2] = right[:, 3] = 1.0
    flat = np.full((2, 4), 0.25)
    assert pictures.telling_bases([np.stack([flat, left, left, right])], 2) == [1, 3]
    assert pictures.telling_bases([np.stack([flat, left])], 9) == [0, 1]


def test_the_telling_pixel_has_its_cue_out_of_sight(dataset):
    for index in range(8):
        row, column = pictures.telling_pixel(dataset, index)
        label = dataset[index][1][row, column]
        top, left, side = dataset.cue(index, (row, column))
        assert label > 0 and dataset[index][1][top, left] == label
        assert (dataset[index][1][top : top + side, left : left + side] == label).all()
        assert not dataset.decided(index, 7)[row, column]
    assert dataset.cue(0, (47, 0)) is None and dataset[0][1][47, 0] == 0


def test_images_and_pixels_out_of_range_are_named(dataset):
    with pytest.raises(UsageError, match=r"--images: expected numbers from 0 to 255, got 256"):
        pictures.scenes_of(dataset, [256])
    with pytest.raises(UsageError, match=r"--pixel: expected .* inside the 48x48 pixels of image 3, got 48,0"):
        pictures.scenes_of(dataset, [3], [(48, 0)])


@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_equal_sheets_give_equal_bytes(dataset, kind, tmp_path):
    networks, scenes, answers = asked(dataset, ["ema"])
    sheets = [pictures.attention_sheet(networks, dataset, scenes, answers) for _ in range(2)]
    paths = [sheet.write(tmp_path / str(number), kind, 60) for number, sheet in enumerate(sheets)]
    assert paths[0].name == f"attention-context.{kind}" and paths[0].read_bytes() == paths[1].read_bytes()


def test_a_folder_that_cannot_be_written_is_named(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    sheet = pictures.predictions_sheet(*asked_for_a_sheet(dataset))
    with pytest.raises(UsageError, match="expected a folder that can be written"):
        sheet.write(tmp_path / "file", "png", 60)


def asked_for_a_sheet(dataset):
    networks, scenes, answers = asked(dataset, ["conv3x3"])
    return networks, dataset, scenes, answers


def test_committed_pictures_are_small_and_explained():
    committed = {path.name for path in (DOCS / "pictures").iterdir()}
    page = (DOCS / "context-task.md").read_text(encoding="utf-8")
    assert committed and committed == set(re.findall(r"\]\(pictures/([\w.-]+)\)", page))
    for name in committed:
        assert name.endswith("-context.png") and (DOCS / "pictures" / name).stat().st_size < 200_000
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(docs/pictures/([\w.-]+)\)", readme)) <= committed
