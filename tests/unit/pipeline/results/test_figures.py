"""Figures: each is drawn where its data is in the lake, from the numbers that are there."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from pandas import DataFrame

from pipeline.paper.table import paper_table
from pipeline.results import figures
from pipeline.results.figures import FigureData, along, costs, framed, radar, retention, scores
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellResult
from pipeline.results.query import Connection, connect, runs
from tests.unit.helpers.lake_fixtures import address, cell
from tests.unit.helpers.pictures import texts

PROTOCOL = "token_accuracy"


def measured(result: CellResult) -> CellResult:
    """The cell with ability, perplexity, fluency and consistency before and along the stream."""
    rows = [
        {"step": step, "metric": metric, "value": start * (1 - fall * step / 40)}
        for step in (0, 20, 40)
        for metric, start, fall in (
            ("ability_sst_f1", 90.0, 0.3),
            ("ability_rte_f1", 28.0, -0.5),
            ("perplexity", 12.0, -4.0),
            ("fluency", 600.0, 0.1),
            ("consistency", 30.0, 0.2),
            ("validation_score", 60.0, 0.2),
        )
    ]
    return dataclasses.replace(result, steps=[*result.steps, *rows])


def subject(lake: Lake, dataset: str | None = "world") -> FigureData:
    connection: Connection = connect(lake)
    rows = [r for r in runs(connection, "demo") if r["protocol"] in (PROTOCOL, None)]
    rows = framed([r for r in rows if dataset in (None, r["dataset"])])
    return FigureData(connection=connection, grid="demo", scale="world", model="tiny-llama",
                   dataset=dataset, protocol=PROTOCOL, rows=rows,
                   style=figures.styles(rows))  # fmt: skip


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Variants, several streams of one length, two datasets, abilities: all figures at once."""
    lake = Lake(str(tmp_path_factory.mktemp("figures") / "lake"))
    for editor in ("none", "ft", "rledit"):
        for dataset in ("world", "other"):
            key = f"{editor}-{dataset}"
            result = cell(editor=editor, dataset=dataset, checkpoints=4, cell_key=key)
            lake.commit(measured(result) if dataset == "world" else result)
    for variant in ("no backtracking", "no regularisation"):
        lake.commit(cell(variant=variant, cell_key=variant.replace(" ", "-")))
    for n_batches, size in ((2, 20), (8, 5)):
        for editor in ("ft", "rledit"):
            lake.commit(cell(editor=editor, n_batches=n_batches, batch_size=size))
    lake.commit(cell(editor="rledit", dataset="elsewhere", grid="other grid", cell_key="foreign"))
    return lake


def words(svg: bytes) -> str:
    return " ".join(texts(svg))


@pytest.mark.long
def test_every_figure_is_drawn_where_its_data_is(rich: Lake) -> None:
    here = subject(rich)
    drawn = {name: list(figure(here)) for name, figure in figures.FIGURES.items()}
    # The last one's cells are those of a grid of their own, see `test_training_curves`.
    assert [name for name, pictures in drawn.items() if not pictures] == ["optimiser_steps"]
    overall = subject(rich, dataset=None)
    assert [len(list(figure(overall))) for figure in figures.OVERVIEWS.values()] == [1]
    titles = [p.title for pictures in drawn.values() for p in pictures]
    assert len(set(titles)) == len(titles)
    for pictures in drawn.values():
        for picture in pictures:
            assert picture.text and (not picture.svg or words(picture.svg))


