"""Published figures: the data, what is computed for them, the report and the command."""

import dataclasses
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest
import rich.console

import operators
from attnbench.cli import compare
from attnbench.errors import UsageError
from attnbench.measuring.cost import count_macs
from attnbench.measuring.prediction import predict_macs, pretending
from attnbench.published import HEADS, Computed, Outcome, ZooEntry, load_figures, load_zoo, shown
from attnbench.published.zoo import CLASSES, CROPS, gain
from attnbench.report.published import published_tables, write_published
from attnbench.reproducing import compute, modules, reproduce, zoo_entries
from attnbench.reproducing.build import Built
from attnbench.reproducing.parts import AdaptiveRegions, Concatenated, DualBranches, DualSum, FinerPyramid

FIGURES = {figure.id: figure for figure in load_figures()}
BUILT = [figure.id for figure in FIGURES.values() if figure.module]
ZOO = load_zoo()


@pytest.fixture(scope="session")
def outcomes():
    return {outcome.figure.id: outcome for outcome in reproduce(FIGURES.values())}


def test_every_row_says_what_it_is():
    assert len(FIGURES) == len(load_figures()) == 66
    for figure in FIGURES.values():
        assert figure.note and figure.source.startswith("https://") and figure.input and figure.scope
        printed = [figure.params_m, figure.flops_g, figure.memory, figure.time_ms]
        assert any(value is not None for value in printed) or "28 times smaller" in figure.scope
        assert all(value is None or value > 0 for value in printed)
        assert figure.time_ms is None or figure.device


def test_no_row_is_from_memory():
    """Recalled tables (the rows of ANN's, ISA's and GCNet's complexity tables) are not among the data."""
    folder = Path(sys.modules["attnbench.published"].__file__).parent
    for file in folder.glob("*.csv"):
        assert "recalled" not in file.read_text() and ",memory," not in file.read_text().partition("\n")[2]
    assert not [figure for figure in FIGURES.values() if figure.paper == "ANN" and figure.flops_g]
    assert not [figure for figure in FIGURES.values() if figure.paper in ("ISA", "GCNet") and figure.params_m]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "guessed"}, "expected a status in"),
        ({"bar_percent": None}, "expected a bar for rows that are reproduced"),
        ({"flops_unit": "FLOPs"}, "expected a unit in"),
        ({"params_unit": ""}, "expected a unit in"),
        ({"memory_unit": ""}, "expected memory with its unit"),
        ({"source": "seen somewhere"}, "the address of a source"),
        ({"note": ""}, "expected a note"),
    ],
)
def test_rows_that_do_not_fit_are_errors(change, message):
    with pytest.raises(ValueError, match=f"emanet-512: .*{message}"):
        dataclasses.replace(FIGURES["emanet-512"], **change)


def test_every_module_has_a_row_and_every_row_its_module():
    assert {figure.module for figure in FIGURES.values()} - {""} == set(modules())
    for figure in FIGURES.values():
        assert bool(figure.module) or figure.status != "reproduced"
        assert not figure.module or figure.status != "not attempted"


@pytest.mark.parametrize("row", BUILT)
def test_status_is_what_comes_out(outcomes, row):
    """Reproduced rows agree within their bar; of the others no attempt agrees within the strictest."""
    figure, deviation = FIGURES[row], outcomes[row].largest_deviation
    if figure.status == "reproduced":
        assert deviation <= float(figure.bar_percent) / 100
    else:
        assert deviation > 0.01


BARS = {
    **dict.fromkeys(["emanet-256", "emanet-512", "emanet-resnet-101", "emanet-deeplabv3"], 0.01),
    **dict.fromkeys(["ccnet-r1", "ccnet-r2", "ccnet-r3", "ccnet-r2-resnet-50", "ccnet-non-local"], 0.01),
    **dict.fromkeys(["ocr-ppm", "ocr-aspp", "ocr-self-attention"], 0.01),
    **{"ocr-ocr": 0.02, "ocr-double-attention": 0.03},
    **{f"hamburger-{name}-inference": 0.03 for name in ("sa", "a2", "ham-nmf", "ham-cd")},
}


@pytest.mark.parametrize("row", BARS)
def test_what_must_agree(outcomes, row):
    assert FIGURES[row].status == "reproduced"
    assert outcomes[row].largest_deviation <= BARS[row]


