"""Signs of life cost the thread that gives out work little, also of a server that never answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import cast

import pytest

from pipeline.results.tracking import store
from pipeline.results.tracking.experiment import Tracked
from pipeline.results.tracking.tracker import Tracker
from pipeline.results.tracking.uri import TrackingError
from pipeline.run import heartbeat
from pipeline.run.heartbeat import Heartbeat


class SlowTracker:
    """A store of which every beat takes long, on a clock that only such beats and waits move."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds, self.fails = 0.0, seconds, True
        self.beats: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def beat(self, parent: str, values: Mapping[str, float], step: int) -> None:
        self.beats.append(self.now)
        self.now += self.seconds
        if self.fails:
            raise TrackingError("the store is away")


def test_a_store_that_fails_slowly_is_asked_less_and_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = SlowTracker(20.0)
    monkeypatch.setattr(heartbeat, "time", slow)
    beat = Heartbeat(cast(Tracker, slow), "parent", dict)

    def beats_within(seconds: float) -> list[float]:
        slow.beats, end = [], slow.now + seconds
        while slow.now < end:
            beat.progress({})
            slow.now += 1
        return [b - a for a, b in zip(slow.beats, slow.beats[1:], strict=False)]

    gaps = beats_within(1000)
    assert gaps[0] > 20 + 15 and gaps == sorted(gaps), "from the end of a beat, then longer"
    assert gaps[-1] == gaps[-2] <= 20 + heartbeat.AT_MOST_EVERY_SECONDS + 1
    slow.fails, slow.seconds = False, 0.0
    assert beats_within(300)[-1] <= 16, "as often as before once the store is back"


def test_a_beat_asks_a_silent_server_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(store._HURRIED, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        known = Tracked(experiment_id="1", name="demo", grid="demo", lake="")
        tracker = Tracker(uri, "demo", known=known)
        began = time.monotonic()
        with pytest.raises(TrackingError, match="timed out"):
            tracker.beat("a" * 32, {"cells": 1.0}, 0)
        assert time.monotonic() - began < 4
