"""Presets of the published models, what they become at each scale, and shared prefixes."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.config.grid import Grid
from pipeline.config.parse import load_grid
from pipeline.config.presets import (
    OWN,
    PRESETS,
    mapped_modules,
    preset_setting,
    proxy_setting,
)
from pipeline.config.presets.carry import carried_modules
from pipeline.config.presets.proxy import LAYERS
from pipeline.config.presets.settings import SPHERE, ULTRAEDIT
from pipeline.config.presets.shape import layer_numbers
from pipeline.errors import ConfigError
from pipeline.paper.references import published, rows
from pipeline.plan.cell_data import read_metadata
from pipeline.plan.cell_keys import _unusual_bos, identity_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.checks import check_cell, skip_reason
from rledit.editors import EDITORS
from rledit.families import FAMILIES
from rledit.world import SCHEMAS

GRIDS = Path(__file__).parents[4] / "jobs" / "grids"
TINY = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
SHAPES = (
    "llama-3-8b", "mistral-7b-v0.3", "gemma-2-9b", "gpt-j-6b", "qwen2.5-7b", "llama-3.1-8b",
    "qwen3-8b", "gemma-3-4b", "gemma-3-12b-it", "gemma-3-27b-it", "phi-4",
)  # fmt: skip
TEXTS = {path.stem: path.read_text() for path in GRIDS.glob("*.yaml")}
PUBLISHED = sorted(
    # SmolLM2 is small enough to be edited itself: its grids repeat no published figure.
    name
    for name, text in TEXTS.items()
    if "preset:" in text and "smollm2" not in text
)
EDITED = [name for name in EDITORS if name != "none"]


@lru_cache
def standin(name: str, limit: int = 1) -> Grid:
    return load_grid(GRIDS / f"{name}.yaml", (), "standin", limit)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_real_architecture(name: str) -> None:
    """Counted on a model without memory, of the family's Hugging Face class."""
    preset = PRESETS[name]
    shape = preset.shape
    common = {"vocab_size": shape.vocabulary, "tie_word_embeddings": shape.tied}
    if preset.family == "gptj":
        config = AutoConfig.for_model(
            "gptj", n_embd=shape.hidden, n_layer=2, n_head=shape.heads, rotary_dim=64, **common
        )
    else:
        config = AutoConfig.for_model(
            preset.family, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
            num_hidden_layers=2, num_attention_heads=shape.heads, head_dim=shape.head_dim,
            num_key_value_heads=shape.kv_heads, **common,
        )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    others = shape.parameters - shape.layers * shape.layer_parameters
    assert model.num_parameters() == others + 2 * shape.layer_parameters


def test_rledits_settings_are_those_of_its_table_3() -> None:
    found = 0
    for row in rows():
        if (row["paper"], row["table"]) != ("RLEdit", "Table 3"):
            continue
        preset = published()["weights"][row["model"]]
        setting = preset_setting(preset, "rledit", row["dataset"].lower())
        if row["metric"] == "layers":
            written = re.sub(r"(\w+)\[([\d,-]+)\],?", r"\1:\2", row["value"]).split()
            assert setting.values["modules"] == tuple(written), row
        else:
            name = {"rank": "rank", "lambda_loc": "loc_coef"}[row["metric"]]
            assert setting.values[name] == float(row["value"]), row
        assert setting.origin != OWN
        found += 1
    assert found == 27
    assert preset_setting("gpt-j-6b", "rledit", "zsre").origin == OWN


@pytest.mark.parametrize(
    ("modules", "depth", "to", "expected"),
    [
        (("down:4-8",), 32, 36, ("down:5-9",)),
        (("gate:22-30", "up:22-30"), 32, 48, ("gate:37-45", "up:37-45")),
        (("down:29-31",), 32, 62, ("down:59-61",)),
        (("down:0",), 32, 62, ("down:0",)),
        (("down:17,19",), 32, 32, ("down:17,19",)),
        (("down:0-3",), 4, 8, ("down:0-3",)),
    ],
)
def test_carried_layers_are_as_many_and_as_far_along_the_stack(
    modules: tuple[str, ...], depth: int, to: int, expected: tuple[str, ...]
) -> None:
    """The first stay the first, the last the last."""
    assert carried_modules(modules, depth, to) == expected


