"""Cells whose training ends when it pays no more: stages, rows, messages, plans, and identities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cell_data import validation_batches
from pipeline.plan.cell_keys import former_keys_of, identity_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.estimate import estimate
from pipeline.plan.estimate.summary import summary
from pipeline.plan.grid_plan import make_plan, pool_lines
from pipeline.results.lake.lake import Lake
from pipeline.results.query import connect, query
from pipeline.results.tracking.logged_run import flatten
from pipeline.run.cache import Cache
from pipeline.run.cell import run_cell
from pipeline.run.reporting import Stage, silent
from pipeline.run.stages import train
from pipeline.run.stages.prepare import open_model
from rledit.editors import TrainableEditor, editor_class
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
EARLY = "{rank: 8, n_blocks: 1, init_std: 0.05, initial_step: 1.0e-3, meta_lr: 1.0e-3"


def cell(more: str = "", *overrides: str, editor: str = "rledit") -> Cell:
    """A small cell that trains four steps at most, validated after each."""
    settings = f"{EARLY}, train_steps: 4, patience: 2{more}}}"
    given = (f"editors=[{{editor: {editor}, settings: {settings}}}]", *overrides)
    return cells_of(load_grid(GRID, given))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_model(cell(), Cache(tmp_path_factory.mktemp("models")))


class Interrupted(Exception):
    """Stands for a killed process."""


def after_reports(count: int) -> Any:
    """A report that ends the process after so many reports."""
    left = iter(range(count))

    def report(*_: Any) -> None:
        if next(left, None) is None:
            raise Interrupted

    return report


def trained(chosen: Cell, folder: Path, cache: Path, report: Any = silent) -> train.Trained:
    path = train.train(chosen, folder, Cache(cache), report)
    assert path is not None
    return train.load_trained(path)


@pytest.mark.long
def test_a_training_that_was_killed_anywhere_comes_to_the_same_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY_SECONDS", 0.0)
    chosen = cell(", step_search: [0.5, 2.0]")
    told: list[tuple[int, int, str]] = []

    def listening(
        stage: Stage, done: int, total: int, detail: str = "", left: float | None = None
    ) -> None:
        told.append((done, total, detail))

    straight = trained(chosen, folder, tmp_path / "a", listening)
    assert straight.outcome["ended_by"] in ("patience", "limit")
    assert straight.outcome["trajectories"] == len(straight.curve)
    steps = [found.step for found in straight.validations]
    assert steps == list(range(len(straight.curve) + 1))
    assert told[0] == (0, 12, "trajectory 0 of at most 4")
    first = straight.validations[0].score
    assert told[1][2] == (
        f"trajectory 0 of at most 4, validation {first:.1f} (best {first:.1f} at 0), "
        "patience 2 of 2"
    )
    assert told[-1][:2] == (12, 12)
    searched = {found["factor"]: found["score"] for found in straight.outcome["step_search"]}
    # Twice the steps are best of those listed, so that the next is tried.
    assert list(searched) == [0.5, 1.0, 2.0, 4.0]
    assert searched[1.0] == straight.outcome["best_score"]
    factor, score = straight.outcome["step_factor"], straight.outcome["step_factor_score"]
    assert searched[factor] == score == max(searched.values())
    tried = ", steps tried with 3 of 3 factors (best"
    assert told[-1][2].endswith(f"{tried} {score:.1f} at {factor:g})")
    # At every event of the training: batches, validations, and the factors on the steps.
    for stop in (2, 4, 5, len(told) - 2, len(told) - 1):
        with pytest.raises(Interrupted):
            train.train(chosen, folder, Cache(tmp_path / "b"), after_reports(stop))
        resumed = trained(chosen, folder, tmp_path / "b")
        assert resumed.curve == straight.curve and resumed.outcome == straight.outcome
        assert [replace(v, seconds=0) for v in resumed.validations] == [
            replace(v, seconds=0) for v in straight.validations
        ]
        assert all(resumed.state[k].equal(straight.state[k]) for k in straight.state)
        Cache(tmp_path / "b").delete(train.trained_name(chosen))


def test_rows_of_a_cell_hold_the_learning_curve(folder: Path, tmp_path: Path) -> None:
    chosen = cell()
    network = train.train(chosen, folder, Cache(tmp_path), silent)
    lake = Lake(str(tmp_path / "lake"))
    run_cell(chosen, folder, network, Cache(tmp_path), lake, silent)
    (record,) = lake.manifest()
    outcome = record.values["resolved"]["training"]
    assert set(outcome) == {
        "ended_by", "trajectories", "batches", "best_step", "best_trajectory", "best_score",
    }  # fmt: skip
    rows = query("SELECT metric, step, value FROM curves", connect(lake)).dicts()
    curve = {(row["metric"], row["step"]): row["value"] for row in rows}
    found = train.load_trained(network or Path()).validations
    for validation in found:
        for name in ("efficacy", "generalization", "specificity_self", "score", "reward"):
            assert curve[f"validation_{name}", validation.step] == getattr(validation, name)
        assert curve["validation_eta_median", validation.step] > 0
    best = outcome["best_step"]
    assert curve["validation_best", best] == curve["validation_score", best]
    assert curve["train_eta_min", 1] > 0 and curve["train_learning_rate", 1] == 1e-3


def test_results_and_tracking_hold_the_search_over_steps(folder: Path, tmp_path: Path) -> None:
    chosen = cell(", step_search: [0.5, 2.0]")
    network = train.train(chosen, folder, Cache(tmp_path), silent)
    lake = Lake(str(tmp_path / "lake"))
    run_cell(chosen, folder, network, Cache(tmp_path), lake, silent)
    (record,) = lake.manifest()
    outcome = record.values["resolved"]["training"]
    assert [found["factor"] for found in outcome["step_search"]] == [0.5, 1.0, 2.0, 4.0]
    params = flatten({"training": outcome})
    assert params["training.step_factor"] == f"{outcome['step_factor']}"
    assert str(outcome["step_search"][0]["score"]) in str(params)


@pytest.mark.parametrize("editor", ["mend", "malmen", "malmen_star", "mend_rledit"])
def test_every_hypernetwork_method_has_the_recipe(
    editor: str, folder: Path, tmp_path: Path
) -> None:
    settings = "{reference: converged, rank: 8, initial_step: 1.0e-3, train_steps: 2}"
    chosen = cells_of(load_grid(GRID, [f"editors=[{{editor: {editor}, settings: {settings}}}]"]))[0]
    assert chosen.settings.patience and chosen.settings.drawing == "epochs"
    found = trained(chosen, folder, tmp_path)
    assert [v.step for v in found.validations] == [0, 2]


def test_validation_edits_are_of_the_validation_pool_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = cell(", drawing: epochs")
    source = chosen.source()
    drawn: list[tuple[str, int]] = []
    draw = source.draw

    def observed(split: Any, n: int, seed: int) -> Any:
        drawn.append((split, n))
        return draw(split, n, seed)

    monkeypatch.setattr(type(source), "draw", lambda self, *a, **k: observed(*a, **k))
    trained(chosen, folder, tmp_path)
    sizes = source.sizes()
    assert set(drawn) == {("validation", 12), ("train", sizes["train"])}


def test_trajectories_in_epochs_walk_the_pool(folder: Path) -> None:
    chosen = cell(", drawing: epochs, trajectories_per_step: 2")
    editor = editor_class("rledit")(open_model(chosen, folder), chosen.settings)
    assert isinstance(editor, TrainableEditor)
    pool = train.TrainingPool(chosen, editor)
    n = chosen.source().sizes()["train"]
    steps = [pool(step) for step in range(2 * n // 24 + 1)]
    facts = [
        edit.source for step in steps for trajectory in step for b in trajectory for edit in b.edits
    ]
    assert len(set(facts[:n])) == n and len(facts) > n
    # A resumed training asks for a later step first.
    again = train.TrainingPool(chosen, editor)
    for step in (2, 0, 1):
        assert [b.edits for t in again(step) for b in t] == [
            b.edits for t in steps[step] for b in t
        ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ", validation_batches: 5",
            r"rledit.*: needs 20 edits of the validation pool to validate rledit while it trains, "
            r"which has 12 \(facts of the synthetic world\); lower validation_batches, or set "
            r"patience: 0 to train without it, or raise n_subjects of the world$",
        ),
        (", trajectory_batches: 50", r"needs 200 edits of the train pool.*shorten the trajectory"),
    ],
)
def test_a_pool_that_is_too_small_is_named_before_anything_runs(
    more: str, said: str, tmp_path: Path
) -> None:
    world = "datasets.0.world={n_subjects: 20}" if "validation" in more else "seeds=[0]"
    given = f"{EARLY}, train_steps: 4, patience: 2{more}}}"
    editors = f"editors=[{{editor: rledit, settings: {given}}}]"
    grid = load_grid(GRID, [editors, world, "streams=[{n_batches: 2, batch_size: 4}]"])
    with pytest.raises(ConfigError, match=said):
        make_plan(grid, Lake(str(tmp_path)))


def test_a_small_pool_gives_a_short_stream_where_no_length_is_asked_for() -> None:
    chosen = cell()
    assert chosen.source().sizes()["validation"] == 36 and validation_batches(chosen) == 3
    long = "streams=[{n_batches: 3, batch_size: 15}]"
    assert validation_batches(cell("", long)) == 2
    assert validation_batches(cell(", validation_batches: 1")) == 1


def test_cells_that_do_not_use_younger_settings_keep_their_keys() -> None:
    """Results of old lakes are still those of these cells."""
    plain = cells_of(load_grid(GRID))[3]
    assert plain.editor_name == "rledit"
    younger = {"drawing", "patience", "validate_every", "warmup_steps", "average", "loc_warmup"}
    assert younger.isdisjoint(identity_of(plain)["settings"])
    assert former_keys_of(plain) == ("02e688a4c59ca7f6", "775bd703fbb5e859")
    assert {"z_clip", "step_search"}.isdisjoint(identity_of(plain)["settings"])
    off = "editors.rledit.settings.patience=0"
    assert key_of(cells_of(load_grid(GRID, [off]))[3]) == key_of(plain)
    warmed = cells_of(load_grid(GRID, ["editors.rledit.settings.warmup_steps=3"]))[3]
    assert key_of(warmed) != key_of(plain)
    assert identity_of(warmed)["settings"]["warmup_steps"] == 3


def test_a_plan_says_that_training_may_end_early() -> None:
    early = [cell()]
    lines = "\n".join(summary(estimate(early, []), {}))
    assert "  at most 12 batches  " in lines
    plain = [replace_patience(cell(), 0)]
    assert " at most 12 batches" not in "\n".join(summary(estimate(plain, []), {}))
    with_it, without = (estimate(cells, []).cells[0].seconds.setup for cells in (early, plain))
    assert with_it > without
    searching = estimate([cell(", step_search: [0.5, 1.0, 2.0]")], []).cells[0].seconds.setup
    per_validation = (with_it - without) / 5  # before training and after each of four steps
    assert with_it + 1.5 * per_validation < searching < with_it + 2.5 * per_validation


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{validation_batches: 2}", r"validation_batches\): .*set patience to 1 or more"),
        ("{min_improvement: 1}", r"min_improvement\): .*set patience to 1 or more"),
        ("{step_search: [0.5]}", r"step_search\): step_search: .*set patience to 1 or more"),
        ("{step_search: 0.5, patience: 1}", r"step_search\): expected a list, found 0\.5"),
        ("{step_search: [0.5, 0], patience: 1}", r"step_search\.1\): expected a number above 0"),
        ("{z_clip: -1}", r"z_clip\): expected 0 or more, found -1"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_at_its_place(settings: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"\(editors\.0\.settings\.{said}"):
        load_grid(GRID, [f"editors=[{{editor: rledit, settings: {settings}}}]"])


def replace_patience(chosen: Cell, patience: int) -> Cell:
    settings = {**chosen.editor.settings, "patience": patience}
    return replace(chosen, editor=replace(chosen.editor, settings=settings))


def test_a_training_is_planned_for_data_that_is_away() -> None:
    away = "datasets.0.files={evaluation: not/here.json, train: nor/here.json, validation: n.json}"
    chosen = cell("", away, "datasets.0.schema=zsre")
    (found,) = estimate([chosen], []).cells
    assert found.seconds.setup > 0 and found.trained == 12


def test_settings_of_a_preset_s_recipe_need_no_recipe_in_the_grid() -> None:
    grid = (
        "models=[{preset: smollm2-135m}]",
        "datasets=[{name: facts, real_facts: true}]",
        "scale=full",
        "editors=[{editor: rledit, settings: {validation_batches: 2, min_improvement: 1}}]",
    )
    (one,) = cells_of(load_grid(GRID, grid))[:1]
    assert one.settings.patience == 4 and one.settings.validation_batches == 2
    official = grid[-1].replace("min_improvement: 1", "min_improvement: 1, reference: official")
    with pytest.raises(ConfigError, match="patience 0 makes no validation"):
        load_grid(GRID, (*grid[:-1], official))


def test_training_is_validated_on_as_long_a_stream_as_it_edits() -> None:
    long = cell(", trajectory_batches: 1", "streams=[{n_batches: 12, batch_size: 3}]")
    assert validation_batches(long) == 12
    assert identity_of(long)["validated"] == 12
    # As many as earlier versions took: their keys.
    assert "validated" not in identity_of(cell("", "streams=[{n_batches: 2, batch_size: 3}]"))
    assert not any("validated" in line for line in pool_lines([long]))
    short = cell("", "streams=[{n_batches: 9, batch_size: 6}]")
    (line,) = [line for line in pool_lines([short]) if "validated" in line]
    assert line.startswith("  rledit is validated on 6 batches and edits 9: steps that suit")
