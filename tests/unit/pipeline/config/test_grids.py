"""The reference grids are valid, and the demo runs with the settings that tuning chose."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.config.parse import load_grid, parse_grid, read_grid
from pipeline.config.presets import PRESETS
from pipeline.config.scale import scaled
from pipeline.config.yaml_location import Located
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import cells_of
from pipeline.plan.checks import check_cell
from pipeline.run.tuning import load_search
from pipeline.submit.submission import as_json
from rledit.editors import EDITORS

GRIDS = Path(__file__).parents[4] / "jobs" / "grids"
RECORDS = sorted(path.name.removesuffix(".tuned.json") for path in GRIDS.glob("*.tuned.json"))
SEARCHES = sorted(GRIDS.glob("*.search.yaml"))
PLAIN = sorted(set(GRIDS.glob("*.yaml")) - set(SEARCHES))


@pytest.mark.parametrize("path", PLAIN, ids=lambda p: p.stem)
def test_a_grid_is_valid_and_has_the_unedited_row(path: Path) -> None:
    text = path.read_text()
    # As itself it needs files that nobody ships; real facts no proxy model knows.
    published = "preset:" in text and "real_facts:" not in text
    # The world is as large as the stream, and has to hold a trajectory.
    limit = 10 if "trajectory_batches: 10" in text or path.stem == "laptop" else 1
    cells = cells_of(load_grid(path, (), *(("standin", limit) if published else ())))
    assert any(cell.editor.editor == "none" for cell in cells)
    for cell in cells:
        check_cell(cell)


@pytest.mark.parametrize("path", PLAIN, ids=lambda p: p.stem)
def test_what_submit_sends_is_the_grid_at_every_scale(path: Path) -> None:
    grid = parse_grid(read_grid(path))
    scales = ["full", "proxy", "world"] if any(m.preset for m in grid.models) else [None]
    for scale in scales:
        try:
            sent = as_json(scaled(grid, scale))
        except ConfigError as error:  # a model without a preset has one scale
            assert "names no preset" in str(error)
            continue
        assert as_json(parse_grid(Located.of_data(sent, "submission"))) == sent


@pytest.mark.parametrize("path", SEARCHES, ids=lambda p: p.stem)
def test_every_editor_of_a_search_has_as_many_trials_on_the_validation_pool(path: Path) -> None:
    search = load_search(path)
    assert len({len(trials) for trials in search.trials.values()}) == 1
    assert search.grid.datasets[0].split == "validation"


@pytest.mark.parametrize("name", [name for name in RECORDS if name.startswith("demo")])
@pytest.mark.parametrize("suffix", ["", "-full"])
def test_the_demo_runs_with_the_tuned_settings(name: str, suffix: str) -> None:
    record = json.loads((GRIDS / f"{name}.tuned.json").read_text())
    grid = load_grid(GRIDS / f"{name}{suffix}.yaml")
    rows = [("/".join(filter(None, (e.editor, e.variant))), e.settings) for e in grid.editors]
    settings = dict(rows)
    tuned = {editor: found["best"] for editor, found in record["editors"].items()}
    assert {editor: settings[editor] for editor in tuned} == tuned
    assert set(settings) == {*tuned, "none"}


def test_every_editor_of_the_registry_runs_with_settings_of_one_budget() -> None:
    grid = load_grid(GRIDS / "methods.yaml")
    assert [entry.editor for entry in grid.editors if not entry.variant] == list(EDITORS)
    # Searches on the world: those with a record have run, the others are there to be run.
    searches = {path.name.split(".")[0]: load_search(path) for path in SEARCHES}
    of_the_world = [name for name, one in searches.items() if one.grid.scale == "world"]
    records = [
        json.loads((GRIDS / f"{name}.tuned.json").read_text())
        for name in of_the_world
        if name in RECORDS
    ]
    budget = ("objective", "pool", "stream", "seeds", "trials_per_editor")
    assert len({json.dumps([record[key] for key in budget]) for record in records}) == 1
    tuned = {e: found["best"] for record in records for e, found in record["editors"].items()}
    # The same method under another name, or one that goes on training during the stream.
    tuned |= {"none": {}, "ft_m": tuned["ft"], "malmen_rledit": tuned["rledit"]}
    tuned |= {f"{name}_star": tuned[name] for name in ("mend", "malmen")}
    found = {entry.editor: entry.settings for entry in grid.editors if not entry.variant}
    untuned = {e for name in of_the_world if name not in RECORDS for e in searches[name].trials}
    assert untuned.isdisjoint(tuned)
    assert {e: settings for e, settings in found.items() if e not in untuned} == tuned


@pytest.mark.parametrize("name", RECORDS)
def test_the_record_names_the_best_of_the_listed_trials(name: str) -> None:
    record = json.loads((GRIDS / f"{name}.tuned.json").read_text())
    search = load_search(GRIDS / f"{name}.search.yaml")
    assert list(record["editors"]) == list(search.trials)
    for editor, found in record["editors"].items():
        assert [t["settings"] for t in found["trials"]] == list(search.trials[editor])
        best = max(found["trials"], key=lambda t: t["objective"])
        assert found["best"] == best["settings"]


def test_a_search_tries_the_weights_that_its_grid_edits() -> None:
    """A preset's own, as `load_grid` has them: not a proxy of it."""
    (tried,) = load_search(GRIDS / "demo.search.yaml").grid.models
    (edited,) = load_grid(GRIDS / "demo.yaml").models
    assert tried == edited and tried.checkpoint == PRESETS["smollm2-135m"].checkpoint