def test_gate_and_up_that_are_fused_are_edited_as_one() -> None:
    gates = ("gate:11-15", "up:18-24", "down:1")
    assert carried_modules(gates, 32, 32, fused=True) == (
        "gate_up:11,12,13,14,15,18,19,20,21,22,23,24", "down:1",
    )  # fmt: skip
    assert preset_setting("phi-4", "dafnet", None).values["modules"] == (
        "gate_up:37-39", "down:37-39",
    )  # fmt: skip


def test_on_newer_models_only_what_a_release_has_counts_as_published() -> None:
    own = {
        name for name, preset in PRESETS.items()
        if {s.origin for by in preset.settings.values() for s in by.values()} == {OWN}
    }  # fmt: skip
    assert own == {
        "smollm2-135m", "smollm2-135m-hub", "llama-3.1-8b", "llama-3.1-8b-instruct", "qwen3-8b",
        "qwen3-8b-base", "gemma-3-4b", "gemma-3-4b-it", "gemma-3-12b-it",
    }  # fmt: skip
    published = {"gemma-3-27b-it": ("gate:52-60", "up:52-60"), "phi-4": ("down:30-38",)}
    for name, modules in published.items():
        ultraedit = preset_setting(name, "ultraedit", "zsre")
        assert (ultraedit.values["modules"], ultraedit.origin) == (modules, ULTRAEDIT)
        rledit = preset_setting(name, "rledit", "zsre")
        assert (rledit.values["modules"], rledit.origin) == (modules, OWN)
    for name in ("qwen2.5-7b", "qwen2.5-7b-instruct"):
        memit = preset_setting(name, "memit", "zsre")
        assert memit.origin == SPHERE and memit.values["modules"] == ("down:4-8",)
        assert (memit.values["value_lr"], memit.values["clamp"]) == (0.5, 4.0)
        assert preset_setting(name, "nas", "zsre").origin == OWN
    # 4,096 inputs of 14,336: of another width a mask takes the same share by itself.
    assert preset_setting("llama-3.1-8b", "memoir", "zsre").values["k"] == 4096
    assert "k" not in preset_setting("phi-4", "memoir", "zsre").values


@pytest.mark.parametrize(
    ("name", "said"), [("gemma-2-9b", {}), ("qwen3-8b", {}), ("gemma-3-4b", {"bos": True})]
)
def test_covariances_keep_the_names_they_had_before_the_family_was_listed(
    name: str, said: dict[str, bool]
) -> None:
    """Gemma 3 checkpoints could be edited before, and were summed with a BOS that was unusual."""
    sets = (f"models.Llama-3-8B.preset={name}",)
    assert _unusual_bos(cells_of(load_grid(GRIDS / "table2.yaml", sets))[0]) == said


@pytest.mark.parametrize("name", PRESETS)
def test_every_method_has_linears_of_the_model_and_of_its_stand_in(name: str) -> None:
    preset = PRESETS[name]
    assert re.fullmatch(r"[0-9a-f]{40}", preset.revision)
    kinds = FAMILIES[preset.family].target_modules
    for editor in EDITED:
        target_modules = EDITORS[editor].target_modules
        for schema in (*SCHEMAS, None):
            for find, depth in ((preset_setting, preset.shape.layers), (proxy_setting, LAYERS)):
                modules = find(name, editor, schema, target_modules).values["modules"]
                for item in modules:
                    assert item.partition(":")[0] in kinds
                    assert max(layer_numbers(item, depth)) < depth
                if target_modules != "any":
                    assert all(item.startswith("down:") for item in modules), editor
                if target_modules == "one_down":
                    assert len(layer_numbers(modules[0], depth)) == 1


