"""Object-store requests of one cell do not grow with the lake."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.results.lake.lake import Lake
from pipeline.storage.object_store import Storage
from tests.unit.helpers.lake_fixtures import cell


@pytest.fixture
def lake() -> Iterator[Lake]:
    place = f"memory://{uuid.uuid4().hex}/lake"
    yield Lake(place)
    fsspec.filesystem("memory").rm(place, recursive=True)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders that were listed whole."""
    seen: list[str] = []
    find = MemoryFileSystem.find

    def spy(self: Any, path: str, *arguments: Any, prefix: str = "", **options: Any) -> Any:
        if not prefix:
            seen.append(path)
        found = find(self, path, *arguments, **options)
        if not prefix:
            return found
        start = f"{path.rstrip('/')}/{prefix}".lstrip("/")
        return {name: entry for name, entry in found.items() if name.lstrip("/").startswith(start)}

    # Like the drivers of S3 and Google Cloud, which hand a prefix on to the store.
    monkeypatch.setattr(MemoryFileSystem, "_find", spy, raising=False)
    monkeypatch.setattr(MemoryFileSystem, "find", spy)
    return seen


def test_a_cell_with_a_known_address_lists_no_folder(lake: Lake, listings: list[str]) -> None:
    result = cell()
    assert not lake.is_done(result.address)
    lake.commit(result)
    assert lake.is_done(result.address)
    record = lake.record(result.address)
    assert record is not None and lake.result(record).address == result.address
    lake.record_failure(cell(seed=1).address, "x", identity={}, code_version="1")
    assert not lake.is_done(cell(seed=1).address)
    assert listings == []
    assert lake.record(result.address) == lake.record(result.address.cell_key)
    assert listings != []


def test_a_cut_shard_is_seen_without_a_listing(lake: Lake) -> None:
    record = lake.commit(cell())
    lake.storage.write_bytes(record.files["edits"]["path"], b"short")
    assert not lake.is_done(cell().address)


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_sizes_and_names_of_single_objects(kind: str, tmp_path: Any, listings: list[str]) -> None:
    uri = f"memory://{uuid.uuid4().hex}" if kind == "memory" else str(tmp_path)
    storage = Storage(uri)
    for name in ("a/key-1", "a/key-2", "a/other", "a/key-3/below", "key-4"):
        storage.write_bytes(name, b"xyz")
    assert storage.size("a/key-1") == 3
    assert storage.size("a/nothing") is None
    assert storage.starting("a/key") == ("a/key-1", "a/key-2")
    assert storage.starting("key") == ("key-4",)
    assert storage.starting("b/key") == ()
    assert listings == []
