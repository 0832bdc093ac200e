"""Whose runs are whose on a tracking store that several lakes write to."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

from pipeline.results.lake.lake import Lake
from pipeline.storage.object_store import Storage

_NAME = "lake-id.json"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A lake, as tracking stores tell it from others.

    Attributes:
        name: What no other lake is called.
        original: The name of the lake that it is a copy of; empty: it is none.
    """

    name: str
    original: str = ""

    @property
    def names(self) -> set[str]:
        """All that runs of its cells may be said to be of."""
        return {self.name, self.original} - {""}


def owner_of(lake: Lake) -> Owner:
    """A lake's name, written into it when it is first asked for.

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
        again = {"original": found["id"]} if copied else {"name": found["id"]}
        lake.storage.write_bytes(_NAME, _content(here, **again))
        found = _read(lake.storage)
    if found is None:  # written by nobody: the file system keeps nothing
        return Owner(name=here)
    return Owner(name=found["id"], original=found.get("original", ""))


def known_owner(lake: Lake) -> Owner | None:
    """A lake's name as it stands, without writing; None where it has none yet."""
    found = _read(lake.storage)
    return None if found is None else Owner(name=found["id"], original=found.get("original", ""))


def _content(place: str, name: str | None = None, original: str = "") -> bytes:
    said = {"id": name or uuid.uuid4().hex, "place": place}
    return json.dumps(said | ({"original": original} if original else {})).encode()


def _read(storage: Storage) -> dict[str, str] | None:
    """The name of a lake and the place where it was given; None where it has none."""
    try:
        if not storage.exists(_NAME):
            return None
        found = json.loads(storage.read_bytes(_NAME))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"id", "place"} <= found.keys() else None
