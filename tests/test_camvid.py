from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnbench.data import DATASETS, build_dataset
from attnbench.data.base import SegmentationDataset, read_mask
from attnbench.data.camvid import CLASSES, VOID, CamVid
from attnbench.errors import UsageError

DATA = Path(os.environ.get("ATTNBENCH_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
HEIGHT, WIDTH = 4, 6
SIZES = {"train": 3, "val": 2, "test": 1}
# percent of all pixels of the test split, void last, as published with the data
TEST_SHARES = (17.07, 24.61, 1.18, 25.81, 9.27, 11.25, 1.01, 1.18, 3.97, 0.63, 0.19, 3.83)


def random_pair(seed):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    labels = random.integers(0, VOID + 1, (HEIGHT, WIDTH), dtype=np.uint8)
    labels[0, :2] = 0, VOID
    return image, labels


def write_mask(labels, path, mode="L"):
    mask = Image.fromarray(labels)
    if mode == "P":
        mask.putpalette([value for colour in (*CLASSES.values(), (0, 0, 0)) for value in colour])
        assert mask.mode == "P"
    mask.save(path)


def make_tree(root, *, suffix=".png", mask_mode="P", listed="{name}"):
    """A tiny CamVid; `listed` is the form of an entry of the lists, none for no lists."""
    content = {}
    for split, number in SIZES.items():
        lines = []
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for index in range(number):
            image, labels = content[split, index] = random_pair(len(content))
            name = f"{split}/frame_{index}{suffix}"
            Image.fromarray(image).save(root / name, lossless=True)
            write_mask(labels, root / f"{split}annot" / f"frame_{index}.png", mask_mode)
            lines.append((name, f"{split}annot/frame_{index}.png"))
        if listed is not None:
            text = "\n".join(" ".join(listed.format(name=name) for name in line) for line in lines)
            (root / f"{split}.txt").write_text(f"{text}\n\n", encoding="utf-8")
    return content


def assert_same_as(dataset, expected):
    assert len(dataset) == len(expected)
    for index, (pixels, labels) in enumerate(expected):
        image, target = dataset[index]
        assert image.dtype == target.dtype == torch.uint8
        assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))
        assert np.array_equal(target.numpy(), np.where(labels == 11, 255, labels))


