from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import runpy
import tarfile
import zipfile
from pathlib import Path

import dataset_trees
import numpy as np
import pytest
from dataset_trees import write_image, write_list, write_mask
from file_server import serving
from PIL import Image
from scipy.io import savemat

from attnbench.cli.prepare_data import main
from attnbench.data import FILE_DATASETS, build_dataset
from attnbench.data.inspection import inspect
from attnbench.data.preparing import prepare
from attnbench.data.preparing.convert import convert_context, convert_sbd
from attnbench.data.preparing.sources import SOURCES
from attnbench.errors import UsageError

DATA = Path(os.environ.get("ATTNBENCH_DATA", Path(__file__).parents[1].parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    monkeypatch.delenv("ATTNBENCH_DATA", raising=False)


@pytest.fixture
def publish(monkeypatch):
    """Takes other numbers of images for the published ones."""
    return lambda name, **numbers: monkeypatch.setattr(FILE_DATASETS[name], "published", numbers)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def sbd(root, labels=((0, 15), (20, 0))):
    """SBD's annotation of one image of VOC's val list, one of its train list, and two others."""
    home = root / "VOCdevkit/VOCaug/dataset"
    (home / "cls").mkdir(parents=True)
    for name in ("2007_000001", "2007_000003", "2008_000004", "2008_000005"):
        values = np.zeros((dataset_trees.HEIGHT, dataset_trees.WIDTH), np.uint8)
        values[:2, :2] = labels
        savemat(home / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": values, "CategoriesPresent": [15, 20]}})
    write_list(home / "train.txt", ["2008_000005", "2007_000003"])
    write_list(home / "val.txt", ["2007_000001", "2008_000004"])
    return home


def voc_with_sbd(root):
    home = dataset_trees.voc(root)
    (home / "ImageSets/Segmentation/aug.txt").unlink()
    for mask in (home / "SegmentationClassAug").iterdir():
        mask.unlink()
    sbd(root)
    return home


def test_sbd_becomes_masks_and_a_list_without_vocs_own_images(tmp_path):
    home = voc_with_sbd(tmp_path)
    seen = []
    convert_sbd(tmp_path, lambda *done: seen.append(done))
    assert (home / "ImageSets/Segmentation/aug.txt").read_text().split() == ["2008_000004", "2008_000005"]
    assert sorted(path.name for path in (home / "SegmentationClassAug").iterdir()) == [
        "2008_000004.png",
        "2008_000005.png",
    ]
    assert seen == [(1, 2), (2, 2)]
    dataset = build_dataset("voc", split="trainaug", root=tmp_path)
    assert len(dataset) == 4 and dataset[3][1][:2, :2].tolist() == [[0, 15], [20, 0]]


def test_masks_that_are_there_are_not_converted_again(tmp_path):
    home = voc_with_sbd(tmp_path)
    write_mask(home / "SegmentationClassAug/2008_000004.png", [7])
    convert_sbd(tmp_path)
    assert np.asarray(Image.open(home / "SegmentationClassAug/2008_000004.png"))[0, 0] == 7


def damaged(path):
    """A compressed annotation whose middle is not what was written."""
    labels = np.random.default_rng(0).integers(0, 21, (100, 100), dtype=np.uint8)
    savemat(path, {"GTcls": {"Segmentation": labels}}, do_compression=True)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = b"damaged!"
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lambda home: damaged(home / "cls/2008_000004.mat"),
            "2008_000004.mat': expected a MATLAB file with GTcls, got",
        ),
        (lambda home: (home / "cls/2008_000004.mat").unlink(), "2008_000004.mat': expected an existing file, got none"),
        (lambda home: (home / "cls/2008_000004.mat").write_bytes(b"x" * 200), "expected a MATLAB file with GTcls, got"),
        (lambda home: savemat(home / "cls/2008_000004.mat", {"x": 1}), "expected a MATLAB file with GTcls, got"),
        (
            lambda home: savemat(home / "cls/2008_000004.mat", {"GTcls": {"Segmentation": np.full((2, 2), 21)}}),
            "2008_000004.mat': expected labels 0..20, got other values",
        ),
        (lambda home: savemat(home / "cls/2008_000004.mat", {"GTcls": {"x": 1}}), "expected labels 0..20"),
        (lambda home: (home / "val.txt").unlink(), "SBD split 'val': expected the list '.*val.txt', got none"),
    ],
)
def test_annotation_that_does_not_fit_is_an_error(tmp_path, break_it, words):
    voc_with_sbd(tmp_path)
    break_it(tmp_path / "VOCdevkit/VOCaug/dataset")
    with pytest.raises(UsageError, match=words):
        convert_sbd(tmp_path)
    assert not (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/aug.txt").exists()


def context_annotation(root, values):
    home = root / "VOCdevkit/VOC2010"
    for part, name in {"train": "2008_000001", "val": "2008_000002"}.items():
        write_image(home / "JPEGImages" / f"{name}.jpg", size=(2, 3))
        write_list(home / "ImageSets/Main" / f"{part}.txt", [name])
        (home / "trainval").mkdir(exist_ok=True)
        savemat(home / "trainval" / f"{name}.mat", {"LabelMap": np.array(values, np.uint16)})


def test_459_labels_become_60(tmp_path):
    """2 is aeroplane, 284 person and 458 wood in the published list; 1 and 459 are none of the 59."""
    context_annotation(tmp_path, [[2, 284, 458], [1, 459, 0]])
    convert_context(tmp_path)
    _, target = build_dataset("pascal_context_60", split="train", root=tmp_path)[0]
    classes = FILE_DATASETS["pascal_context_60"].classes
    assert [classes[label] for label in target[0].tolist()] == ["aeroplane", "person", "wood"]
    assert target[1].tolist() == [0, 0, 0]
    _, target = build_dataset("pascal_context_59", split="val", root=tmp_path)[0]
    assert target.tolist() == [[0, 36, 58], [255, 255, 255]]


def test_more_than_459_labels_are_an_error(tmp_path):
    context_annotation(tmp_path, [[460]])
    with pytest.raises(UsageError, match=r"2008_000001.mat': expected labels 0..459, got other values"):
        convert_context(tmp_path)


def packed(folder, kind):
    """An archive of all that lies in a folder."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            archive.add(folder, "")
    return buffer.getvalue()


@pytest.fixture
def voc_online(tmp_path, monkeypatch, publish):
    """VOC and SBD on a server of this machine, which breaks off in the middle of both."""
    publish("voc", train=2, val=1, trainval=3, trainaug=4)
    voc_with_sbd(tmp_path / "a")
    (tmp_path / "b/benchmark_RELEASE").mkdir(parents=True)
    (tmp_path / "a/VOCdevkit/VOCaug/dataset").rename(tmp_path / "b/benchmark_RELEASE/dataset")
    contents = [packed(tmp_path / "a", "tar"), packed(tmp_path / "b", "tar")]
    with serving(contents[0]) as (first, voc), serving(contents[1]) as (second, boundaries):
        voc.break_after, boundaries.break_after = [1000], [100, 200]
        archives = [
            dataclasses.replace(archive, url=url, checksum=f"md5:{hashlib.md5(content).hexdigest()}")
            for archive, url, content in zip(SOURCES["voc"].archives, (first, second), contents, strict=True)
        ]
        monkeypatch.setitem(SOURCES, "voc", dataclasses.replace(SOURCES["voc"], archives=tuple(archives)))
        monkeypatch.setattr(prepare, "download", functools.partial(prepare.download, pause=lambda _: None))
        yield voc, boundaries


def test_a_dataset_from_its_addresses_to_a_checked_tree(tmp_path, voc_online, capsys):
    root = tmp_path / "data"
    assert run("voc", "--data-root", root) == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("to download", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/", "flickr"))
    assert "voc: counts, pairs, sizes and labels are as expected" in shown
    assert not list(root.rglob("*.part*"))
    receipt = json.loads((root / "downloads/benchmark.tgz.json").read_text())
    content = (root / "downloads/benchmark.tgz").read_bytes()
    assert receipt["bytes"] == len(content) and receipt["sha256"] == hashlib.sha256(content).hexdigest()
    assert [len(server.requests) for server in voc_online] == [2, 3]


def test_a_second_run_downloads_nothing(tmp_path, voc_online, capsys):
    root = tmp_path / "data"
    run("voc", "--data-root", root)
    before = [len(server.requests) for server in voc_online]
    capsys.readouterr()
    assert run("voc", "--data-root", root) == 0
    assert "all files are there: nothing to download" in capsys.readouterr().out
    assert [len(server.requests) for server in voc_online] == before


def test_archives_may_be_deleted_once_they_are_unpacked(tmp_path, voc_online, capsys):
    root = tmp_path / "data"
    run("voc", "--data-root", root)
    for name in ("VOCtrainval_11-May-2012.tar", "benchmark.tgz"):
        (root / "downloads" / name).unlink()
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/aug.txt").unlink()
    before = [len(server.requests) for server in voc_online]
    assert run("voc", "--data-root", root) == 0
    assert [len(server.requests) for server in voc_online] == before


def test_a_file_that_was_put_there_by_hand_is_verified(tmp_path, voc_online):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/benchmark.tgz").write_bytes(b"something else")
    words = r"benchmark.tgz': expected md5 \w{32}, got \w{32}; delete it to download it anew"
    with pytest.raises(UsageError, match=words):
        run("voc", "--data-root", tmp_path)


def test_an_archive_whose_address_is_gone_may_be_put_there_by_hand(tmp_path, voc_online):
    voc, _ = voc_online
    voc.statuses = [404]
    with pytest.raises(UsageError, match=r"got status 404; .* put it into place as '.*VOCtrainval_11-May-2012.tar'"):
        run("voc", "--data-root", tmp_path / "data")
    (tmp_path / "data/downloads/VOCtrainval_11-May-2012.tar").write_bytes(voc.content)
    assert run("voc", "--data-root", tmp_path / "data") == 0
    assert len(voc.requests) == 1


def test_a_damaged_archive_leaves_no_note_that_it_was_unpacked(tmp_path, voc_online, monkeypatch):
    source = SOURCES["voc"]
    unknown = [dataclasses.replace(archive, checksum=None) for archive in source.archives]
    monkeypatch.setitem(SOURCES, "voc", dataclasses.replace(source, archives=tuple(unknown)))
    voc, _ = voc_online
    whole = voc.content
    voc.content = whole[:-8] + bytes(8)
    with pytest.raises(UsageError, match=r"2012.tar': expected a whole zip or tar file, got CRC check failed"):
        run("voc", "--data-root", tmp_path / "data")
    voc.content = whole
    (tmp_path / "data/downloads/VOCtrainval_11-May-2012.tar").unlink()
    assert run("voc", "--data-root", tmp_path / "data") == 0


def test_the_datasets_own_folder_gets_what_it_lacks(tmp_path, voc_online):
    home = dataset_trees.voc(tmp_path / "data")
    (home / "ImageSets/Segmentation/aug.txt").unlink()
    assert run("voc", "--data-root", home) == 0
    assert not (home / "VOCdevkit").exists() and not (home / "downloads").exists()
    assert (tmp_path / "data/downloads/benchmark.tgz").is_file()


def test_the_datasets_own_folder_may_be_a_link_or_the_one_that_is_worked_in(tmp_path, voc_online, monkeypatch):
    home = dataset_trees.voc(tmp_path / "data")
    (home / "ImageSets/Segmentation/aug.txt").unlink()
    (tmp_path / "link").symlink_to(home)
    monkeypatch.chdir(home)
    assert {prepare.place("voc", SOURCES["voc"], Path(given)) for given in (tmp_path / "link", ".")} == {
        tmp_path / "data"
    }


def test_the_datasets_own_folder_of_another_name_is_an_error_that_says_which_to_pass(tmp_path, voc_online):
    home = dataset_trees.voc(tmp_path).rename(tmp_path / "mine")
    run("voc", "--data-root", home)
    (home / "ImageSets/Segmentation/aug.txt").unlink()
    with pytest.raises(UsageError, match="got its own under another name than VOCdevkit/VOC2012; pass") as said:
        run("voc", "--data-root", home)
    assert f"pass {str(tmp_path)!r}, and move the files to {str(tmp_path / 'VOCdevkit/VOC2012')!r}" in str(said.value)
    assert not any(server.requests for server in voc_online)


@pytest.mark.parametrize("name", dataset_trees.TREES)
def test_archives_are_unpacked_to_where_the_loader_looks(tmp_path, name):
    home = dataset_trees.TREES[name](tmp_path)
    source = SOURCES[name]
    assert home == tmp_path / source.home == FILE_DATASETS[name].find(tmp_path)
    assert {prepare.place(name, source, given) for given in (tmp_path, home)} == {tmp_path}
    assert any((tmp_path / archive.into).is_relative_to(home) for archive in source.archives)


def test_what_is_there_from_elsewhere_is_not_downloaded_again(tmp_path, voc_online, monkeypatch):
    voc, boundaries = voc_online
    source = SOURCES["voc"]
    first = dataclasses.replace(source.archives[0], holds={"JPEGImages": 5, "SegmentationClass": 3})
    monkeypatch.setitem(SOURCES, "voc", dataclasses.replace(source, archives=(first, source.archives[1])))
    home = dataset_trees.voc(tmp_path)
    (home / "ImageSets/Segmentation/aug.txt").unlink()
    assert run("voc", "--data-root", tmp_path) == 0
    assert voc.requests == [] and boundaries.requests
    image = home / "JPEGImages/2007_000001.jpg"
    image.rename(image.with_name(f"{image.name}.part"))
    assert run("voc", "--data-root", tmp_path) == 0
    assert voc.requests


def test_ctrl_c_says_that_a_download_goes_on(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("attnbench.cli.prepare_data.main", interrupted)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(Path(__file__).parents[1] / "scripts/prepare_data.py"), run_name="__main__")
    said = "prepare_data.py: interrupted; what was downloaded is kept, and the same command goes on from there"
    assert ended.value.code == 130 and capsys.readouterr().err.strip() == said


def test_a_dry_run_only_says_what_comes_from_where(tmp_path, voc_online, capsys):
    assert run("voc", "--data-root", tmp_path / "data", "--dry-run") == 0
    assert "benchmark.tgz" in capsys.readouterr().out
    assert not (tmp_path / "data").exists() and not any(server.requests for server in voc_online)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_said(tmp_path, capsys, name):
    assert run(name, "--data-root", tmp_path, "--dry-run") == 0
    shown = "".join(capsys.readouterr().out.split())
    assert SOURCES[name].page in shown
    assert all(archive.file in shown for archive in SOURCES[name].archives)


def test_every_dataset_in_files_has_a_source_and_published_numbers():
    assert set(SOURCES) == set(FILE_DATASETS)
    assert all({"train", "val"} <= set(kind.published) <= set(kind.splits) for kind in FILE_DATASETS.values())


def test_cityscapes_needs_a_login(tmp_path):
    words = r"expected leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip in '.*downloads'; download with a login"
    with pytest.raises(UsageError, match=words):
        run("cityscapes", "--data-root", tmp_path)


def test_cityscapes_is_unpacked_from_what_was_downloaded_by_hand(tmp_path, publish, capsys):
    publish("cityscapes", train=2, val=1, trainval=3)
    home = dataset_trees.cityscapes(tmp_path / "a")
    downloads = tmp_path / "data/downloads"
    downloads.mkdir(parents=True)
    (home / "README").write_text("")
    (home / "gtFine").rename(tmp_path / "a/gtFine")
    (downloads / "leftImg8bit_trainvaltest.zip").write_bytes(packed(home, "zip"))
    (tmp_path / "a/gtFine").rename(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "b").rename(tmp_path / "c/gtFine")
    (downloads / "gtFine_trainvaltest.zip").write_bytes(packed(tmp_path / "c", "zip"))
    assert run("cityscapes", "--data-root", tmp_path / "data") == 0
    assert "cityscapes: counts, pairs, sizes and labels are as expected" in capsys.readouterr().out
    assert not (tmp_path / "data/cityscapes/README").exists()


def test_a_check_finds_every_problem_and_goes_on(tmp_path, publish, capsys):
    publish("ade20k", train=3, val=1)
    home = dataset_trees.ade20k(tmp_path)
    write_mask(home / "annotations/training/ADE_train_00000001.png", [151])
    (home / "images/validation/ADE_val_00000001.jpg").write_bytes(b"broken")
    with pytest.raises(UsageError, match=r"ade20k: expected sound files, got 3 problem\(s\); the first: ade20k split"):
        run("ade20k", "--data-root", tmp_path, "--check")
    shown = capsys.readouterr().out
    for words in (
        "ade20k split 'train': expected 3 images as published, got 2",
        "expected labels 0..150, got 151",
        "expected a readable image, got",
    ):
        assert words in shown


def test_a_check_of_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"got 2 problem\(s\); the first: ade20k: expected a folder with images/"):
        run("ade20k", "--data-root", tmp_path, "--check")


def test_a_folder_of_ones_own_is_checked(tmp_path, capsys):
    write_image(tmp_path / "images/a.jpg")
    write_image(tmp_path / "images/b.jpg")
    write_mask(tmp_path / "masks/a.png", [0, 255])
    write_mask(tmp_path / "masks/b.png", [0])
    (tmp_path / "dataset.toml").write_text(
        'name = "own"\nclasses = ["x", "y"]\n[splits.all]\nimages = "images"\nmasks = "masks"\n'
    )
    assert run("own", "--data-root", tmp_path) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "all" in line and "6x8" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["all", "2", "6x8", "1.04 %", "y"]
    for name in "ab":
        write_mask(tmp_path / f"masks/{name}.png", [255])
    with pytest.raises(UsageError, match="own split 'all': expected at least one labelled pixel, got none in 2 masks"):
        run("own", "--data-root", tmp_path)
    with pytest.raises(UsageError, match="--dry-run: expected a dataset that is downloaded, got 'own'"):
        run("own", "--data-root", tmp_path, "--dry-run")


def test_inspection_counts_pixels_and_sizes(tmp_path, publish):
    publish("voc", train=2)
    dataset_trees.voc(tmp_path)
    calls = []
    found = inspect(build_dataset("voc", split="train", root=tmp_path), lambda *done: calls.append(done))
    assert (found.images, dict(found.sizes), found.problems, calls) == (2, {(6, 8): 2}, [], [(1, 2), (2, 2)])
    assert found.pixels.sum() == 2 * 48 and found.pixels[[0, 20, 7, 21]].tolist() == [90, 2, 2, 2]
    assert found.absent == [label for label in range(21) if label not in (0, 7, 20)]
    assert found.ignored == pytest.approx(2 / 96)


def test_nothing_to_prepare_for_the_embedded_task(tmp_path, capsys):
    assert run("context", "--data-root", tmp_path) == 0
    assert "nothing to prepare" in capsys.readouterr().out


def test_what_does_not_fit_is_an_error_of_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"data root: expected a folder \(--data-root or ATTNBENCH_DATA\), got none"):
        run("voc")
    with pytest.raises(UsageError, match="unknown dataset 'ade20'; did you mean 'ade20k'"):
        run("ade20", "--data-root", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder that can be written, got"):
        run("ade20k", "--data-root", tmp_path / "file")


def test_the_real_camvid_passes_the_check(capsys):
    if not (DATA / "camvid" / "test.txt").is_file():
        pytest.skip("CamVid is not here; set ATTNBENCH_DATA to the folder that holds camvid/")
    assert run("camvid", "--data-root", DATA, "--check") == 0
    shown = capsys.readouterr().out
    assert "camvid: counts, pairs, sizes and labels are as expected" in shown
    assert all(words in shown for words in ("367", "101", "233", "360x480"))
