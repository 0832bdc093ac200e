"""Measurements beside the edits: perplexity, long texts, downstream tasks, portability."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from pipeline.config.grid import EvalDataEntry
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.inputs.eval_data import eval_data_hash, load_eval_data
from pipeline.inputs.lm_harness import harness_scores, percentages
from pipeline.plan.cell_keys import identity_of, key_of
from pipeline.plan.cells import cells_of
from rledit.datasets import DatasetError
from rledit.datasets.downstream import find_schema, map_downstream
from rledit.datasets.rows import rows_given
from rledit.measurements.downstream import TASKS, items_of, measure_downstream, weighted_f1
from rledit.measurements.downstream.measure import answer_in
from rledit.measurements.fluency import References, ngram_entropy, write_texts
from rledit.measurements.perplexity import perplexity, text_samples
from rledit.measurements.registry import MEASUREMENTS, EvalData, Measurements
from rledit.model import EditableModel, Execution
from rledit.records import Consequence
from rledit.tokenization import TokenizationError
from rledit.world import (
    WORLD_MODELS,
    World,
    WorldConfig,
    word_tokenizer,
    world_encoder,
    world_words,
)
from tests.unit.helpers.plain_scoring import PlainScorer

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
SMALL = WorldConfig(n_subjects=60, answers_per_relation=8, lessons=True)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SMALL)


def model_of(world: World, **execution: Any) -> EditableModel:
    """An untrained model that has the world's words."""
    tokenizer = word_tokenizer(world_words(world), add_bos=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=192,
        initializer_range=0.4,
    )
    model = AutoModelForCausalLM.from_config(config).double()
    return EditableModel(model, tokenizer, ["down:all"], Execution(**execution))


def plain(model: EditableModel) -> PlainScorer:
    return PlainScorer(
        model=model.model,
        unedited=model.model,
        tokenizer=model.encoder.tokenizer,
        bos=True,
        longest=192,
    )


def test_perplexity_is_that_of_a_plain_forward(world: World) -> None:
    model, texts = model_of(world), world.unedited_texts[:4]
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([model.encoder.prompt_ids(text)])
        with torch.no_grad():
            logits = model.model(input_ids=ids).logits[0, 1:-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 2:], reduction="sum"))
        count += ids.shape[1] - 2
    found = perplexity(model, text_samples(model, texts))
    assert found == pytest.approx(math.exp(total / count), rel=1e-6)
    with pytest.raises(ValueError, match="at least two tokens"):
        text_samples(model, ["", "the"])


def test_entropy_of_ngrams() -> None:
    # Words a b a b a: 2-grams ab ba ab ba (1 bit), 3-grams aba bab aba (0.918 bits).
    expected = (2 / 3 * 1 + 4 / 3 * (math.log2(3) - 2 / 3)) / 2
    assert ngram_entropy("a b a b a") == pytest.approx(expected)
    assert ngram_entropy("a a a a") == ngram_entropy("a") == ngram_entropy("") == 0


def test_texts_depend_on_the_prompt_and_the_seed_alone(world: World) -> None:
    prompts = [fact.trained[0] for fact in world.facts[:3]]
    model = model_of(world)
    texts = write_texts(model, prompts)
    other = model_of(world, token_budget=1)
    assert [write_texts(other, [prompt])[0] for prompt in prompts[::-1]] == texts[::-1]
    assert write_texts(model, prompts, seed=1) != texts
    for prompt, text in zip(prompts, texts, strict=True):
        assert text.startswith(prompt)
    words = [len(model.encoder.prompt_ids(text)) for text in texts]
    assert all(n > 60 for n in words)


def test_consistency_is_a_cosine() -> None:
    references = References({"r/x": ["red roses grow", "roses are red"], "r/y": ["cold seas"]})
    assert references.similarity("red roses grow roses are red", "r/x") == pytest.approx(1)
    assert references.similarity("cold seas", "r/x") == 0
    assert 0 < references.similarity("red seas", "r/y") < 1
    assert references.similarity("", "r/x") == 0
    assert "r/x" in references and "r/z" not in references and None not in references


def test_weighted_f1() -> None:
    # Class 0: precision 2/3, recall 1, F1 0.8, weight 2/5; class 1: 1, 2/3, 0.8, weight 3/5.
    assert weighted_f1([0, 0, 1, 1, 1], [0, 0, 0, 1, 1]) == pytest.approx(0.8)
    assert weighted_f1([0, 1], [-1, -1]) == 0
    assert weighted_f1([1, 0, 1], [1, 0, 1]) == 1
    # Always the same answer: 2p / (1 + p) of the share p of that class.
    assert weighted_f1([1, 1, 1, 0], [1, 1, 1, 1]) == pytest.approx(0.75 * 1.5 / 1.75)


@pytest.mark.parametrize(
    ("text", "answers", "place"),
    [
        ("Positive.", ("negative", "positive"), 1),
        ("not negative but positive", ("negative", "positive"), 0),
        ("a B", ("A", "B"), 1),
        ("a", ("A", "B"), -1),
        ("yesterday", ("yes", "no"), -1),
        ("", ("yes", "no"), -1),
    ],
)
def test_answers_are_found_as_words(text: str, answers: tuple[str, ...], place: int) -> None:
    assert answer_in(text, answers) == place


