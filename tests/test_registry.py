"""Names of operators: built-ins, files and plugins."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import operators
from operators import registry
from operators.controls import Conv3x3, Identity
from operators.sources import without_prose

SOURCE = '''
from operators.interface import AttentionOperator, OperatorSpec, Source

class Mine(AttentionOperator):
    """Returns its input."""

    spec = OperatorSpec("mine", "Mine", Source("A paper", "CVPR", 2024, "https://example.org"), "pixel", 0.0)

    def forward(self, x):
        self.expect_map(x)
        return x

    def macs(self, height, width):
        return 0

class NotAnOperator:
    pass
'''


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test registers into a copy, and leaves no module behind."""
    modules = set(sys.modules)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    yield
    for name in set(sys.modules) - modules:
        if name.startswith(("attnbench_operator_", "plugin_")):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def plug(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    entries = [EntryPoint(name, value, registry.GROUP) for name, value in points]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.GROUP else [])


def test_built_ins_are_named() -> None:
    built_in = {"identity", "conv1x1", "conv3x3", "ema", "non_local", "criss_cross", "dual", "global_context"}
    assert built_in | {"pyramid_pooling"} <= set(operators.names())


def test_every_name_is_that_of_its_spec() -> None:
    assert [operators.get(name).spec.name for name in operators.names()] == list(operators.names())


def test_an_unknown_name_suggests_a_near_one() -> None:
    with pytest.raises(operators.UnknownOperatorError, match=r"unknown operator 'conv3x'; did you mean 'conv3x3'\?"):
        operators.get("conv3x")


def test_an_unknown_name_without_a_near_one_lists_all() -> None:
    with pytest.raises(operators.UnknownOperatorError, match=r"unknown operator 'qqq'; known: .*conv1x1.*identity"):
        operators.get("qqq")


def test_a_name_is_not_overwritten() -> None:
    class Other(Identity):
        pass

    with pytest.raises(ValueError, match=r"expected a free name, got 'identity', which operators.controls.Identity"):
        operators.register(Other)
    assert operators.get("identity") is Identity


def test_registering_a_class_again_is_no_conflict() -> None:
    before = operators.names()
    assert operators.register(Identity) is Identity
    assert operators.names() == before


@pytest.mark.parametrize("thing", [object, "identity", operators.AttentionOperator])
def test_only_operators_with_a_spec_are_registered(thing: object) -> None:
    with pytest.raises(TypeError, match="expected a subclass of AttentionOperator with a spec"):
        operators.register(thing)


def test_a_file_is_loaded_and_registered(file: Path) -> None:
    mine = operators.load_file(f"{file}:Mine")
    assert operators.get("mine") is mine
    assert operators.names()[-1] == "mine"
    assert operators.load_file(f"{file}:Mine") is mine


def test_a_missing_class_suggests_a_near_one(file: Path) -> None:
    with pytest.raises(operators.BrokenOperatorError, match=r"no class 'Mime'; did you mean 'Mine'\?"):
        operators.load_file(f"{file}:Mime")


def test_a_file_without_an_operator_is_refused(file: Path) -> None:
    with pytest.raises(
        operators.BrokenOperatorError, match="expected a subclass of AttentionOperator with a spec, got"
    ):
        operators.load_file(f"{file}:NotAnOperator")


@pytest.mark.parametrize("reference", ["mine.py", "mine.py:", "mine.py:not a name"])
def test_a_reference_names_file_and_class(reference: str) -> None:
    with pytest.raises(operators.BrokenOperatorError, match=r"expected path/to/file\.py:Class, got"):
        operators.load_file(reference)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(operators.BrokenOperatorError, match="expected an existing file, got"):
        operators.load_file(f"{tmp_path / 'absent.py'}:Mine")


def test_a_file_that_is_not_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(SOURCE)
    with pytest.raises(operators.BrokenOperatorError, match="expected a Python file, got"):
        operators.load_file(f"{tmp_path / 'mine.txt'}:Mine")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("class Mine(:", "SyntaxError"),
    ],
)
def test_a_broken_file_is_reported_and_can_be_mended(file: Path, source: str, message: str) -> None:
    file.write_text(source)
    with pytest.raises(operators.BrokenOperatorError, match=message):
        operators.load_file(f"{file}:Mine")
    file.write_text(SOURCE + "\n# mended\n")
    assert operators.load_file(f"{file}:Mine").spec.name == "mine"


