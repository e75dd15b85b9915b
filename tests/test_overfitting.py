"""Every operator learns: four small crops of CamVid, on cached features, until it knows them by heart."""

import os
from pathlib import Path

import pytest
import torch

import operators
from attnbench.config import Network, Recipe
from attnbench.data import build_dataset
from attnbench.evaluation import evaluate
from attnbench.models.build import build_segmentor
from attnbench.training import fit
from attnbench.training.features import HeadOnFeatures, cached_features

ROOT = Path(os.environ.get("ATTNBENCH_DATA") or Path(__file__).parents[2] / "shared" / "data")
SIDE = 96
PLACES = ((40, 100, 100), (120, 200, 300), (200, 220, 60), (300, 150, 200))
"""Image, top and left of each crop: ten of the eleven classes are in them."""

NETWORK = Network(dropout=0.0)
RECIPE = Recipe(iterations=150, batch_size=4, flip=False, learning_rate=0.01, weight_decay=0.0, class_balance="enet")
"""Long enough that the slowest to learn, PSANet and DANet, pass on every processor: they reach 88 %."""

USUAL = ("conv3x3", "criss_cross", "disentangled_non_local", "ema", "hamburger", "non_local", "squeeze_excitation")
"""What every run of the suite trains; the rest is left to the full one."""

pytestmark = pytest.mark.skipif(not (ROOT / "camvid").is_dir(), reason=f"no CamVid in {ROOT} (ATTNBENCH_DATA)")


class Crops:
    def __init__(self):
        whole = build_dataset("camvid", split="train", root=ROOT)
        self.name, self.classes, self.palette = "camvid-crops", whole.classes, whole.palette
        self.mean, self.std = whole.mean, whole.std
        self._samples = [
            tuple(part[..., top : top + SIDE, left : left + SIDE].clone() for part in whole[index])
            for index, top, left in PLACES
        ]

    def __len__(self):
        return len(self._samples)

    def __getitem__(self, index):
        return self._samples[index]


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Crops()


@pytest.mark.parametrize(
    "name",
    [name if name in USUAL else pytest.param(name, marks=pytest.mark.full) for name in operators.names()],
)
def test_an_operator_fits_four_crops(name, crops):
    torch.manual_seed(0)
    model = build_segmentor(name, NETWORK, len(crops.classes))
    found = cached_features(
        model, NETWORK, crops, split="train", image_size=None, mirrored=False, device=torch.device("cpu")
    )
    learner = HeadOnFeatures(model, found.image_size)
    before = evaluate(learner, found, device="cpu").miou
    fit(learner, found, RECIPE, seed=0, device="cpu")
    scores = evaluate(learner, found, device="cpu")
    present = [value for label, value in enumerate(scores.iou) if any((target == label).any() for _, target in crops)]
    assert len(present) == 10
    assert sum(present) / len(present) > 0.85 > before + 0.4