def test_a_proxy_that_normalises_its_mlps_output_is_edited_in_all_layers() -> None:
    """Gates and ups of its last layer alone turn no answer; what writes there keeps its place."""
    assert mapped_modules(("gate:32-40", "down:5-9"), 42, "gemma2") == ("gate:0,1,2,3", "down:0")
    assert mapped_modules(("gate:22-30",), 32, "llama") == ("gate:2,3",)
    assert proxy_setting("gemma-3-4b", "grace", None).values["steps"] == 100
    assert proxy_setting("phi-4", "grace", None).values["steps"] == 30
    assert proxy_setting("llama-3-8b", "ft", "fever").values["modules"] == ("down:0,1,2,3",)
    assert proxy_setting("llama-3-8b", "memit", "fever", "down").values["modules"] == ("down:0,1",)


def test_an_editor_no_preset_knows_takes_the_linears_of_the_one_most_like_it() -> None:
    rledit = preset_setting("llama-3-8b", "rledit", "zsre").values["modules"]
    new = preset_setting("llama-3-8b", "my_editor", "zsre")
    assert (new.values, new.origin) == ({"modules": rledit}, OWN)
    assert preset_setting("llama-3-8b", "mine", None, "down").values["modules"] == ("down:4-8",)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_grid_plans_as_a_stand_in(name: str) -> None:
    """At one batch a stream; and at its full length, for which the world only has to be larger."""
    for cell in cells_of(standin(name)):
        check_cell(cell)
        assert cell.stream.n_batches == 1
        if cell.preset_setting is not None and cell.editor.editor != "none":
            assert "proxy" in read_metadata(cell)["preset"]["settings"]
    whole = load_grid(GRIDS / f"{name}.yaml", (), "standin")
    longest = max(s.n_batches * s.batch_size for s in whole.streams)
    assert all(d.world["n_subjects"] * 0.7 >= longest or longest <= 100 for d in whole.datasets)


def test_at_full_scale_a_preset_is_its_checkpoint_and_the_published_settings(
    tmp_path: Path,
) -> None:
    (tmp_path / "train.json").write_text(_zsre("train", 8))
    (tmp_path / "evaluation.json").write_text(_zsre("evaluation", 4))
    files = f"{{train: {tmp_path}/train.json, evaluation: {tmp_path}/evaluation.json}}"
    sets = (f"datasets=[{{name: ZsRE, schema: zsre, files: {files}}}]",)
    cells = cells_of(load_grid(GRIDS / "table2.yaml", sets, limit=1))
    cell = next(c for c in cells if (c.model.name, c.editor.editor) == ("Llama-3-8B", "rledit"))
    assert cell.scale == "full"
    assert identity_of(cell)["model"]["checkpoint"] == PRESETS["llama-3-8b-instruct"].checkpoint
    assert identity_of(cell)["model"]["prompt"] == {"bos": True, "template": "bare"}
    assert cell.settings.modules == ("gate:11-15", "up:18-24")
    assert read_metadata(cell)["preset"]["settings"] == "arXiv 2502.05759, table 3"
    assert set(read_metadata(cell)["data_files"]) == {"train", "evaluation"}
    # The published stream is longer than this data: the cell says so instead of stopping the grid.
    assert skip_reason(cell) == (
        "needs 20 edits of the evaluation pool, which has 4 (all 4 edits of evaluation.json); "
        "shorten the stream, or enlarge the file"
    )
    check_cell(cell)


def _zsre(kind: str, n: int) -> str:
    return json.dumps(
        [
            {"src": f"What is {kind} {i}?", "rephrase": f"Which is {kind} {i}?", "ans": f"{i}",
             "loc": f"who is {kind} {i}", "loc_ans": "me", "subject": f"{kind} {i}"}
            for i in range(n)
        ]
    )  # fmt: skip


