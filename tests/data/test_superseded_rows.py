"""Real rows that contradict each other: a model that knows every last answer scores 100."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rledit.datasets import read_edits
from rledit.measurements.registry import EvalData, Measurements
from rledit.protocols import PROTOCOLS
from rledit.records import Edit
from rledit.scoring import Scorer
from rledit.superseded import Facts, Standing
from tests.unit.rledit.test_superseded import knowing, means, texts_of

DATA = Path(os.environ.get("RLEDIT_DATA", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("RLEDIT_DATA"), reason="RLEDIT_DATA does not name a directory of real rows"
)
ZSRE = "zsre/zsre_mend_eval_first24.json"
FLAT = "counterfact/counterfact-train.json"
QUESTIONS = "knowedit/ZsRE-test-all_first1000.json"
MQUAKE = "mquake/MQuAKE-CF-3k-v2_first3.json"
# No choice of tokens: two answers of real rows may have one in common, which is a loss there.
# Free answers end with their sentence, which these targets may go beyond.
JUDGES = [p for n, p in PROTOCOLS.items() if n != "choice_official" and "free" not in p.asks]


def repeated(name: str, n: int) -> list[Edit]:
    """The edits of `n` prompts that a file has several times, and those of their locality prompts.

    CounterFact gives some locality prompts two answers, though no edit does: nobody knows both.
    """
    edits = read_edits(DATA / name).edits
    count = Counter(edit.prompt for edit in edits)
    answers: dict[str, set[str]] = defaultdict(set)
    for probe in (probe for edit in edits for probe in edit.locality):
        answers[probe.prompt].add(probe.answer)
    prompts = [prompt for prompt, times in count.items() if times > 1][:n]
    chosen = [edit for edit in edits if edit.prompt in prompts]
    asked = {x.prompt for e in chosen for x in e.locality if len(answers[x.prompt]) == 1}
    kept = [edit for edit in edits if edit in chosen or edit.prompt in asked]
    return [
        replace(e, locality=tuple(x for x in e.locality if x.prompt in asked and e in chosen))
        for e in kept
    ]


def last_words(edits: Sequence[Edit]) -> dict[str, str]:
    """What every text is answered with in the end, as a reader of the rows would note it down."""
    known = {probe.prompt: probe.answer for edit in edits for probe in edit.locality}
    for edit in edits:
        known |= {prompt: edit.target for prompt in (edit.prompt, *edit.rephrases)}
        known |= {item.prompt: item.answers[0] for item in edit.consequences}
    return known


@pytest.mark.parametrize("name", [ZSRE, FLAT, QUESTIONS])
def test_the_last_word_scores_100(name: str) -> None:
    stream = list(read_edits(DATA / ZSRE).edits) if name == ZSRE else repeated(name, 5)
    model = knowing(last_words(stream), texts_of(stream))
    scores = Scorer(model, stream, JUDGES, "all").score(len(stream))
    assert means(scores) == {100.0}
    superseded = {s.edit_index for s in scores if s.superseded}
    assert 0 < len(superseded) < len(stream)
    measured = Measurements(model, stream, ["portability"], EvalData()).measure(len(stream))
    of_questions = {v for name, v in measured.items() if name.startswith("portability_")}
    assert of_questions <= {100.0}


def test_chains_end_where_a_later_row_edits_a_hop_of_theirs() -> None:
    """Hari Kunzru was born in London, which row 3 leaves alone; London lies in Eurasia by then."""
    edits = read_edits(DATA / MQUAKE).edits
    standing = Standing(Facts(edits), len(edits))
    asked = [(i, item) for i, edit in enumerate(edits) for item in edit.consequences]
    assert not any(standing.consequence(i, item) for i, item in asked)
    elsewhere = Edit(edit_id="x", prompt="In which city was Hari Kunzru born?", target="Oslo",
                     subject="Hari Kunzru", relation="P19")  # fmt: skip
    moved = Standing(Facts([*edits, elsewhere]), len(edits) + 1)
    found = [moved.consequence(i, item) for i, item in asked]
    assert found == [edits[i].source.endswith(":3") for i, _ in asked] and sum(found) == 3


def test_how_much_of_real_files_is_superseded() -> None:
    counted = {}
    for name in (ZSRE, FLAT, QUESTIONS):
        edits = read_edits(DATA / name).edits
        standing = Standing(Facts(edits), len(edits))
        live = [i for i in range(len(edits)) if not standing.edit(i)]
        probes = [probe.prompt for i in live for probe in edits[i].locality]
        counted[name] = (len(edits) - len(live), sum(map(standing.locality, probes)))
    assert counted == {ZSRE: (10, 0), FLAT: (100, 196), QUESTIONS: (121, 0)}
