"""Names of grid, model, dataset and variant are addresses: they change no key and run nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.inputs.content_hashes import fingerprint
from pipeline.plan.cell_keys import (
    address_of,
    calibration_key_of,
    covariance_key_of,
    former_keys_of,
    identity_of,
    key_of,
    train_key_of,
)
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.grid_plan import double_lines, make_plan, shared_lines
from pipeline.plan.versions import code_version
from pipeline.results.lake.key_versions import current_key, without_labels
from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from pipeline.run.driver import _prepare
from pipeline.run.tasks import tasks_of
from tests.unit.helpers.old_lakes import old_identity, old_lake, result_of

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
LABELS = ["name=renamed", "models.llama-tiny.name=other", "datasets.world.name=facts"]
ALSO = ["streams=[{n_batches: 2, batch_size: 4}, {n_batches: 3, batch_size: 4}]"]


def grid(*sets: str) -> Any:
    return load_grid(GRID, sets)


def cells(*sets: str) -> list[Cell]:
    return cells_of(grid(*sets))


def filled(folder: Path, *sets: str) -> Lake:
    """A lake in which a grid is done."""
    lake = Lake(str(folder))
    own = cells(*sets)
    for cell in own:
        lake.commit(result_of(cell))
    lake.show(address_of(cell) for cell in own)
    return lake


# Keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [*LABELS, "editors.rledit.variant=mine"])
def test_a_label_changes_the_address_and_no_key(label: str) -> None:
    before, after = cells()[-1], cells(label)[-1]
    assert address_of(before) != address_of(after) and before.path != after.path
    assert identity_of(before) == identity_of(after)
    for key in (key_of, train_key_of, calibration_key_of, covariance_key_of):
        assert key(before) == key(after)


def test_the_scale_is_a_label_too() -> None:
    full = replace(cells()[-1], scale="full")
    assert key_of(full) == key_of(cells()[-1]) and train_key_of(full) == train_key_of(cells()[-1])
    assert address_of(full).scale == "full"


def test_the_unedited_model_has_one_key_whatever_modules_editors_are_given() -> None:
    one = cells("models.llama-tiny.modules=['down:0']")
    two = cells()
    assert key_of(one[0]) == key_of(two[0]) and one[0].label == "none"
    assert key_of(one[1]) != key_of(two[1])


def test_what_changes_numbers_changes_the_key() -> None:
    changes = ["seeds=[1]", "probes=all", "datasets.world.world.n_subjects=80", "threads=2"]
    keys = {key_of(cells(change)[-1]) for change in changes} | {key_of(cells()[-1])}
    assert len(keys) == 5


def test_identities_of_version_1_lose_their_labels_and_nothing_else() -> None:
    for cell in cells():
        old = old_identity(cell)
        key, network = former_keys_of(cell)
        assert without_labels(old) == identity_of(cell) == without_labels(identity_of(cell))
        assert fingerprint(old) == key and current_key(key, old) == key_of(cell)
        assert (network is not None) == cell.trains
    # A secret was hidden in it: what the key was made from cannot be told.
    assert current_key(key, old | {"probes": "***"}) == key


def test_keys_that_version_1_gave_to_cells_of_the_demo_are_known() -> None:
    """As its lakes and caches have them; calibrations and key covariance are found as they were."""
    path = GRID.parents[2] / "jobs" / "grids" / "demo-world.yaml"
    demo = cells_of(load_grid(path, ["name=demo"]))
    kept = ("none", "ultraedit", "memit")
    short = {c.label: c for c in demo if c.stream.n_batches == 20 and c.label in kept}
    assert {label: former_keys_of(cell)[0] for label, cell in short.items()} == {
        "none": "3d2327f195498fae",
        "ultraedit": "7c0f4cbfc6063e70",
        "memit": "f585fefa18c8af66",
    }
    assert calibration_key_of(short["ultraedit"]) == "bd745855762d4e73"
    assert covariance_key_of(short["memit"]) == "3a6229f21668fcb0"


# Lakes of version 1 -------------------------------------------------------------------------------


def test_a_lake_of_version_1_is_done_under_todays_keys(tmp_path: Path) -> None:
    own = cells()
    lake = old_lake(tmp_path / "old", *((cell, i) for i, cell in enumerate(own)))
    files = {name: lake.storage.read_bytes(name) for name in lake.storage.list()}
    plan = make_plan(grid(), lake)
    assert plan.missing == () and plan.done == {key_of(cell) for cell in own}
    assert shared_lines(plan) == double_lines(plan, lake) == []
    rows = runs(lake, "tiny")
    assert {row["cell"] for row in rows} == plan.done and len(rows) == 2 * len(own)
    new = Lake(str(tmp_path / "new"))
    for i, cell in enumerate(own):
        new.commit(result_of(cell, i))
    assert rows == runs(new, "tiny")
    for cell in own:
        assert lake.is_done(key_of(cell)) and lake.verify(key_of(cell)) == []
    assert files == {name: lake.storage.read_bytes(name) for name in lake.storage.list()}
    lake.forget(key_of(own[0]))
    assert len(lake.manifest()) == len(own) - 1
    assert not any(former_keys_of(own[0])[0] in name for name in lake.storage.list())


def test_a_renamed_grid_finds_a_lake_of_version_1_done_and_leaves_the_old_grid_shown(
    tmp_path: Path,
) -> None:
    lake = old_lake(tmp_path, *((cell, 0) for cell in cells()))
    plan = make_plan(grid(*LABELS), lake)
    assert plan.missing == ()
    lake.show(address_of(cell) for cell in plan.cells)
    old, new = runs(lake, "tiny"), runs(lake, "renamed")
    assert {(row["model"], row["dataset"]) for row in new} == {("other", "facts")}
    labels = {"grid": "", "model": "", "dataset": ""}
    assert [row | labels for row in old] == [row | labels for row in new] != []


def test_cells_that_version_1_ran_twice_are_one_and_differing_scores_are_reported(
    tmp_path: Path,
) -> None:
    here, there = cells()[0], cells(*LABELS)[0]
    lake = old_lake(tmp_path / "same", (here, 0), (there, 0))
    plan = make_plan(grid(), lake)
    keys = [former_keys_of(cell)[0] for cell in (here, there)]
    first = min(keys)  # both ended in the same second
    assert [record.stored_key for record in lake.manifest()] == [first]
    (line,) = double_lines(plan, lake)
    assert f"cell {key_of(here)} lies in the lake as" in line
    assert all(key in line for key in keys) and line.endswith("with the same scores")
    lake = old_lake(tmp_path / "other", (here, 0), (there, 1))
    (line,) = double_lines(make_plan(grid(), lake), lake)
    assert "with other scores; those of" in line and f"({first}) count" in line
    assert {row["grid"] for row in runs(lake)} == {"tiny", "renamed"}
    assert {row["cell"] for row in runs(lake)} == {key_of(here)}


# Sharing ------------------------------------------------------------------------------------------


def test_a_plan_names_the_grids_that_have_done_its_cells(tmp_path: Path) -> None:
    filled(tmp_path / "lake")
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.read_text().replace("name: tiny", "name: longer", 1))
    said = CliRunner().invoke(
        app, ["plan", str(path), "--set", *ALSO, "--results", str(tmp_path), "--no-cells"]
    )
    assert said.exit_code == 0, said.output
    assert (
        "shared: 4 of 8 cells are cells of grid tiny, which are done; they are shown under both, "
        "and not run again" in said.output
    )
    none = "longer/llama-tiny/world/none/2x4/seed0 has its rows in tiny/llama-tiny/world/none/3x4"
    assert f"shared: {none}, which is done" in said.output
    assert "8 cells, 3 to run" in said.output


def test_addresses_of_a_grid_that_are_one_cell_are_run_once_and_shown_each(tmp_path: Path) -> None:
    twice = "editors=[{editor: ultraedit, variant: a, settings: {step: 1.0e-3}}, "
    twice += "{editor: ultraedit, variant: b, settings: {step: 1.0e-3}}, {editor: none}]"
    lake = Lake(str(tmp_path))
    plan = make_plan(grid(twice), lake)
    a, b, none = plan.cells
    assert plan.missing == (a, none)
    assert [task.cell for task in tasks_of(plan.cells).values() if task.kind == "edit"] == [a, none]
    assert shared_lines(plan) == [f"shared: {b.path} is the same cell as {a.path}, run once"]
    lake.commit(result_of(a))
    lake.show(address_of(cell) for cell in plan.cells)
    assert make_plan(grid(twice), lake).missing == (none,)
    by_variant = {row["variant"]: row["efficacy"] for row in runs(lake, "tiny")}
    assert set(by_variant) == {"a", "b"} and by_variant["a"] == by_variant["b"]


def test_other_settings_at_an_address_stop_and_replacing_them_leaves_other_grids_theirs(
    tmp_path: Path,
) -> None:
    lake = filled(tmp_path)
    changed = "editors.ultraedit.settings.step=2.0e-3"
    with pytest.raises(ConfigError, match=r"settings.step: 0.001 → 0.002\. Give the editor"):
        make_plan(grid(changed), lake)
    old = key_of(cells()[1])
    assert make_plan(grid(changed), lake, replace=True).outdated == (old,)
    lake.show(address_of(cell) for cell in cells(*LABELS))  # another grid asks for it, too
    plan = make_plan(grid(changed), lake, replace=True)
    assert plan.outdated == () and plan.missing == (plan.cells[1],)
    lake.show(address_of(cell) for cell in plan.cells)
    assert old not in {row["cell"] for row in runs(lake, "tiny")}
    assert old in {row["cell"] for row in runs(lake, "renamed")}
    make_plan(grid(changed), lake)  # the place is taken: nothing is in the way


def test_rows_that_another_run_has_made_or_shown_since_the_plan_stay(tmp_path: Path) -> None:
    one = "editors=[{editor: ultraedit, settings: {step: %s}}]"
    own, changed = grid(one % 1.0e-3), grid(one % 2.0e-3)
    (cell,) = cells_of(own)
    lake = Lake(str(tmp_path))
    lake.commit(replace(result_of(cell), code_version="0.1.0+earlier"))
    lake.show([address_of(cell)])
    first, second = (make_plan(own, lake, rerun_other_code=True) for _ in range(2))
    assert first.outdated == second.outdated == (key_of(cell),)
    _prepare(lake, first)
    assert lake.record(key_of(cell)) is None
    lake.commit(replace(result_of(cell), code_version=code_version()))
    _prepare(lake, second)
    assert lake.is_done(key_of(cell)), "the first run has just finished it"

    instead = make_plan(changed, lake, replace=True)
    assert instead.outdated == (key_of(cell),)
    lake.show([replace(address_of(cell), grid="other")])
    _prepare(lake, instead)
    assert lake.is_done(key_of(cell)), "another grid has found it done"


def test_a_variant_that_is_renamed_needs_no_replacing(tmp_path: Path) -> None:
    swapped = "editors=[{editor: ultraedit, variant: %s, settings: {step: 1.0e-3}}, "
    swapped += "{editor: ultraedit, variant: %s, settings: {step: 2.0e-3}}]"
    lake = filled(tmp_path, swapped % ("a", "b"))
    plan = make_plan(grid(swapped % ("b", "a")), lake)
    assert plan.missing == plan.outdated == ()


def test_a_seed_of_other_settings_is_not_averaged_with_those_that_are_there(tmp_path: Path) -> None:
    lake = filled(tmp_path)
    make_plan(grid("seeds=[1]", "protocols=[exact_match]"), lake)  # scored by less, edited alike
    changed = ("seeds=[1]", "editors.ultraedit.settings.step=2.0e-3")
    said = r"averaged with seed 0 .* settings.step: 0.001 → 0.002\. .*run all its seeds again"
    with pytest.raises(ConfigError, match=said):
        make_plan(grid(*changed), lake)
    make_plan(grid(*changed, "name=other"), lake)
    assert make_plan(grid(*changed), lake, replace=True).outdated == ()
    both = ("seeds=[0, 1]", changed[1])
    assert make_plan(grid(*both), lake, replace=True).outdated == (key_of(cells()[1]),)


def test_what_follows_from_the_seed_is_no_other_setting(tmp_path: Path) -> None:
    trained = """editors=[{editor: malmen, settings: {rank: 8, n_blocks: 1, init_std: 0.05,
        initial_step: 1.0e-3, meta_lr: 1.0e-3, train_steps: 1, trajectory_batches: 2}}]"""
    lake = filled(tmp_path, trained)
    (own,), (other,) = (cells_of(grid(trained, f"seeds=[{seed}]")) for seed in (0, 1))
    assert own.settings != other.settings
    assert make_plan(grid(trained, "seeds=[1]"), lake).missing == (other,)
