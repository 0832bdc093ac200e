"""Trainings that differ in length alone: which goes on from which, as tasks and in the plan."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config.parse import load_grid
from pipeline.plan import training_lengths
from pipeline.plan.cell_keys import train_key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.estimate import estimate
from pipeline.plan.estimate.wall_clock import wall_clock
from pipeline.plan.training_lengths import shorter_trainings
from pipeline.run.tasks import tasks_of
from rledit.editors.rledit import RLEdit

TINY = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
STEADY = {"reference": "paper", "rank": 16}


class Foreign(RLEdit):
    """An editor from outside, which may train as it likes."""

    name = "foreign"


def cells(
    *settings: dict[str, object], editor: str = "rledit", sets: tuple[str, ...] = ()
) -> list[Cell]:
    """Cells of one editor with these settings, in this order; the unedited row is left out."""
    entries = [
        {"editor": editor, "variant": f"v{i}", "settings": own} for i, own in enumerate(settings)
    ]
    given = [f"editors={json.dumps(entries)}", "seeds=[0]", *sets]
    return [c for c in cells_of(load_grid(TINY, given)) if c.editor.editor != "none"]


def test_a_longer_training_waits_for_the_next_shorter_one() -> None:
    long, short, middle = (c for c in cells(*({**STEADY, "train_steps": n} for n in (9, 2, 4))))
    assert shorter_trainings([long, short, middle]) == [middle, None, short]
    tasks = list(tasks_of([long, short, middle]).values())
    trained = [task for task in tasks if task.kind == "train"]
    assert [t.cell.settings.train_steps for t in trained] == [2, 4, 9]
    assert [t.longer and t.longer.settings.train_steps for t in trained] == [4, 9, None]
    assert [trained[i].key in trained[i + 1].needs for i in (0, 1)] == [True, True]
    place = {task.key: i for i, task in enumerate(tasks)}
    assert all(place[need] < place[task.key] for task in tasks for need in task.needs)
    own = {t.cell.settings.train_steps: t for t in tasks if t.kind == "edit"}
    for task in trained:  # a cell waits for its own network alone
        edits = own[task.cell.settings.train_steps]
        assert [need for need in edits.needs if need.startswith("train:")] == [task.key]


@pytest.mark.parametrize("given", ["threads=2", "resources={prefix_store_gb: 0}", "seeds=[1]"])
def test_trainings_of_other_threads_stores_and_seeds_are_apart(given: str) -> None:
    (short,) = cells({**STEADY, "train_steps": 2})
    (long,) = (c for c in cells({**STEADY, "train_steps": 4}, sets=(given,)))
    assert shorter_trainings([short, long]) == [None, None]


def test_where_only_the_longer_one_keeps_prefixes_it_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short, long = cells(*({**STEADY, "train_steps": n} for n in (2, 4)))
    assert shorter_trainings([short, long]) == [None, short]
    made = {2: False, 4: True}
    monkeypatch.setattr(
        training_lengths,
        "training_store_choice",
        lambda cell: SimpleNamespace(made=made[cell.settings.train_steps]),
    )
    assert shorter_trainings([short, long]) == [None, None]


@pytest.mark.parametrize(
    "other",
    [
        {"schedule": "cosine"},
        {"reference": "converged"},
        {"meta_lr": 1e-4},
        {"trajectory_batches": 2},
        {"seed": 3},
    ],
    ids=str,
)
def test_trainings_that_are_not_steady_or_not_alike_are_apart(other: dict[str, object]) -> None:
    first, second = cells({**STEADY, "train_steps": 2}, {**STEADY, **other, "train_steps": 4})
    assert shorter_trainings([first, second]) == [None, None]
    trained = [task for task in tasks_of([first, second]).values() if task.kind == "train"]
    assert [task.longer for task in trained] == [None, None]
    assert {task.key for task in trained} == {f"train:{train_key_of(c)}" for c in (first, second)}


@pytest.mark.parametrize("other", [{"schedule": "cosine"}, {"patience": 2}], ids=str)
def test_two_that_are_both_unsteady_are_apart(other: dict[str, object]) -> None:
    """The rate falls to nothing at the end, or a validation may end it."""
    short, long = cells(*({**STEADY, **other, "train_steps": n} for n in (2, 4)))
    assert shorter_trainings([short, long]) == [None, None]


def test_editors_with_other_trainings_are_apart() -> None:
    foreign = "tests.unit.pipeline.plan.test_training_lengths:Foreign"
    settings = [{**STEADY, "train_steps": n} for n in (2, 4)]
    assert shorter_trainings(cells(*settings, editor=foreign)) == [None, None]
    assert shorter_trainings(cells({"train_steps": 2}, {"train_steps": 4}, editor="dafnet")) == [
        None,
        None,
    ]


def test_a_plan_counts_each_step_once() -> None:
    chained = cells(*({**STEADY, "train_steps": n} for n in (9, 2, 4)))
    alone = estimate(chained[:1], [])
    found = estimate(chained, [])
    batches = alone.cells[0].trained
    assert sum(c.trained for c in found.cells) == batches == 9 * chained[0].trajectory_batches
    seconds = [c.seconds.training for c in found.cells]
    assert min(seconds) > 0
    assert sum(seconds) == pytest.approx(alone.cells[0].seconds.training, rel=0.2)
    # One goes on from the other, however many cores there are.
    assert wall_clock(found, 8).least >= sum(seconds)
