"""A lease has one holder; it passes on when its holder gives it back, dies or falls silent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.run import lease as module
from pipeline.run.lease import Lease, LeaseLost, leased
from pipeline.run.rank_group import SINGLE_PROCESS
from pipeline.run.reporting import silent
from pipeline.storage.object_store import Storage

KEY = "edit:0123"
NAME = "leases/edit-0123.json"


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4()}")


def planted(storage: Storage, **changes: Any) -> None:
    """A lease of a process on another machine, of which nothing more is heard."""
    claim = {
        "token": "t",
        "run": "other",
        "place": "elsewhere",
        "pid": 1,
        "born": "0",
        "renewed": 0,
    }
    storage.write_bytes(NAME, json.dumps(claim | changes).encode())


def test_of_many_one_gets_it(storage: Storage) -> None:
    leases = [Lease(storage, KEY, f"run{i}") for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(Lease.attempt, leases))
    assert sum(got) == 1
    holder = leases[got.index(True)]
    holder.release()
    assert storage.list() == []
    assert leases[0].attempt()
    leases[0].release()


def test_a_later_attempt_of_the_same_run_takes_over(storage: Storage) -> None:
    first, second = Lease(storage, KEY, "run"), Lease(storage, KEY, "run")
    assert first.attempt() and second.attempt()
    with pytest.raises(LeaseLost, match="taken over"):
        first.guard(silent)("commit", 0, 1)
    second.guard(silent)("commit", 0, 1)
    first.release()
    assert storage.exists(NAME), "who has lost it cannot give it back"
    second.release()


def test_without_a_driver_nobody_takes_over(storage: Storage) -> None:
    first, second = Lease(storage, KEY, ""), Lease(storage, KEY, "")
    assert first.attempt() and not second.attempt()
    first.release()
    assert second.attempt()
    second.release()


def test_a_renewal_under_way_does_not_bring_a_lease_back(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    write, under_way = Storage.write_bytes, threading.Event()

    def slow(own: Storage, name: str, data: bytes) -> None:
        under_way.set()
        time.sleep(0.2)
        write(own, name, data)

    monkeypatch.setattr(Storage, "write_bytes", slow)
    lease = Lease(storage, KEY, "run")
    assert lease.attempt() and under_way.wait(5)
    lease.release()
    time.sleep(0.3)
    assert storage.list() == []


def test_a_store_that_is_away_for_a_while_costs_no_lease(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers of object stores raise classes of their own."""
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    lease = Lease(storage, KEY, "run")
    assert lease.attempt()
    away, read = threading.Event(), Storage.read_bytes

    def refuse(own: Storage, name: str) -> bytes:
        away.set()
        raise RuntimeError("endpoint is away")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "read_bytes", refuse)
        assert away.wait(5)
    deadline = time.monotonic() + 5
    while not json.loads(read(storage, NAME))["renewed"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert json.loads(read(storage, NAME))["renewed"]
    lease.guard(silent)("commit", 0, 1)
    lease.release()


def test_a_dead_process_of_this_machine_holds_nothing(storage: Storage) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    planted(storage, place=module.place(), pid=int(dead.stdout), born="1")
    lease = Lease(storage, KEY, "run")
    assert lease.attempt()
    lease.release()


def test_a_process_number_that_was_given_again_is_another_process(storage: Storage) -> None:
    planted(storage, place=module.place(), pid=os.getpid(), born="1")
    lease = Lease(storage, KEY, "run")
    assert lease.attempt()
    lease.release()


def test_a_silent_holder_elsewhere_is_waited_for_and_replaced(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(module, "time", clock)
    planted(storage)
    lease = Lease(storage, KEY, "run")
    assert not lease.attempt()
    now[0] += 0.8 * module.EXPIRES_SECONDS
    planted(storage, renewed=1)
    assert not lease.attempt()
    now[0] += 0.8 * module.EXPIRES_SECONDS
    assert not lease.attempt(), "it was renewed in between"
    now[0] += 0.3 * module.EXPIRES_SECONDS
    assert lease.attempt()
    lease.release()


def test_a_holder_renews_and_notices_a_loss(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.05)
    lease = Lease(storage, KEY, "run")
    assert lease.attempt()
    deadline = time.monotonic() + 5
    while json.loads(storage.read_bytes(NAME))["renewed"] < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert json.loads(storage.read_bytes(NAME))["renewed"] >= 2
    planted(storage)
    guarded = lease.guard(silent)
    with pytest.raises(LeaseLost):
        while time.monotonic() < deadline:
            guarded("edit", 0, 1)
            time.sleep(0.02)
    lease.release()
    assert storage.exists(NAME)


def test_the_work_is_done_under_the_lease(storage: Storage) -> None:
    heard: list[Any] = []
    with leased(storage, KEY, "run", SINGLE_PROCESS, lambda *what: heard.append(what)) as report:
        assert storage.list() == [NAME]
        report("edit", 1, 2)
    assert heard == [("edit", 1, 2, "", None)] and storage.list() == []


def test_of_many_one_gets_it_where_files_have_one_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    test_of_many_one_gets_it(Storage(str(tmp_path)))


def test_a_lease_that_was_left_half_written_expires(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(NAME, b"")
    lease = Lease(storage, KEY, "run")
    assert not lease.attempt()
    monkeypatch.setattr(module, "EXPIRES_SECONDS", 0.0)
    time.sleep(0.01)
    assert lease.attempt()
    lease.release()


def test_a_holder_lives_on_when_the_clock_is_set(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Lease(storage, KEY, "one")
    assert holder.attempt()
    boot = psutil.boot_time()
    # What dates of birth are counted from, after the clock was put forward by a minute.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 60)
    assert not Lease(storage, KEY, "other").attempt()
    holder.release()
