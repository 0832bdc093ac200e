"""Tune every editor on the validation pool with the same number of trials, and record it all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.config.grid import Grid
from pipeline.config.parse import check_asked_for, parse_grid, read_grid
from pipeline.config.scale import scaled
from pipeline.config.stored_words import stored_settings
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import key_of
from pipeline.plan.grid_plan import code_lines, make_plan
from pipeline.plan.preflight import preflight, refusal_lines
from pipeline.plan.versions import code_version
from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from pipeline.run.driver import run_plan
from pipeline.storage.object_store import Storage
from pipeline.storage.run_paths import RunPaths

OBJECTIVE = ("efficacy", "generalization", "specificity")


@dataclass(frozen=True, kw_only=True)
class Search:
    """Candidates of every editor, and the grid they are tried on.

    Attributes:
        grid: The base grid; one stream, one seed, the validation pool.
        trials: Editor, or editor/variant → candidate settings, as many for each.
    """

    grid: Grid
    trials: Mapping[str, tuple[dict[str, Any], ...]]


def load_search(path: Path) -> Search:
    """Read a search file: a grid whose editors list `candidates` beside common `settings`.

    Raises:
        ConfigError: The editors do not have equal numbers of trials, or the grid does not tune on
            the validation pool.
    """
    located = read_grid(path)
    trials: dict[str, tuple[dict[str, Any], ...]] = {}
    entries: list[dict[str, Any]] = []
    for i, entry in enumerate(located.data.get("editors", [])):
        candidates = entry.pop("candidates", None)
        if not candidates:
            raise ConfigError(f"{located.place(('editors', i))}: a search needs `candidates`")
        common = stored_settings(entry.pop("settings", {}))
        own = (entry["editor"], entry.get("variant", ""))
        name = "/".join(part for part in own if part)
        if name in trials:
            raise ConfigError(
                f"{located.place(('editors', i))}: {name} is there before; give one of them a "
                "`variant` of its own"
            )
        trials[name] = tuple({**common, **stored_settings(c)} for c in candidates)
        for number, settings in enumerate(trials[name]):
            variant = _trial_name(own[1], number)
            entries.append({**entry, "variant": variant, "settings": settings})
    located.data["editors"] = entries
    located.data.setdefault("answers", {"sample": 0})  # trials are compared by their scores
    counts = {name: len(candidates) for name, candidates in trials.items()}
    if len(set(counts.values())) != 1:
        raise ConfigError(f"{path}: every editor gets the same number of trials, not {counts}")
    grid = scaled(parse_grid(located))
    check_asked_for(located, small=grid.scale != "full" and "scale" in located.data)
    if any(dataset.split != "validation" for dataset in grid.datasets):
        raise ConfigError(f"{path}: tuning draws its streams from `split: validation` only")
    if len(grid.streams) != 1 or len(grid.datasets) != 1 or len(grid.models) != 1:
        raise ConfigError(f"{path}: a search tunes on one model, one dataset and one stream")
    return Search(grid=grid, trials=trials)


def tune(
    search: Search,
    run_paths: RunPaths,
    console: Console,
    workers: int | None = None,
    replace: bool = False,
    rerun_other_code: bool = False,
) -> dict[str, Any]:
    """Run all trials and pick the best of each editor by the mean of Eff, Gen and Spe.

    A score that the data has no prompts for is none of any editor's.

    Args:
        search: The candidates and the grid they are tried on.
        run_paths: Where results and caches lie.
        console: Where progress is shown.
        workers: Cores to use; None: all that this process may use.
        replace: Drop finished trials whose settings have changed.
        rerun_other_code: Run finished trials again that another version of the code made.

    Returns:
        The record: objective, budget, every trial with its scores, and the winners.

    Raises:
        ConfigError: A trial cannot be run on these data, or one has failed.
    """
    grid = search.grid
    for dataset in grid.datasets:
        if dataset.protocols and grid.protocols[0] not in dataset.protocols:
            raise ConfigError(
                f"dataset {dataset.name}: trials are judged by {grid.protocols[0]}, the grid's "
                "first protocol, which its own `protocols` leave out"
            )
    plan = make_plan(grid, Lake(run_paths.lake), replace, rerun_other_code=rerun_other_code)
    refused = [f"{c.path}: {reason}" for c in plan.cells if (reason := plan.reason(c)) is not None]
    if refused:
        raise ConfigError(
            "trials that cannot be run; give the dataset what they need, or take their editor out "
            "of the search: " + "; ".join(refused)
        )
    for line in code_lines(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    # Editors get the same number of trials: the search does not go on without some.
    if plan.missing and (unfit := preflight(plan.missing)):
        lines = refusal_lines(plan.missing, unfit)
        raise ConfigError("\n".join(["trials that cannot be run:", *lines]))
    failed = run_plan(grid, plan, run_paths, console, workers)
    if failed:
        raise ConfigError(f"{failed} trials failed; `rledit query` on view runs tells why")
    # A lake may have trials of this name on other streams, seeds, models and data.
    keys = {key_of(cell) for cell in plan.cells}
    rows = [
        row
        for row in runs(run_paths.lake, grid.name)
        if row["cell"] in keys and row["protocol"] == grid.protocols[0]
    ]
    record: dict[str, Any] = {
        "objective": f"mean of {', '.join(OBJECTIVE)} ({grid.protocols[0]}), mean over seeds",
        "pool": "validation",
        "stream": f"{grid.streams[0].n_batches}x{grid.streams[0].batch_size}",
        "seeds": list(grid.seeds),
        "trials_per_editor": len(next(iter(search.trials.values()))),
        "code_version": code_version(),
        "editors": {},
    }
    for name, candidates in search.trials.items():
        tried = [_trial(rows, name, i, settings) for i, settings in enumerate(candidates)]
        best = max(tried, key=lambda t: t["objective"])
        record["editors"][name] = {"best": best["settings"], "trials": tried}
    return record


def _trial_name(variant: str, number: int) -> str:
    return f"{variant}_trial{number}" if variant else f"trial{number}"


def _trial(
    rows: list[dict[str, Any]], name: str, number: int, settings: dict[str, Any]
) -> dict[str, Any]:
    editor, _, variant = name.partition("/")
    wanted = (editor, _trial_name(variant, number))
    own = [r for r in rows if (r["editor"], r["variant"]) == wanted]
    scored = [name for name in OBJECTIVE if all(r[name] is not None for r in own)]
    means = {name: sum(r[name] for r in own) / len(own) for name in scored}
    return {
        "settings": settings,
        **{name: round(value, 2) for name, value in means.items()},
        "objective": round(sum(means.values()) / len(means), 3),
        "train_seconds": round(sum(r["train_seconds"] for r in own) / len(own), 1),
    }


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write the record as JSON, whole or not at all."""
    text = json.dumps(record, indent=1, sort_keys=False) + "\n"
    Storage(str(path.parent)).write_bytes(path.name, text.encode())
