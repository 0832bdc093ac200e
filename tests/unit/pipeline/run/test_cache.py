"""A cache in an object store: nodes that have nothing else in common share what one has made."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import torch

from pipeline.run import resume as module
from pipeline.run.cache import LOCAL_FOLDER, Cache
from pipeline.run.rank_group import Gang
from pipeline.run.resume import StateFolder, load_together
from pipeline.storage.object_store import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4()}")


def test_a_file_made_on_one_node_reaches_another(tmp_path: Path) -> None:
    uri = f"memory://{uuid.uuid4()}"
    one, two = Cache(uri, tmp_path / "1"), Cache(uri, tmp_path / "2")
    assert two.file("trained/a.bin") is None
    made = one.folder / "trained" / "a.bin"
    made.parent.mkdir(parents=True)
    made.write_bytes(b"network")
    assert two.file("trained/a.bin") is None, "not handed out yet"
    one.publish("trained/a.bin")
    found = two.file("trained/a.bin")
    assert found is not None and found.read_bytes() == b"network" and found != made


def test_a_file_that_was_replaced_reaches_who_asks_for_the_newest(tmp_path: Path) -> None:
    uri = f"memory://{uuid.uuid4()}"
    one, two = Cache(uri, tmp_path / "1"), Cache(uri, tmp_path / "2")
    for content in (b"before", b"after"):
        one.folder.mkdir(parents=True, exist_ok=True)
        (one.folder / "edited.bin").write_bytes(content)
        one.publish("edited.bin", replace=True)
        assert (two.file("edited.bin") or tmp_path).read_bytes() == b"before"
    assert (two.file("edited.bin", newest=True) or tmp_path).read_bytes() == b"after"
    one.delete("edited.bin")
    assert two.file("edited.bin", newest=True) is None


def test_a_folder_counts_from_its_last_file_on(tmp_path: Path) -> None:
    uri = f"memory://{uuid.uuid4()}"
    one, two = Cache(uri, tmp_path / "1"), Cache(uri, tmp_path / "2")
    made = one.folder / "models" / "m"
    (made / "sub").mkdir(parents=True)
    for name in ("a.bin", "sub/b.bin", "zz.json"):
        (made / name).write_text(name)
    one.storage.upload(made / "a.bin", "models/m/a.bin")
    assert two.tree("models/m", last="zz.json") is None, "half of it"
    one.publish_tree("models/m", last="zz.json")
    found = two.tree("models/m", last="zz.json")
    assert found is not None
    assert sorted(p.name for p in found.rglob("*.*")) == ["a.bin", "b.bin", "zz.json"]
    assert [p.name for p in found.parent.iterdir()] == ["m"]


def test_a_shared_mount_is_used_in_place(tmp_path: Path) -> None:
    cache = Cache(tmp_path, tmp_path / "elsewhere")
    (tmp_path / "a.bin").write_bytes(b"x")
    cache.publish("a.bin")
    assert cache.folder == tmp_path and cache.file("a.bin") == tmp_path / "a.bin"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin"]


def test_copies_lie_where_the_node_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCAL_FOLDER, str(tmp_path))
    one, two = Cache("memory://a"), Cache("memory://b")
    assert one.folder.parent == two.folder.parent == tmp_path
    assert one.folder != two.folder


def test_a_state_comes_back_and_replaces_the_one_before(storage: Storage) -> None:
    folder = StateFolder(storage)
    assert folder.load() is None
    for version in (1, 2):
        folder.save({"w": torch.full((2,), float(version))}, {"rows": [version]}, version)
    saved = folder.load()
    assert saved is not None
    assert saved[0]["w"].tolist() == [2.0, 2.0]
    assert saved[1] == {"rows": [2], "version": 2}
    assert len(storage.list()) == 2
    folder.clear()
    assert storage.list() == [] and folder.load() is None


def test_a_write_that_fails_leaves_the_state_before(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk is full: at the payload, or at the pointer."""
    folder = StateFolder(storage)
    folder.save({"w": torch.ones(1)}, {}, 1)
    write = Storage.write_bytes
    for refused in (".safetensors", ".json"):

        def full(own: Storage, name: str, data: bytes, refused: str = refused) -> None:
            if name.endswith(refused):
                raise OSError(28, "No space left on device")
            write(own, name, data)

        with monkeypatch.context() as patched:
            patched.setattr(Storage, "write_bytes", full)
            with pytest.raises(OSError, match="No space left"):
                folder.save({"w": torch.zeros(1)}, {}, 2)
        saved = folder.load()
        assert saved is not None and saved[1]["version"] == 1 and saved[0]["w"].item() == 1
    folder.save({"w": torch.zeros(1)}, {}, 2)
    assert folder.load() is not None


def test_two_savers_leave_one_whole_state(storage: Storage) -> None:
    one, two = StateFolder(storage), StateFolder(storage)
    for version in range(1, 4):
        one.save({"w": torch.tensor([1.0])}, {"by": 1}, version)
        two.save({"w": torch.tensor([2.0])}, {"by": 2}, version)
        saved = one.load()
        assert saved is not None and saved[0]["w"].item() == saved[1]["by"] == 2


def test_a_payload_that_is_gone_is_no_state(storage: Storage) -> None:
    folder = StateFolder(storage)
    folder.save({"w": torch.ones(1)}, {}, 1)
    (payload,) = (name for name in storage.list() if name != module._POINTER)
    storage.delete(payload)
    assert folder.load() is None


class Divided:
    """Two ranks of which the other one has read version 7."""

    rank, size = 0, 2

    def all_reduce_(self, tensor: torch.Tensor) -> None:
        tensor[1] += 7


def test_ranks_that_see_different_states_stop(storage: Storage) -> None:
    folder = StateFolder(storage)
    folder.save({"w": torch.ones(1)}, {}, 3)
    with pytest.raises(RuntimeError, match=r"versions \[3.0, 7.0\].*same cache"):
        load_together(folder, Gang(together=Divided()))
