"""Two processes with half a batch each against one with the whole: torchrun's own start, over gloo."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_cases
from torch.nn.modules.batchnorm import _BatchNorm
from training_cases import NETWORK, RECIPE, Stripes, segmentor

import operators
from attnbench.data.loading import BatchOrder
from attnbench.evaluation import evaluate
from attnbench.training import Processes, fit

CASES = Path(training_cases.__file__)
TRAINED = ("conv3x3", "ema", "context_encoding", "accumulated", "class weights")


def torchrun(count, *arguments, check=True):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run([*command, *map(str, arguments)], check=check, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What one process finds, and what two find together."""
    folder = tmp_path_factory.mktemp("together")
    training_cases.train_in_this_process("1.pt", folder)
    torchrun(2, CASES, "together", "2.pt", folder)
    return [torch.load(folder / name, weights_only=True) for name in ("1.pt", "2.pt")]


@pytest.mark.parametrize("name", TRAINED)
def test_two_halves_train_like_the_whole_batch(both, name):
    alone, together = (found[name] for found in both)
    assert len(alone["losses"]) == RECIPE.iterations
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert alone["weights"].keys() == together["weights"].keys()
    for key, weights in alone["weights"].items():
        torch.testing.assert_close(together["weights"][key], weights, rtol=1e-4, atol=1e-6, msg=key)
    assert alone["images"] == together["images"] == {RECIPE.batch_size}


def test_weights_and_bases_have_moved(both):
    for name in TRAINED:
        begun = segmentor(name if name in operators.names() else "conv3x3").state_dict()
        ended = both[1][name]["weights"]
        moved = max(float((ended[key] - begun[key]).abs().max()) for key in begun if key.endswith("conv.weight"))
        assert moved > 1e-3
    bases = "decode_head.operator.core.bases"
    assert float((both[1]["ema"]["weights"][bases] - segmentor("ema").state_dict()[bases]).abs().max()) > 1e-3


def test_a_batch_in_micro_batches_trains_like_the_whole(both):
    alone = both[0]
    assert alone["accumulated"]["losses"] == pytest.approx(alone["conv3x3"]["losses"], rel=1e-5)
    for key, weights in alone["conv3x3"]["weights"].items():
        torch.testing.assert_close(alone["accumulated"]["weights"][key], weights, rtol=1e-4, atol=1e-6, msg=key)


def test_confusion_matrices_add_up_exactly_over_an_odd_number_of_images(both):
    alone, together = both
    assert (alone["counted"], together["counted"]) == (len(Stripes()), (len(Stripes()) + 1) // 2)
    model = segmentor()
    model.load_state_dict(together["norms_state"])
    counts = training_cases._counts(model, Processes())
    assert counts.sum() > 0 and torch.equal(together["counts"], counts)
    scores = evaluate(model, Stripes(), device="cpu", boundary=True)
    assert scores.boundary_f is not None and scores.boundary_f == pytest.approx(together["boundary"], rel=1e-12)
    assert together["scores"] == [scores.miou, scores.macc, scores.aacc, *scores.iou]


def test_statistics_of_each_process_are_shared_before_scoring(both):
    means = both[1]["norms"]
    assert len(means) == 2 and torch.equal(*means)


def test_processes_draw_dropout_of_their_own_and_the_first_as_one_alone(both):
    assert both[0]["drawn"] == [3]
    assert both[1]["drawn"][0] == 3 != both[1]["drawn"][1]


def test_a_run_of_several_processes_resumes_bit_for_bit(both):
    for found in both:
        whole, resumed = found["sittings"]
        assert (whole["stopped"], resumed["stopped"]) == ([], [["00000002"]])
        assert resumed["losses"] == whole["losses"]
        assert all(torch.equal(resumed["weights"][key], value) for key, value in whole["weights"].items())
    # dropout of the second process's own: a state of the first one's would be seen above
    assert both[0]["sittings"][0]["losses"][1:] != pytest.approx(both[1]["sittings"][0]["losses"][1:], rel=1e-5)


def test_what_does_not_fit_several_processes_is_named(both):
    norms, batch, accumulate, part = both[1]["refused"]
    assert norms.startswith("batch_norm: expected 'frozen' or 'process' for 2 processes on device 'cpu'")
    assert batch == "batch_size: expected a multiple of the 2 processes, got 5"
    assert accumulate.startswith("accumulate: expected a divisor of the 2 images of a step in each of 2 processes")
    assert part == "dataset 'stripes': expected an image for each of 2 processes, got 1"


@pytest.mark.parametrize("start", [0, 1, 5])
def test_slots_of_all_processes_are_the_whole_batch_from_any_iteration_on(start):
    def order(**settings):
        return list(BatchOrder(7, batch_size=6, iterations=8, seed=2, **settings))

    parts = [order(slots=Processes(rank, 3).slots(6), start=start) for rank in range(3)]
    joined = [[place for part in batch for place in part] for batch in zip(*parts, strict=True)]
    assert joined == order()[start:]


@pytest.mark.parametrize("name", operators.names())
def test_every_trained_parameter_gets_a_gradient(name):
    """Gradients are averaged as they come: a parameter without one would let all processes wait for it."""
    model = segmentor(name, replace(NETWORK, slot_channels=32))
    logits, extra = model.train().forward_with_auxiliary(torch.randn(2, 3, 32, 32))
    sum(output.sum() for output in (logits, *(value for value, _ in extra.values()))).backward()
    without = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []


def test_frozen_norms_keep_their_statistics_and_train_the_rest():
    model = segmentor()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fit(model, Stripes(), RECIPE, seed=0, device="cpu")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            assert torch.equal(before[f"{name}.running_mean"], module.running_mean)
            assert torch.equal(before[f"{name}.num_batches_tracked"], module.num_batches_tracked)
            assert not torch.equal(before[f"{name}.weight"], module.weight)
            assert module.training
