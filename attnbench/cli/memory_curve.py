"""`memory_curve.py`: live bytes over one forward and backward pass, operation by operation, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import operators
from attnbench import planning
from attnbench.cli.arguments import Parser, console_of_width, positive, size, words
from attnbench.config import Experiment, updated
from attnbench.errors import UsageError
from attnbench.prediction import predicted_memory
from attnbench.records import Trial
from attnbench.report.memory_curves import Curve, curve_sheet, memory_curves
from attnbench.report.wording import cost_title, slug
from attnbench.workload import Unsupported

PROG = "memory_curve.py"
DEFAULT_OUTPUT = Path("results/local")

_EPILOG = """\
examples:
  python scripts/memory_curve.py --operators ema,non_local --size 65
  python scripts/memory_curve.py --operators criss_cross --size 128x256 --batch 8 --dtype bfloat16

Nothing is run and no tensor held: any size takes seconds. On a CPU the curve is the one that would be measured.
"""


def _parser() -> Parser:
    parser = Parser(PROG, "Draw the live memory of operators over one forward and backward pass.", _EPILOG)
    parser.add_argument("--operators", type=words, metavar="A,B", help="names in the registry")
    parser.add_argument("--operator", action="append", metavar="FILE.py:CLASS", help="an operator of your own")
    parser.add_argument("--size", type=size, default=(65, 65), metavar="HxW", help="feature-map size (default: 65)")
    parser.add_argument("--channels", type=positive, default=512, metavar="C", help="channels of the slot")
    parser.add_argument("--batch", type=positive, default=1, metavar="B", help="batch size")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16")
    parser.add_argument("--level", default="operator", help="core, operator, head, network")
    parser.add_argument("--mode", default="training", help="training (forward with backward) or forward")
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help=f"where to (default: {DEFAULT_OUTPUT})"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the figure and its sheet; returns the exit code."""
    parsed = _parser().parse(arguments)
    if not parsed.operators and not parsed.operator:
        raise UsageError("--operators: expected names, got none")
    cost = {
        "predicted": True,
        "sizes": [parsed.size],
        "channels": [parsed.channels],
        "batches": [parsed.batch],
        "dtypes": [parsed.dtype],
        "levels": [parsed.level],
        "modes": [parsed.mode],
    }
    asked = {"operators": parsed.operators or [], "operator_files": parsed.operator or [], "device": "cpu"}
    trials = planning.plan(updated(Experiment(), {**asked, "cost": cost, "accuracy": None}, "options"))
    curves = [_curve(trial) for trial in trials]
    setting = f"{cost_title(trials[0].fields())}, {parsed.mode}"
    plot = memory_curves(curves, _name(trials[0], [trial.operator for trial in trials]), setting)
    files = {f"{plot.name}.png": plot.png(), f"{plot.name}.pdf": plot.pdf()}
    files[f"{plot.name}.csv"] = curve_sheet(curves).to_csv(index=False, lineterminator="\n").encode()
    try:
        parsed.output.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (parsed.output / name).write_bytes(data)
    except OSError as error:
        raise UsageError(
            f"folder {str(parsed.output)!r}: expected one that can be written, got {error.strerror or error}"
        ) from error
    console = console_of_width()
    console.print(plot.caption, highlight=False)
    console.print(", ".join(str(parsed.output / name) for name in files), highlight=False, markup=False)
    return 0


def _curve(trial: Trial) -> Curve:
    title = operators.get(trial.operator).spec.title
    name = title if trial.implementation == "reference" else f"{title} ({trial.implementation})"
    try:
        profile = predicted_memory(trial)
    except Unsupported as error:
        raise UsageError(f"operator {trial.operator!r}, level {trial.level}: {error}") from error
    points = [(moment.operation, moment.live_bytes, moment.backward) for moment in profile.curve]
    return Curve(name, points, profile.saved_bytes)


def _name(trial: Trial, names: Sequence[str]) -> str:
    shape = f"{trial.batch}x{trial.channels}x{trial.height}x{trial.width}"
    return slug("memory-curve", *dict.fromkeys(names), trial.level, shape, trial.dtype, trial.mode)
