"""The map of the field: one line for each operator that multiplies, in bands of equal growth."""

from attnbench.report.field_map import Place, field_map

PLACES = [
    Place("Wide", "attention", "global", 2.0, (10, 1000, 100_000)),
    Place("Narrow", "attention", "window", 1.0, (40, 400, 4000)),
    Place("Control", "control", "pixel", 1.0, (4, 40, 400)),
    Place("Nothing", "control", "pixel", 0.0, (0, 0, 0)),
]


def drawn():
    return field_map(PLACES, (3, 9, 27), 64)


def test_operators_stand_by_growth_and_then_by_cost():
    (axes,) = drawn().figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Control", "Narrow", "Wide"]
    assert [text.get_text() for text in axes.texts] == ["grows with N", "grows with N²"]
    rows = axes.get_yticks()
    assert rows[2] - rows[1] > rows[1] - rows[0]


def test_lines_run_from_the_smallest_map_to_the_largest():
    (axes,) = drawn().figure.axes
    lines = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    assert [[float(end) for end in line] for line in lines] == [[4, 400], [40, 4000], [10, 100_000]]


def test_reaches_that_occur_are_explained_and_the_caption_names_the_setting():
    plot = drawn()
    (legend,) = plot.figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["sees its own pixel", "sees a window", "sees the whole map", "3×3 map", "9×9 map", "27×27 map"]
    assert "3×3, 9×9, 27×27" in plot.caption and "64 channels" in plot.caption
    assert plot.png() == drawn().png()
