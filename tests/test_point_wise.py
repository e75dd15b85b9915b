"""Point-wise spatial attention against the paper's equations, the authors' choices, and mmsegmentation."""

from __future__ import annotations

from functools import partial
from typing import Any

import golden
import oracle_point_wise as oracle
import pytest
import torch
from against_oracle import assert_same, rename, settings_of

from operators import checks
from operators.point_wise import PointWiseSpatialAttention

TYPES = ["collect", "distribute", "bi-direction"]


def operator(channels: int = 8, **settings: Any) -> PointWiseSpatialAttention:
    built = checks.construct(PointWiseSpatialAttention, channels, **settings)
    assert isinstance(built, PointWiseSpatialAttention)
    return built


@pytest.mark.parametrize("psa_type", TYPES)
@pytest.mark.parametrize(("size", "mask_size"), [((5, 7), (3, 5)), ((6, 5), (5, 5)), ((3, 4), (4, 2))])
def test_block_is_the_papers(psa_type: Any, size: tuple[int, int], mask_size: tuple[int, int]) -> None:
    expected = partial(oracle.block, psa_type=psa_type, mask_size=mask_size)
    assert_same(operator(psa_type=psa_type, mask_size=mask_size), expected, checks.sample(2, 8, *size))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"shrink_factor": 1, "mask_size": (5, 7)}, {}),
        ({"shrink_factor": 3, "mask_size": (3, 3)}, {}),
        ({"proj_padding": 1, "mask_size": (3, 3)}, {}),
        ({"shrink_factor": 1, "proj_padding": 1, "align_corners": True, "mask_size": (3, 3)}, {}),
        ({"softmax": False, "mask_size": (3, 5)}, {}),
        ({"normalization_factor": None, "mask_size": (3, 5)}, {"divisor": 15.0}),
        ({"normalization_factor": 2.5, "mask_size": (3, 5)}, {"divisor": 2.5}),
        ({"compact": True, "mask_size": (2, 3)}, {}),
    ],
)
def test_settings(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    size = (3, 5)
    passed = {name: value for name, value in settings.items() if name != "normalization_factor"}
    wanted = partial(oracle.block, psa_type="bi-direction", **passed, **expected)
    assert_same(operator(**settings), wanted, checks.sample(1, 8, *size))


def test_distributing_is_collecting_from_the_other_end() -> None:
    core = operator(psa_type="collect", mask_size=(5, 5), softmax=False).core
    scores = checks.sample(1, 25, 3, 4)
    collected, distributed = core.weights("collect", scores), core.weights("distribute", scores)
    torch.testing.assert_close(collected, distributed.transpose(1, 2), rtol=0, atol=0)
    # Position (1, 2) scores its left neighbour in the middle row of its mask, one column left of the centre.
    own, left = 1 * 4 + 2, 1 * 4 + 1
    torch.testing.assert_close(collected[0, left, own], scores[0, 2 * 5 + 1, 1, 2], rtol=0, atol=0)


def test_position_outside_the_mask_has_the_weight_of_score_zero() -> None:
    core = operator(psa_type="collect", mask_size=(1, 1)).core
    scores = torch.full((1, 1, 2, 2), 3.0, dtype=torch.float64)
    weights = core.weights("collect", scores)[0]
    own = torch.tensor(3.0).double().exp()
    expected = torch.where(torch.eye(4).bool(), own, 1.0) / (own + 3)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("psa_type", TYPES)
@pytest.mark.parametrize("size", [(5, 7), (4, 6), (4, 5), (1, 8)])
@pytest.mark.parametrize("proj_padding", [0, 1])
def test_attention_is_what_the_context_reads(psa_type: Any, size: tuple[int, int], proj_padding: int) -> None:
    # Without the projection's normalisation and ReLU the context is linear in the reduced features.
    built = operator(psa_type=psa_type, mask_size=(5, 7), proj_padding=proj_padding).double()
    built.proj.norm, built.proj.relu = torch.nn.Identity(), torch.nn.Identity()
    x, position = checks.sample(2, 8, *size), (size[0] // 2, size[1] - 2)
    weights = built.attention(x, position)
    parts = [
        (weights[:, index : index + 1] * branch.reduce(x)).sum((2, 3))
        for index, branch in enumerate(built.branches.values())
    ]
    expected = built.proj.conv.weight[:, :, 0, 0] @ torch.cat(parts, 1).t()
    contexts = []
    built.fuse.register_forward_pre_hook(lambda _, inputs: contexts.append(inputs[0][:, 8:]))
    built(x)
    torch.testing.assert_close(contexts[0][:, :, position[0], position[1]], expected.t())


def test_compact_mask_has_the_size_of_the_map() -> None:
    with pytest.raises(
        ValueError,
        match=r"PointWiseSpatialAttention: expected a map that shrinks to the compact mask \(3, 3\), "
        r"got \(5, 7\), which shrinks to \(3, 4\)",
    ):
        operator(compact=True, mask_size=(3, 3))(torch.zeros(1, 8, 5, 7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"psa_type": "both"}, "psa_type in"),
        ({"mask_size": (3, 0)}, "a mask_size of two sides >= 1"),
        ({"mask_size": (3,)}, "a mask_size of two sides >= 1"),
        ({"shrink_factor": 0}, "shrink_factor >= 1"),
        ({"proj_padding": -1}, "proj_padding >= 0"),
        ({"normalization_factor": 0.0}, "normalization_factor > 0"),
        ({"width": 0}, "width >= 1"),
        ({"out_channels": 0}, "out_channels >= 1"),
        ({"channels": 6}, "channels divisible by 4, or a width, got 6"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"PointWiseSpatialAttention: expected {message}"):
        PointWiseSpatialAttention(**{"channels": 8, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"psa_type": "distribute", "mask_size": (5, 3)},
        {"shrink_factor": 1, "mask_size": (5, 3)},
        {"proj_padding": 1},
        {"width": 12, "out_channels": 64},
    ],
)
def test_closed_form_follows_the_settings(settings: dict[str, Any]) -> None:
    assert checks.run_checks(PointWiseSpatialAttention, only=("macs", "macs_batch"), settings=settings) == {
        "macs": None,
        "macs_batch": None,
    }


@pytest.mark.parametrize("name", ["psa_collect", "psa_distribute", "psa_bi"])
def test_head_is_mmsegmentations(name: str) -> None:
    head = golden.load(name)
    state, config = head["state_dict"], head["config"]
    built = PointWiseSpatialAttention(
        64,
        psa_type=config["psa_type"],
        mask_size=tuple(config["mask_size"]),
        proj_padding=1,
        **settings_of(head),
    ).eval()
    own = "distribute" if config["psa_type"] == "distribute" else "collect"
    names = {"proj": "proj", "bottleneck": "fuse"}
    for suffix, direction in (("", own), ("_p", "distribute")):
        names |= {
            f"reduce{suffix}": f"branches.{direction}.reduce",
            f"attention{suffix}.0": f"branches.{direction}.adapt",
            f"attention{suffix}.1": f"branches.{direction}.score",
        }
    built.load_state_dict(rename(state, names))
    with torch.no_grad():
        logits = golden.classify(built(head["inputs"][0]), state)
    torch.testing.assert_close(logits, head["logits"], rtol=0, atol=1e-4)
