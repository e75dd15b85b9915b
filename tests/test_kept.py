"""Decoded samples that stay in memory, and files that were decoded before and have not changed."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from dataset_trees import TREES, write_image, write_mask
from PIL import Image

from attnbench.data import build_dataset, check_dataset
from attnbench.data.files import FileDataset
from attnbench.data.kept import KeptSamples
from attnbench.data.labels import plain
from attnbench.errors import UsageError


@pytest.fixture
def dataset(tmp_path):
    TREES["ade20k"](tmp_path)
    return build_dataset("ade20k", split="train", root=tmp_path)


@pytest.fixture
def decoded(monkeypatch):
    """Files that are decoded, as they are."""
    seen = []
    decode = FileDataset.decode
    monkeypatch.setattr(FileDataset, "decode", lambda self, index: seen.append(index) or decode(self, index))
    return seen


def same(one, other):
    return all(torch.equal(part, too) for part, too in zip(one, other, strict=True))


def test_a_sample_is_decoded_once(dataset, decoded):
    first = [dataset[index] for index in range(len(dataset))]
    again = [dataset[index] for index in range(len(dataset))]
    assert decoded == list(range(len(dataset)))
    assert all(same(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("size", [None, (5, 7)])
def test_images_of_different_sizes_are_kept(tmp_path, size, decoded):
    TREES["ade20k"](tmp_path)
    dataset = build_dataset("ade20k", split="train", root=tmp_path, image_size=size)
    write_image(dataset.pairs[1].image, size=(9, 11))
    Image.fromarray(np.ones((9, 11), np.uint8)).save(dataset.pairs[1].mask)
    shapes = [tuple(dataset[1][1].shape), tuple(dataset[0][1].shape)]
    assert shapes == [size or (9, 11), size or (6, 8)]
    assert same(dataset[1], dataset.load(1)) and decoded == [1, 0, 1]


def test_what_does_not_fit_is_read_anew(dataset, decoded, monkeypatch):
    monkeypatch.setattr(FileDataset, "kept_bytes", 4 * 6 * 8 * len(dataset) - 1)
    assert same(dataset[0], dataset[0])
    assert decoded == [0, 0]


def test_forked_processes_fill_the_same_memory(dataset):
    dataset.keep()
    process = multiprocessing.get_context("fork").Process(target=dataset.__getitem__, args=(1,))
    process.start()
    process.join()
    expected = dataset.load(1)
    dataset.pairs[1].image.unlink()
    assert same(dataset[1], expected)


def test_a_copy_for_a_process_that_is_not_forked_reads_by_itself(dataset):
    expected = dataset[1]
    assert same(pickle.loads(pickle.dumps(dataset))[1], expected)


def test_another_shape_than_was_said_is_an_error():
    kept = KeptSamples([(2, 3)])
    with pytest.raises(ValueError, match=r"KeptSamples: expected \(2, 3\), got \(3, 3, 2\)"):
        kept.put(0, torch.zeros(3, 3, 2, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.uint8))
    assert kept.get(0) is None


def test_what_passed_is_not_decoded_again_until_a_file_changes(dataset, decoded, tmp_path):
    check_dataset(dataset)
    assert sorted(decoded) == [0, 1]
    check_dataset(build_dataset("ade20k", split="train", root=tmp_path))
    assert sorted(decoded) == [0, 1]
    write_mask(dataset.pairs[1].mask, [151])
    for _ in range(2):
        with pytest.raises(UsageError, match=r"mask '.*': expected labels 0..150, got 151"):
            check_dataset(dataset)
    write_mask(dataset.pairs[1].mask, [150])
    check_dataset(dataset)


def test_what_other_labels_passed_is_decoded_again(dataset, decoded, monkeypatch):
    check_dataset(dataset)
    monkeypatch.setattr(type(dataset), "labels", plain(21, ignored=[255]))
    with pytest.raises(UsageError, match=r"expected labels 0..20, 255"):
        check_dataset(dataset)


def test_a_check_goes_without_a_place_to_remember(dataset, decoded, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATTNBENCH_CACHE", str(tmp_path / "file"))
    check_dataset(dataset)
    check_dataset(dataset)
    assert len(decoded) == 4


def test_a_check_tells_how_far_it_is(dataset):
    told = []
    check_dataset(dataset, lambda *done: told.append(done))
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_file_cut_short_is_found_before_training(dataset, which):
    noise = np.random.default_rng(0).integers(0, 151, (64, 64, 3), dtype=np.uint8)
    image, mask = dataset.pairs[1]
    Image.fromarray(noise).save(image)
    Image.fromarray(noise[..., 0]).save(mask)
    path = getattr(dataset.pairs[1], which)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UsageError, match=f"{which} '{path}': expected a readable image, got "):
        check_dataset(dataset)
