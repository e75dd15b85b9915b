"""`evaluate.py`: mIoU, MACs, memory and latency of a checkpoint, ours or mmsegmentation's."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench.cli.arguments import Parser, amount, count, positive
from attnbench.cli.checkpoint_options import NATIVE, add_operator, asked_size, register, size_or_native
from attnbench.cli.reading_options import add_reading, asked_reading
from attnbench.cli.training_lines import Checking
from attnbench.config import WHOLE, Inference
from attnbench.errors import UsageError
from attnbench.records import Record, RecordWriter, Trial
from attnbench.statistics import summarise_series

if TYPE_CHECKING:
    import torch

    from attnbench.data.base import SegmentationDataset
    from attnbench.models.saved import Saved

PROG = "evaluate.py"
DEFAULT_OUTPUT = Path("results/local")
_CONTROL = "conv3x3"
_EPILOG = """\
examples:
  python scripts/evaluate.py --checkpoint ccnet_r50.pth --dataset camvid --data-root DIR
  python scripts/evaluate.py --checkpoint own.pth --dataset context --split val --device cuda
  python scripts/evaluate.py --checkpoint own.pth --dataset cityscapes --slide 769x769 --scales 0.75,1,1.25 --flip

Type and widths of the network are read off the file. No code from the file runs.
"""


def _parser() -> Parser:
    parser = Parser(PROG, "Score and time a trained checkpoint, ours or mmsegmentation's.", _EPILOG)
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="FILE", help="the checkpoint file")
    add_operator(parser)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="dataset to score on")
    parser.add_argument("--data-root", metavar="DIR", help="folder of the dataset (default: $ATTNBENCH_DATA)")
    parser.add_argument("--split", default="val", help="part of the dataset (default: val)")
    parser.add_argument(
        "--image-size",
        type=size_or_native,
        metavar="HxW",
        help=f"size that images are loaded at, or {NATIVE!r} for that of their files "
        "(default: the size that the network was trained on, where the file says)",
    )
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="images in a batch (default: 4)")
    parser.add_argument("--workers", type=count, default=0, metavar="N", help="processes that load images (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--boundary", action="store_true", help="compute the boundary F-score, too")
    add_reading(parser)
    parser.add_argument("--seconds", type=amount, default=5.0, metavar="S", help="time budget of the latency samples")
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help=f"results folder (default: {DEFAULT_OUTPUT})"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Scores and measures the checkpoint that the command line names; returns the exit code."""
    parsed = _parser().parse(arguments)
    logging.basicConfig(level=logging.WARNING, format=f"{PROG}: %(message)s")

    from attnbench.data import build_dataset, check_dataset
    from attnbench.environment import environment_hash, fingerprint
    from attnbench.evaluation.as_trained import as_trained
    from attnbench.models.saved import load_any
    from attnbench.planning import resolve_device

    device = resolve_device(parsed.device)
    register(parsed.operator)
    saved = load_any(parsed.checkpoint)
    image_size = asked_size(parsed.image_size, saved.image_size)
    root = parsed.data_root or (os.environ.get("ATTNBENCH_DATA") if parsed.dataset != "context" else None)
    dataset = build_dataset(parsed.dataset, split=parsed.split, root=root, image_size=image_size)
    dataset = as_trained(dataset, saved, parsed.checkpoint)
    console = Console()
    check_dataset(dataset, functools.partial(Checking(console), f"{dataset.name}, {parsed.split}"))
    inference = asked_reading(parsed, saved.inference)
    trial = Trial(
        task="accuracy",
        operator=saved.operator,
        implementation=saved.implementation,
        device=device,
        settings=saved.settings,
        network=saved.network,
        num_classes=saved.num_classes,
        dataset=parsed.dataset,
        image_size=image_size,
        eval_split=parsed.split,
        inference=None if inference == WHOLE else inference,
        weights_hash=hashlib.sha256(parsed.checkpoint.read_bytes()).hexdigest()[:16],
    )
    environment = fingerprint(device)
    key = environment_hash(environment)
    with RecordWriter(parsed.output) as writer:
        writer.write_environment(environment, key)
        # A seed is what tells accuracy records of one recipe apart: a file has been trained once.
        accuracy = _record(
            dataclasses.replace(trial, seed=0, boundary=parsed.boundary or None),
            key,
            lambda: _score(saved, dataset, device, inference, parsed),
        )
        if accuracy["status"] != "ok":
            raise UsageError(
                f"checkpoint {str(parsed.checkpoint)!r}: expected a network that reads images of dataset "
                f"{dataset.name!r} as asked (--slide HxW takes windows), got {accuracy['reason']}"
            )
        writer.write(accuracy)
        cost = _record(
            _cost_trial(trial, saved, dataset),
            key,
            lambda: _measure(saved, dataset, device, inference, parsed.seconds),
        )
        writer.write(cost)
    console.print(_table(accuracy, cost, str(parsed.checkpoint)))
    console.print(f"records: {writer.path}", highlight=False, markup=False)
    return 0