@pytest.fixture
def root(tmp_path):
    make_tree(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mask_mode", ["P", "L"])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("listed", ["{name}", "/SegNet/CamVid/{name}", None])
def test_reads_every_form_of_the_folder(tmp_path, suffix, mask_mode, listed):
    content = make_tree(tmp_path, suffix=suffix, mask_mode=mask_mode, listed=listed)
    for split, number in SIZES.items():
        assert_same_as(CamVid(tmp_path, split), [content[split, index] for index in range(number)])


def test_original_lists_fit_converted_images(tmp_path):
    content = make_tree(tmp_path, suffix=".webp")
    for split in SIZES:
        listing = tmp_path / f"{split}.txt"
        original = listing.read_text().replace(".webp", ".png").replace(split + "/", f"/SegNet/CamVid/{split}/")
        listing.write_text(original.replace(f"{split}annot/", f"/SegNet/CamVid/{split}annot/"))
    assert_same_as(CamVid(tmp_path, "train"), [content["train", index] for index in range(3)])


def test_lists_decide_order_and_choice(root):
    lines = (root / "train.txt").read_text().split("\n")
    (root / "train.txt").write_text(f"{lines[2]}\n{lines[0]}\n")
    assert_same_as(CamVid(root), [random_pair(2), random_pair(0)])


def test_trainval_is_train_and_then_val(root):
    assert_same_as(CamVid(root, "trainval"), [random_pair(index) for index in range(5)])


@pytest.mark.parametrize("folder", ["camvid", "CamVid"])
def test_the_folder_around_it_will_do(tmp_path, folder):
    make_tree(tmp_path / folder)
    assert CamVid(tmp_path, "test").root == tmp_path / folder


def test_grey_images_get_three_channels(root):
    grey = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    Image.fromarray(grey).save(root / "test" / "frame_0.png")
    image, _ = CamVid(root, "test")[0]
    assert torch.equal(image, torch.from_numpy(grey).expand(3, -1, -1))


def test_images_are_read_once(root):
    dataset = CamVid(root, "test")
    first = dataset[0]
    (root / "test" / "frame_0.png").unlink()
    assert all(torch.equal(again, before) for again, before in zip(dataset[0], first, strict=True))


def test_describes_itself(root):
    dataset = CamVid(root, "test")
    assert isinstance(dataset, SegmentationDataset)
    assert dataset.name == "camvid"
    assert len(dataset.classes) == len(set(dataset.palette)) == 11
    assert dataset.classes[3] == "road" and dataset.palette[3] == (128, 64, 128)


@pytest.mark.parametrize("mask_mode", ["P", "L"])
@pytest.mark.parametrize("image_size", [(8, 12), (2, 3), (5, 4)])
def test_resized_masks_keep_their_labels(root, image_size, mask_mode):
    labels = np.random.default_rng(0).choice(np.array([2, 9, VOID], np.uint8), (HEIGHT, WIDTH))
    write_mask(labels, root / "testannot" / "frame_0.png", mask_mode)
    image, target = build_dataset("camvid", split="test", root=root, image_size=image_size)[0]
    assert image.shape == (3, *image_size) and target.shape == image_size
    assert set(target.flatten().tolist()) <= {2, 9, 255}


def test_image_and_mask_are_resized_alike(root):
    image, labels = np.zeros((40, 60, 3), np.uint8), np.full((40, 60), VOID, np.uint8)
    image[10:20, 30:50] = 255
    labels[10:20, 30:50] = 5
    Image.fromarray(image).save(root / "test" / "frame_0.png")
    write_mask(labels, root / "testannot" / "frame_0.png")
    for image_size in ((20, 30), (80, 120)):
        small, target = CamVid(root, "test", image_size)[0]
        half = torch.full_like(target, 255)
        top, left = image_size[0] // 4, image_size[1] // 2
        half[top : 2 * top, left : left + image_size[1] // 3] = 5
        assert torch.equal(target, half)
        assert torch.equal((small[0] > 127), target == 5)


def replace_list(text):
    return lambda root: (root / "test.txt").write_text(text)


def remove(name):
    return lambda root: (root / name).unlink()


def garbage(name):
    return lambda root: (root / name).write_bytes(b"no image at all")


def truncate(name):
    def change(root):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(root / name)
        (root / name).write_bytes((root / name).read_bytes()[:2000])

    return change


def mask_with(shape=(HEIGHT, WIDTH), label=0):
    return lambda root: write_mask(np.full(shape, label, np.uint8), root / "testannot" / "frame_0.png")


def colour_mask(root):
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(root / "testannot" / "frame_0.png")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove("test/frame_0.png"), r"image '.*test/frame_0.png': expected an existing file, got none"),
        (remove("testannot/frame_0.png"), r"mask '.*testannot/frame_0.png': expected an existing file, got none"),
        (garbage("test/frame_0.png"), r"image '.*test/frame_0.png': expected a readable image, got "),
        (garbage("testannot/frame_0.png"), r"mask '.*testannot/frame_0.png': expected a readable image, got "),
        (truncate("test/frame_0.png"), r"image '.*test/frame_0.png': expected a readable image, got "),
        (mask_with(label=12), r"mask '.*testannot/frame_0.png': expected labels 0..11, got 12"),
        (mask_with(label=255), r"mask '.*testannot/frame_0.png': expected labels 0..11, got 255"),
        (mask_with(shape=(3, 5)), r"mask '.*frame_0.png': expected the size of its image, 6x4, got 5x3"),
        (colour_mask, r"mask '.*frame_0.png': expected a palette or grey image \(mode P or L\), got mode RGB"),
        (replace_list(""), r"camvid split 'test': expected at least one image, got none in '.*test.txt'"),
        (replace_list("test/frame_0.png\n"), r"test.txt', line 1: expected `image mask`, got 'test/frame_0.png'"),
        (replace_list("\n\na b c\n"), r"test.txt', line 3: expected `image mask`, got 'a b c'"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(root, change, words):
    change(root)
    with pytest.raises(UsageError, match=words):
        CamVid(root, "test")[0]


@pytest.mark.parametrize("name", ["test/frame_0.png", "testannot/frame_0.png"])
def test_missing_files_are_found_before_the_first_image_is_read(root, name):
    (root / name).unlink()
    with pytest.raises(UsageError, match="expected an existing file, got none"):
        CamVid(root, "test")


def test_an_image_without_a_mask_is_an_error_without_lists_too(tmp_path):
    make_tree(tmp_path, listed=None)
    (tmp_path / "valannot" / "frame_1.png").unlink()
    with pytest.raises(UsageError, match=r"mask '.*valannot/frame_1.png': expected an existing file"):
        CamVid(tmp_path, "val")


def test_an_empty_folder_without_lists_is_an_error(tmp_path):
    make_tree(tmp_path, listed=None)
    (tmp_path / "test" / "frame_0.png").rename(tmp_path / "elsewhere.png")
    with pytest.raises(UsageError, match=r"camvid split 'test': expected at least one image, got none in '.*test'"):
        CamVid(tmp_path, "test")


def test_a_folder_of_something_else_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"camvid: expected a folder with train.txt .*, got '"):
        CamVid(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "camvd"}, "unknown dataset 'camvd'; did you mean 'camvid'"),
        ({"name": "contxt"}, "unknown dataset 'contxt'; did you mean 'context'"),
        ({"name": "mnist"}, "unknown dataset 'mnist'; known: ade20k, camvid, "),
        ({"split": "tset"}, "camvid: unknown split 'tset'; did you mean 'test'"),
        ({"split": "x"}, "camvid: unknown split 'x'; known: test, train, trainval, val"),
        ({"root": None}, r"dataset 'camvid': expected its folder \(--data-root or ATTNBENCH_DATA\), got none; scripts"),
    ],
)
def test_unknown_names_are_errors_with_a_near_one(root, arguments, words):
    with pytest.raises(UsageError, match=words):
        build_dataset(**{"name": "camvid", "split": "test", "root": root, **arguments})


