"""`compare.py`: plan, run, report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from attnbench import processes
from attnbench.cli import published
from attnbench.cli.arguments import (
    Parser,
    amount,
    console_of_width,
    count,
    integers,
    positive,
    share,
    sizes,
    words,
)
from attnbench.cli.training_options import SCORING, TRAINING, accuracy_asked, add_scoring, add_training, scoring_asked
from attnbench.config import WHOLE, Experiment, load_preset, preset_names, updated
from attnbench.errors import UsageError
from attnbench.records import Record

PROG = "compare.py"
DEFAULT_OUTPUT = Path("results/local")

_EPILOG = """\
examples:
  python scripts/compare.py                                    every operator, within minutes
  python scripts/compare.py --operators ema,non_local --sizes 65,97,129 --only cost
  python scripts/compare.py --preset accuracy                  three seeds, more iterations
  python scripts/compare.py --preset camvid --data-root DIR --backbone-weights resnet18.pth
  python scripts/compare.py --operator my_operator.py:MyAttention
  python scripts/compare.py --predict --operators non_local --sizes 256x512 --channels 512
  python scripts/compare.py --published                        what papers print, computed again

A run that was stopped goes on where it stopped: what has a record is not measured again.
exit codes: 0 done, 1 something became worse (--against), 2 something to mend (arguments, data, a full disk),
130 interrupted (Ctrl-C, SIGTERM); what was measured is kept whatever the code.
"""


def _presets() -> dict[str, str]:
    return {name: load_preset(name).about for name in preset_names()}


def _parser() -> Parser:
    presets = "presets:\n" + "".join(f"  {name:<12} {about}\n" for name, about in _presets().items())
    parser = Parser(PROG, "Compare attention operators: what each costs, and what it buys.", f"{presets}\n{_EPILOG}")
    what = parser.add_argument_group("what to compare")
    what.add_argument("--operators", type=words, metavar="A,B", help="names in the registry (default: all)")
    what.add_argument(
        "--operator",
        action="append",
        metavar="FILE.py:CLASS",
        help="compare an operator of your own beside them; may be repeated",
    )
    what.add_argument("--list", action="store_true", help="list the operators and exit")
    what.add_argument(
        "--preset",
        default="default",
        metavar="NAME|FILE.toml",
        help=f"one of {', '.join(preset_names())}, or a TOML file",
    )
    what.add_argument("--only", choices=["cost", "accuracy"], help="leave out the other half")
    what.add_argument("--device", help="auto, cpu or cuda")
    what.add_argument(
        "--published",
        action="store_true",
        help="compute the figures that papers print, each as its paper describes it, and stop; takes --output alone",
    )

    cost = parser.add_argument_group("cost")
    cost.add_argument("--sizes", type=sizes, metavar="HxW,...", help="feature-map sizes, for example 65,97x129")
    cost.add_argument("--channels", type=integers, metavar="C,...", help="channels of the slot")
    cost.add_argument("--batch", type=integers, metavar="B,...", help="batch sizes")
    cost.add_argument("--dtype", type=words, metavar="T,...", help="float32, bfloat16, float16")
    cost.add_argument("--modes", type=words, metavar="M,...", help="forward, training (forward with backward)")
    cost.add_argument("--levels", type=words, metavar="L,...", help="core, operator, head, network")
    cost.add_argument(
        "--channels-last", action="store_true", default=None, help="lay out weights and inputs with channels innermost"
    )
    cost.add_argument("--compile", action="store_true", default=None, dest="compiled", help="latency of torch.compile")
    cost.add_argument(
        "--predict",
        action="store_true",
        default=None,
        dest="predicted",
        help="parameters, MACs and memory at any size, without running anything: needs neither memory nor GPU",
    )
    cost.add_argument("--seconds", type=float, metavar="S", help="latency samples: time budget of one trial")

    accuracy = parser.add_argument_group("accuracy")
    add_training(accuracy)
    accuracy.add_argument("--head", help="slot (the decode head) or linear (a 1x1 classifier on the backbone)")
    accuracy.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="processes that load data for each training run (default: the preset's)",
    )
    accuracy.add_argument(
        "--tensorboard", action="store_true", help="write TensorBoard's events into the results folder"
    )
    accuracy.add_argument("--iterations", type=positive, metavar="N", help="training iterations")
    accuracy.add_argument("--seeds", type=positive, metavar="N", help="training runs for each operator, seeds 0 to N-1")

    add_scoring(parser)

    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"results folder (default: {DEFAULT_OUTPUT}; of --published: {published.DEFAULT_OUTPUT})",
    )
    output.add_argument(
        "--shard",
        type=share,
        metavar="I/N",
        help="run part I of N of the plan, without a report; folders merge by copying",
    )
    output.add_argument("--dry-run", action="store_true", help="print the plan and exit")

    against = parser.add_argument_group("against an earlier run (exit code 1 where something became worse)")
    against.add_argument("--against", type=Path, metavar="DIR", help="folder of records to hold this run against")
    against.add_argument(
        "--margin-latency", type=amount, default=0.1, metavar="X", help="growth of the latency ratio let pass (0.1)"
    )
    against.add_argument(
        "--margin-elsewhere", type=amount, default=1.0, metavar="X", help="the same between two machines (1.0)"
    )
    against.add_argument(
        "--margin-memory", type=amount, default=0.0, metavar="X", help="growth of the peak memory let pass (0)"
    )
    against.add_argument(
        "--margin-accuracy", type=amount, default=0.5, metavar="P", help="loss of mIoU let pass, in points (0.5)"
    )
    return parser


def _experiment(arguments: argparse.Namespace) -> Experiment:
    """The preset with the command line's changes."""
    options = vars(arguments)

    def given(**names: str) -> dict[str, Any]:
        return {key: options[name] for key, name in names.items() if options[name] is not None}

    cost = given(sizes="sizes", channels="channels", batches="batch", dtypes="dtype", modes="modes", levels="levels")
    cost |= given(seconds_per_trial="seconds", channels_last="channels_last", compiled="compiled")
    cost |= given(predicted="predicted")
    preset = load_preset(options["preset"])
    accuracy = accuracy_asked(arguments) | given(workers="workers")
    accuracy |= scoring_asked(arguments, preset.accuracy.inference if preset.accuracy else WHOLE)
    if options["head"]:
        accuracy["network"] = accuracy.get("network", {}) | {"head": options["head"]}
    if options["iterations"]:
        accuracy["recipe"] = accuracy.get("recipe", {}) | {"iterations": options["iterations"]}
    if options["seeds"]:
        accuracy["seeds"] = list(range(options["seeds"]))
    changes = given(operators="operators", operator_files="operator", device="device")
    if options["predicted"]:
        _expect_no_run(options)
        options["only"] = "cost"
    for part, wanted in (("cost", cost), ("accuracy", accuracy)):
        if options["only"] not in (None, part):
            changes[part] = None
        elif wanted or (options["only"] == part and getattr(preset, part) is None):
            changes[part] = wanted
    return updated(preset, changes, "options")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison that the command line asks for; returns the exit code."""
    began = time.monotonic()
    parsed = _parser().parse(arguments)
    if parsed.published:
        _expect_alone(parsed)
        return published.report_published(console_of_width(), parsed.output or published.DEFAULT_OUTPUT)
    parsed.output = parsed.output or DEFAULT_OUTPUT
    experiment = _experiment(parsed)
    console = console_of_width()

    if not (parsed.list or parsed.dry_run):
        processes.warm_up()

    from attnbench import planning, runner
    from attnbench.cli import progress
    from attnbench.cli.training_lines import Checking

    if parsed.list:
        progress.list_operators(console)
        return 0
    trials = planning.plan(experiment)
    if parsed.shard:
        trials = planning.shard(trials, *parsed.shard)
        if not trials:
            console.print(f"shard {parsed.shard[0]}/{parsed.shard[1]} has no trial: the plan has fewer than parts")
            return 0
    if parsed.dry_run:
        progress.show_plan(console, experiment, trials, parsed.output)
        return 0
    earlier = _load_earlier(parsed.against)
    if parsed.tensorboard:
        from attnbench.training.events import expect_tensorboard

        expect_tensorboard()
    lanes = planning.lanes(experiment, trials)
    events = runner.run(experiment, trials, parsed.output, tensorboard=parsed.tensorboard, checking=Checking(console))
    shown = progress.follow(console, trials, events, began, lanes)
    code = 0
    if parsed.shard and earlier is None:
        console.print(
            f"records: {parsed.output / 'records'}; report.py makes the report of all shards", highlight=False
        )
    else:
        code = _report(console, shown.records, parsed, earlier)
    console.print(shown.summary(time.monotonic() - began), highlight=False)
    if parsed.preset == "default" and not (parsed.operators or parsed.only):
        for name, about in _presets().items():
            if name != "default":
                console.print(f"left to --preset {name}: {about}", highlight=False)
    return code


def _expect_no_run(options: Mapping[str, Any]) -> None:
    """Raises a `UsageError` where something was asked for that a prediction does not have."""
    for name in ("seconds", "compiled", *TRAINING, *SCORING, "head", "iterations", "seeds", "workers"):
        if options[name] is not None and options[name] is not False:
            flag = {"compiled": "compile"}.get(name, name).replace("_", "-")
            raise UsageError(f"--predict: expected parameters, MACs and memory to be asked for, got --{flag}")
    if options["only"] == "accuracy":
        raise UsageError("--predict: expected cost to be asked for, got --only accuracy")


def _expect_alone(parsed: argparse.Namespace) -> None:
    """Raises a `UsageError` where something was asked for that `--published` does not follow."""
    defaults = vars(_parser().parse([]))
    for name, value in vars(parsed).items():
        if name not in ("published", "output") and value != defaults[name]:
            raise UsageError(f"--published: expected no other option than --output, got --{name.replace('_', '-')}")


def _load_earlier(folder: Path | None) -> list[Record] | None:
    if folder is None:
        return None
    from attnbench import records

    found = records.load(folder).records
    if not found:
        raise UsageError(
            f"--against: expected a folder that holds records/, got {str(folder)!r} with none that is valid"
        )
    return found


def _report(
    console: Console, found: Sequence[Record], parsed: argparse.Namespace, earlier: Sequence[Record] | None
) -> int:
    from attnbench import records, report

    folder = parsed.output
    problems = records.load(folder).problems
    environments = records.load_environments(folder)
    changes = None
    if earlier is not None:
        margins = report.Margins(
            parsed.margin_latency, parsed.margin_elsewhere, parsed.margin_memory, parsed.margin_accuracy
        )
        known = {**records.load_environments(parsed.against), **environments}
        changes = report.compare(found, earlier, known, margins)
    table = changes.table(f"Against {parsed.against.name}") if changes else None
    written = report.write_report(list(found), environments, folder, problems=problems, against=table)
    for shown in report.terminal_tables(written):
        console.print(shown)
    for problem in problems:
        console.print(f"[yellow]{escape(problem)}[/yellow]", highlight=False)
    console.print(f"report: {folder / 'index.html'}, {folder / 'comparison.md'}", highlight=False, markup=False)
    if table is not None:
        console.print(report.render_changes(table))
    return 1 if changes and changes.regressions else 0
