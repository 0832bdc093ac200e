"""Garbage of interrupted processes is removed, and nothing that is still needed."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch

from pipeline.results.lake.lake import Lake
from pipeline.run.garbage import garbage_collect
from pipeline.run.resume import StateFolder
from pipeline.storage.object_store import TEMPORARY_PREFIX, Storage
from pipeline.storage.run_paths import RunPaths
from tests.unit.helpers.lake_fixtures import cell


def touch(root: Path, *names: str) -> list[Path]:
    paths = [root / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return paths


def test_states_of_finished_sums_are_removed(tmp_path: Path) -> None:
    """Killed between writing the last sum and clearing up, with and without the tensors."""
    run_paths = RunPaths.under(tmp_path, tracking="sqlite:///unused.db")
    cache = Path(run_paths.cache)

    def state(place: str, *modules: str) -> Path:
        folder = StateFolder(Storage(str(cache / "statistics" / "k" / place)))
        facts = {"documents": 1, "counts": dict.fromkeys(modules, 1)}
        folder.save({"w": torch.ones(1)}, facts, version=1)
        return cache / "statistics" / "k" / place

    done, cut = state("shard0-1.progress", "a", "b"), state("shard1-1.progress", "a")
    (payload,) = cut.glob("*.safetensors")
    payload.unlink()
    waiting = [state("shard1-2.progress", "a", "b"), state("shard2-1.progress", "a")]
    touch(
        cache,
        "statistics/k/a.shard0.safetensors",
        "statistics/k/b.shard0.safetensors",
        "statistics/k/a.shard1.safetensors",
    )
    assert len(garbage_collect("demo", run_paths)) == 3
    assert not done.exists() and not cut.exists()
    assert all(len(list(place.iterdir())) == 2 for place in waiting)
    assert garbage_collect("demo", run_paths) == []


def test_only_what_finished_work_left_is_removed(tmp_path: Path) -> None:
    run_paths = RunPaths.under(tmp_path, tracking="sqlite:///unused.db")
    lake, cache = Lake(run_paths.lake), Path(run_paths.cache)
    done = lake.commit(cell(editor="ft")).address.cell_key
    other = lake.commit(cell(editor="none", grid="other")).address.cell_key
    (shard,) = Path(run_paths.lake).glob(f"scores/**/{done}.*.parquet")
    superseded = shutil.copy(shard, shard.with_name(f"{done}.0123456789abcdef.parquet"))
    in_flight = shutil.copy(shard, shard.with_name("unfinished.0123456789abcdef.parquet"))
    gone = touch(cache, f"states/{done}/latest.json", "trained/a.progress/latest.json")
    kept = touch(
        cache,
        "states/unfinished/latest.json",
        f"states/{other}/latest.json",
        "trained/a.safetensors",
        "trained/b.progress/latest.json",
    )
    assert len(garbage_collect("demo", run_paths)) == 3
    assert not any(path.parent.exists() for path in gone) and not Path(superseded).exists()
    assert all(path.exists() for path in [*kept, shard, Path(in_flight)])
    assert lake.verify(done) == []
    assert garbage_collect("demo", run_paths) == []


def test_writes_cut_short_go_with_the_work_they_were_for(tmp_path: Path) -> None:
    """A node killed in the midst of a first write leaves a folder that no listing shows."""
    run_paths = RunPaths.under(tmp_path, tracking="sqlite:///unused.db")
    cache = Path(run_paths.cache)
    done = Lake(run_paths.lake).commit(cell(editor="ft")).address.cell_key
    unfinished = f"{TEMPORARY_PREFIX}00000002-ab.safetensors-0123456789ab"
    gone = touch(cache, f"states/{done}/{unfinished}", f"trained/a.progress/{unfinished}")
    kept = touch(
        cache,
        "trained/a.safetensors",
        f"states/other/{unfinished}",
        f"trained/b.progress/{unfinished}",
    )
    garbage_collect("demo", run_paths)
    assert not any(path.parent.exists() for path in gone)
    assert all(path.exists() for path in kept)


def test_what_was_begun_and_left_for_a_day_is_removed(tmp_path: Path) -> None:
    run_paths = RunPaths.under(tmp_path, tracking="sqlite:///unused.db")
    names = (
        "cache/edited/.tmp-ab12",
        "cache/statistics/k/.tmp-a.shard0.safetensors-01",
        "cache/models/.building-m-12-0123abcd/weights/model.safetensors",
        "cache/models/.fetching-m-0123abcd/.tmp-model.safetensors-01",
        "cache/converted/.converting-ab/model.safetensors",
        "lake/edits/model=m/editor=ft/dataset=d/.tmp-k.parquet-01",
    )
    old, new = touch(tmp_path / "old", *names), touch(tmp_path, *names)
    whole = touch(tmp_path, "cache/models/m/model.safetensors", "cache/edited/ab12")
    long_ago = time.time() - 25 * 3600
    folders = [folder for path in old for folder in path.parents[:3]]
    for path in (*old, *whole, *folders):
        os.utime(path, (long_ago, long_ago))
    garbage_collect("demo", run_paths)
    assert all(path.exists() for path in (*new, *whole)), "still being written, or finished"
    removed = garbage_collect("demo", RunPaths.under(tmp_path / "old", tracking="sqlite:///x.db"))
    assert len(removed) == len(names) and not any(path.exists() for path in old)
    assert not list((tmp_path / "old").rglob(".*"))


def test_a_cleared_state_takes_unfinished_writes_along(tmp_path: Path) -> None:
    state = StateFolder(Storage(str(tmp_path / "state")))
    state.save({"w": torch.ones(1)}, {"batch": 1}, version=1)
    touch(tmp_path, f"state/{TEMPORARY_PREFIX}latest.json-0123456789ab")
    state.clear()
    assert not (tmp_path / "state").exists()
