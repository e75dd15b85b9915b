from __future__ import annotations

import hashlib
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from dataset_trees import HEIGHT, TREES, WIDTH, coco_stuff, voc, write_image, write_list, write_mask
from PIL import Image

from attnbench.data import DATASETS, FILE_DATASETS, build_dataset, check_dataset, dataset_splits
from attnbench.data.base import SegmentationDataset, read_mask
from attnbench.data.folder import voc_colours
from attnbench.data.labels import Labels, plain
from attnbench.errors import UsageError

# the first four labels of every mask as the published numbering has them, the last of them everywhere else
TARGETS = {
    "voc": (0, 20, 255, 7),
    "cityscapes": (0, 18, 255, 255),
    "ade20k": (0, 149, 255, 12),
    "pascal_context_59": (0, 58, 255, 1),
    "pascal_context_60": (1, 59, 0, 2),
    "coco_stuff": (0, 170, 255, 11),
}
STRANGE = {
    "voc": (21, r"expected labels 0..20, 255, got 21"),
    "cityscapes": (34, r"expected labels 0..33, got 34"),
    "ade20k": (151, r"expected labels 0..150, got 151"),
    "pascal_context_59": (60, r"expected labels 0..59, 255, got 60"),
    "pascal_context_60": (60, r"expected labels 0..59, 255, got 60"),
    "coco_stuff": (11, r"expected labels 0..10, 12..24, 26..27, 30..43, .*, got 11"),
}
# number of classes, and some of them with their published colours
PUBLISHED = {
    "camvid": (11, {0: ("sky", (128, 128, 128)), 10: ("bicyclist", (0, 128, 192))}),
    "voc": (21, {0: ("background", (0, 0, 0)), 15: ("person", (192, 128, 128)), 20: ("tvmonitor", (0, 64, 128))}),
    "cityscapes": (19, {0: ("road", (128, 64, 128)), 11: ("person", (220, 20, 60)), 18: ("bicycle", (119, 11, 32))}),
    "ade20k": (150, {0: ("wall", (120, 120, 120)), 12: ("person", (150, 5, 61)), 149: ("flag", (92, 0, 255))}),
    "pascal_context_59": (59, {0: ("aeroplane", (180, 120, 120)), 58: ("wood", (31, 0, 255))}),
    "pascal_context_60": (60, {0: ("background", (120, 120, 120)), 59: ("wood", (31, 0, 255))}),
    "coco_stuff": (
        171,
        {0: ("person", (0, 192, 64)), 79: ("toothbrush", None), 80: ("banner", None), 170: ("wood", None)},
    ),
}

# hash of each value of the masks with its label, name and colour, noted when they stood as in mmsegmentation's tables
TABLES = {
    "camvid": "21d2dab56165e339",
    "voc": "8767d6a7486bd8d6",
    "cityscapes": "2f6a7b811045ded0",
    "ade20k": "385cffd5e4af18aa",
    "pascal_context_59": "ff9ab76e0a69470d",
    "pascal_context_60": "2dad056c62c55cb2",
    "coco_stuff": "f43caf6fae6fcc03",
}

each = pytest.mark.parametrize("name", TREES)


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_classes_and_colours_are_the_published_ones(name):
    kind, (number, known) = FILE_DATASETS[name], PUBLISHED[name]
    assert len(kind.classes) == len(set(kind.classes)) == len(kind.palette) == number
    assert all(title == title.strip() for title in kind.classes)
    for label, (title, colour) in known.items():
        assert kind.classes[label] == title
        assert colour is None or kind.palette[label] == colour
    assert all(0 <= part <= 255 for colour in kind.palette for part in colour)


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_no_two_classes_have_changed_places(name):
    kind, rows = FILE_DATASETS[name], []
    for value in range(256):
        try:
            label = int(kind.labels.targets(np.array([value], np.uint8), "mask")[0])
        except UsageError:
            continue
        rows.append([value, label, *([kind.classes[label], list(kind.palette[label])] if label < 255 else [])])
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == TABLES[name]


def test_a_split_of_another_length_is_a_warning(tmp_path, caplog):
    TREES["ade20k"](tmp_path)
    check_dataset(build_dataset("ade20k", split="train", root=tmp_path))
    assert "ade20k split 'train': expected 20210 images as published, got 2" in caplog.text


@pytest.mark.parametrize(("bits", "values"), [(1, None), (2, [0, 1, 2, 3]), (4, [0, 1, 2, 15]), (8, [0, 1, 2, 15])])
def test_grey_masks_of_few_bits_keep_their_labels(tmp_path, bits, values):
    """What a lossless optimiser makes of a mask; pillow multiplies its values until the largest is white."""
    path = tmp_path / "mask.png"
    rows = np.array([values or [0, 1, 0, 1]], np.uint8)
    packed = np.packbits(np.unpackbits(rows[:, :, None], axis=2)[:, :, 8 - bits :].reshape(1, -1), axis=1)
    write_png(path, packed, width=4, height=1, bits=bits)
    if values is None:
        with pytest.raises(UsageError, match="expected a palette or grey image"):
            read_mask(path, size=(4, 1))
    else:
        assert read_mask(path, size=(4, 1)).tolist() == [values]


