"""Stages on a tiny world: interrupted work resumes and gives bitwise equal rows."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.grid_plan import make_plan
from pipeline.results.lake.lake import Lake
from pipeline.run.cache import Cache
from pipeline.run.reporting import Stage, silent
from pipeline.run.stages import edit, train
from pipeline.run.stages.prepare import open_model
from pipeline.run.tasks import tasks_of
from rledit.editors import TrainableEditor, editor_class
from rledit.finite import NonFiniteError
from rledit.records import SPLITS
from rledit.scoring import count_contradicting
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"


class Interrupted(Exception):
    """Stands for a killed process."""


def stop_at(stage: Stage, done: int) -> Any:
    """A report that ends the process when a stage has come that far."""

    def report(now: Stage, count: int, *_: object) -> None:
        if now == stage and count == done:
            raise Interrupted

    return report


def cell(editor: str, *overrides: str) -> Cell:
    return next(c for c in cells_of(load_grid(GRID, overrides)) if c.editor.editor == editor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_model(cell("rledit"), Cache(tmp_path_factory.mktemp("models")))


def network_of(chosen: Cell, folder: Path, cache: Path) -> train.Trained:
    path = train.train(chosen, folder, Cache(cache), silent)
    assert path is not None
    return train.load_trained(path)


def without_times(rows: edit.StreamRows) -> dict[str, Any]:
    kept = asdict(rows)
    kept["steps"] = [r for r in kept["steps"] if not r["metric"].endswith("_seconds")]
    return {k: v for k, v in kept.items() if not k.endswith("_seconds")}


def test_a_step_takes_as_many_fresh_trajectories_as_asked_for(folder: Path) -> None:
    chosen = cell("rledit", "editors.rledit.settings.trajectories_per_step=2")
    editor = editor_class("rledit")(open_model(chosen, folder), chosen.settings)
    assert isinstance(editor, TrainableEditor)
    steps = [train.trajectories(chosen, editor, step) for step in range(3)]
    assert [[len(trajectory) for trajectory in step] for step in steps] == [[3, 3]] * 3
    prompts = {
        tuple(i for batch in trajectory for s in batch.edit.samples for i in s.input_ids.tolist())
        for step in steps
        for trajectory in step
    }
    assert len(prompts) == 6


@pytest.mark.parametrize(
    ("per_step", "at"),
    [(1, 2), (2, 5), *(pytest.param(*pair, marks=pytest.mark.long) for pair in ((1, 4), (2, 13)))],
)
def test_training_goes_on_after_an_interruption(
    per_step: int, at: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY_SECONDS", 0.0)
    several = f"editors.rledit.settings.trajectories_per_step={per_step}"
    trained = cell("rledit", "editors.rledit.settings.train_steps=3", several)
    straight = network_of(trained, folder, tmp_path / "a")
    with pytest.raises(Interrupted):
        train.train(trained, folder, Cache(tmp_path / "b"), stop_at("train", at))
    assert Cache(tmp_path / "b").file(train.trained_name(trained)) is None
    told: list[tuple[int, int]] = []
    left: list[float | None] = []

    def report(
        stage: Stage, done: int, total: int, detail: str = "", yet: float | None = None
    ) -> None:
        assert detail == ""
        told.append((done, total))
        left.append(yet)

    assert train.train(trained, folder, Cache(tmp_path / "b"), report) is not None
    resumed = network_of(trained, folder, tmp_path / "b")
    # Batch by batch, on from the one before: that one was saved.
    assert told == [(i, 9 * per_step) for i in range(at - 1, 9 * per_step + 1)]
    # So does the time left, by what the attempts before took as well.
    assert left[-1] == 0 and all(yet is not None and yet > 0 for yet in left[1:-1])
    assert trained.trained_batches == 9 * per_step
    assert resumed.curve == straight.curve
    assert all(resumed.state[k].equal(straight.state[k]) for k in straight.state)
    assert not list((tmp_path / "b" / "trained").glob("*.progress"))


@pytest.mark.parametrize("editor", ["ultraedit", "rledit", "none"])
def test_a_stream_goes_on_after_an_interruption(
    editor: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit, "SAVE_EVERY_SECONDS", 0.0)
    chosen = cell(editor)
    network = None
    if chosen.trains:
        network = network_of(chosen, folder, tmp_path)
    straight = edit.edit_stream(chosen, folder, Cache(tmp_path / "a"), network, silent)
    with pytest.raises(Interrupted):
        edit.edit_stream(chosen, folder, Cache(tmp_path / "b"), network, stop_at("edit", 2))
    assert edit.state_folder(chosen, Cache(tmp_path / "b")).load() is not None
    resumed = edit.edit_stream(chosen, folder, Cache(tmp_path / "b"), network, silent)
    assert without_times(resumed) == without_times(straight)
    assert {r["checkpoint"] for r in straight.scores} == {0, 4, 8, 12}
    assert {r["checkpoint"] for r in straight.edits} == {4, 8, 12}


def test_a_stream_that_other_code_began_begins_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(edit, "SAVE_EVERY_SECONDS", 0.0)
    chosen, cache = cell("ultraedit"), Cache(tmp_path / "b")
    straight = edit.edit_stream(chosen, folder, Cache(tmp_path / "a"), None, silent)
    with monkeypatch.context() as other:
        other.setattr(edit, "code_version", lambda: "0.1.0+other")
        with pytest.raises(Interrupted):
            edit.edit_stream(chosen, folder, cache, None, stop_at("edit", 2))
    begun: list[int] = []

    def report(stage: Stage, done: int, *_: object) -> None:
        begun.append(done)

    again = edit.edit_stream(chosen, folder, cache, None, report)
    assert min(begun) == 1 and "0.1.0+other): begun anew" in caplog.text
    assert without_times(again) == without_times(straight)


def test_every_batch_reports_what_its_merge_realised(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        rows = edit.edit_stream(cell("ultraedit"), folder, Cache(tmp_path), None, silent)
    found: dict[str, list[tuple[int, float]]] = {
        m: [] for m in ("realised_cosine", "shift_norm", "weight_norm", "weight_change_norm")
    }
    for row in rows.steps:
        if row["metric"] in found and row["step"]:
            found[row["metric"]].append((row["step"], row["value"]))
    for metric, values in found.items():
        assert [step for step, _ in values] == [4, 8, 12], metric
    assert all(value == pytest.approx(1) for _, value in found["realised_cosine"])
    # The first batch is all the change there is; fp32 weights realise it as intended.
    assert found["weight_change_norm"][0][1] == pytest.approx(found["shift_norm"][0][1], rel=1e-3)
    assert "frozen prefix hit rate" in caplog.text


@pytest.mark.long
def test_measurements_go_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit, "SAVE_EVERY_SECONDS", 0.0)
    names = "measurements=[perplexity, fluency, consistency]"
    small = "material={prompts: 2, documents: 5}"
    chosen = cell("ultraedit", names, small, "datasets.0.world.lessons=true")
    folder = prepared_model(chosen, Cache(tmp_path))
    straight = edit.edit_stream(chosen, folder, Cache(tmp_path / "a"), None, silent)
    with pytest.raises(Interrupted):
        edit.edit_stream(chosen, folder, Cache(tmp_path / "b"), None, stop_at("edit", 2))
    resumed = edit.edit_stream(chosen, folder, Cache(tmp_path / "b"), None, silent)
    assert without_times(resumed) == without_times(straight)
    steps: dict[str, list[int]] = {}
    for row in straight.steps:
        steps.setdefault(row["metric"], []).append(row["step"])
    points = [r["checkpoint"] for r in straight.scores if r["protocol"] == chosen.protocols[0]]
    batches = range(0, chosen.n_edits + 1, chosen.stream.batch_size)
    assert steps["perplexity"] == list(batches)
    assert steps["fluency"] == points and steps["consistency"][0] == 0
    assert points[0] == 0 and points[-1] == chosen.n_edits
    assert steps["weight_norm"] == list(batches)[1:]


def test_training_never_draws_an_evaluated_fact(folder: Path) -> None:
    chosen = cell("rledit")
    prompts = {
        split: {e.subject for s in range(5) for e in chosen.source().draw(split, 30, seed=s)}
        for split in SPLITS
    }
    assert not prompts["train"] & prompts["evaluation"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["evaluation"]


def test_shared_work_is_one_task() -> None:
    grid = load_grid(
        GRID, ["streams=[{n_batches: 2, batch_size: 4}, {n_batches: 3, batch_size: 4}]"]
    )
    kinds = [t.kind for t in tasks_of(cells_of(grid)).values()]
    # One model; malmen's network serves both streams, rledit's does not.
    assert kinds.count("prepare") == 1
    assert kinds.count("train") == 3
    assert kinds.count("edit") == 8


def test_a_stream_longer_than_its_pool_is_refused_before_anything_runs(tmp_path: Path) -> None:
    grid = load_grid(GRID, ["streams=[{n_batches: 50, batch_size: 4}]"])
    with pytest.raises(ConfigError, match=r"needs 200 edits of the evaluation pool, which has 36"):
        make_plan(grid, Lake(str(tmp_path)))


def test_contradicting_edits_are_counted() -> None:
    edits = cell("none").source().draw("evaluation", 4, seed=0)
    other = cell("none").source().draw("evaluation", 4, seed=1)
    assert count_contradicting(edits) == 0
    by_prompt = {e.prompt: e for e in edits}
    clash = [e for e in other if e.prompt in by_prompt and e.target != by_prompt[e.prompt].target]
    assert count_contradicting([*edits, *clash]) == 2 * len(clash)


STEADY: dict[str, dict[str, Any]] = {
    "paper": {"reference": "paper"},
    "official": {"reference": "official"},
    "several": {
        "reference": "converged", "patience": 0, "step_search": [], "schedule": "constant",
        "warmup_steps": 4, "loc_warmup": 5, "average": 0.9, "trajectories_per_step": 2,
        "window_share": 0.5, "depth": 3, "optimise": "trajectory", "clipping": "optimiser_step",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("editor", "recipe"),
    [
        ("rledit", "paper"),
        ("rledit", "official"),
        pytest.param("rledit", "several", marks=pytest.mark.long),
        pytest.param("malmen", "official", marks=pytest.mark.long),
        pytest.param("mend", "paper", marks=pytest.mark.long),
        pytest.param("hiedit", "paper", marks=pytest.mark.long),
    ],
)
def test_a_longer_training_goes_on_where_a_shorter_one_ends(
    editor: str, recipe: str, folder: Path, tmp_path: Path
) -> None:
    def steps(n: int) -> Cell:
        own = {"rank": 16, "initial_step": 1e-3, "train_steps": n, "trajectory_batches": 3}
        settings = own | STEADY[recipe]
        entry = json.dumps([{"editor": editor, "settings": settings}])
        return cell(editor, f"editors={entry}")

    short, long = steps(2), steps(3)
    per_step = short.trained_batches // 2
    cache, told = Cache(tmp_path / "together"), []
    train.train(short, folder, cache, silent, longer=long)
    train.train(long, folder, cache, lambda _, done, *__: told.append(done))
    assert told == list(range(2 * per_step, 3 * per_step + 1))
    for chosen in (short, long):
        path = cache.file(train.trained_name(chosen))
        assert path is not None
        found = train.load_trained(path)
        alone = network_of(chosen, folder, tmp_path / f"alone{chosen.settings.train_steps}")
        assert found.curve == alone.curve and found.state.keys() == alone.state.keys()
        assert all(found.state[k].equal(alone.state[k]) for k in found.state)
    train.train(short, folder, cache, silent, longer=long)  # both are there: nothing is left
    assert not list((tmp_path / "together" / "trained").glob("*.progress"))


def test_a_training_that_has_begun_is_not_set_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY_SECONDS", 0.0)
    short, long = (cell("rledit", f"editors.rledit.settings.train_steps={n}") for n in (1, 3))
    cache, told = Cache(tmp_path), []
    with pytest.raises(Interrupted):
        train.train(long, folder, cache, stop_at("train", 7))
    train.train(short, folder, cache, silent, longer=long)
    train.train(long, folder, cache, lambda _, done, *__: told.append(done))
    assert told[0] == 6


def test_a_network_that_is_not_finite_hands_nothing_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise NonFiniteError("the network is not finite")

    short, long = (cell("rledit", f"editors.rledit.settings.train_steps={n}") for n in (1, 2))
    monkeypatch.setattr(train, "_require_numbers", broken)
    with pytest.raises(NonFiniteError):
        train.train(short, folder, Cache(tmp_path), silent, longer=long)
    assert not train._progress(long, Cache(tmp_path)).metadata()
