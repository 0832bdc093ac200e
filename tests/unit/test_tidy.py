"""What an interrupted process left is removed, and nothing that is still needed."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.locations import Locations
from pipeline.results.lake import Lake
from pipeline.run.tidy import tidy
from tests.unit.lake_fixtures import cell


def touch(root: Path, *names: str) -> list[Path]:
    paths = [root / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return paths


def test_only_what_finished_work_left_is_removed(tmp_path: Path) -> None:
    places = Locations.under(tmp_path, tracking="sqlite:///unused.db")
    lake, cache = Lake(places.lake), Path(places.cache)
    done = lake.commit(cell(editor="ft")).address.cell_key
    other = lake.commit(cell(editor="none", grid="other")).address.cell_key
    (shard,) = Path(places.lake).glob(f"scores/**/{done}.*.parquet")
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
    assert len(tidy("demo", places)) == 3
    assert not any(path.parent.exists() for path in gone) and not Path(superseded).exists()
    assert all(path.exists() for path in [*kept, shard, Path(in_flight)])
    assert lake.verify(done) == []
    assert tidy("demo", places) == []
