"""Every trap of the field's data is named with its count and rows, on files nobody has seen.

The rows are made from worlds drawn at random; each trap is planted in random rows of one.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rledit.datasets import check_paths
from rledit.records import Edit
from rledit.world import World, WorldConfig

Row = dict[str, Any]
PLANTED = 3
ROWS = 24


def mend(edit: Edit) -> Row:
    return {
        "subject": edit.subject, "src": edit.prompt, "pred": edit.old_target,
        "rephrase": f"Tell me: {edit.rephrases[0]}", "alt": edit.target,
        "answers": [edit.old_target], "loc": f"Who knows {edit.locality[0].prompt}",
        "loc_ans": edit.locality[0].answer,
    }  # fmt: skip


def fever(edit: Edit) -> Row:
    return {
        "prompt": f"{edit.prompt} {edit.old_target}.", "equiv_prompt": ["It is said so."],
        "unrel_prompt": f"{edit.locality[0].prompt} it.", "unrel_ans": "SUPPORTS",
        "alt": "REFUTES", "ans": "SUPPORTS",
    }  # fmt: skip


def flat(edit: Edit) -> Row:
    return {
        "prompt": edit.prompt, "target_new": edit.target, "subject": edit.subject,
        "ground_truth": edit.old_target, "rephrase_prompt": f"It rained. {edit.rephrases[0]}",
        "locality_prompt": f"As for others, {edit.locality[0].prompt}",
        "locality_ground_truth": edit.locality[0].answer,
    }  # fmt: skip


def knowedit(edit: Edit) -> Row:
    probe = {"prompt": f"As for others, {edit.locality[0].prompt}", "ground_truth": [["x"]]}
    return {
        "prompt": edit.prompt, "target_new": edit.target, "subject": edit.subject,
        "ground_truth": edit.old_target, "rephrase_prompt": f"It rained. {edit.rephrases[0]}",
        "locality": {"Relation_Specificity": [probe]},
    }  # fmt: skip


def malmen(edit: Edit) -> Row:
    """The schema of the full-scale runs: neither subject nor old answer."""
    return {
        "src": edit.prompt, "ans": edit.target, "rephrase": f"Tell me: {edit.rephrases[0]}",
        "loc": f"Who knows {edit.locality[0].prompt}", "loc_ans": edit.locality[0].answer,
    }  # fmt: skip


def keyed(key: str, change: Callable[[Row], Any]) -> Callable[[Row], list[Row]]:
    return lambda row: [{**row, key: change(row)}]


def other_words(row: Row) -> list[Row]:
    """The same fact asked in other words, with another target."""
    return [row, {**row, "src": row["rephrase"], "rephrase": "Well?", "alt": "Something else"}]


# Trap → how rows are written, what happens to a row, and how often the trap is counted for it.
TRAPS: dict[str, tuple[Callable[[Edit], Row], Callable[[Row], list[Row]], int]] = {
    "target_equals_old": (fever, keyed("alt", lambda row: row["ans"]), 1),
    "conflicting_fact": (mend, other_words, 2),
    "contradicting_edit": (flat, lambda row: [row, {**row, "target_new": "Something else"}], 2),
    "duplicate_edit": (flat, lambda row: [row, row], 1),
    "target_leading_space": (mend, keyed("alt", lambda row: " " + row["alt"]), 1),
    "blank_target": (mend, keyed("alt", lambda row: " "), 1),
    "ground_truth_list": (knowedit, keyed("ground_truth", lambda row: [row["ground_truth"]]), 1),
    "ground_truth_absent": (
        knowedit,
        lambda row: [{key: value for key, value in row.items() if key != "ground_truth"}],
        1,
    ),
    "rephrase_generation_prompt": (
        flat,
        keyed("rephrase_prompt", lambda row: f"{row['subject']} is known for"),
        1,
    ),
    "locality_nq_question": (mend, keyed("loc", lambda row: "nq question: who sings?"), 1),
    "locality_no_question_mark": (mend, keyed("loc", lambda row: "nq question: who sings"), 1),
}


# Schema → how rows are written, and the keys of prompt, target and rephrase.
SCHEMAS: dict[str, tuple[Callable[[Edit], Row], tuple[str, str, str]]] = {
    "zsre_mend": (mend, ("src", "alt", "rephrase")),
    "zsre_malmen": (malmen, ("src", "ans", "rephrase")),
    "counterfact_flat": (flat, ("prompt", "target_new", "rephrase_prompt")),
    "knowedit": (knowedit, ("prompt", "target_new", "rephrase_prompt")),
    "ultraeditbench": (
        lambda edit: {
            **{k: v for k, v in malmen(edit).items() if k in ("ans", "loc", "loc_ans")},
            "prompt": edit.prompt,
            "rephrase_prompt": f"Tell me: {edit.rephrases[0]}",
        },
        ("prompt", "ans", "rephrase_prompt"),
    ),
}


def drawn(seed: int) -> list[Edit]:
    """Edits of distinct subjects, from a world of that seed."""
    world = World(WorldConfig(n_subjects=120, seed=seed))
    by_subject = {edit.subject: edit for edit in world.draw("evaluation", 30, seed)}
    return list(by_subject.values())[:ROWS]


def trap_lines(rows: list[Row], folder: Path) -> tuple[dict[str, str], int]:
    path = folder / "unseen.json"
    path.write_text(json.dumps(rows))
    lines, code = check_paths([path])
    assert code == 0, lines
    found = [line.split(maxsplit=2) for line in lines if line.startswith("  trap ")]
    strict = check_paths([path], strict=True)[1]
    assert strict == bool(found)
    return {name: rest for _, name, rest in found}, len(lines)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("trap", TRAPS)
def test_a_planted_trap_is_named_with_its_count_and_rows(
    trap: str, seed: int, tmp_path: Path
) -> None:
    write, plant, counted = TRAPS[trap]
    rows = [write(edit) for edit in drawn(seed)]
    assert trap not in trap_lines(rows, tmp_path)[0]
    chosen = set(random.Random(seed).sample(range(len(rows)), PLANTED))
    planted: list[Row] = []
    numbers = []
    for i, row in enumerate(rows):
        new = plant(row) if i in chosen else [row]
        numbers += [len(planted) + k + 1 for k in range(len(new)) if i in chosen][-counted:]
        planted += new
    line = trap_lines(planted, tmp_path)[0][trap]
    assert line.startswith(f"{PLANTED * counted}: ")
    shown = re.search(r"\(rows ([\d, ]+)", line)
    assert shown is not None
    assert [int(n) for n in shown[1].strip(", ").split(", ")] == numbers[:3]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize(
    ("trap", "prompt"),
    [
        ("contradicting_edit", lambda row, keys: row[keys[0]]),
        ("conflicting_fact", lambda row, keys: f" {row[keys[0]].upper()} ?"),
        ("conflicting_fact", lambda row, keys: row[keys[2]]),
    ],
    ids=["same prompt", "same but for its form", "its rephrase"],
)
def test_contradictions_are_named_in_every_schema(
    schema: str, trap: str, prompt: Callable[[Row, tuple[str, str, str]], str], tmp_path: Path
) -> None:
    write, keys = SCHEMAS[schema]
    rows = [write(edit) for edit in drawn(4)]
    assert not {"contradicting_edit", "conflicting_fact"} & set(trap_lines(rows, tmp_path)[0])
    others = [
        {**row, keys[0]: prompt(row, keys), keys[1]: "Something else", keys[2]: f"Well {i}?"}
        for i, row in enumerate(rows[:PLANTED])
    ]
    line = trap_lines(rows + others, tmp_path)[0][trap]
    assert line.startswith(f"{2 * PLANTED}: ")


def test_contradicting_prompts_are_counted_over_all_files(tmp_path: Path) -> None:
    rows = [flat(edit) for edit in drawn(0)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    others = [{**row, "target_new": "Something else"} for row in rows[:PLANTED]]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, others)))
    text = "\n".join(check_paths([tmp_path])[0])
    assert f"share {PLANTED} prompts (0 with the same target)" in text
    assert f"{PLANTED} prompts carry more than one target ({2 * PLANTED} edits)" in text


def test_ability_items_that_are_shared_and_that_reward_collapse_are_named(tmp_path: Path) -> None:
    texts = [edit.prompt for edit in drawn(1)]
    sst = [{"sentence": t, "label": i % 2, "idx": i} for i, t in enumerate(texts)]
    sentiment = [{"sentence": t, "label": "1"} for t in texts[: 2 * PLANTED]]
    pairs = [
        {"sentence1": t, "sentence2": "It is so.", "label": int(i < 6), "idx": i}
        for i, t in enumerate(texts)
    ]
    for name, items in (("sst2", sst), ("sentiment_analysis", sentiment), ("rte", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, items)))
    text = "\n".join(check_paths([tmp_path])[0])
    assert f"share {2 * PLANTED} items: they are not two independent measurements" in text
    share = 1 - 6 / len(texts)
    assert f"constant_answer {100 * share * 2 * share / (1 + share):.1f}: weighted F1" in text
    assert "a model below it gains by collapsing" in text
