"""Scores of a sample of a stream's edits, and seeds that share a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cell_data import validation_edits
from pipeline.plan.cell_keys import identity_of, key_of, train_key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.done_cells import contains
from pipeline.plan.estimate import estimate
from pipeline.results.lake.lake import Lake
from pipeline.results.query import connect, query
from pipeline.results.tables import build_table
from pipeline.run.cache import Cache
from pipeline.run.cell import run_cell
from pipeline.run.reporting import silent
from pipeline.run.stages import edit, train
from pipeline.run.stages.prepare import open_model, prepare_model
from rledit.editors import editor_class

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
STREAM = ("streams=[{n_batches: 3, batch_size: 4}]", "checkpoints=3")
SMALL = "{rank: 8, n_blocks: 1, initial_step: 1.0e-3, train_steps: 1, patience: 0"


def cells(*overrides: str) -> list[Cell]:
    return cells_of(load_grid(GRID, overrides))


def ultraedit(*overrides: str) -> Cell:
    given = ("editors=[{editor: ultraedit, settings: {step: 0.05}}]", *STREAM, *overrides)
    return cells(*given)[0]


def counts(rows: edit.StreamRows) -> list[int]:
    own = [row for row in rows.scores if row["protocol"] == "token_accuracy"]
    return [row["n_scored"] + row["n_superseded"] for row in own]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_model(ultraedit(), Cache(tmp_path_factory.mktemp("models")), silent)


def test_a_sample_has_the_scores_that_its_edits_have_among_all(
    folder: Path, tmp_path: Path
) -> None:
    some, every = ultraedit("scored_edits=6"), ultraedit()
    assert key_of(some) != key_of(every) == key_of(ultraedit("scored_edits=null"))
    sample = edit.edit_stream(some, folder, Cache(tmp_path / "some"), None, silent)
    whole = edit.edit_stream(every, folder, Cache(tmp_path / "every"), None, silent)
    places = {row["edit_index"] for row in sample.edits}
    assert places == set(some.scored_places) and len(places) == 6
    # Two of every batch of four: of each checkpoint, and so of each mean, as many more.
    assert counts(sample) == [6, 2, 4, 6]
    assert sample.edits == [row for row in whole.edits if row["edit_index"] in places]
    assert counts(whole) == [12, 4, 8, 12]
    seconds = [estimate([c], []).cells[0].seconds.score for c in (some, every)]
    assert seconds[0] < seconds[1]


def test_tables_say_that_a_sample_was_scored(folder: Path, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    for chosen in (ultraedit("scored_edits=6"), ultraedit("scored_edits=50", "name=whole")):
        run_cell(chosen, folder, None, Cache(tmp_path / "cache"), lake, silent)
    rows = query("SELECT * FROM runs", connect(lake)).dicts()
    notes = {
        grid: build_table([row for row in rows if row["grid"] == grid]).notes
        for grid in (ultraedit().grid, "whole")
    }
    assert "Scored: a sample of 6 of the 12 edits of a stream." in notes[ultraedit().grid]
    assert not any("sample of" in note for note in notes["whole"])


def test_a_sample_larger_than_the_stream_is_all_of_it(folder: Path, tmp_path: Path) -> None:
    large = ultraedit("scored_edits=500")
    rows = edit.edit_stream(large, folder, Cache(tmp_path / "large"), None, silent)
    assert counts(rows) == [12, 4, 8, 12]


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(scored_edits\): expected at least 1, found 0"):
        ultraedit("scored_edits=0")


def test_streams_of_other_lengths_have_samples_of_their_own() -> None:
    streams = "streams=[{n_batches: 2, batch_size: 4}, {n_batches: 4, batch_size: 4}]"
    none = ("editors=[{editor: none}]", streams, "checkpoints=4", "share_prefixes=true")
    assert len(cells(*none)) == 1  # the longer one answers for the shorter
    short, long = map(identity_of, cells(*none, "scored_edits=6"))
    assert not contains(long, short, share_prefixes=True) and contains(short, short)
    short, long = map(identity_of, cells(*none, "share_prefixes=false"))
    assert contains(long, short)


def trained_cells(settings: str, seeds: str = "[0, 1]") -> list[Cell]:
    return cells(f"editors=[{{editor: rledit, settings: {settings}}}]", f"seeds={seeds}")


def test_seeds_share_a_training_whose_seed_the_grid_gives(folder: Path, tmp_path: Path) -> None:
    own, given = trained_cells(SMALL + "}"), trained_cells(SMALL + ", seed: 0}")
    assert train_key_of(own[0]) != train_key_of(own[1])
    # Seed 0 with a training of seed 0 is what it was: one cell, one training.
    assert key_of(given[0]) == key_of(own[0])
    assert {train_key_of(c) for c in given} == {train_key_of(own[0])}
    # What is evaluated is another stream, so another cell, and no seed's own training.
    assert len({key_of(c) for c in (*own, *given)}) == 3
    files = [train.train(c, folder, Cache(tmp_path / str(c.seed)), silent) for c in given]
    states = [train.load_trained(file or Path()).state for file in files]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])


def test_training_of_another_seed_learns_from_and_is_validated_on_its_own_draws(
    folder: Path,
) -> None:
    shared = trained_cells(SMALL[: -len("0")] + "2, seed: 7}")
    alone = trained_cells(SMALL[: -len("0")] + "2}", "[7]")
    assert validation_edits(shared[0]) == validation_edits(shared[1]) == validation_edits(alone[0])
    editors = [
        editor_class("rledit")(open_model(c, folder), c.settings) for c in (shared[1], alone[0])
    ]
    drawn = [
        [e.edit_id for e in c.source().draw("train", 4, seed=train._seed(c, 3))]
        for c in (shared[1], alone[0])
    ]
    assert drawn[0] == drawn[1]
    states = [e.state_dict() for e in editors]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
