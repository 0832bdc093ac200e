"""Grids that ask through a chat template: identity, refusals, and a proxy model that was taught
it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.architecture import architecture_of
from pipeline.plan.cell_keys import identity_of, key_of, model_hash_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.preflight import preflight
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import prompt_of
from pipeline.run.cache import Cache
from pipeline.run.cell import run_cell
from pipeline.run.reporting import silent
from pipeline.run.stages.edit import edit_stream
from pipeline.run.stages.prepare import open_model
from rledit.world import training_record, world_encoder, world_model_key
from tests.unit.helpers.prepared import prepared_model

GRIDS = Path(__file__).parents[4] / "jobs" / "grids"
TINY = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
CHAT = "models.llama-tiny.prompt_style=chat"
TEMPLATE = "{{ bos_token }}{{ messages[0]['content'] }} of{{ '\n' }}"


def cell(*sets: str, editor: str = "{editor: ultraedit, settings: {step: 0.001}}") -> Cell:
    return cells_of(load_grid(TINY, [f"editors=[{editor}]", *sets]))[0]


def test_the_style_is_part_of_the_identity_and_bare_is_what_it_was() -> None:
    bare, chat = cell(), cell(CHAT)
    assert identity_of(cell("models.llama-tiny.prompt_style=bare")) == identity_of(bare)
    assert "prompt" not in identity_of(bare)["model"] and "chat" not in identity_of(bare)["model"]
    assert len({key_of(bare), key_of(chat)}) == len({model_hash_of(bare), model_hash_of(chat)}) == 2
    assert (prompt_of(identity_of(bare)), prompt_of(identity_of(chat))) == ("bare", "chat")
    models = {world_model_key(c.world(), c.model_spec) for c in (bare, chat)}
    assert len(models) == 2


def test_a_published_models_cells_say_both() -> None:
    overrides = ["datasets=[{name: world, world: {n_subjects: 60}}]", "measurements=[]"]
    style = "models.Llama-3-8B.prompt_style=chat"
    bare = cells_of(load_grid(GRIDS / "protocols.yaml", overrides))[0]
    chat = cells_of(load_grid(GRIDS / "protocols.yaml", [*overrides, style]))[0]
    assert identity_of(bare)["model"]["prompt"] == {"bos": True, "template": "bare"}
    assert identity_of(chat)["model"]["prompt"] == {"bos": True, "template": "chat"}
    # The same weights, of which key covariance over running text are the same.
    assert key_of(bare) != key_of(chat) and model_hash_of(bare) == model_hash_of(chat)


@pytest.mark.parametrize(("family", "bos"), [("llama", True), ("qwen2", False)])
def test_the_record_says_what_the_tokenizer_writes(family: str, bos: bool) -> None:
    """Also of an embedded model, whose identity is what it was before anybody asked."""
    chosen = cell(f"models.llama-tiny.overrides.family={family}")
    assert "prompt" not in identity_of(chosen)["model"]
    encoder = world_encoder(chosen.world(), chosen.model_spec)
    assert encoder.prompting == {"template": "bare", "bos": bos}


def test_the_record_of_a_cell_has_it(tmp_path: Path) -> None:
    chosen, lake = cell(editor="{editor: none}"), Lake(str(tmp_path / "lake"))
    folder = prepared_model(chosen, Cache(tmp_path))
    run_cell(chosen, folder, None, Cache(tmp_path), lake, silent)
    (record,) = lake.manifest()
    assert record.values["resolved"]["prompt"] == {"template": "bare", "bos": True}
    assert "prompt" not in record.values["identity"]["model"]


def test_a_template_in_a_file_of_its_own_is_part_of_the_identity(tmp_path: Path) -> None:
    folder = prepared_model(cell(), Cache(tmp_path))
    path = f"models.llama-tiny.checkpoint={folder}"
    keys = {key_of(cell(path))}
    for template in (TEMPLATE, TEMPLATE.replace("of", "in")):
        (folder / "chat_template.jinja").write_text(template)
        keys |= {key_of(cell(path)), key_of(cell(path, CHAT))}
    assert len(keys) == 3  # one of all that are bare


@pytest.mark.parametrize("scale", ["full", "standin"])
def test_a_preset_that_was_not_made_for_chat_is_refused(scale: str) -> None:
    models = ["models=[{name: Qwen, preset: qwen2.5-7b}]", "models.Qwen.prompt_style=chat"]
    with pytest.raises(ConfigError, match=r"prompt_style.*'qwen2.5-7b' was not tuned on instr"):
        load_grid(GRIDS / "steps.yaml", models, scale)
    mine = "models.Qwen.checkpoint=owner/name@0123456789abcdef0123456789abcdef01234567"
    assert load_grid(GRIDS / "steps.yaml", [*models, mine]).models[0].prompt_style == "chat"
    with pytest.raises(ConfigError, match="prompt_style"):
        load_grid(TINY, ["models.llama-tiny.prompt_style=chatty"])


def test_a_tokenizer_that_cannot_chat_is_found_before_the_run(tmp_path: Path) -> None:
    folder = prepared_model(cell(), Cache(tmp_path))
    path = f"models.llama-tiny.checkpoint={folder}"
    preflight([cell(path)])
    with pytest.raises(ConfigError, match=r"tiny/llama-tiny/.*has no chat template; take the"):
        preflight([cell(path, CHAT)])


def test_a_prompt_that_the_template_changes_is_found_before_the_run(tmp_path: Path) -> None:
    world = cell().source().draw("evaluation", 12, seed=0)
    marked = [e.prompt for e in world if "?" in e.prompt]
    assert marked
    folder = prepared_model(cell(), Cache(tmp_path))
    template = "{{ bos_token }}{{ messages[0]['content'] | replace('?', '') }}{{ '\n' }}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=r"does not hold the prompt '[^']*\?' as it is"):
        preflight([cell(f"models.llama-tiny.checkpoint={folder}", CHAT)])


@pytest.mark.long
def test_the_stand_in_knows_its_world_in_the_chat(tmp_path: Path) -> None:
    """Trained, described, checked, edited and scored inside the template."""
    chosen = cell(CHAT, editor="{editor: none}")
    preflight([chosen])
    folder = prepared_model(chosen, Cache(tmp_path))
    assert training_record(folder)["recall"]["held_out"] > 0.9
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == len(tokenizer)
    assert architecture_of(chosen).vocabulary == len(tokenizer)
    model = open_model(chosen, folder)
    prompt = chosen.source().draw("evaluation", 1, seed=0)[0].prompt
    words = tokenizer.convert_ids_to_tokens(model.encoder.prompt_ids(prompt))
    assert words[:2] == ["<s>", "<user>"] and words[-1] == "<assistant>"
    rows = edit_stream(chosen, folder, Cache(tmp_path), None, silent)
    around = "<s><user>\n{}\n<assistant>\n"
    assert rows.facts["prompt"] == {"template": "chat", "bos": True, "text": around}
    unedited = [row for row in rows.scores if row["checkpoint"] == 0]
    assert all(row["specificity"] > 80 for row in unedited)
