"""Locations: the same behaviour on a local disk, in memory and on an S3-compatible server."""

from __future__ import annotations

import errno
import os
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.inputs.edit_files import open_data
from pipeline.run.resume import StateFolder
from pipeline.storage.object_store import Storage, StoreUnavailable
from pipeline.storage.redaction import redact, redact_settings
from rledit.datasets import DataFileError

PLANTED = "hunter2-planted-secret"


def test_a_store_that_does_not_name_the_condition_is_understood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A 412 without its condition reaches us as an invalid argument."""
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    storage.write_bytes("leases/a", b"first")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, "PreconditionFailed")

    monkeypatch.setattr(storage._fs, "pipe_file", refuse)
    assert not storage.create_bytes("leases/a", b"second")
    with pytest.raises(OSError, match="PreconditionFailed"):
        storage.create_bytes("leases/b", b"nothing is there")


class NoCredentials(Exception):
    """As botocore raises one: neither an OSError nor a ValueError."""


NoCredentials.__module__ = "botocore.exceptions"


def test_an_error_of_a_driver_names_the_place_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = Storage(f"memory://u:{PLANTED}@{uuid.uuid4().hex}")

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentials(f"none for memory://u:{PLANTED}@x")

    for name in ("find", "cat_file", "pipe_file", "info", "rm"):
        monkeypatch.setattr(type(storage._driver), name, refuse)
    for call in (
        storage.list,
        lambda: storage.read_bytes("a"),
        lambda: storage.write_bytes("a", b""),
        lambda: storage.create_bytes("a", b""),
        lambda: storage.exists("a"),
        lambda: storage.size("a"),
        lambda: storage.delete("a"),
        pickle.loads(pickle.dumps(storage)).list,
    ):
        with pytest.raises(StoreUnavailable) as told:
            call()
        assert "cannot be used (NoCredentials: none for memory://***@x); check" in str(told.value)
        assert str(told.value).startswith(f"{storage}: ") and PLANTED not in str(told.value)
    with pytest.raises(DataFileError, match="cannot be read.*NoCredentials"):
        open_data(f"{storage.uri}/edits.jsonl")


def test_a_store_that_does_not_answer_is_not_taken_for_an_empty_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resume state that cannot be looked up now is neither begun anew nor removed."""
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    folder = StateFolder(storage)
    folder.save({"weight": torch.ones(1)}, {"rows": 900}, version=900)

    def late(*_: object, **__: object) -> None:
        raise OSError(errno.ETIMEDOUT, "connection timed out")

    with monkeypatch.context() as away:
        away.setattr(type(storage._driver), "info", late)
        for call in (
            lambda: storage.exists("latest.json"),
            folder.load,
            lambda: folder.save({"weight": torch.zeros(1)}, {"rows": 1}, version=1),
        ):
            with pytest.raises(OSError, match="timed out"):
                call()
    saved = folder.load()
    assert saved is not None and saved[1]["rows"] == 900


