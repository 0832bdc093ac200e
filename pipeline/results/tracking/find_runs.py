"""Tracked runs by MLflow's filter strings, for Python: what is found, or what there is instead."""

from __future__ import annotations

from typing import Any

from mlflow.entities import Run

from pipeline.results.tracking.experiment import tracked
from pipeline.results.tracking.pages_server import chosen
from pipeline.results.tracking.store import explained, opened, search
from pipeline.results.tracking.uri import DEFAULT_URI, TrackingError
from pipeline.results.unknown_names import filter_names, unknown_line
from pipeline.storage.redaction import redact

Row = dict[str, Any]


def find_runs(
    grid: str, condition: str = "", *, order_by: str = "", tracking: str = DEFAULT_URI
) -> list[Row]:
    """The runs of a grid's cells that a filter string lets through, of whichever lakes.

    Args:
        grid: The grid.
        condition: MLflow's filter string, e.g. ``tags.editor = 'rledit'``; empty: every cell.
        order_by: A metric, parameter or tag, e.g. ``metrics.efficacy_token_accuracy DESC``.
        tracking: The tracking store.

    Returns:
        A dictionary for each run with `run_id`, `run_name`, `artifact_uri` and ``tags.…``,
        ``params.…`` and ``metrics.…`` as in `mlflow.search_runs`, which pandas makes a frame of.

    Raises:
        TrackingError: There is no such grid, the filter string is none, or it finds nothing and
            names a tag or parameter that no run has; the message says what there is.
    """
    found = chosen(tracking, tracked(tracking), grid)
    every = "tags.kind = 'cell'"
    with opened(tracking) as client, explained(tracking):
        wanted = " and ".join(filter(None, (every, condition)))
        order = [order_by] if order_by else []
        runs = [run for one in found for run in search(client, one.experiment_id, wanted, order)]
        if not runs:
            there = [run for one in found for run in search(client, one.experiment_id, every)]
            if said := _unknown(condition, there):
                raise TrackingError(f"{redact(tracking)}: {'; '.join(said)}")
    return [_row(run) for run in runs]


def _unknown(condition: str, there: list[Run]) -> list[str]:
    """Lines on the tags and parameters of a filter string that no run has."""
    lines = []
    for kind, key, text in filter_names(condition):
        values = [getattr(run.data, kind) for run in there]
        known = {one[key] for one in values if key in one}
        if not known:
            keys = sorted({name for one in values for name in one if "mlflow." not in name})
            lines.append(unknown_line(kind.rstrip("s"), key, keys))
        elif text not in known:
            lines.append(unknown_line(key, text, known))
    return lines


def _row(run: Run) -> Row:
    row: Row = {
        "run_id": run.info.run_id,
        "run_name": run.info.run_name,
        "artifact_uri": run.info.artifact_uri,
    }
    for kind in ("tags", "params", "metrics"):
        row |= {f"{kind}.{key}": value for key, value in getattr(run.data, kind).items()}
    return row
