"""A published table end to end with proxy models: run, printed beside the paper's, and checked."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from pipeline.paper.references import rows
from pipeline.results.lake.lake import Lake
from pipeline.results.query import connect, runs
from tests.cluster.conftest import rledit

pytestmark = pytest.mark.cluster

GRID = Path(__file__).parents[2] / "jobs" / "grids" / "table2.yaml"
OWN_ROW = "RLEdit, paper's recipe"  # beside the release's, which the figures are compared with
# One model and five methods: one of every kind of work.
SMALLER = (
    "--set", "models=[{name: Llama-3-8B, preset: llama-3-8b-instruct}]",
    "--set", "editors=[{editor: none}, {editor: ft}, {editor: memit}, {editor: rledit}]",
    "--set", "statistics={documents: 100, shards: 1}",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    done = rledit(
        "run", GRID, "--scale", "standin", "--limit", "1", *SMALLER, "--results", folder
    )  # fmt: skip
    assert "## Table 2: main comparison" in done.stdout
    return folder


def test_every_cell_has_its_figure_the_papers_and_a_verdict(results: Path) -> None:
    text = rledit("table", "table2", "--results", results, "--format", "csv").stdout
    lines = list(csv.DictReader(io.StringIO(text)))
    there = {
        (r["model"], r["dataset"], r["method"], r["metric"])
        for r in rows()
        if (r["paper"], r["table"]) == ("RLEdit", "Table 2") and r["value"]
    }
    scores = [line for line in lines if line["metric"] != "seconds_per_edit"]
    short = {"efficacy": "Eff", "generalization": "Gen", "specificity": "Spe"}
    named = {
        (line["models"], line["datasets"], line["method"].rstrip("†"), short[line["metric"]]): line
        for line in scores
        if line["method"] not in ("Pre-edited", OWN_ROW)
    }
    assert {place for place in there if place[3] in short.values()} == set(named)
    for editor, dataset, kind in (
        ("rledit", "ZsRE", "proxy; stream 1×10 instead of 400×20"),
        ("ft", "FEVER", "proxy; stream 1×10 instead of 400×20"),
        ("memit", "FEVER", "skipped: memit looks up subjects, and FEVER gives none"),
        ("rome", "ZsRE", "not run"),
    ):
        found = [
            line
            for line in scores
            if (line["editor"], line["datasets"], line["models"]) == (editor, dataset, "Llama-3-8B")
            and line["method"] != OWN_ROW
        ]
        assert [line["verdict"] for line in found] == ["not comparable"] * 3
        assert {line["reason"] for line in found} == {kind}
        assert all(line["protocol"] == "token_accuracy" and line["paper"] for line in found)
    dafnet = [line for line in lines if line["method"].rstrip("†") == "DAFNet"]
    assert dafnet
    assert {line["verdict"] for line in dafnet} == {"not comparable"}


def test_a_proxy_table_shows_edited_models(results: Path) -> None:
    lake = connect(Lake(str(results / "lake")))
    eff = {
        row["editor"]: row["efficacy"]
        for row in runs(lake, "table2")
        if (row["dataset"], row["protocol"]) == ("ZsRE", "token_accuracy")
    }
    assert eff["rledit"] >= eff["none"] + 20


def test_check_says_that_nothing_was_comparable(results: Path) -> None:
    assert rledit("table", "table2", "--results", results, "--check", check=False).returncode == 2
    shown = " ".join(rledit("table", "table2", "--results", results).stdout.split())
    assert "### Llama-3-8B proxy, 0." in shown
    assert "#### ZsRE · 400×20; read here: 1×10" in shown
    assert "over the baselines: ours, not comparable (proxy; stream 1×10 instead of" in shown
    assert "the paper's over all +66.22 points" in shown
    assert "Figures of proxy models show that the grid runs" in shown


def test_running_again_computes_nothing(results: Path) -> None:
    plan = rledit(
        "plan", GRID, "--scale", "standin", "--limit", "1", *SMALLER, "--results", results
    ).stdout  # fmt: skip
    assert "done" in plan
    assert "rledit/1x10" in plan