def test_figures_by_hand(outcomes):
    """The head of EMANet(512): convolutions on 65x65 positions, and seven products with 64 bases."""
    computed = outcomes["emanet-512"].computed
    assert computed.macs == 65 * 65 * (9 * 2048 * 512 + 2 * 512**2 + 7 * 512 * 64)
    assert outcomes["emanet-512"].flops_g == computed.macs / 1e9
    criss_cross = 2 * 97 * 97 * (2 * 512 * 64 + 512**2 + 2 * 97 * (64 + 512))
    assert outcomes["ccnet-r1"].flops_g == criss_cross / 1e9
    assert outcomes["ccnet-r1"].params_deviation is None
    assert outcomes["hamburger-sa-inference"].params_m == outcomes["hamburger-sa-inference"].computed.params / 2**20
    assert outcomes["hamburger-acf-inference"].computed is None
    assert outcomes["hamburger-acf-inference"].largest_deviation is None


def test_units_follow_the_row():
    computed = Computed(params=2**20, macs=5 * 10**8, peak_forward=1, peak_training=2)
    assert Outcome(FIGURES["hamburger-sa-training"], computed).params_m == 1
    assert Outcome(FIGURES["ocr-ocr"], computed).flops_g == 1
    assert Outcome(FIGURES["emanet-512"], computed).flops_g == 0.5
    assert Outcome(FIGURES["emanet-512"], computed).flops_deviation == pytest.approx(0.5 / 43.1 - 1)


