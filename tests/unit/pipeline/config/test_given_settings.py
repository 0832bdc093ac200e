"""What a grid says of its models and worlds reaches their cells, whatever a preset says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.parse import load_grid
from pipeline.config.presets import PRESETS, mapped_modules, preset_setting
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import address_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.stored_spec import read_cell_spec, write_cell_spec
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellRecord
from pipeline.submit.submission import Submission, as_json

PRESET = """\
name: mine
models: [{preset: llama-3-8b}]
datasets: [{name: zsre, schema: zsre, world: {}}]
editors: [{editor: ultraedit}, {editor: memit}]
streams: [{n_batches: 1, batch_size: 2}]
"""
WORLD = PRESET.replace("preset: llama-3-8b", "name: m, world_model: tiny").replace(
    "schema: zsre, ", ""
)
MODULES = "models.0.target_modules=['down:3']"


def cells(
    folder: Path, *sets: str, scale: str | None = "full", text: str = PRESET
) -> dict[str, Cell]:
    """Cells by editor; at the full scale without their data."""
    path = folder / "grid.yaml"
    path.write_text(text)
    return {cell.label: cell for cell in cells_of(load_grid(path, sets, scale))}


# Models with a preset -----------------------------------------------------------------------------


def test_a_precision_beside_a_preset_counts(tmp_path: Path) -> None:
    usual = cells(tmp_path)["memit"].model
    assert (usual.dtype, usual.checkpoint) == ("bfloat16", PRESETS["llama-3-8b"].checkpoint)
    exact = cells(tmp_path, "models.llama-3-8b.dtype=float32")["memit"].model
    assert (exact.dtype, exact.checkpoint) == ("float32", usual.checkpoint)


@pytest.mark.parametrize(
    ("scale", "modules", "of_preset"), [("full", "down:3", "down:4-8"), ("proxy", "down:0", "")]
)
def test_target_modules_beside_a_preset_count_and_an_editors_own_before_them(
    tmp_path: Path, scale: str, modules: str, of_preset: str
) -> None:
    """A proxy has them at the same relative depth."""
    of_preset = of_preset or "down:0,1"
    sets = (MODULES, "editors.ultraedit.settings.target_modules=['down:31']")
    given = cells(tmp_path, *sets, scale=scale)
    assert given["memit"].settings.modules == (modules,)
    assert given["ultraedit"].settings.modules == ("down:3" if scale == "proxy" else "down:31",)
    usual = cells(tmp_path, scale=scale)["memit"]
    assert usual.model.modules is None and usual.settings.modules == (of_preset,)


def test_a_submission_keeps_whether_target_modules_were_given(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(PRESET)
    for sets, expected in (((), None), ((MODULES,), ("down:3",))):
        grid = load_grid(tmp_path / "grid.yaml", sets, "proxy")
        sent = Submission(name="n", grid=as_json(grid), lake="l", cache="c")
        assert sent.parsed().models[0].modules == expected
        assert cells_of(sent.parsed()) == cells_of(grid)


def test_stored_cells_of_earlier_versions_hold_modules_that_were_not_used(tmp_path: Path) -> None:
    cell = cells(tmp_path, scale="proxy")["memit"]
    lake = Lake(str(tmp_path / "lake")).storage
    write_cell_spec(cell, lake)
    name = f"entries/{key_of(cell)}.json"
    stored = json.loads(lake.read_bytes(name))
    stored["cell"]["model"]["modules"] = ["down:all"]
    lake.write_bytes(name, json.dumps(stored).encode())
    record = CellRecord(
        address=address_of(cell),
        stored_key=key_of(cell),
        status="done",
        reason=None,
        files={},
        values={},
    )
    assert read_cell_spec(record, lake) == cell


# Target modules of a proxy ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["down:upper"], ("down:3",)),  # 28 to 30 of 32
        (["down:all"], ("down:0,1,2,3",)),
        (["model.layers.20.mlp.down_proj"], ("down:2",)),
        (["model.layers.20.mlp.down_proj", "down:21", "up:21"], ("down:2", "up:2")),
    ],
)
def test_every_form_of_target_modules_has_a_place_in_a_proxy(
    tmp_path: Path, modules: list[str], expected: tuple[str, ...]
) -> None:
    sets = f"editors.ultraedit.settings.target_modules={json.dumps(modules)}"
    assert cells(tmp_path, sets, scale="proxy")["ultraedit"].settings.modules == expected


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("down:uper", "'down:uper' is not inside 'model.layers'"),
        ("gate_up:3", "family 'llama' has no 'gate_up'"),
        ("down:40", "the model has layers 0 to 31"),
        ("down:8-4", "write 4-8"),
        ("model.layers.3.self_attn.q_proj", "its layers have mlp.gate_proj, mlp.up_proj"),
    ],
)
def test_target_modules_that_a_proxy_cannot_have_are_refused(
    tmp_path: Path, item: str, message: str
) -> None:
    found = cells(tmp_path, f"models.0.target_modules=['{item}']", scale="proxy")["memit"]
    with pytest.raises(ConfigError, match=f"editor memit, model llama-3-8b: .*{message}"):
        _ = found.settings


def test_layers_of_presets_are_mapped_as_they_are_written() -> None:
    published = preset_setting("llama-3-8b", "rledit", "zsre").values["modules"]
    assert published == ("gate:11-15", "up:18-24")
    assert mapped_modules(published, 32, "llama") == ("gate:1", "up:2,3")


# Numbers that YAML takes for text -----------------------------------------------------------------


def test_numbers_that_yaml_takes_for_text_are_read_in_overrides_and_world(tmp_path: Path) -> None:
    number = cells(
        tmp_path, "models.m.overrides={lr: 0.005}", "datasets.zsre.world={n_subjects: 60}",
        text=WORLD, scale=None,
    )["memit"]  # fmt: skip
    text = cells(
        tmp_path, "models.m.overrides={lr: 5e-3}", "datasets.zsre.world={n_subjects: '60'}",
        text=WORLD, scale=None,
    )["memit"]  # fmt: skip
    assert text.model_spec.lr == 0.005 and text.world() is number.world()
    assert key_of(text) == key_of(number)


def test_an_integer_for_a_float_stays_as_it_is_given(tmp_path: Path) -> None:
    """A cell's key holds it so."""
    found = cells(tmp_path, "models.m.overrides={lr: 1}", text=WORLD, scale=None)["memit"]
    assert isinstance(found.model.overrides["lr"], int)
