"""The non-local block against the paper's equations, mmsegmentation, and its own fused form."""

from __future__ import annotations

from typing import Any, get_args

import golden
import oracle_non_local
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from operators import checks
from operators.non_local import NonLocal, Pairwise

PAIRWISE = get_args(Pairwise)
SIZES = [(1, 1), (1, 5), (5, 1), (5, 7), (4, 6)]


def block(channels: int = 8, **settings: Any) -> NonLocal:
    operator: NonLocal = checks.construct(NonLocal, channels, **settings).double().eval()
    return operator


def with_gradients(operator: NonLocal, x: Tensor) -> list[Tensor]:
    """Output, and the gradients of a fixed sum over it for the input and each parameter."""
    x = x.clone().requires_grad_()
    y = operator(x)
    probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y, *torch.autograd.grad((y * probe).sum(), [x, *operator.parameters()])]


@pytest.mark.parametrize("settings", [{}, {"scale": False}, {"subsample": True}])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_block_is_equations_1_to_6(pairwise: Any, settings: dict[str, bool]) -> None:
    operator = block(4, pairwise=pairwise, **settings)
    x = checks.sample(2, 4, 3, 5)
    tensors = {name: value.detach().clone() for name, value in operator.state_dict().items()}
    leaf = x.clone().requires_grad_()
    leaves = [tensors[name].requires_grad_() for name, _ in operator.named_parameters()]
    expected = oracle_non_local.block(leaf, tensors, pairwise, **settings)
    probe = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)
    gradients = torch.autograd.grad((expected * probe).sum(), [leaf, *leaves])
    for actual, wanted in zip(with_gradients(operator, x), [expected, *gradients], strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("pairwise", [name for name in PAIRWISE if name != "concatenation"])
def test_fused_is_the_reference(pairwise: Any, subsample: bool) -> None:
    reference = block(pairwise=pairwise, subsample=subsample)
    fused = block(pairwise=pairwise, subsample=subsample, implementation="fused")
    fused.load_state_dict(reference.state_dict())
    x = checks.sample(2, 8, 5, 7)
    for actual, expected in zip(with_gradients(fused, x), with_gradients(reference, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*PAIRWISE, "embedded_gaussian_noscale"])
def test_head_is_mmsegmentations(name: str) -> None:
    head = golden.load(f"nl_{name}")
    state, config = head["state_dict"], head["config"]
    operator = NonLocal(
        config["channels"], reduction=config["reduction"], pairwise=config["mode"], scale=config["use_scale"]
    ).eval()
    names = {"concat_project.conv": "core.concat", "conv_out.conv": "conv_out", "conv_out.bn": "norm"}
    names |= {f"{projection}.conv": projection for projection in ("theta", "phi", "g")}
    own = {}
    for theirs, ours in names.items():
        prefix = f"nl_block.{theirs}."
        own |= {f"{ours}.{key.removeprefix(prefix)}": state[key] for key in state if key.startswith(prefix)}
    if config["mode"] == "concatenation":
        own["core.concat.weight"] = own["core.concat.weight"].flatten(2)
    operator.load_state_dict(own)
    x = head["inputs"][0]
    y = golden.conv_bn_relu(operator(golden.conv_bn_relu(x, state, "convs.0")), state, "convs.1")
    y = golden.conv_bn_relu(torch.cat((x, y), 1), state, "conv_cat")
    torch.testing.assert_close(golden.classify(y, state), head["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_initialisation_is_the_identity(pairwise: Any, norm: bool) -> None:
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(NonLocal(8, pairwise=pairwise, norm=norm)(x), x, rtol=0, atol=0)


def test_gaussian_has_no_embedding() -> None:
    names = {name.partition(".")[0] for name, _ in NonLocal(8, pairwise="gaussian").named_parameters()}
    assert names == {"g", "conv_out", "norm"}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_macs_are_counted(pairwise: Any, subsample: bool, size: tuple[int, int]) -> None:
    for implementation in ("reference", "fused") if pairwise == "dot_product" else ("reference",):
        operator = block(pairwise=pairwise, subsample=subsample, implementation=implementation)
        with FlopCounterMode(display=False) as counter:
            operator(checks.sample(1, 8, *size))
        assert counter.get_total_flops() == 2 * operator.macs(*size)


def test_only_the_fused_dot_product_multiplies_less() -> None:
    def macs(pairwise: Any, implementation: Any) -> int:
        return NonLocal(8, pairwise=pairwise, implementation=implementation).macs(9, 11)

    for pairwise in ("embedded_gaussian", "gaussian"):
        assert macs(pairwise, "fused") == macs(pairwise, "reference")
    assert macs("dot_product", "fused") < macs("dot_product", "reference")


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_attention_is_what_the_output_reads(pairwise: Any) -> None:
    operator = block(pairwise=pairwise)
    x = checks.sample(2, 8, 5, 7)
    captured: list[Tensor] = []
    operator.core.register_forward_hook(lambda module, inputs, output: captured.extend((inputs[2], output)))
    operator(x)
    g, y = captured
    weights = operator.attention(x, (3, 2))
    assert weights.shape == (2, 1, 5, 7)
    torch.testing.assert_close((weights.flatten(2) * g).sum(2), y[:, :, 3 * 7 + 2])


def test_attention_spreads_a_pooled_cell_over_its_pixels() -> None:
    operator = block(subsample=True)
    x = checks.sample(2, 8, 5, 7)
    weights = operator.attention(x, (4, 6))
    assert torch.equal(weights[:, :, 4], torch.zeros(2, 1, 7).double())
    assert torch.equal(weights[..., 6], torch.zeros(2, 1, 5).double())
    torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(2).double())
    theta, phi = operator.theta(x)[:, :, 4, 6], oracle_non_local.max_pool(operator.phi(x)[1])
    cells = torch.softmax((theta[1] @ phi.flatten(1)) / 2, 0).reshape(2, 3)
    torch.testing.assert_close(weights[1, 0, 2:4, 4:6], (cells[1, 2] / 4).expand(2, 2))


@pytest.mark.parametrize("size", SIZES)
def test_any_size_with_pooling(size: tuple[int, int]) -> None:
    operator = block(subsample=True)
    x = checks.sample(2, 8, *size)
    assert operator(x).isfinite().all()
    torch.testing.assert_close(operator.attention(x, (0, 0)).sum((1, 2, 3)), torch.ones(2).double())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": 3}, "channels divisible by the reduction 3, got 8"),
        ({"pairwise": "cosine"}, "pairwise in .*, got 'cosine'"),
        ({"implementation": "fast"}, "implementation in .*, got 'fast'"),
        ({"pairwise": "concatenation", "implementation": "fused"}, "'reference' for the concatenation"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"NonLocal: expected .*{message}"):
        NonLocal(8, **settings)
