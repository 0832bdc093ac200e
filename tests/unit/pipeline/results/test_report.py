"""The report: one file that needs no other, and says what the lake says."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

import pytest
from pandas import DataFrame

from pipeline.results import figures
from pipeline.results.lake.lake import Lake
from pipeline.results.query import Connection, query, runs
from pipeline.results.rendering import render_table
from pipeline.results.report import (
    FigureSection,
    ReportError,
    _write_figures,
    summaries,
    write_report,
)
from pipeline.results.tables import Column, build_table
from pipeline.storage.object_store import Storage
from tests.unit.helpers.browser import look_at
from tests.unit.helpers.lake_fixtures import address, cell, demo_cells
from tests.unit.helpers.pictures import texts

SHORT = {"efficacy": "eff", "generalization": "gen", "specificity": "spe",
         "specificity_self": "spe_self"}  # fmt: skip
REASON = "CUDA out of memory <script>alert(1)</script>"


class Page(HTMLParser):
    """Collects what a browser would fetch, and what it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.shown: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v or "" for name, v in attrs if name in ("src", "href", "data", "srcset")]

    def handle_data(self, data: str) -> None:
        self.shown.append(data)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(str(tmp_path_factory.mktemp("report") / "lake"))
    for result in demo_cells(seeds=2, streams=(4, 8), checkpoints=4):
        lake.commit(result)
    lake.record_failure(address(editor="ft", variant="big"), REASON, identity={}, code_version="1")
    return lake


