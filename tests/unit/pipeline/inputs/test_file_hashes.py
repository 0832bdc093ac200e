"""The sha256 of weights: read once, read again after any change, never in the way."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

import pytest

from pipeline.inputs import file_hashes
from pipeline.inputs.file_hashes import sha256_of


@pytest.fixture(autouse=True)
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Files that were really read; every file counts as large, and as not just written."""
    found: list[Path] = []
    read = file_hashes._read

    def counted(path: Path, size: int) -> str:
        found.append(path)
        return read(path, size)

    monkeypatch.setattr(file_hashes, "_read", counted)
    monkeypatch.setattr(file_hashes, "_SMALL", 1)
    monkeypatch.setattr(file_hashes, "_SETTLED_NS", 0)
    monkeypatch.setattr(file_hashes, "_known", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def another_process() -> None:
    file_hashes._known.clear()


def test_a_file_is_read_once(file: Path, reads: list[Path]) -> None:
    assert [sha256_of(file) for _ in range(3)] == [of(b"weights")] * 3
    another_process()
    assert sha256_of(file) == of(b"weights")
    assert reads == [file]


def test_a_change_of_equal_size_is_seen(file: Path, reads: list[Path]) -> None:
    sha256_of(file)
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=times)  # as a copy that keeps times has it
    another_process()
    assert sha256_of(file) == of(b"WEIGHTS") and len(reads) == 2


def test_what_was_just_written_is_not_remembered(
    file: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the grain of a file's times it may be written again."""
    monkeypatch.setattr(file_hashes, "_SETTLED_NS", 10**12)
    sha256_of(file)
    sha256_of(file)
    assert len(reads) == 2


def test_a_small_file_is_always_read(
    file: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(file_hashes, "_SMALL", 100)
    sha256_of(file)
    sha256_of(file)
    assert len(reads) == 2 and not (tmp_path / "cache").exists()


def test_a_broken_note_is_read_past(file: Path, reads: list[Path], tmp_path: Path) -> None:
    sha256_of(file)
    (note,) = (tmp_path / "cache" / "rledit" / "digests").iterdir()
    for content in (b"", b"[]", b"{", b'{"sha256": 5}', note.read_bytes()[:-9]):
        note.write_bytes(content)
        another_process()
        assert sha256_of(file) == of(b"weights")
    assert len(reads) == 6


def test_a_cache_that_cannot_be_written_costs_only_time(
    file: Path,
    reads: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    file_hashes._warn_forgotten.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert sha256_of(file) == sha256_of(file) == of(b"weights")
    assert reads == [file]  # remembered at least by this process
    assert "set XDG_CACHE_HOME" in caplog.text


def test_the_hubs_blobs_are_known_by_name(tmp_path: Path, reads: list[Path]) -> None:
    repository = tmp_path / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    name = of(b"weights")
    (repository / "blobs" / name).write_bytes(b"weights")
    link = snapshot / "model.safetensors"
    link.symlink_to(f"../../blobs/{name}")
    assert sha256_of(link) == name and not reads
    # The name proves nothing elsewhere.
    elsewhere = tmp_path / "mine" / name
    elsewhere.parent.mkdir()
    shutil.copy(link, elsewhere)
    elsewhere.write_bytes(b"other")
    assert sha256_of(elsewhere) == of(b"other")


def test_reading_much_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_hashes, "_TOLD", 1)
    monkeypatch.setattr(file_hashes, "_PART", 1)
    monkeypatch.setattr(file_hashes, "_TELL_SECONDS", -1.0)
    with caplog.at_level(logging.INFO):
        sha256_of(file)
    assert "model.safetensors" in caplog.text and "once" in caplog.text
    assert " of 0.0 GB" in caplog.text
