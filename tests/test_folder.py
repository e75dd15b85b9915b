from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_trees import write_image, write_list, write_mask
from PIL import Image

from attnbench import runner
from attnbench.cli import compare
from attnbench.data import build_dataset, check_dataset, dataset_splits
from attnbench.data.folder import Description, Folder, read_description
from attnbench.data.inspection import inspect
from attnbench.errors import UsageError

TOML = """
name = "garden"
classes = ["soil", "plant"]
palette = [[90, 60, 30], [0, 160, 0]]
[splits.train]
images = "photos"
masks = "labels"
list = "train.txt"
[splits.all]
images = "photos"
masks = "labels"
"""
COLOURS = TOML.replace("[splits.train]", 'masks = "colours"\nignore_colours = [[0, 0, 0]]\n[splits.train]', 1)


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "garden"
    for name in ("a", "b", "deep/c"):
        write_image(home / "photos" / f"{name}.jpg")
        write_mask(home / "labels" / f"{name}.png", [1, 0, 255])
    write_list(home / "train.txt", ["deep/c", "a"])
    (home / "dataset.toml").write_text(TOML)
    return home


def change(home, old, new):
    text = (home / "dataset.toml").read_text()
    assert old in text
    (home / "dataset.toml").write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("inside", [True, False])
def test_found_by_its_name(home, inside):
    dataset = build_dataset("garden", split="all", root=home if inside else home.parent)
    check_dataset(dataset)
    assert (dataset.name, dataset.classes, dataset.palette[1]) == ("garden", ("soil", "plant"), (0, 160, 0))
    assert [pair.mask.relative_to(home).as_posix() for pair in dataset.pairs] == [
        "labels/a.png",
        "labels/b.png",
        "labels/deep/c.png",
    ]
    assert dataset[0][1].flatten()[:3].tolist() == [1, 0, 255]
    assert dataset_splits("garden", home) == ("train", "all")


def test_a_list_decides_choice_and_order(home):
    dataset = build_dataset("garden", split="train", root=home)
    assert [pair.image.relative_to(home / "photos").as_posix() for pair in dataset.pairs] == ["deep/c.jpg", "a.jpg"]


def test_endings_tell_image_and_mask_apart_in_one_folder(home):
    for name in ("a", "b"):
        write_image(home / "both" / f"{name}_rgb.png")
        write_mask(home / "both" / f"{name}_mask.png", [1])
    change(home, "[splits.train]", 'image_ending = "_rgb.png"\nmask_ending = "_mask.png"\n[splits.train]')
    change(home, 'images = "photos"\nmasks = "labels"\nlist', 'images = "both"\nmasks = "both"\nlist')
    write_list(home / "train.txt", ["b"])
    pairs = build_dataset("garden", split="train", root=home).pairs
    assert [(pair.image.name, pair.mask.name) for pair in pairs] == [("b_rgb.png", "b_mask.png")]


def test_colours_come_from_vocs_map_where_none_are_given(home):
    change(home, "palette = [[90, 60, 30], [0, 160, 0]]", "")
    assert build_dataset("garden", split="all", root=home).palette == ((0, 0, 0), (128, 0, 0))


def paint(path, colours):
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels.reshape(-1, 3)[: len(colours)] = colours
    Image.fromarray(pixels).save(path)


def test_masks_may_be_colours(home):
    (home / "dataset.toml").write_text(COLOURS)
    paint(home / "labels/a.png", [(0, 160, 0), (90, 60, 30), (0, 0, 0)])
    assert build_dataset("garden", split="all", root=home)[0][1].flatten()[:4].tolist() == [1, 0, 255, 255]


def test_a_colour_that_is_not_in_the_palette_is_an_error(home):
    (home / "dataset.toml").write_text(COLOURS)
    paint(home / "labels/a.png", [(0, 160, 0), (0, 160, 1)])
    dataset = build_dataset("garden", split="all", root=home)
    words = r"a.png': expected colours of the palette or ignore_colours, got \(0, 160, 1\)"
    with pytest.raises(UsageError, match=words):
        dataset[0]
    Image.new("RGBA", (8, 6)).save(home / "labels/a.png")
    with pytest.raises(UsageError, match=r"a.png': expected a colour image \(mode RGB\), got mode RGBA"):
        check_dataset(dataset)


def test_values_of_classes_may_begin_at_one_and_have_gaps(home):
    change(home, "[splits.train]", "labels = [1, 7]\nignore = [0]\n[splits.train]")
    for name in ("a", "b", "deep/c"):
        write_mask(home / "labels" / f"{name}.png", [0, 1, 7])
    dataset = build_dataset("garden", split="all", root=home)
    check_dataset(dataset)
    assert dataset[0][1].flatten()[:3].tolist() == [255, 0, 1]
    write_mask(home / "labels" / "a.png", [0, 2, 7])
    with pytest.raises(UsageError, match=r"a.png': expected labels 0..1, 7, got 2"):
        check_dataset(build_dataset("garden", split="all", root=home))