def write_png(path, packed, *, width, height, bits):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def test_what_lies_beside_a_dataset_hides_it_not(tmp_path):
    for name in ("ade20k", "coco_stuff"):
        home = TREES[name](tmp_path)
        for own in ("images", "annotations"):
            (tmp_path / own).mkdir(exist_ok=True)
        assert build_dataset(name, split="val", root=tmp_path).root == home


def test_colours_of_voc_are_its_colour_map():
    assert FILE_DATASETS["voc"].palette == voc_colours(21)


@each
@pytest.mark.parametrize("palette", [True, False])
def test_reads_the_true_layout(tmp_path, name, palette):
    TREES[name](tmp_path, palette)
    train = build_dataset(name, split="train", root=tmp_path)
    check_dataset(train)
    assert isinstance(train, SegmentationDataset)
    assert (train.name, len(train), len(build_dataset(name, split="val", root=tmp_path))) == (name, 2, 1)
    image, target = train[0]
    assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == target.dtype == torch.uint8
    assert tuple(target.flatten()[:4].tolist()) == TARGETS[name]
    assert set(target.flatten()[4:].tolist()) == {TARGETS[name][0]}


@each
def test_every_value_of_the_annotation_has_its_place(name):
    """All classes are reached, each by one value."""
    kind = FILE_DATASETS[name]
    found = []
    for value in range(256):
        try:
            found.append(int(kind.labels.targets(np.array([value], np.uint8), "mask")[0]))
        except UsageError:
            continue
    assert sorted(label for label in found if label != 255) == list(range(len(kind.classes)))


@each
def test_its_own_folder_will_do_as_root(tmp_path, name):
    home = TREES[name](tmp_path / "data")
    assert build_dataset(name, split="val", root=home).root == home


@each
def test_image_size_resizes_both(tmp_path, name):
    TREES[name](tmp_path)
    image, target = build_dataset(name, split="val", root=tmp_path, image_size=(3, 4))[0]
    assert image.shape == (3, 3, 4) and target.shape == (3, 4)
    assert set(target.flatten().tolist()) <= set(TARGETS[name])


@each
def test_label_out_of_range_is_an_error_when_it_is_loaded(tmp_path, name):
    TREES[name](tmp_path)
    dataset = build_dataset(name, split="val", root=tmp_path)
    value, words = STRANGE[name]
    write_mask(dataset.pairs[0].mask, [1, value])
    with pytest.raises(UsageError, match=rf"mask '.*{dataset.pairs[0].mask.name}': {words}$"):
        dataset[0]


@each
def test_another_folder_is_an_error(tmp_path, name):
    with pytest.raises(UsageError, match=rf"^{name}: expected a folder with .* \(or .* in it\), got '{tmp_path}'"):
        build_dataset(name, split="val", root=tmp_path)


@each
def test_unknown_split_is_an_error(tmp_path, name):
    TREES[name](tmp_path)
    with pytest.raises(UsageError, match=f"{name}: unknown split 'trian'; did you mean 'train"):
        build_dataset(name, split="trian", root=tmp_path)


@each
def test_empty_split_is_an_error(tmp_path, name):
    home = TREES[name](tmp_path)
    for pair in build_dataset(name, split="val", root=tmp_path).pairs:
        pair.image.unlink()
    for listing in home.rglob("val.txt"):
        listing.write_text("")
    with pytest.raises(UsageError, match=f"{name} split 'val': expected at least one image, got none in '"):
        build_dataset(name, split="val", root=tmp_path)


@each
def test_missing_mask_is_an_error_before_anything_is_read(tmp_path, name):
    TREES[name](tmp_path)
    mask = build_dataset(name, split="train", root=tmp_path).pairs[1].mask
    mask.unlink()
    with pytest.raises(UsageError, match=f"mask '{mask}': expected an existing file, got none$"):
        build_dataset(name, split="train", root=tmp_path)


def test_missing_files_are_counted(tmp_path):
    home = voc(tmp_path)
    for path in (home / "JPEGImages").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match=r"000001.jpg': expected an existing file, got none \(1 more are missing\)"):
        build_dataset("voc", split="train", root=tmp_path)


def broken(path):
    path.write_bytes(b"no image at all")


def write_small(path):
    Image.new("L", (WIDTH, HEIGHT - 1)).save(path)


