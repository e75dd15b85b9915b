"""mmsegmentation's decode heads on the project's operators, number for number."""

from __future__ import annotations

import golden
import pytest
import torch

from attnbench.errors import UsageError
from attnbench.models.heads import DecodeHead
from attnbench.models.mmseg import decode_head
from attnbench.models.mmseg.config import PUBLISHED, published_head

GOLDEN = [
    "ann",
    "apc",
    "aspp",
    "cc",
    "da",
    "dm",
    "dnl",
    "ema",
    "enc",
    "fcn",
    "gc",
    "gc_mul",
    "ham",
    "isa",
    "nl_concatenation",
    "nl_dot_product",
    "nl_embedded_gaussian",
    "nl_embedded_gaussian_noscale",
    "nl_gaussian",
    "ocr",
    "psa_bi",
    "psa_collect",
    "psa_distribute",
    "psp",
    "sep_aspp",
]

# Counted on mmsegmentation 1.2.2 itself by scripts/compare_with_mmsegmentation.py.
PARAMETERS = {
    "ANNHead": 20336659,
    "APCHead": 30465605,
    "ASPPHead": 42221075,
    "CCHead": 23934100,
    "DAHead": 23954619,
    "DMHead": 27283987,
    "DNLHead": 24132372,
    "DepthwiseSeparableASPPHead": 17697923,
    "EMAHead": 16458003,
    "EncHead": 10000006,
    "FCNHead": 23605779,
    "GCHead": 23738260,
    "ISAHead": 11815443,
    "LightHamHead": 2634771,
    "NLHead": 24131859,
    "OCRHead": 10632211,
    "PSAHead": 33246739,
    "PSPHead": 23083539,
}
SMALL = {
    "type": "CCHead",
    "in_channels": 16,
    "channels": 8,
    "num_classes": 3,
    "in_index": 0,
    "norm_cfg": {"type": "BN"},
}


