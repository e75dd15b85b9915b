"""Rules of elementwise operations: what each counts, and that nothing without a rule is silent."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnbench.measuring.elementwise import RULES, rule_of
from attnbench.measuring.flop_counter import count_work


def count(function, *tensors):
    module = nn.Identity()
    module.forward = function
    with torch.no_grad():
        return count_work(lambda: module(*tensors), module, tensors)


X = torch.rand(2, 3, 8, 8)
RULED = {
    "sum of two": (lambda x: x + x, 384),
    "in place": (lambda x: (x + 1).mul_(2), 2 * 384),
    "function": (torch.exp, 384),
    "gelu": (F.gelu, 384),
    "softmax": (lambda x: x.softmax(1), 5 * 384),
    "mean": (lambda x: x.mean((2, 3)), 384),
    "norm": (lambda x: F.normalize(x, dim=1), 2 * 384 + 128 + 384),
    "variance": (lambda x: x.var(1), 3 * 384),
    "batch norm": (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3)), 4 * 384),
    "batch norm in training": (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True), 7 * 384),
    "layer norm": (lambda x: F.layer_norm(x, (8, 8)), 7 * 384),
    "group norm": (lambda x: F.group_norm(x, 3), 7 * 384),
    "average pool": (lambda x: F.avg_pool2d(x, 3, 1, 1), 9 * 384),
    "max pool": (lambda x: F.max_pool2d(x, (2, 4)), 8 * 48),
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, 3), 384),
    "bilinear": (lambda x: F.interpolate(x, (5, 4), mode="bilinear"), 8 * 6 * 20),
    "bicubic": (lambda x: F.interpolate(x, (5, 4), mode="bicubic"), 32 * 6 * 20),
    "grid": (lambda x: F.grid_sample(x, torch.zeros(2, 5, 4, 2), align_corners=False), 8 * 6 * 20),
    "sort": (lambda x: x.sort(-1)[0], 3 * 384),
    "fold": (lambda x: F.fold(F.unfold(x, 3), (8, 8), 3), 2 * 27 * 36),
    "placing": (lambda x: torch.cat([F.pad(x, (1, 1)), x.new_zeros(2, 3, 8, 1)], 3).clone(), 0),
    "masking": (lambda x: x.masked_fill(x > 0.5, 0.0), 384),
    "scatter": (lambda x: torch.zeros_like(x).scatter_add(1, torch.zeros_like(x, dtype=torch.long), x), 384),
    "put": (lambda x: torch.zeros(9).index_put_((torch.zeros(384).long(),), x.flatten(), accumulate=True), 384),
    "place": (lambda x: torch.zeros(9).index_put_((torch.zeros(384).long(),), x.flatten()), 0),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), 6 * 2 * 3 * 8 * 8),
    "product": (lambda x: x @ x, 0),
    "convolution with bias": (lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3), torch.ones(4)), 0),
}


@pytest.mark.parametrize("name", RULED)
def test_rule(name):
    function, expected = RULED[name]
    counted = count(function, X)
    assert counted.elementwise == expected
    assert counted.unruled == ()


def test_nearest_resize_places_values_and_works_on_indices_alone():
    assert count(lambda x: F.interpolate(x, (5, 4)), X).elementwise < 5 * 4


def test_operation_without_a_rule_counts_its_output_and_is_named():
    counted = count(lambda x: torch.digamma(x) + torch.digamma(x), X)
    assert counted.elementwise == 3 * 384
    assert counted.unruled == ("aten::digamma x2",)
    assert counted.hidden == ()


def test_operation_of_another_library_may_hide_products():
    @torch.library.custom_op("attnbench_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    counted = count(twice, X)
    assert counted.hidden == ("attnbench_tests::twice",)
    assert counted.unruled == ("attnbench_tests::twice x1",)


def test_in_place_operations_share_the_rule():
    assert rule_of("aten::relu_") is rule_of("aten::relu") is RULES["relu"]
    assert rule_of("aten::digamma") is None


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_names_an_operation_of_torch(name):
    assert hasattr(torch.ops.aten, name) or hasattr(torch.ops.aten, f"{name}_"), f"aten has no {name}"
