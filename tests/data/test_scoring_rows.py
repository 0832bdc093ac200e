"""Real rows scored two ways: by the project, and by a plain forward pass written in the tests."""

from __future__ import annotations

import copy
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTJConfig, LlamaConfig, PretrainedConfig

from rledit.ability import TASKS, items_of, measure_ability
from rledit.ability.measure import answer_in, weighted_f1
from rledit.datasets import open_rows, read_edits
from rledit.families import FAMILIES
from rledit.metrics import PROTOCOLS
from rledit.model import EditableModel, Execution
from rledit.records import Edit
from rledit.scoring import Scorer
from rledit.world import word_tokenizer
from tests.unit.plain_scoring import NAMES, PlainScorer

DATA = Path(os.environ.get("RLEDIT_DATA", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("RLEDIT_DATA"), reason="RLEDIT_DATA does not name a directory of real rows"
)
FILES = (
    "zsre/zsre_mend_eval_first24.json",
    "counterfact/counterfact_original_schema_case0.json",
    "counterfact/counterfact-edit_first8000.json",
    "fever/fever_eval_first14.json",
    "mquake/MQuAKE-CF-3k-v2_first3.json",
    "knowedit/wiki_counterfact_train_cf_first1100.json",
    "qaedit/QAEdit_inter_1k_first700.json",
)
LONGEST = 256


def some_rows(name: str, n: int = 2) -> list[Edit]:
    edits = read_edits(DATA / name).edits[:n]
    return [replace(e, rephrases=e.rephrases[:2], locality=e.locality[:2]) for e in edits]


def words_of(texts: list[str]) -> list[str]:
    spaced = (text.replace("?", " ? ") for text in texts)
    return sorted({word for text in spaced for word in text.split()})


def texts_of(edits: list[Edit]) -> list[str]:
    texts = [t for e in edits for t in (e.prompt, e.target, e.old_target or "", *e.rephrases)]
    return texts + [t for e in edits for x in e.locality for t in (x.prompt, x.answer)]


def model_of(family: str, words: list[str], **execution: int) -> EditableModel:
    tokenizer = word_tokenizer(words, add_bos=FAMILIES[family].bos_on_prompt)
    torch.manual_seed(0)
    config: PretrainedConfig = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LONGEST,
        initializer_range=0.3,
    )
    if family == "gptj":
        config = GPTJConfig(
            vocab_size=len(tokenizer),
            n_embd=16,
            n_inner=24,
            n_layer=2,
            n_head=2,
            rotary_dim=4,
            n_positions=LONGEST,
            initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    model = AutoModelForCausalLM.from_config(config).double()
    return EditableModel(model, tokenizer, ["down:all"], Execution(**execution))


@pytest.mark.parametrize(
    ("name", "family"), [(name, "llama") for name in FILES] + [(FILES[0], "gptj")]
)
def test_two_implementations_agree_on_real_rows(name: str, family: str) -> None:
    edits = some_rows(name)
    words = words_of(texts_of(edits))
    found = {}
    # The second time other batches, another order, and padding on the other side.
    for order, budget, side in ((edits, 4096, "right"), (edits[::-1], 1, "left")):
        model = model_of(family, words, token_budget=budget)
        model.encoder.tokenizer.padding_side = side
        unedited = copy.deepcopy(model.model)
        scorer = Scorer(model, order, list(PROTOCOLS.values()), "all")
        generator = torch.Generator().manual_seed(2)
        for linear in model.modules:
            original = model.weights.original(linear)
            noise = torch.randn(original.shape, generator=generator, dtype=torch.float64)
            model.weights.set(linear, original + 0.3 * noise)
        found[side] = {
            (order[s.edit_index].edit_id, s.protocol): tuple(getattr(s, n) for n in NAMES)
            for s in scorer.score(len(order))
        }
    assert found["left"] == found["right"]
    plain = PlainScorer(
        model=model.model,
        unedited=unedited,
        tokenizer=model.encoder.tokenizer,
        bos=FAMILIES[family].bos_on_prompt,
        longest=LONGEST,
    )
    for edit in edits:
        for protocol, expected in plain.score(edit).items():
            assert found["left"][edit.edit_id, protocol] == pytest.approx(expected), edit.source


def test_ability_items_are_read_and_scored_as_a_plain_implementation_does() -> None:
    tasks = {}
    for name, task in TASKS.items():
        rows = [row for _, row in open_rows(DATA / "ability" / f"{task.file}.jsonl").rows]
        assert len(items_of(task, rows)) == 100
        short = sorted(items_of(task, rows), key=lambda item: len(item.prompt))[:4]
        tasks[name] = tuple(random.Random(0).sample(short, 4))
    items = [item for own in tasks.values() for item in own]
    model = model_of("llama", words_of([t for i in items for t in (i.prompt, *i.answers)]))
    plain = PlainScorer(
        model=model.model,
        unedited=model.model,
        tokenizer=model.encoder.tokenizer,
        bos=True,
        longest=LONGEST,
    )
    scores = measure_ability(model, tasks)
    for name, own in tasks.items():
        likeliest, written = [], []
        for item in own:
            losses = [plain.nll(model.model, item.prompt, a) for a in item.answers]
            likeliest.append(losses.index(min(losses)))
            ids = plain.written(model.model, item.prompt, most=5)
            written.append(answer_in(model.encoder.tokenizer.decode(ids), item.answers))
        right = [item.right for item in own]
        assert scores[name].probability == pytest.approx(100 * weighted_f1(right, likeliest))
        assert scores[name].f1 == pytest.approx(100 * weighted_f1(right, written))


def test_consequences_of_real_rows() -> None:
    mquake = read_edits(DATA / "mquake/MQuAKE-CF-3k-v2_first3.json").edits
    chains = [e.consequences for e in mquake if e.consequences]
    assert [len(c) for c in chains] == [3, 3, 3]
    assert all(item.kind == "multi_hop" and item.answers for c in chains for item in c)
    knowedit = read_edits(DATA / "knowedit/wiki_recent_train_first450.json").edits
    kinds = {item.kind for e in knowedit for item in e.consequences}
    assert "Reasoning" in kinds and "Subject_Aliasing" in kinds
    (case,) = read_edits(DATA / "counterfact/counterfact_original_schema_case0.json").edits
    assert case.reference_key == "P103/Q1860" and len(case.generation_prompts) == 10
