"""EMA against the paper's equations, the authors' choices, and mmsegmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import oracle_ema
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from operators import checks
from operators.controls import Conv3x3
from operators.ema import EMAModule, EMAUnit


def pixels_of(image: Tensor) -> list[Tensor]:
    """`(C, N)` as a list of pixels."""
    return list(image.unbind(1))


def module(**settings: Any) -> EMAModule:
    torch.manual_seed(0)
    return EMAModule(6, num_bases=4, **settings).double()


def test_unit_is_the_papers_with_the_authors_gradient() -> None:
    unit = checks.construct(EMAUnit, 4, num_bases=3).double().eval()
    x = checks.sample(2, 4, 2, 3).requires_grad_()
    y = unit(x)
    probe = torch.randn_like(y)
    trained = {name: value for name, value in unit.named_parameters() if value.requires_grad}
    assert set(trained) == {"conv_out.weight", "norm.weight", "norm.bias"}
    gradients = torch.autograd.grad((y * probe).sum(), [x, *trained.values()])
    tensors = {name: value.detach().clone() for name, value in unit.state_dict().items()}
    leaves = [x.detach().clone().requires_grad_(), *(tensors[name].requires_grad_() for name in trained)]
    expected = oracle_ema.unit(leaves[0], tensors, stages=3)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    expected_gradients = torch.autograd.grad((expected * probe).sum(), leaves)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


def test_head_is_mmsegmentations() -> None:
    head = golden.load("ema")
    state = head["state_dict"]
    unit = EMAUnit(64, num_bases=8).eval()
    names = {"ema_mid_conv.conv": "conv_in", "ema_out_conv.conv": "conv_out", "ema_out_conv.bn": "norm"}
    own = {"core.bases": state["ema_module.bases"]}
    for theirs, ours in names.items():
        own |= {key.replace(theirs, ours): value for key, value in state.items() if key.startswith(theirs)}
    unit.load_state_dict(own)
    x = head["inputs"][0]
    y = unit(golden.conv_bn_relu(x, state, "ema_in_conv"))
    y = torch.cat((x, golden.conv_bn_relu(y, state, "bottleneck")), 1)
    y = golden.conv_bn_relu(y, state, "conv_cat")
    torch.testing.assert_close(golden.classify(y, state), head["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("inverse_temperature", [0.3, 1.0, 5.0])
def test_iterations(stages: int, inverse_temperature: float) -> None:
    em = module(stages=stages, inverse_temperature=inverse_temperature).eval()
    x = checks.sample(2, 6, 3, 4)
    y = em(x)
    for image, rebuilt in zip(x, y, strict=True):
        z, mu = oracle_ema.iterate(pixels_of(image.flatten(1)), pixels_of(em.bases[0]), stages, inverse_temperature)
        expected = torch.stack(oracle_ema.rebuild(z, mu), 1)
        torch.testing.assert_close(rebuilt.flatten(1), expected, rtol=1e-10, atol=1e-10)


def test_large_inverse_temperature_is_spherical_k_means() -> None:
    em = module(inverse_temperature=1e6).eval()
    x = checks.sample(1, 6, 5, 7).flatten(2)
    z, mu = em.iterate(x)
    centres = oracle_ema.spherical_k_means(pixels_of(x[0]), pixels_of(em.bases[0]), stages=3)
    torch.testing.assert_close(mu[0], torch.stack(centres, 1), rtol=1e-8, atol=1e-8)
    assert ((z - z.round()).abs() < 1e-8).all()


def test_rebuilt_map_has_the_rank_of_the_bases() -> None:
    torch.manual_seed(0)
    em = EMAModule(16, num_bases=4).double().eval()
    rebuilt = em(checks.sample(1, 16, 7, 9)).flatten(2)[0]
    assert torch.linalg.matrix_rank(rebuilt) == 4


def test_bases_lie_on_the_unit_sphere_after_every_m_step() -> None:
    em = module()
    x = checks.sample(2, 6, 5, 7).flatten(2)
    torch.testing.assert_close(em.bases.norm(dim=1), torch.ones(1, 4).double(), rtol=0, atol=1e-6)
    for stage in (1, 2, 3):
        _, mu = em.iterate(x, stage)
        torch.testing.assert_close(mu.norm(dim=1), torch.ones(2, 4).double(), rtol=0, atol=1e-12)


def test_responsibilities_sum_to_one_and_follow_the_stages() -> None:
    unit = checks.construct(EMAUnit, 8, num_bases=4).double()
    x = checks.sample(2, 8, 5, 7)
    pixels = unit.conv_in(x).flatten(2).detach()
    for stage in range(3):
        z = unit.responsibilities(x, stage)
        assert z.shape == (2, 4, 5, 7)
        torch.testing.assert_close(z.sum(1), torch.ones(2, 5, 7).double())
        torch.testing.assert_close(unit.responsibilities(x, stage - 3), z, rtol=0, atol=0)
        expected, _ = oracle_ema.iterate(pixels_of(pixels[0]), pixels_of(unit.core.bases[0]), stage + 1)
        torch.testing.assert_close(z[0].flatten(1).t(), torch.tensor(expected, dtype=torch.float64))
    for stage in (3, -4):
        with pytest.raises(IndexError, match="EMAUnit: expected a stage in"):
            unit.responsibilities(x, stage)


def test_attention_rebuilds_the_pixel() -> None:
    unit = checks.construct(EMAUnit, 8, num_bases=4).double().eval()
    x = checks.sample(2, 8, 5, 7)
    mapped = unit.conv_in(x)
    weights = unit.attention(x, (3, 2))
    assert weights.shape == (2, 1, 5, 7)
    torch.testing.assert_close((weights * mapped).sum((2, 3)), unit.core(mapped)[:, :, 3, 2])


def test_evaluation_leaves_the_bases() -> None:
    em = module().eval()
    before = em.bases.clone()
    em(checks.sample(2, 6, 5, 7))
    torch.testing.assert_close(em.bases, before, rtol=0, atol=0)


@pytest.mark.parametrize("update", ["unnormalized", "batch_mean", "running_mean"])
def test_moving_average(update: Any) -> None:
    em = module(update=update, momentum=0.3).train()
    x = checks.sample(2, 6, 3, 4)
    before = em.bases[0].clone()
    fitted = [oracle_ema.iterate(pixels_of(i.flatten(1)), pixels_of(before), 3)[1] for i in x]
    em(x)
    for k in range(4):
        mean = (fitted[0][k] + fitted[1][k]) / 2
        if update == "batch_mean":
            mean = mean / mean.norm()
        expected = 0.7 * before[:, k] + 0.3 * mean
        if update == "running_mean":
            expected = expected / expected.norm()
        torch.testing.assert_close(em.bases[0, :, k], expected, rtol=1e-10, atol=1e-10)


def test_update_is_in_place() -> None:
    em = module().train()
    alias, address, before = em.bases.view(-1), em.bases.data_ptr(), em.bases.clone()
    em(checks.sample(2, 6, 5, 7))
    assert em.bases.data_ptr() == address
    assert not torch.equal(em.bases, before)
    torch.testing.assert_close(alias, em.bases.view(-1), rtol=0, atol=0)


def _train_rank(rank: int, folder: str, state: dict[str, Tensor], batches: Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    unit = EMAUnit(6, num_bases=4, update="unnormalized").double()
    unit.load_state_dict(state)
    parallel = DistributedDataParallel(unit)
    for batch in batches:
        parallel(batch[2 * rank : 2 * rank + 2]).sum().backward()
    torch.save(unit.core.bases, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_keep_the_bases_of_the_joint_batch(tmp_path: Path) -> None:
    unit = checks.construct(EMAUnit, 6, num_bases=4, update="unnormalized").double().train()
    batches = checks.sample(8, 6, 3, 4).reshape(2, 4, 6, 3, 4)
    state = {name: value.clone() for name, value in unit.state_dict().items()}
    torch.multiprocessing.spawn(_train_rank, (str(tmp_path), state, batches), nprocs=2)
    for batch in batches:
        unit(batch)
    for rank in (0, 1):
        bases = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(bases, unit.core.bases, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("asks", [False, True])
def test_convolution_before_the_iterations_gets_no_gradient(asks: bool) -> None:
    unit = checks.construct(EMAUnit, 8, num_bases=4)
    assert not any(parameter.requires_grad for parameter in unit.conv_in.parameters())
    unit.conv_in.requires_grad_(asks)
    unit(torch.randn(2, 8, 5, 7)).sum().backward()
    assert unit.conv_in.weight.grad is None
    assert unit.conv_in.bias.grad is None
    assert unit.conv_out.weight.grad is not None


def test_parameters_of_the_unit() -> None:
    assert sum(parameter.numel() for parameter in EMAUnit(32).parameters()) == 2 * 32 * 32 + 32 + 2 * 32


def test_cost_is_linear_in_pixels_bases_and_stages() -> None:
    def counted(height: int = 5, width: int = 7, num_bases: int = 4, stages: int = 3) -> int:
        em = EMAModule(6, num_bases=num_bases, stages=stages).eval()
        with FlopCounterMode(display=False) as counter:
            em(torch.randn(1, 6, height, width))
        return counter.get_total_flops() // 2

    cost = counted()
    assert cost == 7 * 35 * 6 * 4
    assert counted(height=50) == 10 * cost
    assert counted(num_bases=40) == 10 * cost
    assert [counted(stages=stages) for stages in (1, 10)] == [cost // 7 * 3, cost // 7 * 21]


def test_unit_costs_at_most_a_third_of_a_3x3_convolution() -> None:
    assert 3 * EMAUnit(512, num_bases=64, stages=3).macs(65, 65) <= Conv3x3(512).macs(65, 65)


def test_iterations_keep_float32_under_autocast() -> None:
    em = EMAModule(16, num_bases=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, mu = em.iterate(torch.randn(2, 16, 35).bfloat16())
    assert z.dtype == mu.dtype == torch.float32
    torch.testing.assert_close(mu, F.normalize(mu, dim=1))
    torch.testing.assert_close(z.sum(2), torch.ones(2, 35))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_bases": 0}, "num_bases >= 1"),
        ({"stages": 0}, "stages >= 1"),
        ({"momentum": 1.5}, r"momentum in \[0, 1\]"),
        ({"update": "mean"}, "update in"),
        ({"inverse_temperature": 0.0}, "inverse_temperature > 0"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"EMAModule: expected .*{message}"):
        EMAUnit(8, **settings)
