"""The end of an attempt is recorded with a reason that is fit for logs and the lake."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError, WorkerCrashedError
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from pipeline.config.resources import ResourcesEntry
from pipeline.run.fleet import attempts, process_group
from pipeline.run.fleet.attempts import Outcome
from pipeline.run.lease import LeaseLost
from pipeline.run.reporting import silent
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


CLOSED = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:4711")


@pytest.mark.parametrize("broken", [CLOSED, DistNetworkError("gone"), DistBackendError("NCCL")])
@pytest.mark.parametrize("wrong", [NonFiniteError("down:1 holds nan"), KeyError("a bug")])
def test_an_error_of_one_rank_explains_the_broken_connection_of_the_other(
    broken: Exception, wrong: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        ended_by(RayTaskError("work", "trace", error), monkeypatch) for error in (broken, wrong)
    )
    gang, _ = gang_of_two(monkeypatch, a=first, b=second)
    assert gang.ended("a") is None
    assert gang.ended("b") == second and not second.died


def test_a_lost_connection_that_nothing_explains_is_an_interruption_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = ended_by(RayTaskError("work", "trace", DistNetworkError("gone")), monkeypatch)
    gang, now = gang_of_two(monkeypatch, a=lost)
    assert gang.ended("a") is None
    now[0] += 2 * attempts.GRACE_SECONDS
    assert gang.overdue() == lost and lost.died


def test_a_rank_has_its_model_before_it_joins_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetching it may take longer than a collective call waits."""
    done: list[str] = []

    def noted(name: str, found: Any = None) -> Any:
        return lambda *_: done.append(name) or found

    host = "127.0.0.1"
    monkeypatch.setattr(attempts.ray.util, "get_node_ip_address", lambda: host)
    monkeypatch.setattr(attempts, "hide_gpus", noted("hide"))
    monkeypatch.setattr(attempts, "_rendezvous", lambda *_: host)
    monkeypatch.setattr(attempts, "_reported", lambda *_: nullcontext(silent))
    monkeypatch.setattr(process_group, "use_network_of", noted("network"))
    monkeypatch.setattr(process_group, "find_rendezvous", noted("meet"))
    monkeypatch.setattr(process_group, "wait_for_all", noted("wait"))
    monkeypatch.setattr(process_group, "joined", noted("join", nullcontext()))
    monkeypatch.setattr(attempts, "prepare_node", noted("prepare"))
    monkeypatch.setattr(attempts, "perform", noted("perform", "done"))
    task = SimpleNamespace(resources=ResourcesEntry(ranks=2))
    item: Any = SimpleNamespace(task=task, run_paths=None, run="", interruptions=())
    rank = attempts._Rank.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    assert rank.work(None, item, 1, "name") == "done"
    assert done == ["hide", "network", "meet", "prepare", "wait", "join", "perform"]


def test_ranks_wait_for_the_last_one() -> None:
    first, address = process_group.open_rendezvous("127.0.0.1")
    with pytest.raises(DistStoreError):
        process_group.wait_for_all(first, 0, 2, timedelta(seconds=0.1))
    second = process_group.find_rendezvous(address)
    process_group.wait_for_all(second, 1, 2, timedelta(seconds=10))
    process_group.wait_for_all(first, 0, 2, timedelta(seconds=10))


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
