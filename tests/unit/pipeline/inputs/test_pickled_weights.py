"""Weights in pickles: converted once, whole or not at all, and never run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.inputs import pickled_weights
from pipeline.inputs.checkpoints import CheckpointError, check_weights, weight_files
from pipeline.inputs.content_hashes import checkpoint_fingerprint
from pipeline.inputs.model_loading import load_model
from pipeline.inputs.pickled_weights import RECORD, converted, pickled_files
from pipeline.plan.architecture import architecture_of
from pipeline.plan.cell_data import read_metadata
from pipeline.plan.estimate.needs import model_needs
from pipeline.plan.preflight import preflight
from tests.unit.pipeline.inputs.test_checkpoints import cell, untrained  # noqa: F401


def in_pickles(folder: Path, shards: int = 1) -> dict[str, Tensor]:
    """Put a folder's weights into pickles, in place of their safetensors; returns them."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors |= load_file(path)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    names = sorted(tensors)
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return tensors
    weight_map = {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        torch.save({name: tensors[name] for name in names[i::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[i::shards], file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return tensors


@pytest.fixture
def folder(untrained: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(untrained, tmp_path / "model"))


@pytest.mark.parametrize("shards", [1, 3])
def test_pickles_are_converted_once(folder: Path, tmp_path: Path, shards: int) -> None:
    tensors = in_pickles(folder, shards)
    preflight([cell(folder)])
    assert check_weights(folder) == {name: tuple(t.shape) for name, t in tensors.items()}
    made = converted(folder, tmp_path / "cache")
    assert check_weights(made) == check_weights(folder)
    model = load_model(made, torch.float32)
    assert all(torch.equal(model.get_parameter(name), tensors[name]) for name in tensors)
    record = json.loads((made / RECORD).read_text())
    assert {path.name for path in pickled_files(folder)} <= set(record["sources"])
    stamp = os.stat(made / RECORD).st_mtime_ns
    assert converted(folder, tmp_path / "cache") == made
    assert os.stat(made / RECORD).st_mtime_ns == stamp


def test_files_from_before_archives_are_read(folder: Path, tmp_path: Path) -> None:
    tensors = in_pickles(folder)
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    made = converted(folder, tmp_path / "cache")
    assert check_weights(made).keys() == tensors.keys()


def test_tensors_that_share_memory_come_apart(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    torch.save({"a": base, "b": base, "c": base[1:], "d": base.T}, tmp_path / "pytorch_model.bin")
    made = converted(tmp_path, tmp_path / "cache")
    found = load_file(made / "model-00001-of-00001.safetensors")
    for name, due in {"a": base, "b": base, "c": base[1:], "d": base.T}.items():
        assert torch.equal(found[name], due)


def test_a_plan_says_what_will_be_done(folder: Path) -> None:
    in_pickles(folder)
    chosen = cell(folder)
    (need,) = model_needs(chosen, architecture_of(chosen))
    assert "; pickled (pytorch_model.bin): read once as tensors alone (weights_only)" in need.text
    assert "converted to safetensors in the cache" in need.text and not need.missing


def test_the_identity_is_that_of_the_files(folder: Path) -> None:
    plain = checkpoint_fingerprint(str(folder))
    tensors = in_pickles(folder)
    first = checkpoint_fingerprint(str(folder))
    assert first != plain
    name = next(iter(tensors))
    torch.save({**tensors, name: tensors[name] + 1}, folder / "pytorch_model.bin")
    assert checkpoint_fingerprint(str(folder)) != first
    assert list(read_metadata(cell(folder))["weights"]["pickled"]) == ["pytorch_model.bin"]


class Code:
    """What a malicious pickle holds."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/rledit-was-run",)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (
        lambda p: torch.save({"w": torch.ones(2), "x": Code()}, p),
        r"pytorch_model.bin: this pickle holds something beside tensors.*not loaded.*(posix|nt)",
    ),
    "cut short": (_cut, r"pytorch_model.bin: cannot be read as a pickle.*cut short or damaged"),
    "empty": (lambda p: p.write_bytes(b""), "pytorch_model.bin: cannot be read"),
    "a page": (lambda p: p.write_bytes(b"<html>not found</html>" * 9), "pytorch_model.bin:"),
    "git-lfs": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "pytorch_model.bin: this is a git-lfs pointer.*git lfs pull",
    ),
    "a training state": (
        lambda p: torch.save({"state_dict": {"w": torch.ones(2)}, "step": 3}, p),
        "expected a dictionary of tensors by name.*'state_dict': dict.*'step': int",
    ),
    "a list": (lambda p: torch.save([torch.ones(2)], p), "dictionary of tensors.*found list"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_file_of_tensors_is_refused_by_name(
    folder: Path, tmp_path: Path, broken: str
) -> None:
    in_pickles(folder)
    do, message = BROKEN[broken]
    do(folder / "pytorch_model.bin")
    for refused in (
        lambda: preflight([cell(folder)]),
        lambda: converted(folder, tmp_path / "cache"),
    ):
        with pytest.raises(CheckpointError, match=f"(?s){message}"):
            refused()
    assert not Path("/tmp/rledit-was-run").exists()
    assert not list((tmp_path / "cache").iterdir())


def test_a_shard_that_is_not_there_is_named(folder: Path) -> None:
    in_pickles(folder, 3)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(CheckpointError, match="00002-of-00003.bin: the index names this file"):
        preflight([cell(folder)])


@pytest.mark.parametrize("kind", ["full disk", "interrupted"])
def test_a_conversion_that_ends_half_way_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    in_pickles(folder, 3)
    written: list[str] = []
    save = safetensors.torch.save_file

    def failing(tensors: Any, path: Path, **options: Any) -> None:
        if written:
            Path(path).write_bytes(b"half")
            if kind == "full disk":
                raise OSError(errno.ENOSPC, "No space left on device")
            raise KeyboardInterrupt
        written.append(str(path))
        save(tensors, path, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", failing)
    told = "No space left.*nothing was kept"
    full = pytest.raises(CheckpointError, match=told)
    with full if kind == "full disk" else pytest.raises(KeyboardInterrupt):
        converted(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(safetensors.torch, "save_file", save)
    made = converted(folder, tmp_path / "cache")
    assert check_weights(made) == check_weights(folder)


def test_a_process_that_was_killed_half_way_is_not_taken_for_whole(
    folder: Path, tmp_path: Path
) -> None:
    in_pickles(folder)
    made = converted(folder, tmp_path / "cache")
    # As a kill -9 leaves it: a folder under a name of its own, that nobody looks for.
    made.rename(made.with_name(".converting-killed"))
    again = converted(folder, tmp_path / "cache")
    assert again == made and check_weights(again) == check_weights(folder)


def test_a_disk_without_room_is_told_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pickles(folder)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(pickled_weights.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"needs 0.0 GB.*has 0.0 GB left; make room"):
        converted(folder, tmp_path / "cache")
