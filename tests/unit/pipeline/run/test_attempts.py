"""The end of an attempt is recorded with a reason that is fit for logs and the lake."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError, WorkerCrashedError
from torch.distributed import DistNetworkError

from pipeline.config.resources import ResourcesEntry
from pipeline.run.fleet import attempts
from pipeline.run.fleet.attempts import Outcome
from pipeline.run.lease import LeaseLost
from rledit.calibration import CalibrationError
from rledit.finite import NonFiniteError

PLANTED = "hunter2-planted-secret"


def ended_by(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    def get(_: Any) -> None:
        raise error

    monkeypatch.setattr(attempts.ray, "get", get)
    return attempts.outcome_of("a reference")


def test_an_error_of_the_work_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cause = PermissionError(f"s3://key:{PLANTED}@bucket/lake")
    outcome = ended_by(RayTaskError("work", f"trace: {cause}", cause), monkeypatch)
    assert outcome == Outcome(reason="PermissionError: s3://***@bucket/lake")
    assert "trace: s3://***@bucket/lake" in caplog.text
    assert PLANTED not in caplog.text


def test_an_answer_to_the_user_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for cause in (NonFiniteError("down:1 holds nan"), CalibrationError("no step gains")):
        outcome = ended_by(RayTaskError("work", "trace", cause), monkeypatch)
        assert outcome.reason == f"{type(cause).__name__}: {cause}"
    assert not caplog.messages


def test_a_death_and_a_lost_lease_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = ended_by(WorkerCrashedError(), monkeypatch)
    assert outcome.died and outcome.reason is not None
    assert outcome.reason.startswith("WorkerCrashedError: ") and "\n" not in outcome.reason
    lost = RayTaskError("work", "trace", LeaseLost("taken over"))
    assert ended_by(lost, monkeypatch) == Outcome(reason="LeaseLost: taken over", died=True)
    assert not caplog.messages


@pytest.mark.parametrize("error", [TimeoutError("rank 0 did not say"), DistNetworkError("gone")])
def test_a_peer_that_does_not_answer_is_an_interruption(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended_by(RayTaskError("work", "trace", error), monkeypatch).died


def gang_of_two(monkeypatch: pytest.MonkeyPatch, **outcomes: Outcome) -> tuple[Any, list[float]]:
    """A gang at work whose ranks end as told, and its clock."""
    now = [0.0]
    monkeypatch.setattr(attempts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(attempts, "outcome_of", outcomes.__getitem__)
    gang = object.__new__(attempts._Together)
    gang._ranks, gang._outcomes, gang._first_error = ["a", "b"], [], None
    gang.references = ["a", "b"]
    return gang, now


def test_a_death_told_late_explains_a_survivors_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray looks every 3 s and gives a node 5 chances; connections to it break at once."""
    dead = Outcome(reason="ActorDiedError: node", died=True)
    gang, now = gang_of_two(monkeypatch, a=Outcome(reason="connection closed"), b=dead)
    assert gang.ended("a") is None
    now[0] += 5 * 3 + 10
    assert gang.overdue() is None, "too early for a verdict"
    assert gang.ended("b") == dead


def test_an_error_whose_peers_hang_is_the_verdict_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = Outcome(reason="ValueError: wrong")
    gang, now = gang_of_two(monkeypatch, a=wrong)
    assert gang.overdue() is None and gang.ended("a") is None
    now[0] += 2 * attempts.GRACE_SECONDS
    assert gang.overdue() == wrong


@pytest.mark.parametrize(
    "gpus, outcome, fit",
    [
        (0.0, Outcome(), True),
        (1.0, Outcome(), True),
        (0.0, Outcome(reason="ValueError: wrong"), True),
        # An illegal access, say, after which the process cannot use its GPU any more.
        (1.0, Outcome(reason="RuntimeError: CUDA error"), False),
        (0.0, Outcome(reason="ActorDiedError: gone", died=True), False),
    ],
)
def test_a_worker_does_another_task_where_the_last_one_cannot_have_harmed_it(
    gpus: float, outcome: Outcome, fit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    task = SimpleNamespace(resources=ResourcesEntry(gpus=gpus))
    worker: Any = SimpleNamespace(hand=SimpleNamespace(work=lambda item: "its end"))
    workers: Any = SimpleNamespace(back=lambda _, fit: told.append(fit))
    item: Any = SimpleNamespace(task=task)
    attempt = attempts.begin_on(item, worker, workers)
    monkeypatch.setattr(attempts, "outcome_of", {"its end": outcome}.__getitem__)
    assert attempt.ended("its end") == outcome
    assert told == [fit] and attempt.references == []
