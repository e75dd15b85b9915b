"""What several seeds say of mIoU and of a gain."""

from operator import sub

import numpy as np
import pytest
from record_factory import accuracy_record
from scipy.stats import ttest_rel
from test_tables import cell

from attnbench.report.frames import arrange
from attnbench.report.render import to_latex
from attnbench.report.seeds import add_intervals, holm
from attnbench.report.tables import accuracy_table


def rows(**scores):
    control = scores.get("conv3x3")
    return [
        {
            "seed_miou": dict(enumerate(values)),
            "seed_gain": dict(enumerate(map(sub, values, control))) if control and name != "conv3x3" else {},
        }
        for name, values in scores.items()
    ]


def test_intervals_from_three_seeds_on():
    few, many = rows(conv3x3=[0.5, 0.6], ema=[0.6, 0.7]), rows(conv3x3=[0.5, 0.6, 0.55], ema=[0.6, 0.75, 0.65])
    add_intervals(few)
    add_intervals(many)
    assert few[1]["miou_low"] is few[1]["gain_low"] is few[1]["gain_p"] is few[1]["gain_real"] is None
    assert 0.6 <= many[1]["miou_low"] < np.mean([0.6, 0.75, 0.65]) < many[1]["miou_high"] <= 0.75
    assert many[1]["gain_low"] < np.mean([0.1, 0.15, 0.1]) < many[1]["gain_high"]
    assert many[1]["gain_p"] == pytest.approx(ttest_rel([0.6, 0.75, 0.65], [0.5, 0.6, 0.55]).pvalue)
    assert many[0]["gain_p"] is None


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    made = rows(**{f"op{index}": draw.normal(0.5, 0.1, 20).tolist() for index in range(200)})
    add_intervals(made)
    covered = sum(row["miou_low"] <= 0.5 <= row["miou_high"] for row in made)
    assert 175 <= covered <= 199


@pytest.mark.parametrize(
    ("p_values", "rejected"),
    [
        ([0.01, 0.02, 0.03], [True, True, True]),
        ([0.017, 0.001, 0.9], [True, True, False]),
        ([0.026, 0.001, 0.9], [False, True, False]),
        ([0.03, 0.02], [True, True]),
        ([0.03, 0.04], [False, False]),
        ([None, 0.05], [None, True]),
        ([], []),
    ],
)
def test_holm(p_values, rejected):
    assert holm(p_values, 0.05) == rejected


def test_equal_differences():
    made = rows(conv3x3=[0.5, 0.25, 0.75], same=[0.5, 0.25, 0.75], shifted=[0.75, 0.5, 1.0])
    add_intervals(made)
    assert [row["gain_real"] for row in made] == [None, False, True]


def test_a_gain_that_is_more_than_chance_is_marked_and_explained():
    records = []
    for seed, base in enumerate((0.50, 0.52, 0.51, 0.49, 0.53)):
        records.append(accuracy_record("conv3x3", seed, miou=base))
        records.append(accuracy_record("ema", seed, miou=base + 0.1 + 0.001 * seed))
        records.append(accuracy_record("dual", seed, miou=base + 0.02 * (-1) ** seed))
    table = accuracy_table(arrange(records, {}).scored[0])
    assert cell(table, "EMA", "gain").text == "+10.2 ± 0.2 (5)*"
    assert "*" not in cell(table, "Dual attention", "gain").text
    assert cell(table, "EMA", "gain_low").text == "[+10.0, +10.4]"
    assert cell(table, "Conv 3x3", "gain_low").text == "–"
    assert cell(table, "EMA", "miou_low").text.startswith("[")
    assert any("Holm" in line for line in table.legend)
    paper = to_latex(table)
    assert "+10.2 $\\pm$ 0.2*" in paper and "Holm" in paper and "bootstrap" not in paper
    single = accuracy_table(arrange([record for record in records if record["seed"] == 0], {}).scored[0])
    assert not any("Holm" in line for line in single.legend)
    assert "gain_low" not in [column.key for column in single.columns]
