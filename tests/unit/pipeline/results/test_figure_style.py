"""Looks, labels, ticks and flat lines: what makes figures readable in every report."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from matplotlib.text import Text

from pipeline.results import figures
from pipeline.results.figures import canvas, framed, styles
from pipeline.results.figures.findings import flat, ranges
from pipeline.results.figures.labels import height_for, name_points
from pipeline.results.figures.style import DARK, LOOKS
from pipeline.results.lake.lake import Lake
from pipeline.results.method_papers import ARXIV, paper_url
from pipeline.results.tables import EDITOR_ORDER
from tests.unit.helpers.lake_fixtures import cell
from tests.unit.helpers.pictures import texts
from tests.unit.pipeline.results.test_figures import subject

METHODS = (Path(__file__).parents[4] / "docs" / "methods.md").read_text()


def rows(*editors: str, variant: str = "") -> object:
    return framed([{"editor": editor, "variant": variant} for editor in editors])


def test_a_method_looks_the_same_whatever_it_stands_beside() -> None:
    assert set(LOOKS) == set(EDITOR_ORDER)
    assert len(set(LOOKS.values())) == len(LOOKS)
    for editor in EDITOR_ORDER:
        alone = styles(rows(editor))  # type: ignore[arg-type]
        among = styles(rows(*EDITOR_ORDER))  # type: ignore[arg-type]
        (label,) = alone
        assert alone[label] == among[label] == LOOKS[editor]
    variant = styles(framed([{"editor": "rledit", "variant": v} for v in ("", "paper")]))
    assert variant["rledit"][0] == variant["rledit (paper)"][0]
    assert variant["rledit"][1] != variant["rledit (paper)"][1]


def brightness(colour: str) -> float:
    """Relative luminance, from 0 for black to 1 for white."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_stand_out_on_a_light_and_on_a_dark_page() -> None:
    paper, night = brightness("#ffffff"), brightness("#14171a")
    for light, dark in DARK.items():
        assert (paper + 0.05) / (brightness(light) + 0.05) > 2, light
        assert (brightness(dark) + 0.05) / (night + 0.05) > 4.5, dark


def test_links_lead_to_the_papers_that_the_docs_name() -> None:
    found = {}
    for names, number in re.findall(r"^### ([\w, ]+?)(?::.*?)? \(.*?arXiv (\d{4}\.\d{5})", METHODS,
                                    re.M):  # fmt: skip
        found |= dict.fromkeys(names.split(", "), number)
    assert len(found) > 12
    assert {name: ARXIV[name] for name in found} == found
    assert set(ARXIV) <= set(EDITOR_ORDER)
    assert paper_url("rledit (paper)") == paper_url("RLEdit") == paper_url("MEND*")
    assert paper_url("FT-L").endswith("2012.00363") and paper_url("unedited") == ""


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.long) for s in (1, 2))])
def test_names_of_points_do_not_lie_on_each_other(seed: int) -> None:
    """All methods at once, most of them in one corner."""
    draw = random.Random(seed)
    names = list(EDITOR_ORDER)
    points = [(draw.gauss(70, 12), draw.gauss(50, 10)) for _ in names]
    height = height_for(len(names))
    figure, (axis,) = canvas.panels(1, columns=1, width=3.6, height=height)
    axis.plot(*zip(*points, strict=True), linestyle="none", marker="o")
    canvas.percent_axis(axis, "x", "Spe (%)")
    canvas.percent_axis(axis, "y", "Eff (%)")
    canvas.settle(figure)
    name_points(figure, axis, points, names)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for text in axis.texts:
        text.update_positions(renderer)  # type: ignore[attr-defined]
    boxes = [Text.get_window_extent(text, renderer) for text in axis.texts]  # without its line
    assert sorted(text.get_text() for text in axis.texts) == sorted(names)
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    assert [pair for pair in pairs if pair[0].overlaps(pair[1])] == []


@pytest.mark.parametrize(
    ("low", "high"), [(21.7, 641.0), (0.0002, 160.0), (40.0, 55.0), (2.0, 9.0), (90.0, 120000.0)]
)
def test_a_logarithmic_axis_has_numbers(low: float, high: float) -> None:
    figure, (axis,) = canvas.panels(1, columns=1, width=3.6, height=2.6)
    axis.plot([0, 1], [low, high])
    axis.set_ylim(low, high)
    canvas.log_axis(axis)
    canvas.settle(figure)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    shown = [
        t for t in axis.get_yticklabels() if t.get_text() and low <= t.get_position()[1] <= high
    ]
    assert len(shown) >= 2
    boxes = [t.get_window_extent(renderer) for t in shown]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_what_does_not_change_is_a_sentence(tmp_path: Path) -> None:
    """The cosine falls by a hundredth a batch around 0.8: flat beside a norm that varies."""
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(cell(editor="ft"))
    (picture,) = figures.along.curves(subject(lake))
    assert "Realised cosine stays at " in picture.text
    assert "Realised cosine" not in texts(picture.svg) and "‖ΔW‖ of the batch" in texts(picture.svg)


def test_flat_is_judged_by_the_widest_line() -> None:
    frame = framed([{"editor": e, "variant": "", "x": x, "y": y} for e, x, y in (
        ("a", 0, 50.0), ("a", 1, 52.0), ("b", 0, 20.0), ("b", 1, 20.0))])  # fmt: skip
    assert flat(ranges(frame, "x", "y"), percent=True)
    frame.loc[0, "y"] = 45.0
    assert not flat(ranges(frame, "x", "y"), percent=True)