def test_scales_and_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'proxy'"):
        load_grid(GRIDS / "table2.yaml", (), "proxys")
    with pytest.raises(ConfigError, match="names no preset"):
        load_grid(GRIDS / "demo-world.yaml", (), "full")
    with pytest.raises(ConfigError, match="at least one batch"):
        load_grid(GRIDS / "demo-world.yaml", (), None, 0)
    with pytest.raises(ConfigError, match="unknown preset 'llama-3-8'"):
        load_grid(GRIDS / "table2.yaml", ("models.Llama-3-8B.preset=llama-3-8",))
    assert [s.n_batches for s in load_grid(GRIDS / "demo-world.yaml", (), None, 2).streams] == [2]


@pytest.mark.parametrize(
    ("model", "dataset", "scale"),
    [
        ("preset: smollm2-135m", "files: {evaluation: a.json}", "full"),
        ("preset: smollm2-135m", "real_facts: true", "full"),
        ("preset: smollm2-135m", "schema: zsre, world: {}", "world"),
        ("world_model: llama", "files: {evaluation: a.json}", "world"),
    ],
)
def test_a_grid_without_a_scale_has_the_models_and_data_that_it_names(
    tmp_path: Path, model: str, dataset: str, scale: str
) -> None:
    """A user's file and a preset are not quietly taken for a tiny model of the synthetic world."""
    path = tmp_path / "grid.yaml"
    path.write_text(
        f"name: mine\nmodels: [{{name: m, {model}}}]\ndatasets: [{{name: d, {dataset}}}]\n"
        "editors: [{editor: none}]\nstreams: [{n_batches: 1, batch_size: 2}]\n"
    )
    assert load_grid(path).scale == scale
    if scale == "full":
        assert load_grid(path).models[0].checkpoint == PRESETS["smollm2-135m"].checkpoint
        assert load_grid(path, (), "proxy").scale == "standin"
        assert load_grid(path, ("scale=world",)).scale == "world"


def test_at_scale_world_the_plain_world_takes_the_datasets_place() -> None:
    grid = load_grid(GRIDS / "table2.yaml", (), "world", 1)
    cell = cells_of(grid)[0]
    assert cell.dataset.schema is None
    assert cell.source() is cell.world()
    check_cell(cell)


def test_data_without_subjects_is_an_obstacle_to_those_that_look_them_up() -> None:
    found = {(c.dataset.name, c.editor.editor): skip_reason(c) for c in cells_of(standin("table2"))}
    assert found["FEVER", "rome"] == "rome looks up subjects, and FEVER gives none"
    assert found["ZsRE", "rome"] is None
    assert found["FEVER", "rledit"] is None


def test_a_safe_editor_runs_the_longest_stream_only_and_is_scored_on_the_way() -> None:
    lengths = ", ".join(f"{{n_batches: {n}, batch_size: 4}}" for n in (1, 2, 4))
    sets = (f"streams=[{lengths}]",)
    grid = load_grid(GRIDS / "table5.yaml", sets, "standin")
    streams: dict[str, list[Cell]] = {}
    for cell in cells_of(grid):
        if cell.dataset.name == "ZsRE":
            streams.setdefault(cell.label, []).append(cell)
    (alphaedit,) = streams["alphaedit"]
    assert alphaedit.points == (1, 2, 4)
    assert identity_of(alphaedit)["also_after"] == [1, 2]
    assert [c.stream.n_batches for c in streams["rledit"]] == [1, 2, 4]
    assert all(c.points == (c.stream.n_batches,) for c in streams["rledit"])
    apart = load_grid(GRIDS / "table5.yaml", (*sets, "share_prefixes=false"), "standin")
    assert len(cells_of(apart)) > len(cells_of(grid))


@pytest.mark.parametrize("schema", sorted(SCHEMAS))
def test_a_shorter_draw_is_the_beginning_of_a_longer_one(schema: str) -> None:
    claims = f", world: {{claims: {SCHEMAS[schema].claims}}}"
    dataset = f"datasets=[{{name: X, schema: {schema}{claims}}}]"
    sets = (dataset, "streams=[{n_batches: 1, batch_size: 10}]")
    source = cells_of(load_grid(GRIDS / "steps.yaml", sets, "standin"))[0].source()
    longer = source.draw("evaluation", 20, seed=3)
    assert source.draw("evaluation", 7, seed=3) == longer[:7]
