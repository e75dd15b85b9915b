"""What mmsegmentation's zoo reports for each head, beside what the head costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnbench.published import HEADS, ZooEntry, ZooRow
from attnbench.published.zoo import CROPS, DEVICE, SOURCE, VERSION, gain
from attnbench.report.cells import Cell, Column
from attnbench.report.render import to_markdown
from attnbench.report.rows import MIB
from attnbench.report.tables import Table
from attnbench.report.wording import significant

NONE = "–"
"""What stands where nothing is published or computed."""

_HEAD = f"""\
## What each operator was reported to buy, and what it costs

**Published elsewhere: mIoU, training memory and speed are mmsegmentation's, version {VERSION}, on {DEVICE}**
([{SOURCE}]({SOURCE})), read from its copy in
[Enjoy-Hamburger](https://github.com/Gsunshine/Enjoy-Hamburger/tree/d9b51f6/seg_mm/configs); nothing of them was
measured here. **Ours** are parameters, multiply-accumulates and predicted forward peak of the same head, built from the
project's operators, on the features that one crop gives at output stride 8.

- Operator: name in the registry of what stands in the head. FCN's head is two 3x3 convolutions with nothing between.
- Gain: published mIoU minus FCN's on the same backbone, crop and schedule, in percentage points, where no batch size
  sets a run apart. One run each: a point of difference ranks nothing.
- Training memory is that of one GPU, speed that of inference, one image at a time.
- OCRNet has no run on ResNet-50, and its head is counted with the one before it, whose logits it reads. ANN's head
  contains the fusion of two stages beside the operator.
- Runs of other crops, of ResNet-101 and in FP16 are in `attnbench/published/zoo.csv`.
"""


def zoo_section(entries: Sequence[ZooEntry], zoo: Sequence[ZooRow]) -> str:
    """One table for each data set, with how to read them.

    Args:
        entries: methods of the zoo beside the cost of their heads.
        zoo: every row of the zoo, for the gains over FCN.
    """
    lines = [_HEAD]
    for dataset, crop in CROPS.items():
        of_dataset = [entry for entry in entries if entry.runs[0].dataset == dataset]
        lines += [f"### {dataset}, crop {crop[0]}x{crop[1]}", "", to_markdown(_table(of_dataset, zoo)), ""]
    return "\n".join(lines)


def plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of texts."""
    columns = [Column(header, header, header, lambda _: Cell("")) for header in headers]
    return Table("", columns, [[Cell(text) for text in row] for row in rows], kinds=["attention"] * len(rows))


def _table(entries: Sequence[ZooEntry], zoo: Sequence[ZooRow]) -> Table:
    """Descending by the mIoU of the longest schedule."""
    schedules = sorted({run.iterations for entry in entries for run in entry.runs})
    headers = ["Method", "Operator", "Backbone", "Ours: Params (M)", "MACs (G)", "peak forward (MiB)"]
    for schedule in schedules:
        headers += [f"Published elsewhere: mIoU, {schedule // 1000}k (%)", "gain over FCN"]
    headers += ["training memory (GB)", "speed (images/s)"]
    ordered = sorted(entries, key=lambda entry: entry.runs[-1].miou, reverse=True)
    return plain_table(headers, [_texts(entry, schedules, zoo) for entry in ordered])


def _texts(entry: ZooEntry, schedules: Sequence[int], zoo: Sequence[ZooRow]) -> list[str]:
    first, computed = entry.runs[0], entry.computed
    ours = (computed.params / 1e6, computed.macs / 1e9, computed.peak_forward / MIB)
    texts = [first.method, HEADS[first.method][1], first.backbone, *map(significant, ours)]
    for schedule in schedules:
        runs = [run for run in entry.runs if run.iterations == schedule]
        texts += [_scores(runs), _gain(runs, zoo)]
    for attribute in ("memory_gb", "fps"):
        texts.append(next((str(value) for run in entry.runs if (value := getattr(run, attribute)) is not None), NONE))
    return texts


def _scores(runs: Sequence[ZooRow]) -> str:
    """The mIoU of each run, with its batch size where that tells runs apart."""
    return "; ".join(f"{run.miou}{f' (batch {run.batch})' if run.batch else ''}" for run in runs) or NONE


def _gain(runs: Sequence[ZooRow], zoo: Sequence[ZooRow]) -> str:
    found = [value for run in runs if (value := gain(run, zoo)) is not None]
    return f"{found[0]:+}" if found else NONE


def head_row(entry: ZooEntry, run: ZooRow, zoo: Sequence[ZooRow]) -> dict[str, Any]:
    """One run of one method, for a sheet."""
    computed, (head, operator) = entry.computed, HEADS[run.method]
    return {
        "method": run.method,
        "head": head,
        "operator": operator,
        "backbone": run.backbone,
        "dataset": run.dataset,
        "crop": f"{run.crop[0]}x{run.crop[1]}",
        "params": computed.params,
        "macs": computed.macs,
        "predicted_peak_mib_forward": computed.peak_forward / MIB,
        "predicted_peak_mib_training": computed.peak_training / MIB,
        "published_elsewhere_iterations": run.iterations,
        "published_elsewhere_miou": run.miou,
        "published_elsewhere_miou_multi_scale": run.miou_multi_scale,
        "published_elsewhere_gain_over_fcn": gain(run, zoo),
        "published_elsewhere_memory_gb": run.memory_gb,
        "published_elsewhere_fps": run.fps,
        "source": run.source,
        "config": run.config,
    }