def test_a_file_cannot_take_a_built_in_name(file: Path) -> None:
    file.write_text(SOURCE.replace('"mine"', '"identity"'))
    with pytest.raises(ValueError, match="expected a free name, got 'identity'"):
        operators.load_file(f"{file}:Mine")


def test_a_plugin_is_listed_without_being_imported_and_loaded_on_demand(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.rename(file.with_name("plugin_mine.py"))
    monkeypatch.syspath_prepend(file.parent)
    plug(monkeypatch, ("mine", "plugin_mine:Mine"))
    assert operators.names()[-1] == "mine"
    assert "plugin_mine" not in sys.modules
    assert operators.get("mine").__module__ == "plugin_mine"
    assert operators.names().count("mine") == 1


def test_a_broken_plugin_is_listed_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, ("broken", "no_such_module_anywhere:Mine"))
    assert "broken" in operators.names()
    with pytest.raises(
        operators.BrokenOperatorError,
        match="operator 'broken' of plugin 'no_such_module_anywhere:Mine': ModuleNotFoundError",
    ):
        operators.get("broken")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("not_operator", "json:JSONDecoder", "expected a subclass of AttentionOperator with a spec"),
        ("renamed", "operators.controls:Identity", "expected spec.name 'renamed', got 'identity'"),
        ("no_class", "operators.controls:Absent", "AttributeError"),
    ],
)
def test_a_plugin_that_holds_no_such_operator_is_broken(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    plug(monkeypatch, (name, value))
    with pytest.raises(operators.BrokenOperatorError, match=message):
        operators.get(name)


def test_a_plugin_does_not_hide_a_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, ("identity", "no_such_module_anywhere:Mine"))
    assert operators.names().count("identity") == 1
    assert operators.get("identity") is Identity


def test_source_hash_changes_with_the_file(file: Path) -> None:
    mine = operators.load_file(f"{file}:Mine")
    before = operators.source_hash(mine)
    assert len(before) == 16
    assert operators.source_hash(mine) == before
    file.write_text(SOURCE + "\nCHANGED = 1\n")
    assert operators.source_hash(mine) != before


def test_source_hash_does_not_change_with_prose(file: Path) -> None:
    mine = operators.load_file(f"{file}:Mine")
    before = operators.source_hash(mine)
    file.write_text(f'"""Said first."""\n# and here\n\n{SOURCE}\n# changed\n\n')
    assert operators.source_hash(mine) == before


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ('class A:\n    """One.\n\n    Two.\n    """\n\n    x = 1\n', "class A:\n    x = 1\n"),
        ('x = """kept # whole"""\n', 'x = """kept # whole"""\n'),
        ('f("kept")\n("kept", "too")\n', 'f("kept")\n("kept", "too")\n'),
        ('x = [  # first\n    "kept",\n    # second\n]\n', 'x = [\n    "kept",\n]\n'),
        ('a: int\n"""of a"""\nif a:\n    r"""of b"""\n    # c\n    b = 1; "d"\n', 'a: int\nif a:\n    b = 1; "d"\n'),
        ('"only"', ""),
        ("", ""),
    ],
)
def test_prose_is_no_code(source: str, code: str) -> None:
    assert without_prose(source) == code


@pytest.mark.parametrize("name", sorted(operators.names()))
def test_without_prose_an_operator_is_the_same_program(name: str) -> None:
    source = Path(inspect.getfile(operators.get(name))).read_text()
    whole, kept = ast.parse(source), without_prose(source)
    for node in ast.walk(whole):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    assert ast.dump(whole) == ast.dump(ast.parse(kept))
    assert len(kept) < len(source)


def _is_text(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)


def test_source_hash_tells_operators_apart() -> None:
    assert operators.source_hash(Conv3x3) == operators.source_hash(Identity)
    assert operators.source_hash(Conv3x3) != operators.source_hash(operators.get("dual"))
