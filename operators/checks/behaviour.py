"""Checks of evaluation: the same function of the same input, whatever surrounds it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from operators.checks.harness import (
    CHANNELS,
    DOUBLE,
    HALF,
    SINGLE,
    Operator,
    check,
    construct,
    expect_near,
    fail,
    sample,
)


@check
def check_precision(operator: Operator, **settings: Any) -> None:
    """float32 and float64 agree."""
    single = construct(operator, **settings)
    double = copy.deepcopy(single).double()
    x = sample(2, CHANNELS, 13, 11)
    with torch.no_grad():
        expect_near(operator, "float32 output near float64", single(x.float()).double(), double(x), SINGLE)


@check
def check_autocast(operator: Operator, **settings: Any) -> None:
    """Under bfloat16 autocast the output is finite and near float32."""
    built = construct(operator, **settings)
    x = sample(2, CHANNELS, 13, 11, dtype=torch.float32)
    with torch.no_grad():
        expected = built(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            got = built(x)
    expect_near(operator, "output under bfloat16 autocast near float32", got.float(), expected, HALF)


@check
def check_memory_format(operator: Operator, **settings: Any) -> None:
    """The layout of the input in memory does not matter."""
    built = construct(operator, **settings).double()
    x = sample(2, CHANNELS, 7, 5)
    layouts = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "strided": torch.stack((x, x), dim=-1)[..., 0],
    }
    with torch.no_grad():
        expected = built(x)
        for layout, view in layouts.items():
            expect_near(operator, f"equal output for {layout} input", built(view), expected, DOUBLE)


@check
def check_deterministic(operator: Operator, **settings: Any) -> None:
    """In evaluation the same input gives the same bits; the global random state is neither read nor moved."""
    built = construct(operator, **settings)
    x = sample(2, CHANNELS, 7, 5, dtype=torch.float32)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = built(x)
        if not torch.equal(before, torch.get_rng_state()):
            fail(operator, "expected evaluation to leave the global random state, got one that moved")
        torch.manual_seed(2)
        expect_near(operator, "bitwise equal output of a second call", built(x), first, 0.0)


@check
def check_batch_independence(operator: Operator, **settings: Any) -> None:
    """In evaluation the output for an image does not depend on the rest of the batch."""
    built = construct(operator, **settings).double()
    x = sample(3, CHANNELS, 7, 5)
    with torch.no_grad():
        together = built(x)
        for index in range(len(x)):
            alone = built(x[index : index + 1])
            expect_near(operator, "equal output alone and in a batch", together[index : index + 1], alone, DOUBLE)
        mates = torch.cat((x[:1], 100 * sample(2, CHANNELS, 7, 5, seed=3)))
        expect_near(operator, "equal output among other images", built(mates)[:1], together[:1], DOUBLE)


@check
def check_evaluation_state(operator: Operator, **settings: Any) -> None:
    """Evaluation changes no parameter and no buffer."""
    built = construct(operator, **settings)
    before = {name: value.clone() for name, value in _state(built).items()}
    with torch.no_grad():
        built.forward_with_auxiliary(sample(2, CHANNELS, 7, 5, dtype=torch.float32))
    after = _state(built)
    changed = sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not torch.equal(before[name], after[name])
    )
    if changed:
        fail(operator, f"expected evaluation to change no state, got changes in {', '.join(changed)}")


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@check
def check_input_kept(operator: Operator, **settings: Any) -> None:
    """The input is not modified, in evaluation and in training."""
    built = construct(operator, **settings)
    x = sample(2, CHANNELS, 7, 5, dtype=torch.float32)
    before = x.clone()
    for training in (False, True):
        built.train(training)
        with torch.no_grad():
            built(x)
        if not torch.equal(x, before):
            fail(operator, f"expected the input to be kept (training: {training}), got a modified one")


@check
def check_state_dict(operator: Operator, **settings: Any) -> None:
    """A state dict, a deep copy and a pickle each carry the whole function."""
    built = construct(operator, **settings)
    restored = construct(operator, seed=1, **settings)
    restored.load_state_dict(built.state_dict(), strict=True)
    x = sample(2, CHANNELS, 7, 5, dtype=torch.float32)
    copies = {
        "load_state_dict": restored,
        "deepcopy": copy.deepcopy(built),
        "pickle": pickle.loads(pickle.dumps(built)),
    }
    with torch.no_grad():
        expected = built(x)
        for way, other in copies.items():
            expect_near(operator, f"equal output after {way}", other(x), expected, 0.0)


@check
def check_compile(operator: Operator, **settings: Any) -> None:
    """`torch.compile` captures the whole operator in one graph that computes the same."""
    built = construct(operator, **settings).double()
    x = sample(2, CHANNELS, 7, 5)
    torch.compiler.reset()
    compiled = torch.compile(built, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expect_near(operator, "compiled output equal to eager", compiled(x), built(x), DOUBLE)