def test_linked_folders_are_looked_into_and_hidden_ones_are_not(home, tmp_path):
    (home / "photos" / "deep").rename(tmp_path / "elsewhere")
    (home / "photos" / "deep").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (home / "photos" / "again").symlink_to(home / "photos", target_is_directory=True)
    write_image(home / "photos" / ".ipynb_checkpoints" / "a-checkpoint.jpg")
    assert [pair.image.name for pair in build_dataset("garden", split="all", root=home).pairs] == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
    ]


def test_masks_without_an_image_are_said_unless_a_list_chooses(home):
    write_mask(home / "labels" / "deep" / "lost.png", [1])
    (problem,) = inspect(build_dataset("garden", split="all", root=home)).problems
    assert problem.endswith("lost.png': expected an image of its own, got none")
    assert inspect(build_dataset("garden", split="train", root=home)).problems == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("classes", "clases", r"dataset.toml: unknown key 'clases'; did you mean 'classes'\?"),
        ("list", "lists", r"dataset.toml, splits.train: unknown key 'lists'; did you mean 'list'\?"),
        ('["soil", "plant"]', '["soil"]', "classes: expected 2 to 255 names, got 1"),
        ('["soil", "plant"]', '["soil", "soil"]', "classes: expected different names, got one twice"),
        ('["soil", "plant"]', '["soil", 3]', "classes: expected str, got 3"),
        ("[90, 60, 30], ", "", "palette: expected 2 colours, got 1"),
        ("[90, 60, 30]", "[90, 60, 300]", r"palette: expected colours of three values in 0..255, got"),
        ("[90, 60, 30]", "[90, 60]", r"palette: expected 3 values, got \[90, 60\]"),
        ("[splits.train]", "ignore = [1]\n[splits.train]", "dataset.toml, labels: expected ignored values that stand"),
        ("[splits.train]", "std = [1, 0, 1]\n[splits.train]", r"std: expected fractions of 255 from 1e-06 to 1, got"),
        ("[splits.train]", "mean = [123.7, 116, 104]\n[splits.train]", r"mean: expected fractions of 255 from 0 to 1"),
        ("[splits.train]", "labels = [1]\n[splits.train]", r"labels: expected 2 different values, got \(1,\)"),
        ("[splits.train]", "labels = [1, 1]\n[splits.train]", r"labels: expected 2 different values"),
        (
            "[splits.train]",
            "labels = [1, 255]\n[splits.train]",
            "expected ignored values that stand for no class, got 255",
        ),
        (
            "[splits.train]",
            'masks = "colours"\nlabels = [1, 2]\n[splits.train]',
            "labels: expected none beside masks in colours",
        ),
        ("[splits.train]", 'masks = "rgb"\n[splits.train]', "masks: unknown value 'rgb'"),
        ('masks = "labels"', "", "splits.train, masks: expected a folder, got none"),
        ('"garden"', '"gar den"', "name: expected letters, digits, _ and -, got 'gar den'"),
        ('"garden"', '"gardens"', "name: expected 'garden', as its folder is called, got 'gardens'"),
        ("name =", "name", "dataset.toml': expected a TOML file, got "),
        ('"photos"', '"fotos"', r"garden split 'train': expected the folder '.*fotos', got none"),
        ('"train.txt"', '"trian.txt"', r"garden split 'train': expected the list '.*trian.txt', got none"),
    ],
)
def test_what_does_not_fit_in_the_description_is_named(home, old, new, words):
    change(home, old, new)
    with pytest.raises(UsageError, match=words):
        build_dataset("garden", split="train", root=home.parent)


@pytest.mark.parametrize("text", ["", "splits = 3\n", "[splits]\n"])
def test_splits_are_needed(home, text):
    rest = TOML.partition("[splits")[0]
    (home / "dataset.toml").write_text(text + rest if text.startswith("splits") else rest + text)
    with pytest.raises(UsageError, match=r"expected a table \[splits.NAME\] for each split, got none"):
        read_description(home / "dataset.toml")


def test_colours_need_a_palette_of_different_colours(home):
    (home / "dataset.toml").write_text(COLOURS.replace("[0, 160, 0]", "[0, 0, 0]"))
    with pytest.raises(UsageError, match="palette: expected different colours, got one twice"):
        Folder(home / "dataset.toml", "all")
    (home / "dataset.toml").write_text(COLOURS.replace("palette = [[90, 60, 30], [0, 160, 0]]", ""))
    with pytest.raises(UsageError, match="palette: expected the colours of the masks, got none"):
        Folder(home / "dataset.toml", "all")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda home: (home / "labels/a.png").unlink(), r"mask '.*labels/a.png': expected an existing file, got none"),
        (
            lambda home: write_list(home / "train.txt", ["x"]),
            r"image '.*photos/x': expected an existing file, got none",
        ),
        (lambda home: write_list(home / "train.txt", []), r"garden split 'train': expected at least one image"),
    ],
)
def test_missing_files_are_named(home, break_it, words):
    break_it(home)
    with pytest.raises(UsageError, match=words):
        build_dataset("garden", split="train", root=home)


