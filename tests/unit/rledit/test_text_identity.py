"""Prompt style, BOS and answer space in a cell's fingerprint, where they are not the default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.inputs.content_hashes import fingerprint
from pipeline.plan.cell_data import read_corpus
from pipeline.plan.cell_keys import (
    corpus_hash_of,
    covariance_key_of,
    identity_of,
    key_of,
    model_hash_of,
)
from pipeline.plan.cells import Cell
from pipeline.plan.preflight import preflight
from pipeline.run.cache import Cache
from pipeline.run.reporting import silent
from pipeline.run.stages.edit import edit_stream
from pipeline.run.stages.prepare import open_model
from rledit.world import world_encoder
from tests.unit.helpers.prepared import prepared_model
from tests.unit.pipeline.config.test_prompt_style import CHAT, TINY, cell
from tests.unit.pipeline.inputs.test_checkpoints import cell as checkpoint_cell
from tests.unit.pipeline.inputs.test_checkpoints import folder, untrained

__all__ = ["folder", "untrained"]  # fixtures

WORLD = "models.llama-tiny"


def without_bos(folder: Path) -> Path:
    """The same checkpoint with a tokenizer that writes no BOS, of a Llama as before."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"] = None
    file.write_text(json.dumps(content))
    return folder


def data(path: Path, *rows: tuple[str, str, str]) -> str:
    """A dataset of those prompts, targets and old answers."""
    made = [
        {
            "subject": prompt.split()[0], "prompt": prompt, "target_new": target,
            "ground_truth": old, "rephrase_prompt": f"Yes: {prompt}",
            "locality_prompt": f"{prompt} and so", "locality_ground_truth": "of",
        }
        for prompt, target, old in rows
    ]  # fmt: skip
    path.write_text(json.dumps(made))
    return f"datasets=[{{name: d, files: {{evaluation: {path}}}, order: file}}]"


def test_the_tokenizer_decides_and_the_entry_overrides_it(folder: Path) -> None:
    begun = checkpoint_cell(folder)
    assert identity_of(begun)["model"]["prompt"] == {"template": "bare", "bos": True}
    assert key_of(checkpoint_cell(folder, f"{WORLD}.bos=true")) == key_of(begun)
    told = checkpoint_cell(folder, f"{WORLD}.bos=false")
    assert identity_of(told)["model"]["prompt"] == {"template": "bare", "bos": False}
    assert key_of(told) != key_of(begun) and model_hash_of(told) == model_hash_of(begun)
    bare = checkpoint_cell(without_bos(folder))
    assert identity_of(bare)["model"]["prompt"] == {"template": "bare", "bos": False}
    model = open_model(checkpoint_cell(folder, f"{WORLD}.bos=true"), folder)
    assert model.encoder.prompting == {"template": "bare", "bos": True}
    assert open_model(bare, folder).encoder.prompting == {"template": "bare", "bos": False}


def test_moments_of_a_corpus_read_otherwise_are_others(folder: Path, tmp_path: Path) -> None:
    """Those of the family's usual tokenizers are known as they always were."""
    (tmp_path / "corpus.txt").write_text("some text")
    statistics = f"statistics={{corpus: {tmp_path / 'corpus.txt'}}}"
    usual = checkpoint_cell(folder, statistics)
    other = checkpoint_cell(folder, statistics, f"{WORLD}.bos=false")
    content = read_corpus(usual).content_hash
    max_tokens = usual.statistics.max_tokens
    assert corpus_hash_of(usual) == fingerprint({"content": content, "max_tokens": max_tokens})
    assert corpus_hash_of(usual) != corpus_hash_of(other)
    assert covariance_key_of(usual) != covariance_key_of(other)


def test_a_bos_that_the_tokenizer_does_not_have_is_found_before_the_run(folder: Path) -> None:
    file = without_bos(folder) / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["bos_token"]
    file.write_text(json.dumps(settings))
    preflight([checkpoint_cell(folder)])
    with pytest.raises(ConfigError, match=r"tiny/.*: bos: true, but the tok.* leave `bos` out"):
        preflight([checkpoint_cell(folder, f"{WORLD}.bos=true")])
    with pytest.raises(ConfigError, match=r"models.*bos.*valid boolean"):
        load_grid(TINY, [f"{WORLD}.bos=perhaps"])


def test_a_model_trained_on_the_spot_is_taught_with_it_or_without() -> None:
    usual, same, without = cell(), cell(f"{WORLD}.bos=true"), cell(f"{WORLD}.bos=false")
    assert key_of(usual) == key_of(same) != key_of(without)
    assert model_hash_of(usual) == model_hash_of(same) != model_hash_of(without)
    for chosen, bos in ((usual, True), (without, False)):
        assert world_encoder(chosen.world(), chosen.model_spec).prompting["bos"] is bos


