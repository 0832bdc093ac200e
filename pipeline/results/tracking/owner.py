"""Whose runs are whose on a tracking store that several lakes write to."""

from __future__ import annotations

import json
import uuid

from pipeline.results.lake.lake import Lake
from pipeline.storage.object_store import Storage

_NAME = "lake-id.json"


def lake_id(lake: Lake) -> str:
    """A name for a lake that no other has; written into it when it is first asked for.

    A lake that was moved keeps its name. A copy beside the original gets one of its own.

    Raises:
        OSError: The lake cannot be written.
    """
    here = str(lake.storage.local_path() or lake.storage)
    found = _read(lake.storage)
    if found is None:
        lake.storage.create_bytes(_NAME, _content(here))
        found = _read(lake.storage)
    elif found["place"] != here:
        copied = _read(Storage(found["place"])) == found
        content = _content(here) if copied else _content(here, found["id"])
        lake.storage.write_bytes(_NAME, content)
        found = _read(lake.storage)
    return found["id"] if found is not None else here


def _content(place: str, name: str | None = None) -> bytes:
    return json.dumps({"id": name or uuid.uuid4().hex, "place": place}).encode()


def _read(storage: Storage) -> dict[str, str] | None:
    """The name of a lake and the place where it was given; None where it has none."""
    try:
        if not storage.exists(_NAME):
            return None
        found = json.loads(storage.read_bytes(_NAME))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"id", "place"} <= found.keys() else None
