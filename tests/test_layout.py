"""The plan of the house held against the code: imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

GROUND = {
    *(
        "config",
        "records",
        "reading",
        "schema",
        "familiar",
        "ranges",
        "processes",
        "environment",
        "metrics",
        "errors",
        "statistics",
    ),
    "allocator",
    "machine",
    "atomic",
    "lifetime",
}
ROOMS = {
    **dict.fromkeys(GROUND, GROUND),
    "models": GROUND,
    "data": GROUND,
    "measuring": GROUND,
    "training": GROUND | {"models", "data"},
    "evaluation": GROUND | {"models", "data", "training"},
    "workload": GROUND | {"models", "data", "measuring"},
    "faults": GROUND | {"workload"},
    "prediction": GROUND | {"measuring", "workload"},
    "accuracy": GROUND | {"models", "data", "measuring", "training", "evaluation"},
    "worker": GROUND | {"measuring", "training", "accuracy", "workload", "faults", "prediction"},
    "supervisor": GROUND | {"worker"},
    "calibration": GROUND | {"measuring"},
    "planning": GROUND | {"models", "data"},
    "runner": GROUND | {"data", "planning", "supervisor", "worker", "calibration"},
    "pictures": GROUND | {"models", "data", "training", "evaluation", "accuracy", "report"},
    "reproducing": GROUND | {"models", "measuring", "workload", "published"},
    "report": {"records", "reading", "published", "statistics", "errors"},
    "published": set(),
}
KNOWS_OPERATORS = {
    *("models", "measuring", "training", "workload", "faults", "prediction", "worker", "planning", "runner"),
    *("reproducing", "cli", "pictures"),
}


def imported(path):
    """Dotted names of every import in `path`, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    parts = path.relative_to(ROOT / "attnbench").parts
    return parts[0].removesuffix(".py")


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules("operators"), ids=lambda path: str(path.relative_to(ROOT)))
def test_operators_know_torch_and_themselves_alone(path):
    allowed = {"torch", "operators", "pytest", *sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in imported(path)} <= allowed


@pytest.mark.parametrize("path", modules("attnbench"), ids=lambda path: str(path.relative_to(ROOT)))
def test_attnbench_imports_point_one_way(path):
    room = room_of(path)
    names = set(imported(path))
    assert not any(name.partition(".")[0] == "scripts" for name in names)
    if room in ("__init__", "cli"):
        return
    assert room in ROOMS, f"{room} is not on the plan: add it here and to docs/decisions"
    rooms = {name.split(".")[1] for name in names if name.startswith("attnbench.")}
    assert rooms - {room} <= ROOMS[room]
    if room not in KNOWS_OPERATORS:
        assert not any(name.partition(".")[0] == "operators" for name in names)


@pytest.mark.parametrize(
    "module",
    ["attnbench.config", "attnbench.records", "attnbench.report", "attnbench.published", "attnbench.cli.compare"],
)
def test_import_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scripts_are_thin():
    for path in modules("scripts"):
        assert len(path.read_text().splitlines()) < 80, f"{path.name}: move what it does into attnbench"