@pytest.fixture(params=["path", "file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(
        {
            "path": str(tmp_path / "a folder"),
            "file": (tmp_path / "a folder").as_uri(),
            "memory": f"memory://{uuid.uuid4().hex}",
        }[request.param]
    )


def roundtrip(storage: Storage) -> None:
    assert storage.list() == []
    storage.write_bytes("x/model=a%2Fb/k.bin", b"one")
    storage.write_bytes("x/model=a%2Fb/k.bin", b"two!")
    storage.write_bytes("y.json", b"")
    assert storage.read_bytes("x/model=a%2Fb/k.bin") == b"two!"
    assert storage.list() == ["x/model=a%2Fb/k.bin", "y.json"]
    assert storage.sizes("x") == {"x/model=a%2Fb/k.bin": 4}
    assert storage.list("nowhere") == []
    assert storage.exists("y.json") and not storage.exists("x") and not storage.exists("z")
    below = storage.join("x", "model=a%2Fb")
    assert below.list() == ["k.bin"]
    storage.delete("y.json")
    storage.delete("y.json")
    assert not storage.exists("y.json")
    with pytest.raises(FileNotFoundError, match=r"no 'y\.json'"):
        storage.read_bytes("y.json")


def test_roundtrip(storage: Storage) -> None:
    roundtrip(storage)


def files_and_firsts(storage: Storage, folder: Path) -> None:
    """What leases and caches are built on."""
    assert storage.create_bytes("leases/a", b"first")
    assert not storage.create_bytes("leases/a", b"second")
    assert storage.read_bytes("leases/a") == b"first"
    storage.delete("leases/a")
    assert storage.create_bytes("leases/a", b"third")
    made, copied = folder / "made.bin", folder / "below" / "copied.bin"
    made.write_bytes(bytes(range(256)) * 1000)
    storage.upload(made, "x/y.bin")
    storage.download("x/y.bin", copied)
    assert copied.read_bytes() == made.read_bytes() == storage.read_bytes("x/y.bin")
    with pytest.raises(FileNotFoundError, match=r"no 'x/z\.bin'"):
        storage.download("x/z.bin", copied)
    assert sorted(p.name for p in copied.parent.iterdir()) == ["copied.bin"]
    assert storage.list() == ["leases/a", "x/y.bin"]


def test_files_and_firsts(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> None:
    files_and_firsts(storage, tmp_path_factory.mktemp("node"))


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("s3fs", reason="the S3 driver is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test-access-id",
        "AWS_SECRET_ACCESS_KEY": PLANTED,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"results-{uuid.uuid4().hex[:8]}"  # the server's buckets outlive it in this process
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(bucket)
    try:
        yield f"s3://{bucket}"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.mark.slow
def test_roundtrip_on_s3(s3_bucket: str) -> None:
    storage = Storage(f"{s3_bucket}/lakes/one")
    roundtrip(storage)
    assert not storage.is_local and storage.local_path("x") is None


@pytest.mark.slow
def test_files_and_firsts_on_s3(s3_bucket: str, tmp_path: Path) -> None:
    files_and_firsts(Storage(f"{s3_bucket}/cache"), tmp_path)


@pytest.mark.slow
def test_lake_on_s3(s3_bucket: str) -> None:
    from pipeline.results.lake.lake import Lake
    from pipeline.results.query import runs
    from tests.unit.helpers.lake_fixtures import cell

    lake = Lake(f"{s3_bucket}/lake")
    result = cell(model="org/model")
    lake.commit(result)
    assert lake.is_done(result.address.cell_key) and lake.verify(result.address.cell_key) == []
    assert {row["model"] for row in runs(lake, "demo")} == {"org/model"}
    lake.storage.delete(lake.manifest()[0].files["edits"]["path"])
    assert not lake.is_done(result.address.cell_key)


def test_a_failed_write_leaves_the_old_object_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a/k", b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        storage.write_bytes("a/k", b"new")
    assert storage.read_bytes("a/k") == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["k"]


def test_unfinished_writes_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-k.parquet-123").write_bytes(b"half")
    assert Storage(str(tmp_path)).list() == []


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../x", "a//x", "./x", "a\\x"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a name inside"):
        Storage(str(tmp_path)).write_bytes(name, b"")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "empty"),
        ("nosuch://x", "scheme with an fsspec driver"),
        ("file://host/x", "three slashes"),
    ],
)
def test_bad_uris_say_what_would_work(uri: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Storage(uri)


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://me:{PLANTED}@db/x",
        f"postgresql://me:a@{PLANTED}@db/x",
        f"https://{PLANTED}@hub/x",
        f"cannot open 's3://k:{PLANTED}@b/p' (timeout)",
        f"https://hub/x?a=1&access_token={PLANTED}&b=2",
        f"https://hub/x?X-Amz-Signature={PLANTED}",
        f"cannot open DefaultEndpointsProtocol=https;AccountName=a;AccountKey={PLANTED}",
    ],
)
def test_redact(text: str) -> None:
    assert PLANTED not in redact(text)
    assert redact(redact(text)) == redact(text)


def test_redact_keeps_what_is_no_secret() -> None:
    for text in ("s3://bucket/a@b", "token: all", "sqlite:///results/mlflow.db", "mail a@b.c"):
        assert redact(text) == text
    assert redact("s3://k:pw@bucket/p?x=1") == "s3://***@bucket/p?x=1"


def test_secrets_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    settings = {
        "editor": {"token": "all", "note": f"x {PLANTED}"},
        "hub_token": "abc",
        "list": [PLANTED, 1, None],
    }
    assert redact_settings(settings) == {
        "editor": {"token": "all", "note": "x ***"},
        "hub_token": "***",
        "list": ["***", 1, None],
    }


def test_no_message_shows_a_password() -> None:
    storage = Storage(f"memory://me:{PLANTED}@box/lake")
    assert PLANTED not in repr(storage) + str(storage)
    with pytest.raises(FileNotFoundError) as caught:
        storage.read_bytes("x")
    assert PLANTED not in str(caught.value)
    with pytest.raises(ValueError) as refused:
        Storage(f"nosuch://me:{PLANTED}@box")
    assert PLANTED not in str(refused.value)