def test_a_search_with_unequal_budgets_is_refused(tmp_path: Path) -> None:
    text = (GRIDS / "demo-world.search.yaml").read_text()
    path = tmp_path / "unequal.yaml"
    path.write_text(text.replace("      - {initial_step: 5.0e-3}\n", ""))
    with pytest.raises(ConfigError, match="the same number of trials"):
        load_search(path)
    path.write_text(text.replace("editor: ultraedit", "editor: untrained"))
    with pytest.raises(ConfigError, match="untrained is there before; give one of them a"):
        load_search(path)
    path.write_text(text.replace("split: validation", "split: evaluation"))
    with pytest.raises(ConfigError, match="split: validation"):
        load_search(path)


@pytest.mark.parametrize(
    ("editors", "more", "sets", "found"),
    [
        ("[{editor: ft}, {editor: memit}]", "", (), ["ft", "memit", "none"]),
        ("[{editor: none}, {editor: ft}]", "", (), ["none", "ft"]),
        ("[{editor: ft}]", "unedited: false\n", (), ["ft"]),
        ("[{editor: ft}]", "", ("unedited=false",), ["ft"]),
        ("[{editor: ft}]", "", ("editors.ft.settings.lr=0.1",), ["ft", "none"]),
        ("[{editor: ft}]", "", ("editors=[{editor: memit}]",), ["memit"]),
    ],
)
def test_a_grid_that_leaves_the_unedited_model_out_unsaid_has_it_as_a_row(
    editors: str, more: str, sets: tuple[str, ...], found: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\n{more}models: [{{name: tiny, world_model: tiny}}]\n"
        f"datasets: [{{name: world}}]\neditors: {editors}\n"
        "streams: [{n_batches: 2, batch_size: 4}]\n"
    )
    grid = load_grid(path, sets)
    assert [entry.editor for entry in grid.editors] == found
    stored = Located.of_data(json.loads(json.dumps(asdict(grid))), "submission mine")
    assert parse_grid(stored) == grid  # nothing is added to what was submitted
    rest = [cell for cell in cells_of(grid) if cell.editor.editor != "none"]
    without = cells_of(load_grid(path, (*sets, "unedited=false")))
    assert {*map(key_of, rest)} == {key_of(c) for c in without if c.editor.editor != "none"}
