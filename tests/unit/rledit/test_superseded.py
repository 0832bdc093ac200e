"""Superseded questions: a model that knows the stream's final answers scores 100 everywhere.

What it knows is written down here by hand, for the end of a stream and for a point along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rledit.datasets import audit, read_edits
from rledit.measurements.registry import EvalData, Measurements
from rledit.model import EditableModel
from rledit.protocols import PROTOCOLS
from rledit.records import Consequence, Edit, Locality, Premise
from rledit.scoring import EditScore, Scorer, count_contradicting
from rledit.superseded import Facts, Standing, normalised
from tests.unit.helpers.knowing_model import byte_pair_tokenizer, learn, small_model

SCORES = ("efficacy", "generalization", "specificity", "specificity_self")
Row = dict[str, Any]


def hop(prompt: str, subject: str, question: str, new: str, old: str, relation: str = "") -> Row:
    row = {"prompt": prompt, "subject": subject, "question": question}
    row |= {"target_new": {"str": new}, "target_true": {"str": old}}
    return row | ({"relation_id": relation} if relation else {})


def head_of(club: str, name: str, *, old: str = "Ann", words: str = "{} is led by") -> Row:
    return hop(words, club, f"Who leads {club}?", name, old, "P488")


def chain(hops: list[Row], question: str, answer: str, **more: Any) -> Row:
    return {"requested_rewrite": hops, "questions": [question], "new_answer": answer, **more}


QUESTION = "Where was the head of the Rovers born?"
ROVERS = {
    # The fact is written twice, the second time in other words, and asks no question.
    "written anew": [
        chain([head_of("Rovers", "Bob")], QUESTION, "Leith"),
        chain([head_of("Rovers", "Bob")], QUESTION, "Leith"),
        chain([head_of("Rovers", "Cid", words="At the head of {} stands")], "Who?", "Cid"),
    ],
    # A hop that the first chain edits itself is edited again by another chain.
    "first hop": [
        chain(
            [
                head_of("Rovers", "Bob"),
                hop("{} was born in", "Bob", "Where was Bob born?", "Leith", "Wick", "P19"),
            ],
            QUESTION,
            "Leith",
        ),
        chain([head_of("Rovers", "Cid")], "Who is at the head of the Rovers?", "Cid"),
    ],
    # A hop that the first chain leaves alone, told by its listed wording.
    "listed hop": [
        chain(
            [head_of("Rovers", "Bob")],
            QUESTION,
            "Leith",
            new_single_hops=[
                {"cloze": "Rovers is led by", "question": "Who leads Rovers?", "answer": "Bob"},
                {
                    "cloze": "Bob was born in",
                    "question": "Where was Bob born?",
                    "answer": "Leith",
                    "answer_alias": ["Leith, Scotland"],
                },
            ],
        ),
        chain(
            [hop("The birthplace of {} is", "Bob", "where was  bob born", "Oban", "Leith")],
            "In which town did the head of the Rovers grow up?",
            "Oban",
        ),
    ],
    # The same, told by subject and relation of the listed triple.
    "named hop": [
        chain(
            [head_of("Rovers", "Bob")],
            QUESTION,
            "Leith",
            new_single_hops=[
                {"cloze": "Rovers is led by", "question": "Who leads Rovers?", "answer": "Bob"},
                {"cloze": "Bob was born in", "question": "Bob's birthplace?", "answer": "Leith"},
            ],
            orig={
                "new_triples": [["Q1", "P488", "Q2"], ["Q2", "P19", "Q3"]],
                "new_triples_labeled": [["Rovers", "led by", "Bob"], ["Bob", "born in", "Leith"]],
            },
        ),
        chain(
            [hop("It was in {}'s town of", "Bob", "Bob comes from?", "Oban", "Wick", "P19")],
            "In which town did the head of the Rovers grow up?",
            "Oban",
        ),
    ],
    # Hops are not listed: the target leads to the answer, and that is edited.
    "hop that is not listed": [
        chain([head_of("Rovers", "Bob")], QUESTION, "Leith"),
        chain(
            [hop("{} was born in", "Bob", "Where was Bob born?", "Oban", "Leith")],
            "In which town did the head of the Rovers grow up?",
            "Oban",
        ),
    ],
    # The question itself is asked anew, in another case, and answered otherwise.
    "question": [
        chain([head_of("Rovers", "Bob")], QUESTION, "Leith"),
        chain([head_of("City", "Dan")], QUESTION.upper(), "Tain"),
    ],
}


@pytest.mark.parametrize("what", ROVERS)
def test_a_question_whose_answer_is_superseded_does_not_count(what: str) -> None:
    edits = read_edits("chains.json", rows=ROVERS[what]).edits
    facts = Facts(edits)
    asked = [(i, e, c) for i, e in enumerate(edits) for c in e.consequences]
    first = [(i, c) for i, e, c in asked if e.source != edits[-1].source]
    last = [(i, c) for i, e, c in asked if e.source == edits[-1].source]
    end = Standing(facts, len(edits))
    assert [end.consequence(i, c) for i, c in first] == [True] * len(first)
    assert [end.consequence(i, c) for i, c in last] == [False]
    # Before the last row nothing speaks against them, whatever is still to come.
    before = Standing(facts, len(edits) - 1)
    assert [before.consequence(i, c) for i, c in first] == [False] * len(first)
    unedited = Standing(facts, 0)
    assert all(unedited.consequence(i, c) == end.consequence(i, c) for i, _, c in asked)


def test_a_question_waits_for_all_hops_of_its_chain() -> None:
    """A shuffled stream may write the last hop first."""
    one, two = read_edits("chains.json", rows=ROVERS["first hop"][:1]).edits
    (question,) = two.consequences
    facts = Facts([two, one])
    assert Standing(facts, 1).consequence(0, question)
    assert not Standing(facts, 2).consequence(0, question)


def test_aliases_and_facts_that_are_written_back() -> None:
    listed = ROVERS["listed hop"][0]
    alias = chain([hop("{} was born in", "Bob", "Where was Bob born?", "Leith, scotland", "Wick")],
                  "Where is Bob from?", "Leith")  # fmt: skip
    back = [ROVERS["written anew"][0], ROVERS["written anew"][2], head_of("Rovers", "bob ")]
    for rows in ([listed, alias], [*back[:2], chain([back[2]], "Bob?", "Bob")]):
        edits = read_edits("chains.json", rows=rows).edits
        standing = Standing(Facts(edits), 0)
        assert not standing.consequence(0, edits[0].consequences[0])


def edit(prompt: str, target: str, **more: Any) -> Edit:
    return Edit(edit_id=prompt, prompt=prompt, target=target, **more)


FIRST = edit("Who leads the Rovers?", "Bob", subject="Rovers", old_target="Ann",
             rephrases=("The Rovers' head is who?",))  # fmt: skip


@pytest.mark.parametrize(
    ("other", "superseded"),
    [
        (edit("Who leads the Rovers?", "Cid"), True),
        (edit("Who leads the Rovers?", "Bob"), True),  # of one prompt the last write is scored
        (edit(" who leads  the ROVERS", "Cid"), True),
        (edit("Who leads the Ro\u0301vers?", "Cid"), False),
        (edit("The Rovers' head is who?", "Cid"), True),
        (edit("The Rovers' head is who?", "Bob"), False),
        (edit("Head?", "Cid", rephrases=("who leads the rovers",)), True),
        (edit("The Rovers' head is who?", "Cid", subject="City"), False),
        (edit("Head?", "Cid", rephrases=FIRST.rephrases, subject="rovers"), True),
        (edit("Head?", "Cid", rephrases=FIRST.rephrases), False),
        (edit("Head of them?", "Cid", subject="Rovers", old_target="Ann"), True),
        (edit("Founded by", "Cid", subject="Rovers", old_target="Ann"), False),
        (edit("Founder?", "Cid", subject="Rovers", old_target="Eve"), False),
        (edit("Head?", "Cid", subject="Rovers"), False),
    ],
)
def test_which_edits_are_of_one_fact(other: Edit, superseded: bool) -> None:
    edits = [FIRST, other]
    assert Standing(Facts(edits), 2).edit(0) == superseded
    assert not Standing(Facts(edits), 1).edit(0)
    assert not Standing(Facts(edits), 2).edit(1)
    differs = superseded and normalised(other.target) != normalised(FIRST.target)
    assert count_contradicting(edits) == 2 * differs
    named = audit(edits)
    assert named.count("conflicting_fact") + named.count("contradicting_edit") == 2 * differs


def test_relations_go_before_old_answers() -> None:
    one, same, other = (
        edit(prompt, target, subject="Bob", relation=relation, old_target="Wick")
        for prompt, target, relation in (
            ("Where was Bob born?", "Leith", "P19"),
            ("What is the birthplace of Bob?", "Oban", "P19"),
            ("Where did Bob die?", "Tain", "P20"),
        )
    )
    standing = Standing(Facts([one, same, other]), 0)
    assert [standing.edit(i) for i in range(3)] == [True, False, False]


def test_a_locality_prompt_that_an_edit_speaks_of_is_none() -> None:
    probes = ("Who leads City?", "who leads the rovers", "The Rovers' head is who", "And Oban?")
    consequence = Consequence(kind="k", prompt="And Oban?", answers=("no",))
    edits = [
        edit("p", "a", locality=tuple(Locality(prompt=p, answer="x") for p in probes)),
        replace(FIRST, consequences=(consequence,)),
    ]
    for n, expected in ((1, [False] * 4), (2, [False, True, True, True])):
        assert [Standing(Facts(edits), n).locality(p) for p in probes] == expected
    unmet = replace(consequence, premises=(Premise(answers=("z",), prompts=("y",), edited=True),))
    edits[1] = replace(FIRST, consequences=(unmet,))
    assert not Standing(Facts(edits), 2).locality("And Oban?")


def zsre(subject: str, src: str, rephrase: str, alt: str, old: str, loc: str, ans: str) -> Row:
    return {"subject": subject, "src": src, "rephrase": rephrase, "alt": alt, "answers": [old],
            "pred": old, "loc": loc, "loc_ans": ans}  # fmt: skip


def counterfact(
    words: str, subject: str, new: str, old: str, near: list[str], relation: str
) -> Row:
    rewrite = hop(words, subject, "", new, old, relation)
    said = words.format(subject)
    return {"requested_rewrite": rewrite, "paraphrase_prompts": [f"It rained. {said}"],
            "neighborhood_prompts": near}  # fmt: skip


# Rows, and what is known after so many edits: prompt → answer.
STREAMS: dict[str, tuple[list[Row], dict[int, dict[str, str]]]] = {
    "repeated chains": (
        [
            *ROVERS["first hop"],
            *ROVERS["written anew"],
            chain([head_of("City", "Dan")], "Where was the head of City born?", "Tain"),
        ],
        {
            2: {
                "Rovers is led by": "Bob", "Who leads Rovers?": "Bob",
                "Bob was born in": "Leith", "Where was Bob born?": "Leith", QUESTION: "Leith",
            },
            7: {
                "Rovers is led by": "Cid", "Who leads Rovers?": "Cid",
                "At the head of Rovers stands": "Cid", "Who?": "Cid",
                "Bob was born in": "Leith", "Where was Bob born?": "Leith", QUESTION: "Oban",
                "Who is at the head of the Rovers?": "Cid",
                "City is led by": "Dan", "Who leads City?": "Dan",
                "Where was the head of City born?": "Tain",
            },
        },
    ),
    "questions of one fact": (
        [
            zsre("Hall", "Who built the Hall?", "The Hall is by whom?", "Bob", "Ann",
                 "who sings low", "Eve"),
            zsre("Hall", "By whom is the Hall?", "Who built the hall", "Cid", "Ann",
                 "who sings high", "Dot"),
            zsre("Gate", "Who built the Gate?", "Who made the Gate?", "Dan", "Fay",
                 "by whom is the hall", "Ann"),
            zsre("song", "who sings low?", "The low voice is whose?", "Gus", "Eve",
                 "how many strings", "four"),
            zsre("Gate", "Who built the Gate?", "Who drew the Gate?", "Hal", "Fay",
                 "who sings high", "Dot"),
        ],
        {
            2: {
                "Who built the Hall?": "Cid", "The Hall is by whom?": "Cid",
                "By whom is the Hall?": "Cid", "Who built the hall": "Cid",
                "who sings low": "Eve", "who sings high": "Dot",
            },
            5: {
                "Who built the Hall?": "Cid", "The Hall is by whom?": "Cid",
                "By whom is the Hall?": "Cid", "Who built the hall": "Cid",
                "by whom is the hall": "Cid", "Who built the Gate?": "Hal",
                "Who made the Gate?": "Hal", "Who drew the Gate?": "Hal",
                "who sings low": "Gus", "who sings low?": "Gus", "The low voice is whose?": "Gus",
                "who sings high": "Dot", "how many strings": "four",
            },
        },
    ),
    "contradicting statements": (
        [
            counterfact("{} plays for", "Bob", "Rovers", "City", ["Cid plays for"], "P54"),
            counterfact("{} is a player of", "Bob", "United", "City", ["Dan plays for"], "P54"),
            counterfact("{} plays for", "Cid", "United", "City", ["Eve plays for"], "P54"),
            counterfact("{} plays for", "Cid", "Town", "City", ["Bob plays for"], "P54"),
        ],
        {
            1: {"Bob plays for": "Rovers", "It rained. Bob plays for": "Rovers",
                "Cid plays for": "City"},
            4: {"Bob plays for": "United", "It rained. Bob plays for": "United",
                "Bob is a player of": "United", "It rained. Bob is a player of": "United",
                "Cid plays for": "Town", "It rained. Cid plays for": "Town",
                "Dan plays for": "City", "Eve plays for": "City"},
        },
    ),
}  # fmt: skip


def knowing(known: dict[str, str], texts: Sequence[str]) -> EditableModel:
    tokenizer = byte_pair_tokenizer(texts)
    model = small_model("llama", tokenizer)
    loss = learn(model, tokenizer, list(known.items()), steps=400, enough=0.005)
    assert loss < 0.02
    return EditableModel(model.double(), tokenizer, ["down:all"])


def texts_of(edits: Sequence[Edit]) -> list[str]:
    asked = [p for e in edits for p in (e.prompt, *e.rephrases, *(x.prompt for x in e.locality))]
    asked += [c.prompt for e in edits for c in e.consequences]
    answers = [a for e in edits for a in (e.target, e.old_target or "")]
    answers += [x.answer for e in edits for x in e.locality]
    answers += [a for e in edits for c in e.consequences for a in c.answers]
    # Every answer one token: `choice_official` calls it a loss where two have one in common.
    return [*asked, *(f"is {answer}" for answer in answers for _ in range(20))]


def means(scores: Sequence[EditScore]) -> set[float]:
    """Every score that stands in a mean."""
    found = [getattr(s, name) for s in scores if not s.superseded for name in SCORES]
    return {value for value in found if value is not None}


@pytest.mark.parametrize(
    ("stream", "n"), [(name, n) for name, (_, states) in STREAMS.items() for n in states]
)
def test_a_model_that_knows_the_state_scores_100_under_every_protocol(stream: str, n: int) -> None:
    rows, states = STREAMS[stream]
    edits = read_edits("rows.json", rows=rows).edits
    model = knowing(states[n], texts_of(edits))
    scorer = Scorer(model, edits, list(PROTOCOLS.values()), "all")
    scores = scorer.score(n)
    assert means(scores) == {100.0}
    measured = Measurements(model, edits, ["portability"], EvalData()).measure(n)
    of_questions = {v for name, v in measured.items() if name.startswith("portability_")}
    assert of_questions == ({100.0} if stream == "repeated chains" else set())
    # It is not that nothing is scored: of every prompt that is known, some edit is asked.
    standing = {s.edit_index for s in scores if not s.superseded}
    assert {edits[i].prompt for i in standing} <= set(states[n])
    if n < len(edits):
        return
    assert len(standing) < n
    scored = [s for s in scores if s.protocol == "token_accuracy"]
    before = [s for s in scored if s.superseded]
    # Of what is superseded, the scores are kept, and are not those of one who knows it.
    assert before and min(s.efficacy or 0.0 for s in before) < 100


def test_what_is_left_out_is_counted() -> None:
    rows, states = STREAMS["questions of one fact"]
    edits = read_edits("rows.json", rows=rows).edits
    model = knowing(states[5], texts_of(edits))
    found = Scorer(model, edits, [PROTOCOLS["exact_match"]], "all").score(5)
    assert [s.superseded for s in found] == [True, False, True, False, False]
    counts = [(s.n_rephrases_superseded, s.n_locality_superseded) for s in found]
    assert counts == [(0, 0)] * 5
    at_four = Scorer(model, edits[:4], [PROTOCOLS["exact_match"]], "all").score(4)
    assert (at_four[2].n_locality_superseded, at_four[2].specificity) == (1, None)
    assert at_four[2].specificity_self is None and not at_four[2].superseded
    chains = read_edits("rows.json", rows=STREAMS["repeated chains"][0]).edits
    known = knowing(STREAMS["repeated chains"][1][7], texts_of(chains))
    measured = Measurements(known, chains, ["portability"], EvalData()).measure(len(chains))
    assert measured["superseded_portability"] == 3.0
