"""The page that sets two grids, or a grid in two lakes, beside each other."""

from __future__ import annotations

import dataclasses
import re
import statistics
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.results.comparison import write_comparison
from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from pipeline.results.report import ReportError
from tests.unit.helpers.browser import look_at
from tests.unit.helpers.lake_fixtures import cell, demo_cells


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Lake]:
    """The demo in two lakes: other draws, another learning rate of one method, a method less."""
    folder = tmp_path_factory.mktemp("two")
    first, second = Lake(str(folder / "a")), Lake(str(folder / "b"))
    for result in demo_cells(seeds=2, streams=(4,)):
        editor = result.address.editor
        settings = {"lr": 1e-3, "layers": [1, 2]}
        first.commit(dataclasses.replace(result, resolved={"settings": settings}))
        if editor != "mend":
            settings = settings | ({"lr": 5e-4} if editor == "ft" else {})
            where = {"editor": editor, "seed": result.address.seed}
            again = cell(noise=7, **where)
            second.commit(dataclasses.replace(again, resolved={"settings": settings}))
    return first, second


@pytest.fixture(scope="module")
def page(lakes: tuple[Lake, Lake], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out") / "c.html"
    first, second = lakes
    assert write_comparison((first, "demo"), (second, "demo"), out) == str(out)
    return out.read_text()


def test_changes_are_those_of_the_seeds_that_both_have(page: str, lakes: tuple[Lake, Lake]) -> None:
    scores = [
        {
            row["seed"]: row["efficacy"]
            for row in runs(lake, "demo")
            if row["editor"] == "ft" and row["protocol"] == "token_accuracy"
        }
        for lake in lakes
    ]
    changes = [scores[1][seed] - scores[0][seed] for seed in (0, 1)]
    a, b = (sum(side.values()) / 2 for side in scores)
    shown = f"{sum(changes) / 2:+.1f} ± {statistics.stdev(changes):.1f}"
    row = next(line for line in page.splitlines() if '<th scope="row">ft</th>' in line)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    assert cells[:3] == [f"{a:.1f}", f"{b:.1f}", shown]


def test_what_was_run_differently_is_said(page: str) -> None:
    assert "Only in A: mend." in page and "Only in B" not in page
    assert re.findall(r'<th scope="row">ft</th><td class="short">(\w+)</td><td class="short">'
                      r'([\d.]+)</td><td class="short">([\d.]+)</td>', page) == [
        ("lr", "0.001", "0.0005")]  # fmt: skip
    assert "points of the mean from A to B" in page and "<svg" in page
    assert '<a href="https://arxiv.org/abs/2502.05759">rledit</a>' in page


@pytest.mark.long
def test_at_both_widths_it_can_be_read(page: str, tmp_path: Path) -> None:
    for width in (1400, 390):
        seen = look_at(page, width, tmp_path)
        assert seen.scroll == seen.width and seen.texts > 10
        assert (seen.overlaps, seen.cut, seen.small) == ([], [], [])


def test_equal_lakes_have_a_sentence_and_no_figure(
    lakes: tuple[Lake, Lake], tmp_path: Path
) -> None:
    copy = Lake(str(tmp_path / "copy"))
    for result in demo_cells(seeds=2, streams=(4,)):
        copy.commit(dataclasses.replace(result, resolved={"settings": {"lr": 1e-3}}))
    other = Lake(str(tmp_path / "other"))
    for result in demo_cells(seeds=2, streams=(4,)):
        other.commit(dataclasses.replace(result, resolved={"settings": {"lr": 1e-3}}))
    write_comparison((copy, "demo"), (other, "demo"), tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text()
    assert "all scores of 7 methods are equal" in text and "<svg" not in text
    assert "Nothing: model, data, streams, seeds, code and settings are the same." in text


def test_another_model_can_be_compared_where_each_side_has_one(
    lakes: tuple[Lake, Lake], tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    for editor in ("none", "rledit"):
        lake.commit(cell(editor=editor, model="larger", grid="mine", noise=3))
    write_comparison((lakes[0], "demo"), (lake, "mine"), tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text()
    assert "world on tiny-llama → larger, 4×10, by token_accuracy" in text
    lake.commit(cell(editor="rledit", model="largest", grid="mine", cell_key="l"))
    with pytest.raises(
        ReportError,
        match=r"no method of grid 'demo'.*A has world on tiny-llama, "
        r"4×10; B has world on larger, 4×10; world on largest",
    ):
        write_comparison((lakes[0], "demo"), (lake, "mine"), tmp_path / "d.html")
    assert not (tmp_path / "d.html").exists()


def test_settings_are_compared_on_each_model_and_a_lake_not_with_itself(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    for grid in ("one", "two"):
        for model in ("a-model", "z-model"):
            result = cell(editor="ft", grid=grid, model=model, cell_key=f"{grid}-{model}")
            settings = {"lr": 5.0 if (grid, model) == ("two", "a-model") else 1.0}
            lake.commit(dataclasses.replace(result, resolved={"settings": settings}))
    write_comparison((lake, "one"), (lake, "two"), tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text()
    assert (
        '<tr><th scope="row">ft: world on a-model, 4×10</th><td class="short">lr</td>'
        '<td class="short">1.0</td><td class="short">5.0</td></tr>'
    ) in text
    assert "settings are the same" not in text and "rledit diff" not in text
    copy = Lake(str(tmp_path / "copy"))
    copy.commit(cell(editor="ft", grid="two", model="a-model", cell_key="two-a-model"))
    write_comparison((lake, "two"), (copy, "two"), tmp_path / "d.html")
    said = f"rledit diff {lake.storage} {copy.storage} --grid two"
    assert said in (tmp_path / "d.html").read_text()


def test_on_the_command_line(lakes: tuple[Lake, Lake], tmp_path: Path) -> None:
    first, second = (str(lake.storage) for lake in lakes)

    def typed(*words: str) -> Result:
        place = ["--lake", first, "--results", str(tmp_path)]
        return CliRunner().invoke(app, ["report", "demo", *place, *words])

    out = tmp_path / "demo-against-other.html"
    assert typed("--against-lake", second).output.strip() == str(out)
    assert "demo in two lakes" in out.read_text()
    assert "compared with itself; name another grid by --against" in str(
        typed("--against", "demo").exception
    )
    unknown = typed("--against", "dmo").exception
    assert isinstance(unknown, ReportError)
    assert "no cells of grid 'dmo'" in str(unknown) and "Did you mean 'demo'?" in str(unknown)
