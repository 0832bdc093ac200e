"""What MLflow's pages show around the numbers: descriptions, a saved view, where a run comes from.

The names of tags and the form of a saved view are those of MLflow 3.17's own pages.
"""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.results.lake.records import SCORES, CellResult
from pipeline.results.tracking.answers_table import rows_of
from pipeline.results.tracking.uri import runs_page

KIND = "mlflow.experimentKind"
TRAINING = "custom_model_development"  # opens as model training, not as GenAI
NOTE = "mlflow.note.content"
USER = "mlflow.user"
COMMIT = "mlflow.source.git.commit"
COMPARISON = "rleditcompare"
COMPARE = f"&viewStateShareKey={COMPARISON}&compareRunsMode=CHART"
VIEW = f"mlflow.sharedViewState.{COMPARISON}"
_ROOT = Path(__file__).parents[3]
_VIEW_SINCE = 1767225600000  # a fixed moment in ms: the same view is written by every run


def experiment_tags(grid: str, experiment_id: str) -> dict[str, str]:
    """Tags of an experiment, but for those that say whose it is."""
    link = f"#{runs_page(experiment_id, COMPARE)}"
    note = (
        f"Cells of the grid **{grid}**: a run is one method on one model, data set, stream and "
        f"seed.\n\n**[Compare editors]({link})** shows their scores side by "
        "side (also under *Views* above the list of runs). To average seeds, choose *Group by* → "
        f"`editor`. In a terminal: `rledit table {grid}`, `rledit answers {grid}`."
    )
    return {KIND: TRAINING, NOTE: note, VIEW: _saved_view(), "grid": grid}


def _saved_view() -> str:
    """The view "Compare editors": bars of scores and costs, efficacy against specificity."""

    def chart(kind: str, name: str, section: str, **more: Any) -> dict[str, Any]:
        common = {"type": kind, "uuid": name, "metricSectionId": section, "deleted": False}
        return {**common, "isGenerated": False, "runsCountToCompare": 20, **more}

    def axis(name: str) -> dict[str, str]:
        return {"key": f"{name}_token_accuracy", "type": "METRIC"}

    scores = SCORES[:3]
    charts = [
        *(
            chart("BAR", f"bar-{name}", "scores", metricKey=f"{name}_token_accuracy")
            for name in scores
        ),
        chart("SCATTER", "trade", "scores", xaxis=axis("specificity"), yaxis=axis("efficacy")),
        *(
            chart("BAR", f"bar-{name}", "costs", metricKey=name)
            for name in ("edit_ms", "train_seconds", "peak_memory_gb")
        ),
        chart(
            "LINE", "retention", "stream", metricKey="retention_token_accuracy",
            selectedMetricKeys=["retention_token_accuracy"], xAxisKey="step",
        ),
    ]  # fmt: skip
    sections = [
        {"uuid": name, "name": title, "display": True, "isReordered": True}
        for name, title in (
            ("scores", "Scores at the end of the stream (%)"),
            ("costs", "Costs"),
            ("stream", "Retention: efficacy at the end, by edits applied since"),
        )
    ]
    state = {
        "searchFilter": "tags.kind = 'cell' and tags.status = 'done'",
        "orderByKey": f"metrics.`{scores[0]}_token_accuracy`",
        "orderByAsc": False,
        "selectedColumns": [f"metrics.`{name}_token_accuracy`" for name in scores],
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
    }
    view = {"name": "Compare editors", "createdAt": _VIEW_SINCE, "updatedAt": _VIEW_SINCE}
    return json.dumps({**view, "state": json.dumps(state)})


def cell_note(result: CellResult) -> str:
    """A cell's description in Markdown: what it is, its final scores, its costs."""
    a = result.address
    editor = f"{a.editor} ({a.variant})" if a.variant else a.editor
    lines = [
        f"**{editor}** on **{a.model}**, {a.dataset}: {a.n_batches} batches of {a.batch_size} "
        f"edits, seed {a.seed} (grid {a.grid})"
    ]
    if result.reason:
        lines += ["", f"{result.status}: {result.reason}"]
    final = [row for row in rows_of(result.scores) if row["final"]]
    if final:
        lines += ["", "| protocol | Eff | Gen | Spe | Spe (self) |", "|---|---:|---:|---:|---:|"]
        lines += [
            f"| {row['protocol']} | " + " | ".join(_shown(row.get(s)) for s in SCORES) + " |"
            for row in final
        ]
    costs = [
        f"{value:.4g} {unit}"
        for value, unit in (
            (result.train_seconds, "s training"),
            (result.edit_ms, "ms per edit"),
            (result.peak_memory_gb, "GB peak"),
        )
        if value is not None
    ]
    if costs:
        lines += ["", ", ".join(costs)]
    if not result.reason:
        lines += ["", f"The edited model: `rledit export {a.cell_key} FOLDER`"]
    return "\n".join(lines)


def _shown(score: float | None) -> str:
    return "–" if score is None else f"{score:.1f}"


def source_tags() -> dict[str, str]:
    """Who runs this, by which program, and of which commit, as MLflow's pages name it."""
    program = Path(sys.argv[0]).name
    name = "rledit" if program in ("", "-c", "__main__.py") else program
    tags = {"mlflow.source.name": name, "mlflow.source.type": "LOCAL"}
    if user := _user():
        tags[USER] = user
    if commit := _commit():
        tags[COMMIT] = commit
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        return ""


@cache
def _commit() -> str:
    """The commit of the checkout that this code is in; empty for an installed package."""
    if not (_ROOT / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), "rev-parse", "HEAD"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def dataset_of(result: CellResult) -> Mapping[str, str] | None:
    """The data a cell edited with, as an input of its run; None where its hash is unknown.

    Returns:
        name, digest (the first 36 digits of the hash, which is all that MLflow keeps), source_type
        and source as JSON.
    """
    if not result.data_hash:
        return None
    a, resolved = result.address, result.resolved
    if resolved.get("real_facts"):
        origin = "facts that ship with rledit"
    elif resolved.get("scale") == "world" or a.dataset == "world":
        origin = "synthetic world of rledit"
    else:
        origin = "files of the grid"
    source = {"dataset": a.dataset, "origin": origin, "sha256": result.data_hash}
    return {
        "name": a.dataset,
        "digest": result.data_hash[:36],
        "source_type": "rledit",
        "source": json.dumps(source, sort_keys=True),
    }
