"""The pipeline as a user meets it: run, re-run, compare, query, interrupt."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import mlflow
import pytest
import yaml

from pipeline.results.lake.lake import Lake
from tests.cluster.conftest import GRID, TIMEOUT_SECONDS, rledit

pytestmark = pytest.mark.cluster

Figure = tuple[str, str, str, str]


@dataclass(frozen=True)
class Again:
    """A second run beside the first, with its cache.

    Attributes:
        results: Its results folder.
        said: What it wrote to the standard error stream.
    """

    results: Path
    said: str


@pytest.fixture(scope="module")
def again(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Again:
    """Scored at fewer points, with a cell that fails, and says why: official moments are undefined
    for one-row loss groups."""
    results = tmp_path_factory.mktemp("again")
    undefined = {"reference": "official", "loss_group": 1, "step": 1e-3}
    failing = {"editor": "ultraedit", "variant": "undefined", "settings": undefined}
    editors = [*yaml.safe_load(GRID.read_text())["editors"], failing]
    done = rledit(
        *("run", GRID, "--results", results, "--cache", finished / "cache"),
        *("--set", f"editors={json.dumps(editors)}", "--set", "checkpoints=1"),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "failed" in done.stdout
    return Again(results, done.stderr)


def table_figures(results: Path) -> dict[Figure, float]:
    """What `rledit table` says: (editor, stream, protocol, metric) → mean."""
    text = rledit("table", "tiny", "--results", results, "--format", "csv").stdout
    return {
        (row["editor"], row["n_batches"], row["protocol"], row["metric"]): float(row["mean"])
        for row in csv.DictReader(io.StringIO(text))
        if row["mean"]
    }


def finish_times(results: Path) -> dict[str, object]:
    lake = Lake(str(results / "lake"))
    return {r.address.cell_key: r.values["finished_at"] for r in lake.manifest() if r.done}


def test_every_cell_is_done_and_the_report_is_written(finished: Path) -> None:
    assert len(finish_times(finished)) == 4
    page = (finished / "tiny.html").read_text()
    assert "<html" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    figures = sorted(p.name for p in (finished / "tiny-figures").glob("*.svg"))
    assert len(figures) >= 5
    plan = rledit("plan", GRID, "--results", finished).stdout
    assert "4 cells, 0 to run" in plan


def test_running_again_computes_nothing(finished: Path) -> None:
    before = finish_times(finished)
    once_more = rledit("run", GRID, "--results", finished)
    assert finish_times(finished) == before
    assert "| unedited" in once_more.stdout
    assert "4 cells, 0 to run, 4 done already" in once_more.stderr
    # Where all lies is said at the end, the cells to export with it; whoever looks sees it is over.
    assert f"rledit export CELL FOLDER --results {finished}" in once_more.stderr
    records = Lake(str(finished / "lake")).manifest()
    edited = {r.address.cell_key for r in records if r.address.editor != "none"}
    assert len(edited) == 3 and all(f"  {key}  tiny/" in once_more.stderr for key in edited)
    status = rledit("status", "tiny", "--results", finished).stdout
    assert "\n  finished at " in status and "  4 cells: 4 done (4 before this run)" in status


def test_a_run_that_takes_models_and_networks_from_the_cache_says_so(again: Again) -> None:
    said = again.said
    assert "to do: 1 model to have ready, 2 networks to train, 5 cells to edit and score" in said
    assert "estimated: about " in said and " by the plan" in said
    assert "model llama-tiny: there already" in said
    assert "train rledit 3x4 seed 0: taken from the cache" in said
    assert "edit rledit 3x4 seed 0: done" in said


def test_one_worker_and_two_agree_bit_by_bit(finished: Path, tmp_path: Path) -> None:
    rledit("run", GRID, "--results", tmp_path, "--workers", "1")
    compared = rledit("diff", finished / "lake", tmp_path / "lake")
    assert "bitwise" in compared.stdout
    assert compared.stdout.rstrip().endswith("equal")


def test_diff_sees_a_difference(finished: Path, again: Again) -> None:
    compared = rledit("diff", finished / "lake", again.results / "lake", check=False)
    assert compared.returncode == 1
    assert "different" in compared.stdout


def test_the_table_can_be_rebuilt_from_mlflow_alone(finished: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{finished / 'mlflow.db'}")
    frame = mlflow.search_runs(experiment_names=["tiny"], filter_string="tags.kind = 'cell'")
    assert len(frame) == 4
    rebuilt: dict[Figure, float] = {}
    for _, run in frame.iterrows():
        for protocol in ("token_accuracy", "exact_match"):
            for metric in ("efficacy", "generalization", "specificity", "specificity_self"):
                place = (run["tags.editor"], run["params.n_batches"], protocol, metric)
                rebuilt[place] = run[f"metrics.{metric}_{protocol}"]
            for metric in ("edit_ms", "train_seconds"):
                place = (run["tags.editor"], run["params.n_batches"], protocol, metric)
                rebuilt[place] = run[f"metrics.{metric}"]
    assert rebuilt == pytest.approx(table_figures(finished), abs=1e-9)


def test_the_table_can_be_rebuilt_from_parquet_with_plain_duckdb(finished: Path) -> None:
    lake = finished / "lake"
    rows = duckdb.sql(
        f"""
        SELECT s.editor, s.n_batches, s.protocol, s.efficacy, s.generalization, s.specificity,
               s.specificity_self, c.edit_ms, c.train_seconds
        FROM read_parquet('{lake}/scores/**/*.parquet', hive_partitioning=true) s
        JOIN read_parquet('{lake}/cells/**/*.parquet', hive_partitioning=true) c
        USING (cell_key) WHERE s.final AND c.status = 'done' AND s.grid = 'tiny'
        """
    )
    names = rows.columns[3:]
    rebuilt = {
        (row[0], str(row[1]), row[2], name): value
        for row in rows.fetchall()
        for name, value in zip(names, row[3:], strict=True)
    }
    assert rebuilt == pytest.approx(table_figures(finished), abs=1e-9)


def test_queries_answer_in_three_formats(finished: Path) -> None:
    sql = "SELECT editor, count(*) AS n FROM runs WHERE final GROUP BY editor ORDER BY editor"
    for form, sign in (("table", "(4 rows)"), ("csv", "editor,n"), ("json", '"editor"')):
        assert sign in rledit("query", sql, "--results", finished, "--format", form).stdout
    wrong = rledit("query", "SELECT nothing FROM runs", "--results", finished, check=False)
    assert wrong.returncode == 2
    assert "Views and their columns" in wrong.stderr


def test_a_path_with_other_settings_stops_and_names_the_field(finished: Path) -> None:
    change = ["--set", "editors.ultraedit.settings.step=0.002"]
    stopped = rledit("plan", GRID, "--results", finished, *change, check=False)
    assert stopped.returncode == 2
    assert "settings.step: 0.001 → 0.002" in stopped.stderr
    assert "1 to run" in rledit("plan", GRID, "--results", finished, *change, "--replace").stdout


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_equal(finished: Path, tmp_path: Path) -> None:
    """The driver is killed as soon as the first cell is in the lake."""
    command = [sys.executable, "-m", "pipeline.cli", "run", str(GRID), "--results", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while not finish_times(tmp_path) and time.monotonic() < deadline:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < len(finish_times(tmp_path)) < 4
    status = rledit("status", "tiny", "--results", tmp_path).stdout
    assert "is gone without a word" in status and "running for" not in status
    assert f"go on with: {sys.executable} -m pipeline.cli run" in status
    rledit("run", GRID, "--results", tmp_path)
    assert rledit("diff", finished / "lake", tmp_path / "lake").returncode == 0
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    left = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    assert not left


def test_a_failing_cell_is_recorded_and_the_others_go_on(again: Again) -> None:
    sql = "SELECT editor, status, reason FROM cells"
    reasons = rledit("query", sql, "--results", again.results, "--format", "csv").stdout
    assert all(f"{editor},done" in reasons for editor in ("none", "ultraedit", "malmen", "rledit"))
    assert "official moments are undefined" in reasons
