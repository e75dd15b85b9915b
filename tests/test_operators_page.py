from attnbench.cli import operators_page
from operators import get, names


def test_the_committed_page_is_current():
    committed = operators_page.DEFAULT_PAGE.read_text(encoding="utf-8")
    assert committed == operators_page.page(), "run python scripts/operators_page.py"
    figures = operators_page.DEFAULT_PAGE.with_name("field-map.csv").read_text(encoding="utf-8")
    assert figures == operators_page.figures(), "run python scripts/operators_page.py"


def test_every_operator_has_one_line_with_a_cost(tmp_path):
    path = tmp_path / "page.md"
    assert operators_page.main(["--output", str(path)]) == 0
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == [
        name for name in names() if get(name).__module__.startswith("operators.")
    ]
    for line in lines:
        cells = line.replace("\\|", "/").strip("| ").split(" | ")
        assert len(cells) == 7 and all(cells)
        assert "`" in cells[5]