def test_labels_mean_what_the_files_mean() -> None:
    pair = {"sentence1": "It rains.", "sentence2": "It is wet."}
    rows: dict[str, dict[str, Any]] = {
        "sst": {"sentence": "a joy", "label": 1},
        "mmlu": {"question": "2+2?", "choices": [1, 4, 5, 6], "answer": 1},
        "mrpc": {**pair, "label": 1},
        "cola": {"sentence": "She sails.", "label": 1},
        "rte": {**pair, "label": 0},
        "nli": {**pair, "label": "entailment"},
    }
    right = {}
    for name, row in rows.items():
        (item,) = items_of(TASKS[name], [row])
        right[name] = item.answers[item.right]
        assert item.prompt.rstrip().endswith("Answer:")
    assert right == {
        "sst": "positive",
        "mmlu": "B",
        "mrpc": "yes",
        "cola": "yes",
        "rte": "yes",
        "nli": "yes",
    }


def test_ability_is_that_of_a_plain_implementation(world: World) -> None:
    model = model_of(world)
    tasks = {
        name: items_of(TASKS[name], world.downstream_items[name], 6) for name in ("sst", "rte")
    }
    scores, reference = measure_downstream(model, tasks), plain(model)
    for name, items in tasks.items():
        likeliest, written = [], []
        for item in items:
            losses = [reference.nll(model.model, item.prompt, a) for a in item.answers]
            likeliest.append(losses.index(min(losses)))
            ids = reference.written(model.model, item.prompt, most=5)
            written.append(answer_in(model.encoder.tokenizer.decode(ids), item.answers))
        right = [item.right for item in items]
        assert scores[name].probability == pytest.approx(100 * weighted_f1(right, likeliest))
        assert scores[name].f1 == pytest.approx(100 * weighted_f1(right, written))


def test_lessons_are_about_facts_that_are_never_edited(world: World) -> None:
    edited = {
        f.subject for split in ("train", "evaluation", "validation") for f in world.pool(split)
    }  # type: ignore[arg-type]
    for name, rows in world.downstream_items.items():
        file = rows_given(f"{TASKS[name].file}.jsonl", rows, "beef")
        schema = find_schema(rows[0])
        assert schema is not None
        report = map_downstream(file, schema)
        assert report.task == TASKS[name].file
        share = max(report.labels.values()) / report.n_items
        assert share == (0.25 if name == "mmlu" else 0.5)
        assert not any(subject in text for text in report.texts for subject in edited)
    assert not any(subject in text for text in world.unedited_texts for subject in edited)
    encoder = world_encoder(world, WORLD_MODELS["llama"])
    for prompt, answer in world.lessons:
        encoder.sample(prompt, answer)
    assert world.data_hash != World(replace(SMALL, lessons=False)).data_hash
    assert World(SMALL).data_hash == world.data_hash
    for edit in world.draw("evaluation", 10, seed=0):
        assert edit.reference_key is not None and edit.subject is not None
        assert all(edit.subject in prompt for prompt in edit.generation_prompts)
        assert edit.reference_key.endswith(f"/{edit.target}")
        for text in world.references.get(edit.reference_key, ()):
            assert edit.target in text


def test_everything_is_measured_under_its_name(world: World) -> None:
    model = model_of(world)
    edits = world.draw("evaluation", 6, seed=0)
    question = Consequence(kind="Reasoning", prompt=edits[0].prompt, answers=(edits[1].target, "x"))
    edits[5] = replace(edits[5], consequences=(question,))
    material = load_eval_data(EvalDataEntry(prompts=2), list(MEASUREMENTS), world)
    items = {task: own[:3] for task, own in material.ability.items()}
    material = replace(material, ability=items, text=material.text[:5])
    measures = Measurements(model, edits, list(MEASUREMENTS), material)
    before = measures.measure(0)
    assert {"perplexity", "fluency", "consistency", "portability_reasoning"} <= set(before)
    assert {f"ability_{task}_{kind}" for task in TASKS for kind in ("f1", "probability")} <= set(
        before
    )
    assert measures.measure(0) == before
    # The only consequence is the last edit's.
    assert "portability_reasoning" not in measures.measure(5)
    assert all(math.isfinite(value) for value in before.values())
    for name in model.modules:
        model.weights.set(name, 3 * model.weights.original(name))
    after = measures.measure(6)
    assert all(after[name] != before[name] for name in ("perplexity", "fluency"))


def test_missing_material_names_the_setting(world: World) -> None:
    facts_only = World(replace(SMALL, lessons=False))
    with pytest.raises(ConfigError, match="world.auxiliary=true, or give eval_data.downstream"):
        load_eval_data(EvalDataEntry(), ["ability"], facts_only)
    with pytest.raises(ConfigError, match="needs eval_data.text, a path"):
        load_eval_data(EvalDataEntry(), ["perplexity"], None)
    with pytest.raises(ValueError, match="no evaluation data for the measurement 'ability'"):
        Measurements(model_of(world), [], ["ability"], EvalData())
    with pytest.raises(ConfigError, match="unknown measurement 'perplexities'"):
        load_grid(GRID, ["measurements=[perplexities]"])
    with pytest.raises(TokenizationError, match="ability item of task sst"):
        item = replace(
            items_of(TASKS["sst"], world.downstream_items["sst"])[0], prompt="the " * 300
        )
        Measurements(model_of(world), [], ["ability"], EvalData(ability={"sst": [item]}))


