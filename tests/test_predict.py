"""`predict.py`: masks and overlays of images of any kind and size."""

from __future__ import annotations

import golden
import numpy as np
import pytest
import torch
from PIL import Image

from attnbench.cli import predict
from attnbench.config import Network
from attnbench.data.photos import read_photo
from attnbench.errors import UsageError
from attnbench.models.build import build_segmentor
from attnbench.models.exported import Metadata, export_weights
from attnbench.models.saved import load_any, save_checkpoint
from attnbench.training.checkpoint import Checkpoints, Snapshot

NETWORK = Network(slot_channels=16, head_channels=8)
CLASSES = ("sky", "road", "tree")
PALETTE = ((10, 20, 200), (128, 128, 128), (0, 160, 0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = build_segmentor("ema", NETWORK, 3, settings={"num_bases": 4})
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    path = tmp_path_factory.mktemp("weights") / "ema.safetensors"
    described = Metadata(
        "ema", NETWORK, "mine", CLASSES, PALETTE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), settings='{"num_bases": 4}'
    )
    export_weights(model, described, path)
    return path


@pytest.fixture
def street(tmp_path):
    path = tmp_path / "photos" / "street.jpg"
    path.parent.mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(picture).resize((47, 33), Image.Resampling.BICUBIC).save(path)
    return path


def run(weights, *arguments):
    return predict.main(["--checkpoint", str(weights), "--device", "cpu", *map(str, arguments)])


def labels_of(weights, image):
    """Classes of an image, computed from the weights alone."""
    mean, std = np.array([0.4, 0.5, 0.6]) * 255, np.array([0.2, 0.3, 0.25]) * 255
    pixels = (np.array(Image.open(image).convert("RGB"), dtype=np.float64) - mean) / std
    with torch.no_grad():
        model = load_any(weights).model
        return model(torch.from_numpy(pixels).float().permute(2, 0, 1)[None]).argmax(1)[0].numpy()


def test_mask_overlay_and_shares(weights, street, capsys):
    assert run(weights, street, "--opacity", "0.25") == 0
    labels = labels_of(weights, street)
    assert len(np.unique(labels)) > 1
    mask = Image.open(street.with_name("street.mask.png"))
    assert mask.mode == "P" and mask.size == (47, 33)
    assert np.array_equal(np.array(mask), labels)
    coloured = np.array(PALETTE)[labels]
    assert np.array_equal(np.array(mask.convert("RGB")), coloured)
    over = np.array(Image.open(street.with_name("street.overlay.jpg")), dtype=float)
    wanted = 0.75 * np.array(Image.open(street), dtype=float) + 0.25 * coloured
    assert np.abs(over - wanted).mean() < 6
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"{street} (47x33): ")
    counts = np.bincount(labels.ravel(), minlength=3)
    told = {line.split("%")[1].strip(): float(line.split("%")[0]) for line in shown[1:]}
    assert told == {CLASSES[label]: round(100 * n / counts.sum(), 1) for label, n in enumerate(counts) if n}
    assert list(told.values()) == sorted(told.values(), reverse=True)


def test_a_folder_is_read_once_and_what_was_written_is_no_input(weights, street, tmp_path):
    Image.open(street).save(street.with_name("b.png"))
    (street.parent / "notes.txt").write_text("no image")
    (street.parent / "notes.pdf").write_bytes(b"%PDF-1.4")
    (street.parent / "film.mpg").write_bytes(bytes([0, 0, 1, 0xB3, 1, 2, 3, 4]))
    assert run(weights, street.parent) == 0
    made = {"street.mask.png", "street.overlay.jpg", "b.mask.png", "b.overlay.png"}
    assert {path.name for path in street.parent.iterdir()} == {
        "street.jpg",
        "b.png",
        "notes.txt",
        "notes.pdf",
        "film.mpg",
        *made,
    }
    assert run(weights, street.parent, street, "--output", tmp_path / "new" / "masks") == 0
    assert {path.name for path in (tmp_path / "new" / "masks").iterdir()} == made


def test_files_are_not_replaced_unasked(weights, street):
    mask = street.with_name("street.mask.png")
    mask.write_bytes(b"mine")
    with pytest.raises(
        UsageError, match=r"street\.mask\.png': expected no such file, got one; --overwrite replaces it"
    ):
        run(weights, street)
    assert mask.read_bytes() == b"mine" and not street.with_name("street.overlay.jpg").exists()
    assert run(weights, street, "--overwrite") == 0
    assert Image.open(mask).size == (47, 33)