PARTS = {
    "adaptive regions": (lambda: AdaptiveRegions(16, (1, 2, 3)), [(2, 16, 9, 7)], (2, 48, 9, 7)),
    "concatenated": (lambda: Concatenated(DualSum(16), 16), [(2, 16, 9, 7)], (2, 16, 9, 7)),
    "dual branches": (lambda: DualBranches(16), [(2, 16, 9, 7)], (2, 16, 9, 7)),
    "finer pyramid": (FinerPyramid, [(1, 2048, 3, 2), (1, 256, 6, 4)], (1, 256, 6, 4)),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_compute_and_count_as_predicted(name):
    import torch

    build, shapes, expected = PARTS[name]
    module, inputs = build().eval(), tuple(torch.randn(shape) for shape in shapes)
    with torch.no_grad():
        out = module(*inputs)
    assert tuple(out.shape) == expected and out.isfinite().all()
    with pretending():
        predicted = predict_macs(build(), tuple(torch.empty(shape) for shape in shapes))
    assert predicted == count_macs(module, inputs).macs


def test_what_the_source_counts_otherwise():
    import torch

    def build(**counted):
        return lambda: Built(torch.nn.Conv2d(4, 8, 3), (torch.empty(1, 4, 5, 6),), **counted)

    plain, otherwise = compute(build()), compute(build(left_out_macs=456, more_params=4))
    assert (plain.params, plain.macs) == (296, 3456)
    assert (otherwise.params, otherwise.macs) == (300, 3000)
    assert plain.peak_forward == 4 * 8 * 3 * 4 < plain.peak_training


def test_zoo_is_whole():
    assert len(ZOO) == 235
    assert {row.method for row in ZOO} == set(HEADS)
    assert all(operators.get(operator) for _, operator in HEADS.values())
    for row in ZOO:
        assert row.dataset in CROPS and row.dataset in CLASSES
        assert 30 < row.miou < 90
        assert row.source == f"https://github.com/open-mmlab/mmsegmentation/tree/v0.21.1/configs/{row.folder}/README.md"


def test_zoo_shows_each_method_once():
    groups = shown(ZOO)
    keys = [(runs[0].method, runs[0].dataset) for runs in groups]
    assert len(keys) == len(set(keys)) == 17 + 15 + 11
    for runs in groups:
        assert {run.precision for run in runs} == {"FP32"}
        assert len({(run.method, run.backbone, run.crop) for run in runs}) == 1
        assert [run.iterations for run in runs] == sorted(run.iterations for run in runs)
        assert runs[0].backbone == ("R-101-D8" if runs[0].method == "OCRNet" else "R-50-D8")


def test_gain_over_fcn():
    runs = {run.config: run for run in ZOO}
    assert gain(runs["ccnet_r50-d8_512x1024_40k_cityscapes"], ZOO) == Decimal("77.76") - Decimal("72.25")
    assert gain(runs["fcn_r50-d8_512x1024_40k_cityscapes"], ZOO) is None
    assert runs["ocrnet_r101-d8_512x1024_40k_b16_cityscapes"].batch == 16
    assert gain(runs["ocrnet_r101-d8_512x1024_40k_b16_cityscapes"], ZOO) is None
    assert gain(runs["ccnet_r50-d8_512x1024_40k_cityscapes"], []) is None


def test_heads_have_mmsegmentations_parameters():
    """Of those that tests/test_mmseg_heads.py holds against mmsegmentation itself, two; OCR's with the head before."""
    wanted = [row for row in ZOO if row.method in ("CCNet", "OCRNet") and row.dataset == "Cityscapes"]
    found = {entry.runs[0].method: entry.computed for entry in zoo_entries(wanted)}
    assert found["CCNet"].params == 23934100
    assert found["OCRNet"].params == 10632211 + 9 * 1024 * 256 + 2 * 256 + 257 * 19
    assert found["CCNet"].macs > 64 * 128 * 9 * 512 * (2048 + 512 + 2560)


@pytest.fixture
def entries():
    computed = Computed(params=12_000_000, macs=34 * 10**9, peak_forward=2**20, peak_training=2**21)
    return [ZooEntry(runs, computed) for runs in shown(ZOO)]


def test_report(tmp_path, outcomes, entries):
    written = write_published(list(outcomes.values()), entries, ZOO, tmp_path)
    assert [file.name for file in written.files] == ["published.md", "published.csv", "published-heads.csv"]
    page = (tmp_path / "published.md").read_text()
    assert "32 rows reproduced, 7 not reproduced, 27 not attempted" in page
    for figure in FIGURES.values():
        assert figure.method.replace("_", "\\_") in page
        assert figure.source in page
    assert "| EMANet (512) |     reproduced |                    10.0 |      9.997 |      +0.0 % |" in page
    assert page.count("Published elsewhere: mIoU") == 1 + 2 * 3
    assert "80.09 (batch 8); 80.30 (batch 16)" in page and "77.76 |           +5.51" in page
    assert "nan" not in page.lower().split()
    sheet = pd.read_csv(tmp_path / "published.csv")
    assert list(sheet["id"]) == list(FIGURES)
    assert sheet.loc[sheet["status"] == "reproduced", "flops_deviation"].abs().max() < 0.03
    assert sheet.loc[sheet["status"] == "not attempted", "computed_flops_g"].isna().all()
    heads = pd.read_csv(tmp_path / "published-heads.csv")
    assert len(heads) == sum(len(entry.runs) for entry in entries)
    assert set(heads["operator"]) <= set(operators.names())


def test_terminal_fits(outcomes):
    console = rich.console.Console(width=110, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    report = write_published_nowhere(outcomes)
    for table in published_tables(report):
        console.print(table)
    said = console.export_text()
    assert "not reproduced" in said and "EMANet (512)" in said
    assert max(map(len, said.splitlines())) <= 110


def write_published_nowhere(outcomes):
    from attnbench.report.published import PublishedReport

    return PublishedReport(list(outcomes.values()), [], ())


def test_folder_that_cannot_be_written(tmp_path, entries):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="expected one that can be written"):
        write_published([], entries, ZOO, tmp_path / "taken")


def test_command(tmp_path, capsys, monkeypatch, outcomes, entries):
    monkeypatch.setattr("attnbench.reproducing.reproduce", lambda _: list(outcomes.values()))
    monkeypatch.setattr("attnbench.reproducing.zoo_entries", lambda _: entries)
    assert compare.main(["--published", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "32 rows reproduced" in said and "published.md" in said
    assert (tmp_path / "published.csv").exists()


@pytest.mark.parametrize("option", [["--operators", "ema"], ["--only", "cost"], ["--dry-run"], ["--sizes", "65"]])
def test_command_takes_no_other_option(tmp_path, option):
    with pytest.raises(UsageError, match=rf"expected no other option than --output, got {option[0]}"):
        compare.main(["--published", *option, "--output", str(tmp_path)])


def test_committed_report_is_of_these_figures():
    """The data and the committed page change together."""
    folder = Path(__file__).parents[1] / "results" / "reference"
    sheet = pd.read_csv(folder / "published.csv", dtype=str, keep_default_na=False)
    assert [tuple(row) for row in sheet[["id", "status", "note"]].to_numpy()] == [
        (figure.id, figure.status, figure.note) for figure in FIGURES.values()
    ]


@pytest.mark.full
def test_command_from_end_to_end(tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "compare.py"
    done = subprocess.run(
        [sys.executable, script, "--published", "--output", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    reference = Path(__file__).parents[1] / "results" / "reference"
    for name in ("published.md", "published.csv", "published-heads.csv"):
        assert (tmp_path / name).read_text() == (reference / name).read_text()