def test_material_by_path(world: World, tmp_path: Path) -> None:
    for name, rows in world.downstream_items.items():
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{TASKS[name].file}.jsonl").write_text(lines)
    snippets = [
        {"relation_id": "P1", "target_id": "Q2", "samples": [{"name": "x", "text": "some text"}]}
    ]
    (tmp_path / "snippets.json").write_text(json.dumps(snippets))
    (tmp_path / "text.txt").write_text("\n".join(world.unedited_texts))
    entry = EvalDataEntry(
        text=str(tmp_path / "text.txt"),
        references=str(tmp_path / "snippets.json"),
        ability=str(tmp_path),
    )
    names = ["perplexity", "consistency", "ability"]
    found, own = load_eval_data(entry, names, None), load_eval_data(EvalDataEntry(), names, world)
    assert found.ability == own.ability and found.text == own.text
    assert found.references == {"P1/Q2": ("some text",)}
    assert eval_data_hash(entry, ["ability"], None) == eval_data_hash(
        EvalDataEntry(), ["ability"], world
    )
    assert eval_data_hash(entry, names, None) != eval_data_hash(entry, ["ability"], None)
    (tmp_path / "rte.jsonl").write_text(json.dumps({"sentence": "x"}))
    with pytest.raises(ConfigError, match="has not the keys of a rte item"):
        load_eval_data(replace(entry, ability=str(tmp_path) + "/."), ["ability"], None)


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("mmlu", {"choices": [*"12345"]}, "`choices` has 5 answers, and the task is asked with 4"),
        ("sst2", {"label": -1}, "`label` is -1, not 0 or 1"),
        ("nli", {"label": "hidden"}, "`label` is 'hidden', not 'entailment' or 'not_entailment'"),
    ],
)
def test_an_item_without_a_right_answer_names_file_and_row(
    world: World, tmp_path: Path, file: str, change: dict[str, Any], reason: str
) -> None:
    """Also behind the items that are asked."""
    for name, rows in world.downstream_items.items():
        stem = TASKS[name].file
        broken = [{**rows[0], **change}] if stem == file else []
        lines = "\n".join(map(json.dumps, [*rows, *broken]))
        (tmp_path / f"{stem}.jsonl").write_text(lines)
    message = f"{file}.jsonl, row 41: {reason}"
    with pytest.raises(DatasetError, match=re.escape(message)):
        eval_data_hash(EvalDataEntry(ability=str(tmp_path)), ["ability"], None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"samples": None}, ""),
        ({"samples": [{"text": 5}]}, "`samples[0].text` is a number, not text"),
        ({"samples": ["text"]}, "`samples[0]` is text, not an object"),
        ({"samples": "text"}, "`samples` is text, not a list"),
        ({"relation_id": 1}, "`relation_id` is a number, not text"),
        ({"target_id": ""}, "`target_id` is blank"),
    ],
)
def test_broken_reference_texts_name_file_row_and_key(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    good = {"relation_id": "P1", "target_id": "Q2", "samples": [{"text": "some text"}]}
    path = tmp_path / "snippets.json"
    path.write_text(json.dumps([good, {**good, "target_id": "Q3", **change}]))
    entry = EvalDataEntry(references=str(path))
    if not reason:
        references = load_eval_data(entry, ["consistency"], None).references
        assert references == {"P1/Q2": ("some text",), "P1/Q3": ()}
        return
    with pytest.raises(ConfigError) as caught:
        load_eval_data(entry, ["consistency"], None)
    assert f"{path}, row 2: {reason}" in str(caught.value)
    assert "; expected objects with relation_id" in str(caught.value)


def test_measurements_are_part_of_the_identity_only_where_there_are_some() -> None:
    plain_cell = cells_of(load_grid(GRID))[0]
    assert "measurements" not in identity_of(plain_cell)
    overrides = ["measurements=[perplexity]", "datasets.0.world.lessons=true"]
    one = cells_of(load_grid(GRID, overrides))[0]
    two = cells_of(load_grid(GRID, [*overrides, "material={documents: 3}"]))[0]
    assert identity_of(one)["measurements"]["names"] == ["perplexity"]
    assert len({key_of(plain_cell), key_of(one), key_of(two)}) == 3


def test_the_harness_is_an_extra(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.inputs.lm_harness.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rledit-at-scale\[harness\]'"):
        harness_scores(model_of(world), 10)
    results: dict[str, dict[str, Any]] = {
        task: {"alias": task, "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,none": 0.25}
        for task in ("sst2", "mmlu", "mrpc", "cola", "rte", "qnli")
    }
    values = percentages(results)
    assert values["harness_nli_acc"] == 50 and values["harness_sst_f1"] == 25
    assert len(values) == 12