@pytest.fixture(scope="module")
def page(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out") / "below" / "demo.html"
    assert write_report(lake, "demo", out) == str(out)
    return out.read_text()


def test_the_file_needs_no_other(page: str) -> None:
    parsed = Page(page)
    # Links to papers are followed by a click only.
    papers = [uri for uri in parsed.fetched if uri.startswith("https://arxiv.org/abs/")]
    assert papers and all(
        uri.startswith(("#", "data:image/png;")) for uri in parsed.fetched if uri not in papers
    )
    assert page.count('href="https://') == len(papers) == page.count('<a href="https://')
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert not re.search(r"url\((?!#)|@import", page)
    assert 'name="viewport"' in page


def test_it_shows_what_the_lake_says(page: str, lake: Lake) -> None:
    assert render_table(build_table(runs(lake, "demo")), "html", long=True).strip() in page
    shown = " ".join(Page(page).shown)
    for expected in (REASON, "0.1.0+abc1234", "world " + "d" * 12, "torch 2.13.0", "0, 1",
                     "4×10, 8×10", "28 done", "1 failed", "teacher-forced; share of answer tokens",
                     "rledit query"):  # fmt: skip
        assert expected in shown, expected
    settings = json.dumps(cell().resolved, indent=1, sort_keys=True)
    assert settings in shown


def test_it_answers_in_order(page: str) -> None:
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == [
        "What was asked", "What came out", "What it cost", "How it went along the stream",
        "How to ask more", "How it was run",
    ]  # fmt: skip
    assert "What do 8 methods make of tiny-llama when 40 edits in 4 batches of 10, 80 edits in 8 " \
        "batches of 10, drawn from world, are written into it" in page  # fmt: skip


def test_the_finding_is_the_tables(page: str, lake: Lake) -> None:
    (said,) = re.findall(r'<ul class="findings"><li>(.*?)</li></ul>', page)
    table = build_table([row for row in runs(lake, "demo") if row["n_batches"] == 8],
                        protocols=["token_accuracy"])  # fmt: skip
    (panel,) = table.panels
    means = {
        line.label: mean
        for line in table.lines
        if (mean := panel.value(line, Column(stream=(8, 10), metric="mean")).mean) is not None
    }
    bare = means.pop("unedited")
    first, second = sorted(means, key=lambda name: -means[name])[:2]
    lead = means[first] - means[second]
    assert said.startswith("world on tiny-llama after 80 edits (8×10), by token_accuracy: "
                           f"{first} has the best mean, {means[first]:.1f} (")  # fmt: skip
    assert f", {lead:.1f} points above {second}; " in said
    assert said.endswith(f"The unedited model&#39;s mean is {bare:.1f}.")


def test_the_finding_ranks_what_the_table_ranks(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for editor, seeds in (("rledit", (0, 1)), ("malmen", (0, 1)), ("ft", (0,))):
        for seed in seeds:
            lake.commit(cell(editor=editor, seed=seed))
    (said,) = summaries(runs(lake, "demo"), {})
    assert ": rledit has the best mean, " in said and "points above malmen" in said
    assert said.endswith(" Not ranked, for other seeds, data or settings, or a remark: ft.")


def test_one_table_and_one_frontier_come_first(page: str) -> None:
    (out,) = re.findall(r'<h2 id="results">.*?<details>', page, re.S)
    assert out.count("<table>") == 1 and ">Mean</th>" in out
    assert out.count("What an edit costs the rest of the model") == 1
    for name in ("unedited", "rledit", "ultraedit"):
        assert f">{name}</text>" in out
    assert '<a href="https://arxiv.org/abs/2502.05759">rledit</a>' in out


@pytest.mark.long
def test_at_both_widths_nothing_scrolls_sideways_and_no_label_lies_on_another(
    page: str, tmp_path: Path
) -> None:
    for width in (1400, 390):
        seen = look_at(page, width, tmp_path)
        assert seen.texts > 100 and width - 20 <= seen.width <= width
        assert seen.scroll == seen.width
        assert (seen.overlaps, seen.cut, seen.small) == ([], [], [])


@pytest.mark.long
def test_it_is_dark_where_the_reader_is(page: str, tmp_path: Path) -> None:
    light, dark = (look_at(page, 1400, tmp_path, dark=dark) for dark in (False, True))
    assert not light.dark and dark.dark
    assert sum(map(int, re.findall(r"\d+", light.background))) > 700
    assert sum(map(int, re.findall(r"\d+", dark.background))) < 100
    assert sum(map(int, re.findall(r"\d+", dark.ink))) > 600
    (around,) = re.findall(r"<figure>.*</figure>", page, re.S)
    assert not re.findall("#[0-9a-f]{6}", around.lower().replace("#8a8a8a", ""))


def test_a_label_on_another_is_noticed(tmp_path: Path) -> None:
    """What the look at a page finds on one that is wrong in every way."""
    svg = "<svg width='80' height='20'><text x='0' y='15'>one</text>{}</svg>"
    words = "<text x='3' y='15'>two</text><text x='70' y='15'>three</text>"
    page = f"<!doctype html><p style='width: 700px'>wide</p><figure>{svg.format(words)}</figure>"
    seen = look_at(page, 390, tmp_path)
    assert seen.scroll > seen.width
    assert seen.overlaps == ["one / two"] and seen.cut == ["three"]


def drawn_from(rows: DataFrame) -> figures.FigureData:
    """What figures get that need no lake beside its rows."""
    return figures.FigureData(
        connection=cast(Connection, None), grid="demo", scale="world", model="tiny-llama",
        dataset="world", protocol="exact_match", rows=rows, style=figures.styles(rows),
    )  # fmt: skip


@pytest.mark.long
def test_pictures_are_whole_and_repeatable(page: str, lake: Lake) -> None:
    found = re.findall(r"<svg .*?</svg>", page, re.S)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(found) > 20 and len(set(ids)) == len(ids)
    for svg in found:
        root = ElementTree.fromstring(svg)
        inside = {element.get("id") for element in root.iter()}
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= inside
    rows = figures.framed([r for r in runs(lake, "demo") if r["protocol"] == "exact_match"])
    data = drawn_from(rows)
    assert [*figures.scores.frontier(data)] == [*figures.scores.frontier(data)]


def test_every_editor_has_a_look_of_its_own() -> None:
    rows = [{"editor": f"e{i:02}", "variant": v} for i in range(10) for v in ("", "x")]
    look = figures.styles(figures.framed([*rows, {"editor": "none", "variant": ""}]))
    assert len(look) == 21 and len(set(look.values())) == 21


def test_figures_accept_failures_and_missing_costs() -> None:
    row = {"editor": "none", "variant": "", "n_batches": 4, "batch_size": 10, "status": "done",
           "efficacy": None, "generalization": None, "specificity": None,
           figures.costs.SETUP: None, figures.costs.EDITING: None}  # fmt: skip
    rows = figures.framed([row, row | {"editor": "ft", "status": "failed"}])
    data = drawn_from(rows)
    assert list(figures.scores.frontier(data)) == []
    assert figures.costs.draw_times(rows, data.style).startswith(b"<?xml")


def test_a_grid_with_failures_only_still_has_a_report(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.record_failure(address(), REASON, identity={}, code_version="1")
    write_report(lake, "demo", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "no cell finished" in text and "CUDA out of memory" in text


@pytest.mark.long
def test_each_dataset_is_drawn_by_the_protocol_of_its_table(tmp_path: Path) -> None:
    """Figures of a paper's table show what the table shows, and every title says what that is."""
    lake = Lake(str(tmp_path / "lake"))
    protocols = ("token_accuracy", "choice_official", "choice")
    for dataset in ("CounterFact", "ZsRE"):
        for editor in ("none", "mend", "malmen"):
            where = {"grid": "fig6", "model": "Llama-3-8B", "dataset": dataset, "n_batches": 20,
                     "batch_size": 2, "scale": "proxy"}  # fmt: skip
            lake.commit(cell(editor=editor, protocols=protocols, checkpoints=1,
                             cell_key=f"{editor}-{dataset}", **where))  # fmt: skip
    rows = {(r["editor"], r["dataset"], r["protocol"]): r for r in runs(lake, "fig6")}
    shown = {"CounterFact": "choice_official", "ZsRE": "token_accuracy"}
    write_report(lake, "fig6", tmp_path / "r.html", protocols=shown,
                 figures_folder=tmp_path / "figures")  # fmt: skip
    text = (tmp_path / "r.html").read_text()
    for title in ("CounterFact on Llama-3-8B proxy (choice_official)",
                  "ZsRE on Llama-3-8B proxy (token_accuracy)",
                  "all datasets on Llama-3-8B proxy (choice_official on CounterFact, "
                  "token_accuracy on ZsRE)"):  # fmt: skip
        assert title in text
    assert "after 40 edits (20×2), by choice_official: " in text
    parts = [rows["mend", dataset, protocol] for dataset, protocol in shown.items()]
    expected = sum(
        (r["efficacy"] + r["generalization"] + r["specificity"] / 2) / 2.5 for r in parts
    )
    (picture,) = (tmp_path / "figures").glob("all-datasets*")
    assert f"{expected / 2:.1f}" in texts(picture.read_bytes())


@pytest.mark.long
def test_a_dataset_without_scores_by_the_tables_protocol_shows_the_first(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(cell(editor="ft"))
    write_report(lake, "demo", tmp_path / "r.html", protocols={"world": "choice"})
    assert (
        "world on tiny-llama after 40 edits (4×10), by token_accuracy: "
        in (tmp_path / "r.html").read_text()
    )


def test_every_figure_has_a_file_of_its_own(tmp_path: Path) -> None:
    picture = figures.Picture(title="Scores along the stream", text="", svg=b"<svg/>")
    subjects = ("zsre", "a_b", "a-b", "知识", "事实", "d" * 300)
    sections = [
        FigureSection(title=f"{subject} on m", pictures={"along": [picture]})
        for subject in subjects
    ]
    _write_figures(sections, Storage(str(tmp_path)))
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == len(subjects) and "zsre-on-m-scores-along-the-stream.svg" in names


def test_no_curves_no_picture(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(cell(editor="none"))
    write_report(lake, "demo", tmp_path / "r.html")
    assert "What is written into the weights" not in (tmp_path / "r.html").read_text()


def test_an_unknown_grid_names_the_known(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"'dmo'.*Did you mean 'demo'"):
        write_report(lake, "dmo", tmp_path / "r.html")
    with pytest.raises(ReportError, match="is a folder"):
        write_report(lake, "demo", f"{tmp_path}/")


def test_the_queries_it_hands_out_give_the_figures_of_its_table(page: str, lake: Lake) -> None:
    """As they stand in the page, asked of the lake: every mean of the table, and no other."""
    (block,) = re.findall(r"<pre>(rledit table .*?)</pre>", page, re.S)
    told = html.unescape(block)
    asked = re.findall(r'rledit query --lake \S+ "(.*?)"', told)
    assert len(asked) == 4 == told.count("rledit query")
    filtered, *asked = asked
    assert "protocol = 'token_accuracy' AND n_batches = 8 AND batch_size = 10" in filtered
    (panel,) = build_table(runs(lake, "demo"), protocols=["token_accuracy"]).panels
    of = {r["editor"] + r["variant"]: r for r in query(filtered, lake).dicts()}
    for line in {line for line, column in panel.values if column.stream == (8, 10)}:
        for metric, short in (SHORT | {"mean": "mean"}).items():
            mean = panel.value(line, Column(stream=(8, 10), metric=metric)).mean
            if mean is not None and short != "spe_self":
                row = of[line.editor + line.variant]
                assert row[short] == pytest.approx(mean, abs=0.0501), (line, metric)
    table = build_table(runs(lake, "demo"))
    shown = {}
    for panel in table.panels:
        for line in table.lines:
            for column in panel.columns:
                mean = panel.value(line, column).mean
                if column.metric in SHORT and mean is not None:
                    place = (panel.protocol, line.editor, line.variant, column.stream)
                    shown[*place, SHORT[column.metric]] = round(mean, 9)
    answered = {
        (r["protocol"], r["editor"], r["variant"], (r["n_batches"], r["batch_size"]), short): round(
            r[short], 9
        )
        for r in query(asked[0], lake).dicts()
        for short in SHORT.values()
    }
    assert answered == shown and len(shown) == 7 * 2 * 2 * 4

    edits = query(asked[1], lake).dicts()
    (cell_key,) = re.findall(r"cell = '(.*?)'", asked[1])
    (own,) = [
        row
        for row in runs(lake, "demo")
        if row["cell"] == cell_key and f"protocol = '{row['protocol']}'" in asked[1]
    ]
    assert own["n_batches"] == 8 and len(edits) == own["n_edits"] - 1  # one is superseded
    mean = sum(edit["efficacy"] for edit in edits) / len(edits)
    assert mean == pytest.approx(own["efficacy"])
    metrics = {row["metric"] for row in query(asked[2], lake).dicts()}
    assert "shift_norm" in metrics and f"cell = '{cell_key}'" in asked[2]