def test_spaces_enter_the_identity_where_a_row_has_none(tmp_path: Path) -> None:
    latin = data(tmp_path / "latin.json", ("Oban lies in", "Mull", "Iona"))
    mixed = data(tmp_path / "mixed.json", ("Oban lies in", "Mull", "Iona"), ("挪威在", "北", "南"))

    def said(*sets: str) -> Any:
        return identity_of(cell(*sets))["dataset"].get("answer_space")

    setting = "datasets.d.answer_space="
    assert said() is said(latin) is None  # what it always was
    assert said(latin, f"{setting}always") is said(mixed, f"{setting}always") is None
    assert said(mixed) == "auto"
    assert said(latin, f"{setting}never") == said(mixed, f"{setting}never") == "never"
    assert said(mixed, CHAT) is said(mixed, CHAT, f"{setting}never") is None
    assert said(mixed, CHAT, f"{setting}always") == "always"
    with pytest.raises(ConfigError, match=r"datasets.*answer_space.*'auto', 'always' or 'never'"):
        cell(latin, f"{setting}sometimes")


def test_spelt_control_tokens_enter_the_identity(tmp_path: Path) -> None:
    plain = data(tmp_path / "plain.json", ("Oban lies in", "Mull", "Iona"))
    spelt = data(tmp_path / "spelt.json", ("Oban lies in", "Mull", "<|endoftext|>"))
    assert "control_tokens" not in identity_of(cell(plain))["dataset"]
    assert identity_of(cell(spelt))["dataset"]["control_tokens"] == "text"


def test_a_switch_of_thinking_enters_the_identity(folder: Path) -> None:
    template = "{{ bos_token }}{{ messages[0]['content'] }} {{ enable_thinking }}\n"
    (folder / "chat_template.jinja").write_text(template)
    chat = identity_of(checkpoint_cell(folder, CHAT))["model"]["prompt"]
    assert chat["without_thinking"] == {"enable_thinking": False}
    assert "without_thinking" not in identity_of(checkpoint_cell(folder))["model"]["prompt"]


def test_the_template_of_free_answers_in_a_chat_enters_the_identity(folder: Path) -> None:
    """Where the model's prompts are plain; nothing else of the cell sees a template then."""
    template = "{{ bos_token }}{{ messages[0]['content'] }} {{ enable_thinking }}\n"
    wild = ("protocols=[wild]", "wild.context=chat")
    found = []
    for text in (template, template + "!"):
        (folder / "chat_template.jinja").write_text(text)
        asked = checkpoint_cell(folder, *wild)
        found.append((key_of(asked), key_of(checkpoint_cell(folder, wild[0])), key_of(
            checkpoint_cell(folder, *wild, CHAT)), model_hash_of(asked)))  # fmt: skip
    (before, plain, chat, model), (after, *others) = found
    assert before != after and [plain, model] == [others[0], others[2]] and chat != others[1]
    assert identity_of(asked)["wild"]["without_thinking"] == {"enable_thinking": False}
    assert "template_hash" not in identity_of(checkpoint_cell(folder, *wild, CHAT))["wild"]


def test_a_reasoning_template_is_found_before_the_run(folder: Path) -> None:
    template = "{{ bos_token }}{{ messages[0]['content'] }} <think>\n"
    (folder / "chat_template.jinja").write_text(template)
    preflight([checkpoint_cell(folder)])
    with pytest.raises(ConfigError, match=r"tiny/.*opens a block of thinking .*'<think>'.*plain"):
        preflight([checkpoint_cell(folder, CHAT)])


def test_the_record_says_how_many_answers_no_space_sets_off(tmp_path: Path) -> None:
    chosen: Cell = cell(editor="{editor: none}")
    made = prepared_model(chosen, Cache(tmp_path))
    words = [w for w in AutoTokenizer.from_pretrained(made).get_vocab() if w.isalpha()][:3]
    one, two, three = words
    rows = data(tmp_path / "edits.json", (f"{one} {two}", three, two), ("挪?", one, three))
    set_ = "streams=[{n_batches: 1, batch_size: 2}]"
    # Both rows are the stream's: the file is all of the pool.
    split = rows.replace("{evaluation:", "{train: " + str(tmp_path / "t.json") + ", evaluation:")
    data(tmp_path / "t.json", *[(f"{three} {two} {i}", one, two) for i in range(20)])
    chosen = cell(split, set_, editor="{editor: none}")
    facts = edit_stream(chosen, made, Cache(tmp_path), None, silent).facts
    assert facts["prompt"] == {"template": "bare", "bos": True, "answers_without_space": 1}