def test_built_by_name(root):
    assert DATASETS[:2] == ("context", "camvid")
    assert isinstance(build_dataset("camvid", split="val", root=str(root)), CamVid)


@pytest.fixture(scope="module")
def real():
    if not (DATA / "camvid" / "test.txt").is_file():
        pytest.skip("CamVid is not here; set ATTNBENCH_DATA to the folder that holds camvid/")
    return DATA


def test_the_real_splits_have_their_published_sizes(real):
    splits = {split: {image for image, _ in CamVid(real, split).pairs} for split in ("train", "val", "test")}
    assert {split: len(images) for split, images in splits.items()} == {"train": 367, "val": 101, "test": 233}
    assert len(set.union(*splits.values())) == len(CamVid(real, "trainval")) + 233 == 701


def test_the_real_test_split_has_its_published_class_shares(real):
    counts = np.zeros(VOID + 1, np.int64)
    for _, mask in CamVid(real, "test").pairs:
        counts += np.bincount(read_mask(mask, size=(480, 360)).ravel(), minlength=12)
    assert counts.sum() == 233 * 360 * 480
    assert 100 * counts / counts.sum() == pytest.approx(TEST_SHARES, abs=0.01)


@pytest.mark.parametrize(("split", "index"), [("train", 0), ("val", 100), ("test", 120)])
def test_real_images_and_masks_hold_the_published_pixels(real, split, index):
    dataset = CamVid(real, split)
    sums = real / "camvid" / "pixels.sha256.tsv"
    if not sums.is_file():
        pytest.skip("the sums of CamVid's pixels (pixels.sha256.tsv) are not here")
    image, target = dataset[index]
    assert image.shape == (3, 360, 480) and target.shape == (360, 480)
    pixels = hashlib.sha256(image.permute(1, 2, 0).numpy().tobytes()).hexdigest()
    labels = hashlib.sha256(torch.where(target == 255, 11, target).numpy().tobytes()).hexdigest()
    lines = [line for line in sums.read_text().splitlines() if dataset.pairs[index][0].stem in line]
    assert any(pixels in line for line in lines) and any(labels in line for line in lines)
