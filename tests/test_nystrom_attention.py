"""Nystrom attention against the paper's steps, and against the attention that it approximates."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_nystrom_attention as oracle
import pytest
import torch
from against_oracle import assert_same
from oracle_layers import to_map
from torch import Tensor

from operators import checks
from operators.head_attention import HeadAttention
from operators.nystrom_attention import NystromApproximation, NystromAttention

IMPLEMENTATIONS = ["reference", "fused"]


def operator(channels: int = 8, **settings: Any) -> NystromAttention:
    settings = {"num_heads": 2, "num_landmarks": 4, "kernel_size": 5, **settings}
    built: NystromAttention = checks.construct(NystromAttention, channels, **settings).double()
    return built


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kernel_size", [None, 1, 5])
@pytest.mark.parametrize("landmarks", [1, 3, 4, 5, 11, 12, 64])
def test_block_is_the_equation(landmarks: int, kernel_size: int | None, implementation: str) -> None:
    built = operator(4, num_landmarks=landmarks, kernel_size=kernel_size, implementation=implementation)
    expected = partial(oracle.block, num_heads=2, landmarks=landmarks)
    assert_same(built, expected, checks.sample(2, 4, 3, 4))


@pytest.mark.parametrize("iterations", [1, 3])
def test_steps_of_the_inverse_are_a_setting(iterations: int) -> None:
    expected = partial(oracle.block, num_heads=2, landmarks=4, iterations=iterations)
    assert_same(operator(4, iterations=iterations), expected, checks.sample(2, 4, 3, 4))


def test_segments_of_unequal_length_cover_the_sequence_once() -> None:
    core = NystromApproximation(4, num_landmarks=5)
    tokens = checks.sample(2, 3, 13, 4)
    lengths = [2, 2, 3, 3, 3]
    expected = torch.stack([part.mean(2) for part in tokens.split(lengths, dim=2)], 2)
    torch.testing.assert_close(core.landmarks(tokens), expected)


def test_iteration_converges_to_the_inverse() -> None:
    matrix = torch.softmax(checks.sample(2, 3, 4, 4), dim=3)
    errors = []
    for iterations in (1, 3, 6, 12):
        inverse = NystromApproximation(4, num_landmarks=4, iterations=iterations).pseudoinverse(matrix)
        errors.append(float((inverse - torch.linalg.pinv(matrix)).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 < errors[0]


def test_images_of_a_batch_do_not_change_each_other() -> None:
    # The authors' first code scales by the largest norm of the batch.
    core = NystromApproximation(4, num_landmarks=4, iterations=1)
    matrices = torch.softmax(checks.sample(3, 2, 4, 4) * torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1, 1), dim=3)
    together = core.pseudoinverse(matrices)
    for image in range(3):
        for head in range(2):
            alone = core.pseudoinverse(matrices[image : image + 1, head : head + 1])
            torch.testing.assert_close(together[image, head], alone[0, 0], rtol=1e-12, atol=1e-12)


def test_first_step_starts_from_the_norms_of_the_matrix() -> None:
    matrix = torch.softmax(3 * checks.sample(1, 1, 4, 4), dim=3)
    start = matrix[0, 0].T / torch.linalg.matrix_norm(matrix[0, 0], 1)
    core = NystromApproximation(4, num_landmarks=4, iterations=1)
    product, one = matrix[0, 0] @ start, torch.eye(4).double()
    expected = start @ (13 * one - 15 * product + 7 * product @ product - product @ product @ product) / 4
    torch.testing.assert_close(core.pseudoinverse(matrix)[0, 0], expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_as_many_landmarks_as_pixels_are_the_softmax_itself(implementation: Any) -> None:
    query, key, value = (checks.sample(2, 3, 12, 4, seed=seed) for seed in (1, 2, 3))
    exact = HeadAttention(4)(query, key, value)
    for landmarks in (12, 64):
        core = NystromApproximation(4, num_landmarks=landmarks, implementation=implementation)
        torch.testing.assert_close(core(query, key, value), exact)
    fewer = NystromApproximation(4, num_landmarks=11, implementation=implementation)
    assert not torch.allclose(fewer(query, key, value), exact)


def test_constant_segments_lose_nothing() -> None:
    # With queries and keys that are constant on each segment, the landmarks are all there is to read.
    core = NystromApproximation(4, num_landmarks=3, iterations=20)
    query, key = (3 * checks.sample(1, 2, 3, 4, seed=seed).repeat_interleave(5, 2) for seed in (1, 2))
    value = checks.sample(1, 2, 15, 4, seed=3)
    torch.testing.assert_close(core(query, key, value), HeadAttention(4)(query, key, value), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel_size", [None, 5])
@pytest.mark.parametrize("landmarks", [4, 64])
def test_attention_is_what_the_output_reads(landmarks: int, kernel_size: int | None) -> None:
    built, x = operator(num_landmarks=landmarks, kernel_size=kernel_size), checks.sample(2, 8, 5, 7)
    captured: list[Tensor] = []
    built.core.register_forward_hook(lambda module, inputs, output: captured.extend((inputs[2], output)))
    built(x)
    value, read = captured
    if built.conv is not None:
        read = read + built.conv(value)
    for row, column in ((0, 0), (3, 2), (4, 6)):
        weights = built.attention(x, (row, column)).flatten(2)
        torch.testing.assert_close((weights.unsqueeze(3) * value).sum(2), read[:, :, row * 7 + column])


def test_attention_is_each_heads_own() -> None:
    built, x = operator(kernel_size=None), checks.sample(2, 8, 3, 4)
    for index, image in enumerate(x):
        rows = oracle.weights(to_map(image), built.state_dict(), 2, 4)
        expected = torch.stack([head[2 * 4 + 1] for head in rows]).reshape(2, 3, 4)
        torch.testing.assert_close(built.attention(x, (2, 1))[index], expected)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_short_types_lose_nothing_inside_the_approximation(implementation: Any, autocast: bool) -> None:
    core = NystromApproximation(4, num_landmarks=16, implementation=implementation)
    # Peaked weights have an inverse with large entries.
    query, key = (5 * checks.sample(1, 2, 81, 4, seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    short = (query, key, checks.sample(1, 2, 81, 4, seed=3, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = core(*short)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), core(*(tensor.double() for tensor in short)), rtol=4e-3, atol=4e-3)


def test_whole_operator_in_a_short_type() -> None:
    built, x = operator(num_landmarks=16), checks.sample(2, 8, 9, 9)
    expected = built(x)
    torch.testing.assert_close(built.bfloat16()(x.bfloat16()).double(), expected, rtol=0.1, atol=0.1)


def test_defaults_are_the_papers() -> None:
    built = NystromAttention(512)
    assert (built.core.num_landmarks, built.core.iterations, built.core.width) == (64, 6, 64)
    assert built.conv is not None and built.conv.weight.shape == (8, 1, 35, 1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("settings", [{"num_landmarks": 6}, {"num_landmarks": 4, "kernel_size": None, "num_heads": 1}])
def test_conformance_through_landmarks(settings: dict[str, Any], implementation: str) -> None:
    # The default of 64 landmarks has the softmax itself on the small maps of the checks.
    only = [name for name in checks.CHECKS if name not in ("reach", "growth", "spec")]
    results = checks.run_checks(NystromAttention, only=only, settings={**settings, "implementation": implementation})
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "NystromAttention: expected num_heads >= 1 that divides 8 channels, got 3"),
        ({"num_landmarks": 0}, "NystromApproximation: expected num_landmarks >= 1, got 0"),
        ({"iterations": 0}, "NystromApproximation: expected iterations >= 1, got 0"),
        ({"kernel_size": 4}, "NystromAttention: expected an odd kernel_size or None, got 4"),
        ({"kernel_size": 0}, "NystromAttention: expected an odd kernel_size or None, got 0"),
        ({"implementation": "fast"}, "HeadAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NystromAttention(8, **settings)