def colours(path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def sixteen_bits(path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(path)


@each
@pytest.mark.parametrize(
    ("which", "change", "words"),
    [
        ("image", broken, "expected a readable image, got "),
        ("mask", broken, "expected a readable image, got "),
        ("mask", write_small, f"expected the size of its image, {WIDTH}x{HEIGHT}, got {WIDTH}x{HEIGHT - 1}"),
        ("mask", colours, r"expected a palette or grey image \(mode P or L\), got mode RGB"),
        ("mask", sixteen_bits, r"expected a palette or grey image \(mode P or L\), got mode I;16"),
    ],
)
def test_headers_are_checked_before_anything_is_decoded(tmp_path, name, which, change, words):
    TREES[name](tmp_path)
    dataset = build_dataset(name, split="train", root=tmp_path)
    path = getattr(dataset.pairs[1], which)
    change(path)
    with pytest.raises(UsageError, match=f"{which} '{path}': {words}"):
        check_dataset(dataset)
    with pytest.raises(UsageError, match=f"{which} '{path}': {words}"):
        dataset[1]


@each
@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_file_cut_short_is_an_error_when_it_is_loaded(tmp_path, name, which):
    TREES[name](tmp_path)
    dataset = build_dataset(name, split="val", root=tmp_path)
    path = getattr(dataset.pairs[0], which)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise if which == "image" else noise[..., 0]).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    if which == "mask":
        write_image(dataset.pairs[0].image, size=(64, 64))
    with pytest.raises(UsageError, match=f"{which} '{path}': expected a readable image, got "):
        dataset[0]


def test_trainaug_has_the_masks_of_sbd_where_voc_has_none(tmp_path):
    home = voc(tmp_path)
    folders = ["SegmentationClass"] * 2 + ["SegmentationClassAug"] * 2
    pairs = build_dataset("voc", split="trainaug", root=tmp_path).pairs
    assert [pair.mask.parent.name for pair in pairs] == folders
    names = [pair.image.stem for pair in pairs]
    lists = home / "ImageSets/Segmentation"
    (lists / "aug.txt").unlink()
    write_list(lists / "trainaug.txt", sorted(names, reverse=True))
    other = build_dataset("voc", split="trainaug", root=tmp_path).pairs
    assert {pair.mask for pair in other} == {pair.mask for pair in pairs}


def test_trainaug_without_its_list_is_an_error(tmp_path):
    (voc(tmp_path) / "ImageSets/Segmentation/aug.txt").unlink()
    with pytest.raises(UsageError, match=r"voc split 'aug': expected the list '.*aug.txt', got none"):
        build_dataset("voc", split="trainaug", root=tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"2007_000001 2007_000002\n", r"train.txt', line 1: expected one name, got '2007_000001 2007_000002'"),
        (b"\n \n", "voc split 'train': expected at least one image, got none in '.*train.txt'"),
        (b"\xff\xfe\x00", r"voc split 'train': expected the list '.*train.txt' to be text, got "),
    ],
)
def test_a_list_that_does_not_fit_is_an_error(tmp_path, text, words):
    (voc(tmp_path) / "ImageSets/Segmentation/train.txt").write_bytes(text)
    with pytest.raises(UsageError, match=words):
        build_dataset("voc", split="train", root=tmp_path)


def test_masks_of_coco_may_lie_in_stuffthingmaps(tmp_path):
    home = coco_stuff(tmp_path, masks="stuffthingmaps")
    assert build_dataset("coco_stuff", split="val", root=tmp_path).pairs[0].mask.is_relative_to(home / "stuffthingmaps")
    (home / "stuffthingmaps").rename(home / "elsewhere")
    with pytest.raises(UsageError, match="coco_stuff: expected masks in annotations/val2017 or stuffthingmaps/val2017"):
        build_dataset("coco_stuff", split="val", root=tmp_path)


def test_only_the_images_are_taken_of_what_lies_beside_them(tmp_path):
    home = TREES["ade20k"](tmp_path)
    (home / "images/validation/Thumbs.db").write_text("")
    write_image(home / "images/validation/._ADE_val_00000001.jpg")
    assert len(build_dataset("ade20k", split="val", root=tmp_path)) == 1


def test_context_needs_no_check():
    check_dataset(build_dataset("context", split="val"))
    assert ("context", *FILE_DATASETS) == DATASETS


def test_splits_by_name(tmp_path):
    assert dataset_splits("voc", tmp_path) == ("train", "val", "trainval", "trainaug")
    with pytest.raises(UsageError, match="unknown dataset 'vocs'; did you mean 'voc'"):
        dataset_splits("vocs", tmp_path)


def test_labels_that_contradict_themselves_are_errors():
    with pytest.raises(UsageError, match=r"expected values in 0..255, got 256"):
        Labels({256: 0})
    with pytest.raises(UsageError, match="expected ignored values that stand for no class, got 3"):
        plain(11, ignored=[3])
