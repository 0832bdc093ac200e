"""Prefix-safe editors: the first k batches of a longer stream equal the stream of k batches.

A grid with `share_prefixes` runs the longest stream of such an editor only, and a table's columns
for the shorter ones are its scores on the way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.parse import load_grid
from pipeline.config.presets.proxy import METHODS
from pipeline.plan.cells import Cell, cells_of
from pipeline.run.cache import Cache
from pipeline.run.reporting import silent
from pipeline.run.stages import covariance
from pipeline.run.stages.edit import StreamRows, edit_stream
from rledit.editors import EDITORS
from rledit.editors.overlay_editor import OverlayEditor
from rledit.editors.ultraedit import UltraEdit
from tests.unit.helpers.prepared import prepared_model
from tests.unit.helpers.turns import marked

TINY = Path(__file__).parents[2] / "cluster" / "tiny.yaml"
SAFE = [name for name, cls in EDITORS.items() if cls.prefix_safe]
# All day one of each kind.
OFTEN = ("none", "ft", "rome", "memit", "alphaedit", "wise")
USUAL = ("prune", "rect", "ultraedit", "grace", "memoir")  # the published table's, and others
SHORT, LONG, BATCH = 2, 4, 4
FEW = {"value_steps": 4, "steps": 3}
HARDLY_TAUGHT = "models.llama-tiny.overrides={steps: 40}"


class Foresight(UltraEdit):
    """Says that it is safe, and steps by the length of the stream."""

    name = "foresight"

    def announce(self, looked_at: Sequence[int]) -> None:
        """Learn how long the stream is."""
        self.ahead = max(looked_at)

    def edit(self, batch: Any) -> dict[str, float]:
        """Edit twice where the stream is long."""
        found = super().edit(batch)
        return found if self.ahead == SHORT else super().edit(batch)


def cells(editor: str, shared: bool) -> list[Cell]:
    cls = EDITORS.get(editor, UltraEdit)
    settings = dict(METHODS.get(cls.name, {}))
    settings |= {key: 5e-3 for key, value in settings.items() if value == "auto"}
    settings |= {key: value for key, value in FEW.items() if key in settings}
    if cls.target_modules == "one_down":
        settings["modules"] = ["down:1"]
    entry = json.dumps({"editor": editor, "settings": settings})
    streams = ", ".join(f"{{n_batches: {n}, batch_size: {BATCH}}}" for n in (SHORT, LONG))
    sets = (f"editors=[{entry}]", f"streams=[{streams}]", "checkpoints=1", HARDLY_TAUGHT,
            "statistics={documents: 40}", f"share_prefixes={shared}")  # fmt: skip
    return cells_of(load_grid(TINY, sets))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cache]:
    """The model of all cells, and a cache with its key covariance."""
    cache = Cache(tmp_path_factory.mktemp("cache"))
    chosen = cells("memit", shared=True)[0]
    folder = prepared_model(chosen, cache)
    covariance.collect(chosen, 0, folder, cache, silent)
    return folder, cache


def streams(editor: str, prepared: tuple[Path, Cache]) -> list[StreamRows]:
    """The short stream by itself, and the long one that stands for it too."""
    folder, cache = prepared
    short, long = cells(editor, shared=False)
    (shared,) = cells(editor, shared=True)
    assert shared.also_after == (SHORT,) and shared.stream == long.stream
    assert short.settings == shared.settings
    return [edit_stream(cell, folder, cache, None, silent) for cell in (short, shared)]


def assert_prefix(short: StreamRows, long: StreamRows) -> None:
    """The rows of the lake at the end of the short stream, and all that was measured up to there.

    Scores are equal; norms and losses differ by round-off, as other prompts are in a batch.
    """
    end = SHORT * BATCH

    def at_end(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"final": True} for row in rows if row["checkpoint"] == end]

    def measured(rows: StreamRows) -> dict[tuple[str, int], float]:
        return {
            (row["metric"], row["step"]): row["value"]
            for row in rows.steps
            if row["step"] <= end and not row["metric"].endswith(("_seconds", "_ms"))
        }

    assert at_end(short.scores) == at_end(long.scores) != []
    assert at_end(short.edits) == at_end(long.edits) != []
    assert measured(short) == pytest.approx(measured(long), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("editor", marked(SAFE, OFTEN, USUAL))
def test_a_prefix_is_the_shorter_stream(editor: str, prepared: tuple[Path, Cache]) -> None:
    short, long = streams(editor, prepared)
    assert_prefix(short, long)
    # A memory changes no weight.
    remembers = issubclass(EDITORS[editor], OverlayEditor)
    moves = "final_loss" if remembers else "weight_change_norm"
    changes = {row["step"]: row["value"] for row in long.steps if row["metric"] == moves}
    # There is something to compare: every batch changes the model, none excepted.
    assert editor == "none" or len(set(changes.values())) == LONG == len(changes)
    assert {row["checkpoint"] for row in long.scores} == {0, SHORT * BATCH, LONG * BATCH}


def test_an_editor_that_looks_ahead_is_noticed(prepared: tuple[Path, Cache]) -> None:
    short, long = streams(f"{__name__}:Foresight", prepared)
    with pytest.raises(AssertionError):
        assert_prefix(short, long)


def test_the_editors_that_share_in_the_published_table_are_covered() -> None:
    table5 = load_grid(TINY.parents[2] / "jobs" / "grids" / "table5.yaml")
    assert table5.share_prefixes
    shared = {entry.editor for entry in table5.editors if EDITORS[entry.editor].prefix_safe}
    assert shared == {"none", "ft", "rome", "memit", "prune", "rect", "alphaedit"} <= set(SAFE)