def test_two_images_of_one_name_are_an_error(weights, street, tmp_path):
    other = tmp_path / "street.png"
    Image.open(street).save(other)
    with pytest.raises(UsageError, match=r"street\.png': expected a name of its own, got that of .*street\.jpg'"):
        run(weights, street, other, "--output", tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ([], True),
        (["--slide", "64x64"], True),
        (["--slide", "16x16", "--stride", "8x8"], False),
        (["--scales", "0.5,1.5"], False),
        (["--flip"], False),
        (["--image-size", "20x20"], False),
        (["--image-size", "native"], True),
    ],
)
def test_windows_scales_and_mirrors(weights, street, options, same):
    assert run(weights, street, *options) == 0
    mask = np.array(Image.open(street.with_name("street.mask.png")))
    assert mask.shape == (33, 47)
    assert np.array_equal(mask, labels_of(weights, street)) == same


def test_images_are_fitted_to_the_size_that_the_network_was_trained_at(weights, street, tmp_path):
    described = Metadata("ema", NETWORK, "mine", CLASSES, PALETTE, settings='{"num_bases": 4}', image_size=(20, 20))
    path = tmp_path / "small.safetensors"
    export_weights(load_any(weights).model, described, path)
    seen = []
    model = load_any(path)
    model.model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    labels = predict.predict(model, read_photo(street), model.inference, model.image_size, "cpu")
    assert seen == [(1, 3, 14, 20)] and labels.shape == (33, 47)
    assert run(path, street) == 0
    assert np.array_equal(np.array(Image.open(street.with_name("street.mask.png"))), labels)


def gradient(dtype):
    return (np.arange(12 * 10).reshape(12, 10) * 500).astype(dtype)


PIXELS = np.dstack([np.full((12, 10), 200), np.arange(120).reshape(12, 10), np.zeros((12, 10))]).astype(np.uint8)


def test_orientation_is_that_of_a_viewer(tmp_path):
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.array(read_photo(tmp_path / "turned.png")), np.rot90(PIXELS, -1))


@pytest.mark.parametrize(
    ("picture", "wanted"),
    [
        (Image.fromarray(PIXELS[..., 1]), PIXELS[..., [1, 1, 1]]),
        (Image.fromarray(gradient(np.uint16)), np.repeat(np.rint(gradient(float) / 257)[..., None], 3, 2)),
        (Image.fromarray(PIXELS).convert("RGBA"), PIXELS),
        (Image.fromarray(np.dstack([PIXELS, np.zeros((12, 10), np.uint8)])), np.full((12, 10, 3), 255)),
        (Image.fromarray(PIXELS[..., 1] > 60), np.repeat(np.where(PIXELS[..., 1:2] > 60, 255, 0), 3, 2)),
        (Image.fromarray(PIXELS[..., :2], "LA"), None),
        (Image.fromarray(PIXELS).convert("P"), None),
    ],
    ids=["grey", "16-bit", "opaque", "transparent", "bits", "grey with alpha", "palette"],
)
def test_images_of_any_kind(tmp_path, picture, wanted):
    picture.save(tmp_path / "a.png")
    found = read_photo(tmp_path / "a.png")
    assert (found.mode, found.size) == ("RGB", (10, 12))
    if wanted is not None:
        assert np.array_equal(np.array(found), wanted)


@pytest.mark.parametrize("mode", ["CMYK", "F", "I"])
def test_images_of_other_colour_spaces(tmp_path, mode):
    path = tmp_path / "a.tiff"
    Image.fromarray(PIXELS).convert(mode if mode == "CMYK" else "L").convert(mode).save(path)
    if mode == "F":
        with pytest.raises(UsageError, match=r"a\.tiff': expected 8 or 16 bits for each channel, got floating point"):
            read_photo(path)
    else:
        assert read_photo(path).mode == "RGB"


def test_an_image_with_too_large_values_is_an_error(tmp_path):
    Image.fromarray(np.full((3, 3), 70_000, np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(UsageError, match="expected 8 or 16 bits for each channel, got values up to 70000"):
        read_photo(tmp_path / "a.tiff")


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 5)])
def test_images_of_any_size(weights, tmp_path, size):
    Image.new("RGB", size, (90, 100, 110)).save(tmp_path / "tiny.png")
    assert run(weights, tmp_path / "tiny.png") == 0
    assert Image.open(tmp_path / "tiny.mask.png").size == size
    assert Image.open(tmp_path / "tiny.overlay.png").size == size


