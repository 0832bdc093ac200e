"""Leases: the right to work on something, held by one process at a time, kept by a heartbeat.

Two drivers on one grid, or a worker cut off from a driver that has replaced it, may want the same
task. A lease is an object in the cache that one of them succeeds in making. It keeps them from
doing the same work twice; that their results cannot mix does not depend on it, as nothing that is
written is ever changed under its name (see `pipeline.run.resume`, `pipeline.results.lake.lake`).

A lease is free again when its holder removes it, is known to be dead, or has not renewed it for
`EXPIRES_SECONDS` by the clock of whoever waits.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.results.tracking.liveness import process_start
from pipeline.run.processes import alive, place
from pipeline.run.rank_group import Gang
from pipeline.run.reporting import Report, Stage
from pipeline.storage.object_store import Storage
from pipeline.storage.redaction import redact

logger = logging.getLogger(__name__)

RENEW_SECONDS = 5.0
EXPIRES_SECONDS = 30.0
POLL_SECONDS = 0.5


class LeaseLost(RuntimeError):
    """Another process has taken the work over."""


class Lease:
    """One process's claim to a piece of work.

    Args:
        storage: The cache.
        key: What the work is.
        run: Invocation of the driver: it gives a task to one process at a time, so a later one
            takes over from an earlier one of the same invocation. Empty where there is no driver.
    """

    def __init__(self, storage: Storage, key: str, run: str) -> None:
        self._storage = storage
        self._name = f"leases/{key.replace(':', '-')}.json"
        self._claim: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "run": run,
            "place": place(),
            "pid": os.getpid(),
            "born": process_start(os.getpid()),
            "renewed": 0,
        }
        self._other: dict[str, Any] | None = None
        self._since = 0.0
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._keeper: threading.Thread | None = None

    def attempt(self) -> bool:
        """Try to get the lease; returns whether it is held now."""
        if self._storage.create_bytes(self._name, self._content()):
            self._keeper = threading.Thread(target=self._renew, daemon=True)
            self._keeper.start()
            return True
        other = self._read()
        if other is not None and self._is_free(other) and self._read() == other:
            logger.info("%s: taking over from process %s", self._name, other["pid"])
            self._storage.delete(self._name)
            return self.attempt()
        return False

    def release(self) -> None:
        """Give the lease back, if it is held."""
        self._ended.set()
        if self._keeper is not None:
            self._keeper.join()  # a renewal under way would bring the lease back
        if self._is_ours(self._read()):
            self._storage.delete(self._name)

    def guard(self, report: Report) -> Report:
        """`report`, which raises `LeaseLost` where another process has taken over."""

        def guarded(
            stage: Stage, done: int, total: int, detail: str = "", left: float | None = None
        ) -> None:
            if self._lost.is_set() or (stage == "commit" and not self._is_ours(self._read())):
                raise LeaseLost(f"{self._name}: another process has taken over")
            report(stage, done, total, detail, left)

        return guarded

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                if not self._is_ours(self._read()):
                    if not self._ended.is_set():
                        self._lost.set()
                    return
                self._claim["renewed"] += 1
                self._storage.write_bytes(self._name, self._content())
            except Exception as error:  # drivers of object stores raise classes of their own
                logger.warning("%s cannot be renewed: %s", self._name, redact(str(error)))

    def _is_free(self, other: dict[str, Any]) -> bool:
        if other["run"] and other["run"] == self._claim["run"]:
            return True
        if other["place"] == self._claim["place"] and not alive(other["pid"], other["born"]):
            return True
        if other != self._other:
            self._other, self._since = other, time.monotonic()
        return time.monotonic() - self._since > EXPIRES_SECONDS

    def _is_ours(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found["token"] == self._claim["token"]

    def _content(self) -> bytes:
        return json.dumps(self._claim).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._storage.read_bytes(self._name))
        except FileNotFoundError:
            return None
        except ValueError:  # being written, or left by a process that died as it wrote
            return {**self._claim, "token": "", "run": "", "place": "", "renewed": 0}
        return found


@contextmanager
def leased(storage: Storage, key: str, run: str, gang: Gang, report: Report) -> Iterator[Report]:
    """Hold a lease for the length of the context; the leader of a gang holds it for all.

    Yields:
        `report`, which raises `LeaseLost` where another process has taken over.
    """
    lease = Lease(storage, key, run)
    try:
        while not gang.broadcast(gang.is_rank_zero and lease.attempt()):
            time.sleep(POLL_SECONDS)
        yield lease.guard(report) if gang.is_rank_zero else report
    finally:
        if gang.is_rank_zero:
            lease.release()