def arguments(found):
    return (found["inputs"], *([found["prior_logits"]] if "prior_logits" in found else []))


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_are_mmsegmentations(name):
    found = golden.load(name)
    head = decode_head(found["config"], found["state_dict"]).eval()
    with torch.no_grad():
        logits = head(*arguments(found))
        _, auxiliary = head.forward_with_auxiliary(*arguments(found))
    assert found["logits"].std() > 0.01
    torch.testing.assert_close(logits, found["logits"], rtol=0, atol=1e-4)
    others = found.get("all_outputs", [None])[1:]
    assert auxiliary.keys() == head.auxiliary.keys() and len(auxiliary) == len(others)
    for value, expected in zip(auxiliary.values(), others, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_key_counts(name):
    found = golden.load(name)
    state = {key: value for key, value in found["state_dict"].items() if not key.endswith("num_batches_tracked")}
    head = decode_head(found["config"], state)
    for key in list(state)[:: len(state) // 4]:
        changed = dict(state)
        del changed[key]
        with pytest.raises(UsageError, match=rf"1 missing: {key}|shared with"):
            _unless_shared(found, changed, key)
    with pytest.raises(UsageError, match=r"1 left over: decoy\.weight"):
        decode_head(found["config"], {**state, "decoy.weight": torch.zeros(1)})
    key = next(iter(state))
    with pytest.raises(UsageError, match=rf"1 of another shape: {key} \(expected"):
        decode_head(found["config"], {**state, key: torch.zeros(5, 5, 5)})
    assert sum(p.numel() for p in head.parameters()) <= sum(v.numel() for v in state.values())


def _unless_shared(found, changed, key):
    decode_head(found["config"], changed)
    if found["config"]["type"] == "ANNHead" and key.startswith("context.stages.0."):
        raise UsageError("shared with the other name")


def test_what_two_names_share_must_be_equal():
    found = golden.load("ann")
    key = "context.stages.0.query_project.conv.weight"
    state = {**found["state_dict"], key: found["state_dict"][key] + 1}
    with pytest.raises(UsageError, match="which differs"):
        decode_head(found["config"], state)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_sizes_have_mmsegmentations_parameters(kind):
    with torch.device("meta"):
        head = decode_head(published_head(kind, 19))
    assert sum(parameter.numel() for parameter in head.parameters()) == PARAMETERS[kind]


def test_parameters_of_a_head_by_hand():
    """CCHead: 3x3 in, 3x3 out and 3x3 on the concatenation, each with a normalisation; attention; classifier."""
    inside, wide, classes = 512, 2048, 19
    convolutions = 9 * inside * (wide + inside + (wide + inside)) + 3 * 2 * inside
    attention = 2 * (inside + 1) * (inside // 8) + (inside + 1) * inside + 1
    assert convolutions + attention + (inside + 1) * classes == PARAMETERS["CCHead"]


@pytest.mark.parametrize("kind", ["CCHead", "DNLHead", "EMAHead", "FCNHead", "GCHead", "NLHead"])
def test_slots_are_the_shared_head(kind):
    with torch.device("meta"):
        assert isinstance(decode_head(published_head(kind, 19)).head, DecodeHead)


@pytest.mark.parametrize("kind", [kind for kind in PUBLISHED if kind != "PSAHead"])
def test_fresh_heads_train(kind):
    config = {**published_head(kind, 5), "channels": 16}
    widths = [32] * 3 if kind in ("EncHead", "LightHamHead") else [32] * 2 if kind == "ANNHead" else [32]
    config |= {"in_channels": widths if len(widths) > 1 else 32, "in_index": list(range(len(widths)))}
    if len(widths) == 1:
        config["in_index"] = 0
    small = {"ema_channels": 16, "num_bases": 4, "pam_channels": 4, "project_channels": 8, "isa_channels": 8}
    small |= {"ocr_channels": 8, "num_codes": 4, "ham_channels": 16, "c1_in_channels": 32, "c1_channels": 4}
    config |= {key: value for key, value in small.items() if key in PUBLISHED[kind]}
    head = decode_head(config).train()
    prior = [torch.randn(2, 5, 9, 11)] if kind == "OCRHead" else []
    logits, extra = head.forward_with_auxiliary([torch.randn(2, 32, 9, 11) for _ in widths], *prior)
    assert tuple(logits.shape) == (2, 5, 9, 11)
    (logits.square().mean() + sum(value.square().mean() for value in extra.values())).backward()
    assert head.head.classifier.weight.grad.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "UPerHead"}, r"expected one of ANNHead, .*PSPHead, got 'UPerHead'"),
        ({"type": None}, "got None"),
        ({"recurence": 2}, "unknown key 'recurence'; did you mean 'recurrence'"),
        ({"norm_cfg": {"type": "GN"}}, "got 'GN'"),
        ({"norm_cfg": None}, "expected norm_cfg"),
        ({"act_cfg": {"type": "GELU"}}, "expected act_cfg"),
        ({"conv_cfg": {"type": "DCN"}}, "plain convolutions"),
        ({"channels": 0}, "expected channels >= 1"),
        ({"channels": 12}, "divisible by the reduction 8"),
        ({"in_channels": [16, 16], "in_index": [0, 1]}, "resize_concat"),
        ({"in_channels": [16, 16]}, "as many in_channels as in_index"),
        ({"in_index": "last"}, "in_index"),
        ({"kernel_size": 1}, r"expected kernel_size in \(3,\), got 1"),
        ({"out_channels": 2}, "expected out_channels 3 or 1"),
    ],
)
def test_what_is_not_supported_is_named(change, message):
    with pytest.raises(UsageError, match=message):
        decode_head({**SMALL, **change})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("OCRHead", {"scale": 2}, "expected scale"),
        ("ANNHead", {"query_scales": (2,)}, "expected query_scales"),
        ("GCHead", {"fusion_types": ("channel_div",)}, "expected fusion_types"),
        ("DAHead", {"pam_channels": 100}, "that divides 512, got 100"),
        ("NLHead", {"mode": "cosine"}, "expected pairwise"),
        ("LightHamHead", {"ham_kwargs": {"MD_S": 2}}, "expected MD_S 1, got 2"),
        ("LightHamHead", {"ham_kwargs": {"steps": 2}}, "unknown key 'steps'"),
        ("FCNHead", {"num_convs": 3}, "expected num_convs"),
        ("PSAHead", {"psa_type": "both"}, "expected psa_type"),
    ],
)
def test_options_outside_their_range_are_named(kind, change, message):
    with torch.device("meta"), pytest.raises(UsageError, match=message):
        decode_head({**published_head(kind, 19), **change})


def test_maps_are_resized_and_concatenated_where_asked_for():
    config = {**SMALL, "in_channels": [4, 12], "in_index": [0, 2], "input_transform": "resize_concat"}
    head = decode_head(config).eval()
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 9, 1, 1), torch.randn(1, 12, 4, 4)]
    whole = torch.cat([maps[0], torch.nn.functional.interpolate(maps[2], size=(8, 8), mode="bilinear")], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(head(maps), head.head(whole))


def test_old_files_without_counters_and_other_epsilons_load():
    found = golden.load("cc")
    head = decode_head({**found["config"], "norm_cfg": {"type": "SyncBN", "requires_grad": True, "eps": 0.1}})
    norms = [module for module in head.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(norm.eps == 0.1 for norm in norms)