def _cost_trial(trial: Trial, saved: Saved, dataset: SegmentationDataset) -> Trial:
    height, width = dataset[0][1].shape
    stride = saved.network.output_stride
    return dataclasses.replace(
        trial,
        task="cost",
        level="network",
        mode="forward",
        channels=saved.network.slot_channels,
        height=-(-height // stride),
        width=-(-width // stride),
        batch=1,
        dtype="float32",
    )


def _record(trial: Trial, environment: str, measure: Callable[[], dict[str, Any]]) -> Record:
    import operators
    from attnbench.faults import failure
    from attnbench.runner import header

    source = operators.source_hash(operators.get(trial.operator))
    started, clock = datetime.now(UTC), time.perf_counter()
    try:
        figures = {"status": "ok"} | measure()
    except UsageError:
        raise
    except (RuntimeError, MemoryError, ValueError) as error:
        status, reason = failure(error)
        figures = {"status": status, "reason": reason}
    return {
        **header(trial, environment, source),
        "started": started.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "wall_s": time.perf_counter() - clock,
        **figures,
    }


def _score(
    saved: Saved, dataset: SegmentationDataset, device: str, inference: Inference, parsed: argparse.Namespace
) -> dict[str, Any]:
    from attnbench.evaluation import evaluate
    from attnbench.measuring.cost import count_params

    clock = time.perf_counter()
    scores = evaluate(
        saved.model,
        dataset,
        device=device,
        batch_size=parsed.batch_size,
        inference=inference,
        boundary=parsed.boundary,
        num_workers=parsed.workers,
    )
    return {
        "params": count_params(saved.model),
        "miou": scores.miou,
        "macc": scores.macc,
        "aacc": scores.aacc,
        "iou": list(scores.iou),
        **scores.boundary_fields(),
        "classes": list(dataset.classes),
        "loss": [],
        "train_s": 0.0,
        "eval_s": time.perf_counter() - clock,
        "eval_images": len(dataset),
        "notes": ["scored as its checkpoint file has it, not trained here"],
    }


def _measure(
    saved: Saved, dataset: SegmentationDataset, device: str, inference: Inference, seconds: float
) -> dict[str, Any]:
    """Cost of reading one image as those that are scored are read, beside a control that reads it likewise."""
    import torch

    from attnbench.allocator import keep_freed_memory
    from attnbench.data.transforms import collate, normalise
    from attnbench.evaluation import Reading
    from attnbench.measuring.cost import count_macs, count_params
    from attnbench.measuring.latency import round_robin
    from attnbench.measuring.memory import peak_bytes
    from attnbench.models.build import build_segmentor

    clock = time.perf_counter()
    images, _ = collate([dataset[0]])
    inputs = normalise(images, dataset.mean, dataset.std).to(device)
    model = Reading(saved.model, inference).to(device).eval()
    control = Reading(build_segmentor(_CONTROL, saved.network, saved.num_classes), inference).to(device).eval()
    steps = {"model": _step(model, inputs), _CONTROL: _step(control, inputs)}
    counted = count_macs(model, (inputs,))
    way = "whole and once" if inference == WHOLE else "as scored"
    figures: dict[str, Any] = {
        "params": count_params(model),
        "macs": counted.macs,
        "uncounted": list(counted.uncounted),
        "lower_bound": counted.lower_bound,
        "notes": [f"images of {inputs.shape[-2]}x{inputs.shape[-1]}, read {way}, weights from a checkpoint file"],
        "peak_bytes": peak_bytes(steps["model"], torch.device(device)),
        "prepare_s": time.perf_counter() - clock,
    }
    keep_freed_memory()
    taken = round_robin(steps, control=_CONTROL, device=torch.device(device), seconds_per_step=seconds)["model"]
    return {
        **figures,
        "samples_ms": list(taken.ms),
        "control_samples_ms": list(taken.control_ms),
        "calls_per_sample": taken.calls_per_sample,
    }


def _step(model: torch.nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    import torch

    def step() -> object:
        with torch.no_grad():
            return model(inputs)

    return step


def _table(accuracy: Record, cost: Record, checkpoint: str) -> Table:
    table = Table("figure", "value", title=escape(f"{checkpoint}: {cost['title']}"))
    for name, value in {
        "mIoU": f"{accuracy['miou']:.4f} on {accuracy['eval_images']} images",
        "mAcc": f"{accuracy['macc']:.4f}",
        "aAcc": f"{accuracy['aacc']:.4f}",
        **({"boundary F": f"{accuracy['boundary_f']:.4f}"} if "boundary_f" in accuracy else {}),
        "params": f"{accuracy['params'] / 1e6:.2f} M",
        **(_costs(cost) if cost["status"] == "ok" else {"cost of an image": escape(f"none: {cost['reason']}")}),
    }.items():
        table.add_row(name, value)
    return table


def _costs(cost: Record) -> dict[str, str]:
    latency = summarise_series(cost["samples_ms"])
    bound = "≥ " if cost["lower_bound"] else ""
    interval = "" if latency.low is None else f" [{latency.low:.1f}, {latency.high:.1f}]"
    return {
        "MACs": f"{bound}{cost['macs'] / 1e9:.2f} G",
        "FLOPs": f"{bound}{2 * cost['macs'] / 1e9:.2f} G",
        "peak memory": f"{cost['peak_bytes'] / 2**20:.1f} MiB",
        "latency": f"{latency.median:.1f} ms{interval}",
        "of an image": cost["notes"][0],
    }
