"""Which cells a submission asked for: written beside the lake's tables when its job has planned."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.storage import Storage

FOLDER = "submissions"


def write_record(lake: str, name: str, grid: str, keys: Sequence[str]) -> None:
    """Leave the keys of a submission's cells, for `rledit status`."""
    text = json.dumps({"grid": grid, "cells": list(keys)})
    Storage(lake).write_bytes(f"{FOLDER}/{name}.json", text.encode())


def read_record(lake: str, name: str) -> tuple[str, ...] | None:
    """Keys of a submission's cells; None before its job has planned them."""
    try:
        record = json.loads(Storage(lake).read_bytes(f"{FOLDER}/{name}.json"))
    except FileNotFoundError:
        return None
    return tuple(record["cells"])