def test_what_is_wrong_is_one_line_that_names_the_file(weights, street, tmp_path, capsys):
    broken, empty, cut = tmp_path / "broken.jpg", tmp_path / "empty", tmp_path / "cut.jpg"
    broken.write_bytes(b"not an image")
    empty.mkdir()
    cut.write_bytes(street.read_bytes()[:-200])
    for arguments, message in (
        ([tmp_path / "absent.jpg"], r"image '.*absent\.jpg': expected an existing file, got none"),
        ([street, broken], r"image '.*broken\.jpg': expected a readable image"),
        ([empty], r"folder '.*empty': expected images, got none"),
        ([cut], r"image '.*cut\.jpg': expected a readable image"),
        ([street, "--whole", "--slide", "8x8"], "--whole: expected no window beside it, got --slide"),
        ([street, "--stride", "8x8"], "--stride: expected --slide beside it"),
        ([street, "--slide", "8x8", "--stride", "9x9"], "inference, stride: expected at most the window"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            run(weights, *arguments)
        assert "\n" not in str(caught.value)
    assert not street.with_name("street.mask.png").exists()
    for wrong in (["--opacity", "1.5"], ["--scales", "0,1"], ["--slide", "8by8"]):
        with pytest.raises(SystemExit) as caught:
            run(weights, street, *wrong)
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_what_the_network_raises_names_the_image(weights, street, monkeypatch):
    def refuse(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes\nmore")

    monkeypatch.setattr(predict, "predict", refuse)
    with pytest.raises(
        UsageError, match=r"image '.*street\.jpg': expected a network that can read it, got Default.*--slide"
    ):
        run(weights, street)


def test_a_checkpoint_without_names_gets_numbers_and_colours(street, tmp_path, capsys):
    path = tmp_path / "own.pth"
    save_checkpoint(build_segmentor("conv3x3", NETWORK, 4), path, operator="conv3x3", network=NETWORK)
    assert run(path, street) == 0
    assert "%  class " in capsys.readouterr().out
    assert Image.open(street.with_name("street.mask.png")).getpalette()[:6] == [0, 0, 0, 128, 0, 0]


@pytest.mark.parametrize("count", [1, 300])
def test_classes_that_no_mask_can_have_are_an_error(street, tmp_path, count):
    path = tmp_path / "own.pth"
    save_checkpoint(build_segmentor("identity", NETWORK, count), path, operator="identity", network=NETWORK)
    with pytest.raises(UsageError, match=rf"own\.pth': expected 2 to 256 classes with a logit each, got {count}"):
        run(path, street)


@pytest.mark.parametrize("version", ["0.x", "1.x"])
def test_a_checkpoint_of_mmsegmentations_brings_classes_colours_and_window(street, tmp_path, capsys, version):
    found = golden.load("segmentors/ccnet_r50")
    count = found["config"]["decode_head"]["num_classes"]
    names, colours = [f"kind {index}" for index in range(count)], [[index, 0, 9] for index in range(count)]
    text = "test_cfg = dict(mode='slide', crop_size=(32, 24), stride=(20, 16))\nmodel = dict(type='EncoderDecoder')"
    meta = {"config": text, "CLASSES": names, "PALETTE": colours}
    if version == "1.x":
        meta = {"cfg": text, "dataset_meta": {"classes": names, "palette": colours}}
    path = tmp_path / "theirs.pth"
    torch.save({"state_dict": found["state_dict"], "meta": meta}, path)
    saved = load_any(path)
    assert (saved.inference.mode, saved.inference.crop_size, saved.inference.stride) == ("slide", (32, 24), (20, 16))
    assert run(path, street) == 0
    assert "%  kind " in capsys.readouterr().out
    mask = Image.open(street.with_name("street.mask.png"))
    assert mask.getpalette()[:6] == [0, 0, 9, 1, 0, 9]
    assert run(path, street, "--whole", "--overwrite") == 0
    whole = Image.open(street.with_name("street.mask.png"))
    assert not np.array_equal(np.array(mask), np.array(whole))


def test_files_that_hold_no_network_are_named_and_said(street, tmp_path):
    backbone, goes_on = tmp_path / "resnet18.pth", Checkpoints(tmp_path / "checkpoints", {}, every=1)
    torch.save({"conv1.weight": torch.zeros(1)}, backbone)
    with pytest.raises(
        UsageError, match=r"checkpoint '.*resnet18\.pth': expected the backbone of a ResNet.*parts none"
    ):
        run(backbone, street)
    saved = goes_on.save(Snapshot(1, {"weight": torch.zeros(1)}, {}, {}, [], [1.0]))
    with pytest.raises(
        UsageError, match=rf"{saved.name}': expected the weights of a network, got what train.py --resu"
    ):
        run(saved, street)
