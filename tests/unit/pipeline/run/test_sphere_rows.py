"""Rows of a method with SPHERE and without, side by side: identities, streams and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.parse import load_grid
from pipeline.config.presets.proxy import METHODS
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import identity_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.results.lake.lake import Lake
from pipeline.results.query import connect, query, runs
from pipeline.results.rendering import render_table
from pipeline.results.tables import build_table
from pipeline.run.cache import Cache
from pipeline.run.cell import run_cell
from pipeline.run.reporting import silent
from pipeline.run.stages import covariance
from pipeline.run.stages.edit import StreamRows, edit_stream
from pipeline.run.stages.prepare import prepare_model
from tests.unit.helpers.prepared import prepared_model

TINY = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
STREAM = "streams=[{n_batches: 2, batch_size: 4}]"


def cells(settings: dict[str, dict[str, Any]], *sets: str) -> list[Cell]:
    """Each editor plain, and with SPHERE at α 0.8."""
    entries: list[dict[str, Any]] = []
    for editor, own in settings.items():
        entries.append({"editor": editor, "settings": own})
        given = own | {"sphere_alpha": 0.8}
        entries.append({"editor": editor, "variant": "SPHERE", "settings": given})
    given_sets = (f"editors={json.dumps(entries)}", STREAM, "unedited=false", "seeds=[0]",
                  "checkpoints=1", "covariance={documents: 40}", *sets)  # fmt: skip
    return cells_of(load_grid(TINY, given_sets))


def tiny(*editors: str) -> list[Cell]:
    few = {"value_steps": 4}
    return cells({name: dict(METHODS[name]) | few for name in editors})


def test_a_row_without_it_is_known_as_before_and_one_with_it_by_its_settings() -> None:
    plain, projected = cells({"memit": {}})
    off = cells({"memit": {"sphere_alpha": 0.0}})[0]
    assert key_of(plain) == key_of(off) != key_of(projected)
    assert not any(name.startswith("sphere") for name in identity_of(plain)["settings"])
    assert identity_of(projected)["settings"]["sphere_alpha"] == 0.8
    assert "sphere_share" not in identity_of(projected)["settings"]
    wider = cells({"memit": {"sphere_share": 0.7, "sphere_alpha": 0.8}})[0]
    assert identity_of(wider)["settings"]["sphere_share"] == 0.7


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{sphere_alpha: 1.5}", r"sphere_alpha\): expected at most 1, found 1.5"),
        ("{sphere_share: 0.3}", r"sphere_share: sphere_alpha 0 takes nothing away.*above 0"),
        ("{sphere_aplha: 0.5}", r"unknown key 'sphere_aplha'; did you mean 'sphere_alpha'"),
    ],
)
def test_a_slip_is_refused_before_a_run(settings: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_grid(TINY, [f"editors=[{{editor: memit, settings: {settings}}}]"])


def test_a_table_has_both_rows(tmp_path: Path) -> None:
    chosen, lake, cache = tiny("memit", "alphaedit"), Lake(str(tmp_path / "l")), Cache(tmp_path)
    folder = prepared_model(chosen[0], cache)
    covariance.collect(chosen[0], 0, folder, cache, silent)
    for cell in chosen:
        assert run_cell(cell, folder, None, cache, lake, silent) == "done"
    text = render_table(build_table(runs(lake, "tiny")), "md")
    first = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert {"memit", "memit (SPHERE)", "alphaedit", "alphaedit (SPHERE)"} <= set(first)
    moved = {row["variant"]: row["weight_change"] for row in weight_changes(lake)}
    assert moved.keys() == {"", "SPHERE"}
    assert 0 < moved[""] != moved["SPHERE"] > 0


def weight_changes(lake: Lake) -> list[dict[str, Any]]:
    text = (
        "SELECT variant, max(value) AS weight_change FROM curves WHERE editor = 'memit' AND "
        "metric = 'weight_change_norm' GROUP BY variant"
    )
    return query(text, connect(lake)).dicts()


@pytest.mark.slow
@pytest.mark.parametrize("editor", ["memit", "alphaedit"])
def test_a_stream_on_a_real_model(editor: str, tmp_path: Path) -> None:
    """SmolLM2-135M on facts that ship: edits take with the projection too."""
    settings: dict[str, Any] = {"modules": ["down:8,9"], "value_steps": 8, "value_lr": 0.5,
                                "value_decay": 1e-3, "clamp": 4}  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "memit": {"moment_weight": 30}, "alphaedit": {"threshold": 0.02, "ridge": 1},
    }  # fmt: skip
    chosen = cells(
        {editor: settings | own[editor]}, "models=[{name: smol, preset: smollm2-135m}]",
        "datasets=[{name: facts, real_facts: true}]", "scale=full", "answers={sample: 0}",
        "covariance={documents: 1000}",
    )  # fmt: skip
    cache = Cache(tmp_path)
    folder = prepare_model(chosen[0], cache, silent)
    covariance.collect(chosen[0], 0, folder, cache, silent)
    plain, projected = (edit_stream(cell, folder, cache, None, silent) for cell in chosen)
    assert last(plain, "efficacy") > last(plain, "efficacy", 0) + 20
    assert last(projected, "efficacy") > last(projected, "efficacy", 0) + 10
    assert 0 < norm(projected) != norm(plain) > 0


def last(rows: StreamRows, metric: str, checkpoint: int = 8) -> float:
    """A score after some edits."""
    (found,) = (
        row[metric]
        for row in rows.scores
        if (row["checkpoint"], row["protocol"]) == (checkpoint, "token_accuracy")
    )
    return float(found)


def norm(rows: StreamRows) -> float:
    """How far the stream has moved the matrices."""
    return max(r["value"] for r in rows.steps if r["metric"] == "weight_change_norm")
