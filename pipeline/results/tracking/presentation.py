"""Writes descriptions and source tags of MLflow runs, for those who read them on its pages."""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pipeline.results.lake.records import SCORES, CellResult
from pipeline.results.tracking.answers_table import rows_of
from pipeline.results.tracking.saved_views import COMPARISON, TABLE
from pipeline.results.tracking.uri import runs_page

KIND = "mlflow.experimentKind"
TRAINING = "custom_model_development"  # where pages go by the experiment: 3.17 goes by the link
NOTE = "mlflow.note.content"
USER = "mlflow.user"
COLOUR = "mlflow.runColor"
COMMIT = "mlflow.source.git.commit"
_ROOT = Path(__file__).parents[3]


def experiment_tags(grid: str, experiment_id: str) -> dict[str, str]:
    """Tags of an experiment, but for those that say whose it is."""
    table, charts = (f"#{runs_page(experiment_id, view)}" for view in (TABLE, COMPARISON))
    note = (
        f"Cells of the grid {grid}: **[Scores]({table})**, **[Compare editors]({charts})**.\n\n"
        "A run is one method on one model, data set, stream and seed. To average seeds, choose "
        f"*Group by* → `editor`. In a terminal: `rledit table {grid}`, `rledit answers {grid}`."
    )
    return {KIND: TRAINING, NOTE: note, "grid": grid}


def colour_of(editor: str) -> str:
    """The colour of a method's runs in charts and lists: that of the report's figures."""
    from pipeline.results.figures.style import colour_of_editor  # matplotlib: slow to import

    return colour_of_editor(editor)


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