def test_a_label_out_of_range_is_an_error(home):
    write_mask(home / "labels/a.png", [1, 2])
    with pytest.raises(UsageError, match=r"a.png': expected labels 0..1, 255, got 2"):
        build_dataset("garden", split="all", root=home)[0]


@pytest.mark.parametrize("name", ["gardn", "../garden", "x"])
def test_an_unknown_name_says_what_own_data_needs(home, name):
    with pytest.raises(UsageError, match=rf"unknown dataset '{name}'.*; data of your own needs '.*dataset.toml'"):
        build_dataset(name, split="all", root=home.parent)


def test_defaults_of_the_description():
    assert Description().ignore == (255,) and Description().mask_ending == ".png"


def test_another_name_in_the_folder_is_said(home):
    words = r"unknown dataset 'gardn'; did you mean 'garden'\?; '.*dataset.toml' is 'garden'"
    with pytest.raises(UsageError, match=words):
        build_dataset("gardn", split="all", root=home)


def test_lists_may_have_spaces_in_names_and_the_mark_of_windows(home):
    write_image(home / "photos/my c.jpg")
    write_mask(home / "labels/my c.png", [1])
    (home / "train.txt").write_bytes(b"\xef\xbb\xbfmy c\r\nb\r\n")
    (home / "dataset.toml").write_bytes(b"\xef\xbb\xbf" + (home / "dataset.toml").read_bytes())
    pairs = build_dataset("garden", split="train", root=home).pairs
    assert [pair.image.name for pair in pairs] == ["my c.jpg", "b.jpg"]


@pytest.mark.parametrize("split", ["train", "all"])
def test_two_images_of_one_mask_are_an_error(home, split):
    write_image(home / "photos/a.png")
    words = r"image '.*photos/a.png': expected once in a split, alone with its mask, got '.*photos/a.jpg', too"
    with pytest.raises(UsageError, match=words):
        build_dataset("garden", split=split, root=home)


def test_a_name_that_a_list_has_twice_is_an_error(home):
    write_list(home / "train.txt", ["a", "b", "a"])
    with pytest.raises(UsageError, match=r"image '.*photos/a.jpg': expected once in a split.*, got it twice"):
        build_dataset("garden", split="train", root=home)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_black_and_white_masks_are_colours(home, mode):
    palette = "palette = [[0, 0, 0], [255, 255, 255]]"
    change(home, "palette = [[90, 60, 30], [0, 160, 0]]", f'{palette}\nmasks = "colours"')
    values = np.zeros((6, 8), np.uint8)
    values[0, :3] = 255
    for name in ("a", "b", "deep/c"):
        Image.fromarray(values).convert("RGB").convert(mode).save(home / "labels" / f"{name}.png")
    dataset = build_dataset("garden", split="all", root=home)
    check_dataset(dataset)
    assert dataset[0][1].tolist() == (values // 255).tolist()


def test_images_of_sixteen_bits_keep_their_contrast(home):
    values = np.linspace(0, 65535, 48, dtype=np.uint16).reshape(6, 8)
    (home / "photos/a.jpg").unlink()
    Image.fromarray(values).save(home / "photos/a.png")
    image = build_dataset("garden", split="all", root=home)[0][0]
    assert (image == torch.from_numpy(np.rint(values / 257).astype(np.uint8))).all()
    Image.fromarray(values.astype(np.float32)).save(home / "photos/a.tif")
    (home / "photos/a.png").unlink()
    with pytest.raises(UsageError, match=r"a.tif': expected 8 or 16 bits for each channel, got floating point"):
        check_dataset(build_dataset("garden", split="all", root=home))


def test_the_pages_example_is_read_by_the_pages_command(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text()
    home = tmp_path / "garden"
    for split in ("train", "val"):
        write_image(home / "images" / split / "a.jpg")
        write_mask(home / "masks" / split / "a.png", [1, 0, 255])
    write_list(home / "val.txt", ["a"])
    (home / "dataset.toml").write_text(re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1])
    command = re.search(r'make compare ARGS="(--dataset garden.*?)"', page)[1].replace("DIR", str(tmp_path))
    experiment = compare._experiment(compare._parser().parse(command.split()))
    assert runner.check_data(experiment.accuracy) == str(tmp_path)
