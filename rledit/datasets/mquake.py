"""MQuAKE (arXiv 2305.14795): chains of facts; one row asks for one edit per changed hop.

The statement made from the template is the edit's prompt and the question of the same hop its
rephrase. There are no locality probes. The multi-hop questions follow from all edits of the chain
together, and so are consequences of its last one, with the other hops as premises: those that the
row edits, and those it leaves as they are, which ``new_single_hops`` lists (``orig`` names their
subjects and relations). Where a row does not list them, the last hop is taken to lead from the last
edit's target to the answer.

MQuAKE-Remastered is the same data, mended where edits contradict each other's chains. On the hub
its rows are flat: ``target_new_str`` for ``target_new.str``, and the triples are not inside
``orig``. Which rows are edited in a run of so many edits (``split``) is up to who makes the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rledit.datasets.fields import Fields, Place, Row, fill_template
from rledit.datasets.format import Format, some
from rledit.records import Consequence, Edit, Premise
from rledit.superseded import normalised


def read(row: Row, place: Place) -> list[Edit]:
    """The edits of one chain, in its order.

    Raises:
        RowError: There is no rewrite, or a template has no slot.
    """
    return _read(row, place, "mquake")


def read_remastered(row: Row, place: Place) -> list[Edit]:
    """The edits of one chain of MQuAKE-Remastered; see `read`."""
    return _read(row, place, "mquake_remastered")


def _read(row: Row, place: Place, name: str) -> list[Edit]:
    fields = Fields(row, place)
    hops = fields.children("requested_rewrite")
    if not hops:
        fields.fail("requested_rewrite", "is missing or empty: the row asks for no edit")
    ids = (f"{name}:{place.row}.{number}" for number, _ in enumerate(hops, start=1))
    edits = [_read_hop(hop, place, edit_id) for hop, edit_id in zip(hops, ids, strict=True)]
    return [*edits[:-1], replace(edits[-1], consequences=multi_hop(fields, edits))]


def multi_hop(fields: Fields, edits: Sequence[Edit]) -> tuple[Consequence, ...]:
    """The multi-hop questions of a row, which follow from all of its edits together."""
    answer = fields.optional("new_answer")
    if answer is None:
        return ()
    answers = (answer, *_listed(fields, "new_answer_alias"))
    premises = (*map(_edited, edits[:-1]), *_unedited(fields, edits, answers))
    return tuple(
        Consequence(kind="multi_hop", prompt=question, answers=answers, premises=premises)
        for question in fields.texts("questions")
    )


def _edited(edit: Edit) -> Premise:
    """A hop that the row edits."""
    return Premise(
        answers=(edit.target,),
        prompts=(edit.prompt, *edit.rephrases),
        subject=edit.subject,
        relation=edit.relation,
        old_answers=some(edit.old_target),
        edited=True,
    )


def _unedited(
    fields: Fields, edits: Sequence[Edit], answers: tuple[str, ...]
) -> tuple[Premise, ...]:
    """The hops that the row leaves as they are."""
    if not fields.has("new_single_hops"):
        last = edits[-1].target
        if normalised(last) in map(normalised, answers):
            return ()
        return (Premise(answers=answers, subject=last, old_answers=answers),)
    edited = {normalised(text) for edit in edits for text in (edit.prompt, *edit.rephrases)}
    hops = fields.children("new_single_hops")
    named = _named(fields, len(hops))
    premises = []
    for hop, (subject, relation) in zip(hops, named, strict=True):
        prompts = (*some(hop.optional("cloze")), *some(hop.optional("question")))
        answer = hop.optional("answer")
        if answer is not None and not edited & set(map(normalised, prompts)):
            found = (answer, *_listed(hop, "answer_alias"))
            premises.append(
                Premise(
                    answers=found,
                    prompts=prompts,
                    subject=subject,
                    relation=relation,
                    old_answers=found,
                )
            )
    return tuple(premises)


def _named(fields: Fields, n_hops: int) -> list[tuple[str | None, str | None]]:
    """Subject and relation of every hop, as far as ``orig`` or a flat row names them."""
    unknown: list[tuple[str | None, str | None]] = [(None, None)] * n_hops
    orig = fields.child("orig") if fields.has("orig") else fields
    if not (orig.has("new_triples") and orig.has("new_triples_labeled")):
        return unknown
    ids, labels = orig.value("new_triples"), orig.value("new_triples_labeled")
    try:
        found = [(str(label[0]), str(triple[1])) for triple, label in zip(ids, labels, strict=True)]
    except (TypeError, ValueError, IndexError, KeyError):
        orig.fail("new_triples", "and `new_triples_labeled` are not lists of as many triples")
    return [*found] if len(found) == n_hops else unknown


def _listed(fields: Fields, key: str) -> tuple[str, ...]:
    return fields.texts(key) if fields.has(key) else ()


def target(hop: Fields, key: str) -> str:
    """The text of a target, ``{key}.str`` or flat as ``{key}_str``; it may be blank."""
    if hop.has(f"{key}_str") and not hop.has(key):
        return hop.answer(f"{key}_str")
    return hop.child(key).answer("str")


def old_target(hop: Fields) -> str | None:
    """The text of a target that may be absent."""
    if not hop.has("target_true"):
        return hop.optional("target_true_str")
    return hop.child("target_true").optional("str")


def _read_hop(hop: Fields, place: Place, edit_id: str) -> Edit:
    subject = hop.text("subject")
    prompt, span = fill_template(hop, "prompt", subject)
    return Edit(
        edit_id=edit_id,
        prompt=prompt,
        target=target(hop, "target_new"),
        rephrases=some(hop.optional("question")),
        old_target=old_target(hop),
        subject=subject,
        subject_span=span,
        relation=hop.optional("relation_id"),
        source=str(place),
    )


_ALIASES = {
    "requested_rewrite[].question": ("rephrase", "rephrase_prompt"),
    "new_answer_alias": ("new_answer_aliases",),
}
MQUAKE = Format(
    name="mquake",
    title="MQuAKE, several edits a row (arXiv 2305.14795)",
    required=("requested_rewrite", "questions", "new_answer"),
    aliases=_ALIASES,
    read=read,
    protocols=("generation_contains", "token_accuracy"),
    measurements=("portability",),
    example={
        "case_id": 3,
        "requested_rewrite": [
            {
                "prompt": "The ferry {} sails from",
                "subject": "Maribel",
                "question": "Which harbour does the ferry Maribel sail from?",
                "target_new": {"str": "Esbjerg", "id": "Q0"},
                "target_true": {"str": "Oban", "id": "Q0"},
            },
            {
                "prompt": "{} lies in the country of",
                "subject": "Esbjerg",
                "question": "In which country does Esbjerg lie?",
                "target_new": {"str": "Norway", "id": "Q0"},
                "target_true": {"str": "Denmark", "id": "Q0"},
            },
        ],
        "questions": ["In which country does the ferry Maribel start?"],
        "new_answer": "Norway",
    },
)
REMASTERED = Format(
    name="mquake_remastered",
    title="MQuAKE-Remastered, rows of the hub, several edits a row (ICLR 2025)",
    required=("requested_rewrite", "questions", "new_answer", "new_triples_labeled"),
    aliases=_ALIASES,
    read=read_remastered,
    protocols=("generation_contains", "token_accuracy"),
    measurements=("portability",),
    example={
        "case_id": 3,
        "requested_rewrite": [
            {
                "prompt": "The ferry {} sails from",
                "relation_id": "P1",
                "subject": "Maribel",
                "question": "Which harbour does the ferry Maribel sail from?",
                "target_new_str": "Esbjerg",
                "target_new_id": "Q2",
                "target_true_str": "Oban",
                "target_true_id": "Q3",
            }
        ],
        "questions": ["In which country does the ferry Maribel start?"],
        "answer": "Scotland",
        "new_answer": "Denmark",
        "new_answer_alias": ["Kingdom of Denmark"],
        "new_single_hops": [
            {
                "question": "Which harbour does the ferry Maribel sail from?",
                "cloze": "The ferry Maribel sails from",
                "answer": "Esbjerg",
                "answer_alias": [],
            },
            {
                "question": "In which country does Esbjerg lie?",
                "cloze": "Esbjerg lies in the country of",
                "answer": "Denmark",
                "answer_alias": ["Kingdom of Denmark"],
            },
        ],
        "new_triples": [["Q1", "P1", "Q2"], ["Q2", "P17", "Q35"]],
        "new_triples_labeled": [
            ["Maribel", "harbour", "Esbjerg"],
            ["Esbjerg", "country", "Denmark"],
        ],
    },
)