def test_and_not_where_it_is_not(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(cell(editor="ft", checkpoints=1))
    here = subject(lake)
    absent = {name for name, figure in figures.FIGURES.items() if not list(figure(here))}
    assert absent == {"frontier", "radar", "ablation", "along", "batch_sizes", "heat_map",
                      "abilities", "training", "optimiser_steps"}  # fmt: skip
    assert not list(scores.composite(here))


def test_another_grids_rows_are_not_drawn(rich: Lake) -> None:
    here = subject(rich)
    assert here.ask("SELECT count(*) AS n FROM cells WHERE {here}")["n"][0] == 9
    assert "other grid" not in here.where


def test_radar_axes_are_the_numbers(rich: Lake) -> None:
    here = subject(rich)
    shapes = radar.shapes_of(here.done, along.downstream_rows(here), costs.costs(here))
    shape = shapes["rledit"][4, 10]
    (row,) = here.done.query("label == 'rledit' and n_batches == 4").to_dict("records")
    assert shape["Eff"] == row["efficacy"] and shape["Spe"] == row["specificity"]
    assert shape["ability"] == pytest.approx((90 * 0.7 + 28 * 1.5) / 2)
    # Set-up counts: 52 s of training over 40 edits, where fine-tuning needs none.
    assert shapes["ft"][4, 10]["speed"] == pytest.approx(100)
    assert shape["speed"] == pytest.approx(100 * 0.007 / (0.0017 + 52 / 40))
    assert "unedited" not in shapes


def test_a_radar_has_the_lengths_that_a_longer_stream_was_scored_for(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    result = measured(cell(editor="ft", checkpoints=2))
    identity = {**result.identity, "also_after": [2]}
    lake.commit(dataclasses.replace(result, identity=identity))
    here = subject(lake)
    shapes = radar.shapes_of(here.done, along.downstream_rows(here))["ft"]
    assert set(shapes) == {(2, 10), (4, 10)}
    assert shapes[4, 10]["ability"] == pytest.approx((90 * 0.7 + 28 * 1.5) / 2)
    assert shapes[2, 10]["ability"] == pytest.approx((90 * 0.85 + 28 * 1.25) / 2)
    half = next(s for s in result.scores if s["n_edits"] == 20 and s["protocol"] == PROTOCOL)
    assert shapes[2, 10]["Eff"] == half["efficacy"]


def test_abilities_are_drawn_per_task_from_the_unedited_model_on(rich: Lake) -> None:
    here = subject(rich)
    ability, text = list(along.downstream(here))
    assert "SST" in words(ability.svg) and "RTE" in words(ability.svg)
    assert "perplexity" in words(text.svg) and "fluency" in words(text.svg)
    assert set(along.downstream_rows(here)["step"]) == {0, 20, 40}


def test_an_ablation_states_the_difference_to_the_whole(rich: Lake) -> None:
    here = subject(rich)
    (picture,) = scores.ablation(here)
    rows = here.done.query("editor == 'rledit' and n_batches == 4")
    by = dict(zip(rows["variant"], rows["efficacy"], strict=True))
    shown = words(picture.svg)
    assert f"{by['']:.1f}" in shown
    assert f"({by['no backtracking'] - by['']:+.1f})" in shown


def test_where_the_first_variant_has_not_run_no_difference_is_stated(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for variant, n_batches in (("", 4), ("a", 4), ("a", 8), ("b", 8)):
        lake.commit(cell(variant=variant, n_batches=n_batches))
    (picture,) = scores.ablation(subject(lake))
    shown = words(picture.svg)
    assert "nan" not in shown and shown.count("(+0.0)") == 3  # of Eff, Gen and Spe on one stream


def test_the_composite_is_the_papers_formula(rich: Lake) -> None:
    """(Eff + Gen + 0.5 Spe) / 2.5 over all datasets; who misses one is left out."""
    rows = subject(rich, None).done.query("n_batches == 4 and batch_size == 10")
    found = scores.composite_scores(rows)
    own = rows.query("label == 'rledit'").to_dict("records")
    assert len(own) == 2
    expected = sum(
        (r["efficacy"] + r["generalization"] + 0.5 * r["specificity"]) / 2.5 for r in own
    )
    assert found["rledit"] == (pytest.approx(expected / 2), 0.0)
    assert "rledit (no backtracking)" not in found


def test_a_score_that_no_cell_has_is_left_out(rich: Lake) -> None:
    """Data without rephrasings: nothing generalises, and no composite can be made."""
    here = subject(rich, None)
    rows = [row | {"generalization": None} for row in here.rows.to_dict("records")]
    here = dataclasses.replace(here, rows=framed(rows))
    assert list(scores.composite(here)) == []
    (picture,) = along.batch_sizes(dataclasses.replace(here, rows=framed(
        [row for row in rows if row["dataset"] == "world"])))  # fmt: skip
    assert "Gen (%)" not in words(picture.svg) and "Eff (%)" in words(picture.svg)


def test_equal_streams_are_compared_by_batch_size(rich: Lake) -> None:
    (picture,) = along.batch_sizes(subject(rich))
    assert picture.title.startswith("40 edits")
    assert "peak memory (GB)" in words(picture.svg)


def test_time_keeps_set_up_apart(rich: Lake) -> None:
    (picture,) = costs.time_bars(subject(rich))
    shown = words(picture.svg)
    assert "set-up (s)" in shown and "52" in shown.split() and "none" in shown
    assert "editing (ms/edit)" in shown and "1.7" in shown.split()  # as in the table
    assert "unedited" not in shown


def with_moments(result: CellResult, seconds: float) -> CellResult:
    """The cell of a method for which key covariance were summed first."""
    moments = {"step": 0, "metric": "statistics_seconds", "value": seconds}
    return dataclasses.replace(result, steps=[*result.steps, moments])


def test_second_moments_are_set_up_in_plots_as_in_tables(tmp_path: Path) -> None:
    """Figure 4's table and its plot give the same seconds, of each method on its own."""
    lake = Lake(str(tmp_path / "lake"))
    where = {"grid": "fig4", "model": "Llama-3-8B", "dataset": "ZsRE", "scale": "proxy",
             "n_batches": 3, "batch_size": 20}  # fmt: skip
    lake.commit(with_moments(cell(editor="ft", cell_key="a", **where), 6.0))
    located = dataclasses.replace(
        cell(editor="ft", cell_key="b", **where),
        address=address(editor="memit", cell_key="b", **where),
    )
    lake.commit(with_moments(located, 12.0))
    lake.commit(cell(editor="rledit", cell_key="c", **where))
    connection = connect(lake)
    rows = framed(runs(connection, "fig4"))
    here = FigureData(connection=connection, grid="fig4", scale="proxy", model="Llama-3-8B",
                   dataset="ZsRE", protocol=PROTOCOL, rows=rows,
                   style=figures.styles(rows))  # fmt: skip
    plotted = {row["editor"]: row for row in costs.costs(here).to_dict("records")}
    assert plotted["memit"][costs.SETUP] == pytest.approx(12 / 60)
    assert plotted["rledit"][costs.SETUP] == pytest.approx(52 / 60)
    (block,) = paper_table(lake, "fig4").blocks
    for line in block.lines:
        row = plotted.get(str(line.method.editor))
        if row is not None and not line.method.variant:
            setup, editing = (figure.ours.mean for figure in line.figures)
            assert setup == pytest.approx(row[costs.SETUP])
            assert editing == pytest.approx(row[costs.EDITING])
    (bars,) = costs.time_bars(here)
    shown = words(bars.svg)
    assert "12" in shown.split() and "52" in shown.split() and "none" not in shown
    (spent,) = costs.total_time(here)
    assert "key covariance" in spent.text


def test_a_longer_streams_seconds_are_those_up_to_there(tmp_path: Path) -> None:
    """As the paper's tables count them: the whole set-up, over the shorter stream's edits."""
    lake = Lake(str(tmp_path / "lake"))
    result = with_moments(cell(editor="ft", checkpoints=2), 8.0)
    identity = {**result.identity, "also_after": [2]}
    lake.commit(dataclasses.replace(result, identity=identity))
    rows = costs.costs(subject(lake)).sort_values("n_batches")
    half, whole = rows.to_dict("records")
    assert (half["n_batches"], whole["n_batches"]) == (2, 4)
    first = [r["value"] for r in result.steps if r["metric"] == "edit_seconds" and r["step"] <= 20]
    assert half[costs.SETUP] == pytest.approx(8 / 20)
    assert half[costs.EDITING] == pytest.approx(sum(first) / 20)
    assert whole[costs.TOTAL] == pytest.approx((8 + result.edit_seconds) / 40)


def test_total_time_begins_with_set_up(tmp_path: Path) -> None:
    """RLEdit's line starts above its 52 seconds of training, fine-tuning's at its first edits."""
    captured: list[dict[str, Any]] = []

    class Spy(FigureData):
        def ask(self, sql: str) -> DataFrame:
            answer = super().ask(sql)
            captured.extend(answer.to_dict("records"))
            return answer

    located = cell(editor="ft", cell_key="located")
    own = address(editor="alphaedit", cell_key="located")
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(with_moments(dataclasses.replace(located, address=own), 30.0))
    for editor in ("ft", "rledit"):
        lake.commit(cell(editor=editor))
    here = subject(lake)
    spy = Spy(**{f.name: getattr(here, f.name) for f in dataclasses.fields(here)})
    assert len(list(costs.total_time(spy))) == 1
    first = {r["editor"]: r["total_seconds"] for r in reversed(captured) if r["n_batches"] == 4}
    assert 52 < first["rledit"] < 53 and first["ft"] < 1
    assert first["alphaedit"] > 30  # key covariance
    assert all(math.isfinite(r["edit_ms"]) and r["edit_ms"] > 0 for r in captured)


def test_the_heat_map_spans_positions_and_ages(rich: Lake) -> None:
    (picture,) = retention.heat_map(subject(rich))
    shown = words(picture.svg)
    assert "edit age (edits)" in shown and "efficacy (%)" in shown


def along_the_stream(lake: Lake, name: str, efficacy: tuple[float, ...], **changes: Any) -> None:
    """A cell of one editor with these efficacies along a stream of 40 edits, or of its part."""
    result = cell(editor=name, checkpoints=4, protocols=[PROTOCOL], **changes)
    points = [
        {**score, "efficacy": value, "specificity": 50.0}
        for score, value in zip(result.scores, efficacy, strict=False)
    ]
    if len(points) == 4:
        lake.commit(dataclasses.replace(result, scores=points))
    else:
        lake.record_failure(
            result.address, "NaN", identity={}, code_version="1", protocols=(PROTOCOL,),
            scores=points,
        )  # fmt: skip


def test_along_the_stream_are_finished_cells_and_the_largest_change(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    along_the_stream(lake, "ft", (60.0, 60.0, 59.0, 58.0))
    along_the_stream(lake, "ft", (20.0, 10.0), seed=1)  # failed half-way
    along_the_stream(lake, "rledit", (60.0, 61.0, 65.0, 70.0))
    (picture,) = along.scores(subject(lake))
    changes = "Eff changes most for rledit, from 60.0 % after 10 edits to 70.0 % after 40."
    assert picture.text.startswith(f"{changes} Spe stays at 50.0 %.")
