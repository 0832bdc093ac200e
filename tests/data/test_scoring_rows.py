"""Real rows scored two ways: by the project, and by a plain forward pass written in the tests."""

from __future__ import annotations

import copy
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from rledit.datasets import open_rows, read_edits
from rledit.measurements.downstream import TASKS, items_of, measure_downstream
from rledit.measurements.downstream.measure import answer_in, weighted_f1
from rledit.model import EditableModel, Execution
from rledit.protocols import PROTOCOLS
from rledit.records import Edit
from rledit.scoring import Scorer
from rledit.world import BOS_FAMILIES
from tests.unit.helpers.knowing_model import (
    LONGEST,
    TrainingExample,
    byte_pair_tokenizer,
    learn,
    small_model,
)
from tests.unit.helpers.plain_scoring import NAMES, PlainScorer

DATA = Path(os.environ.get("RLEDIT_DATA", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("RLEDIT_DATA"), reason="RLEDIT_DATA does not name a directory of real rows"
)
DOWN = {"llama": "down_proj", "gptj": "fc_out"}
FILES = (
    "zsre/zsre_mend_eval_first24.json",
    "counterfact/counterfact_original_schema_case0.json",
    "counterfact/counterfact-edit_first8000.json",
    "fever/fever_eval_first14.json",
    "mquake/MQuAKE-CF-3k-v2_first3.json",
    "knowedit/wiki_counterfact_train_cf_first1100.json",
    "qaedit/QAEdit_inter_1k_first700.json",
)


def some_rows(name: str, n: int) -> list[Edit]:
    """The first edits of a file, two rephrases and locality prompts each."""
    edits = read_edits(DATA / name).edits[:n]
    return [
        replace(
            e, edit_id=f"{name}:{e.edit_id}", rephrases=e.rephrases[:2], locality=e.locality[:2]
        )
        for e in edits
    ]


def texts_of(edits: list[Edit]) -> list[str]:
    """Every sentence that is asked or answered."""
    answers = [f"{e.prompt} {a}" for e in edits for a in (e.target, e.old_target or "")]
    rephrased = [r for e in edits for r in e.rephrases]
    return answers + rephrased + [f"{x.prompt} {x.answer}" for e in edits for x in e.locality]


def half_right(edits: list[Edit], turned: bool = False) -> list[TrainingExample]:
    """Every prompt with an answer, every other one with a wrong one: the rival, if there is one.

    Turned, the prompts of every third edit have their other answer.
    """
    examples: list[TrainingExample] = []
    for i, edit in enumerate(edits):
        other = edits[i - 1].target if edits[i - 1].target != edit.target else "none of these"
        old = edit.old_target if edit.old_target not in (None, edit.target) else other
        right, wrong = edit.target, str(old)
        asked = [(edit.prompt, right, wrong), *((r, right, wrong) for r in edit.rephrases)]
        asked += [(x.prompt, x.answer, edit.target) for x in edit.locality]
        turn = turned and i % 3 == 0
        examples += [(p, (a, b)[(i + j + turn) % 2]) for j, (p, a, b) in enumerate(asked)]
    return examples


@pytest.mark.parametrize(("family", "files", "n"), [("llama", FILES, 3), ("gptj", FILES[:1], 8)])
def test_two_implementations_agree_on_real_rows(
    family: str, files: tuple[str, ...], n: int
) -> None:
    """On a model that knows half of the answers, edited so that some of them are others."""
    protocols = [p for p in PROTOCOLS.values() if "free" not in p.asks]
    edits = [edit for name in files for edit in some_rows(name, n)]
    tokenizer = byte_pair_tokenizer(texts_of(edits), bos=family in BOS_FAMILIES)
    trained = small_model(family, tokenizer)
    learn(trained, tokenizer, half_right(edits))
    edited = copy.deepcopy(trained)
    learn(edited, tokenizer, half_right(edits, turned=True), steps=40, only=DOWN[family])
    unedited = trained.double()
    found = {}
    # The second time other batches, another order, and padding on the other side.
    for order, budget, side in ((edits, 4096, "right"), (edits[::-1], 1, "left")):
        tokenizer.padding_side = side
        model = EditableModel(
            copy.deepcopy(unedited), tokenizer, ["down:all"], Execution(token_budget=budget)
        )
        scorer = Scorer(model, order, protocols, "all")
        for linear in model.modules:
            model.weights.set(linear, edited.get_submodule(linear).weight.detach().double())
        found[side] = {
            (order[s.edit_index].edit_id, s.protocol): tuple(getattr(s, n) for n in NAMES)
            for s in scorer.score(len(order))
        }
    assert found["left"] == found["right"]
    plain = PlainScorer(
        model=model.model,
        unedited=unedited,
        tokenizer=tokenizer,
        bos=family in BOS_FAMILIES,
        longest=LONGEST,
    )
    seen: dict[tuple[str, str], set[float | None]] = {}
    for edit in edits:
        for protocol, expected in plain.score(edit).items():
            assert found["left"][edit.edit_id, protocol] == pytest.approx(expected), edit.source
            for score, value in zip(NAMES, expected, strict=True):
                seen.setdefault((protocol, score), set()).add(value)
    # Agreement says something: each score of each protocol is right somewhere, wrong elsewhere.
    assert {protocol for protocol, _ in seen} == {p.name for p in protocols}
    constant = [place for place, values in seen.items() if not {0.0, 100.0} <= values]
    assert constant == []


def test_ability_items_are_read_and_scored_as_a_plain_implementation_does() -> None:
    tasks = {}
    for name, task in TASKS.items():
        rows = [row for _, row in open_rows(DATA / "ability" / f"{task.file}.jsonl").rows]
        assert len(items_of(task, rows)) == 100
        short = sorted(items_of(task, rows), key=lambda item: len(item.prompt))[:4]
        tasks[name] = tuple(random.Random(0).sample(short, 4))
    items = [item for own in tasks.values() for item in own]
    tokenizer = byte_pair_tokenizer([t for i in items for t in (i.prompt, *i.answers)])
    trained = small_model("llama", tokenizer)
    # Every other item is learnt with its right answer, the others with a wrong one.
    learn(trained, tokenizer, [
        (item.prompt, item.answers[(item.right + i % 2) % len(item.answers)])
        for i, item in enumerate(items)
    ])  # fmt: skip
    model = EditableModel(trained.double(), tokenizer, ["down:all"])
    plain = PlainScorer(
        model=model.model,
        unedited=model.model,
        tokenizer=model.encoder.tokenizer,
        bos=True,
        longest=LONGEST,
    )
    scores = measure_downstream(model, tasks)
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
    assert any(0 < found.f1 < 100 for found in scores.values())
    assert any(0 < found.probability < 100 for found in scores.values())


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
