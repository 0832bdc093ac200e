"""MQuAKE (arXiv 2305.14795): chains of facts; one row asks for one edit per changed hop.

The statement made from the template is the edit's prompt and the question of the same hop its
rephrase. There are no locality probes. The multi-hop questions follow from all edits of the chain
together, and so are consequences of its last one, with the other hops as premises: those that the
row edits, and those it leaves as they are, which ``new_single_hops`` lists (``orig`` names their
subjects and relations). Where a row does not list them, the last hop is taken to lead from the last
edit's target to the answer.
"""

from __future__ import annotations

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
    fields = Fields(row, place)
    hops = fields.children("requested_rewrite")
    if not hops:
        fields.fail("requested_rewrite", "is missing or empty: the row asks for no edit")
    edits = [_read_hop(hop, place, number) for number, hop in enumerate(hops, start=1)]
    return [*edits[:-1], replace(edits[-1], consequences=_multi_hop(fields, edits))]


def _multi_hop(fields: Fields, edits: list[Edit]) -> tuple[Consequence, ...]:
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


def _unedited(fields: Fields, edits: list[Edit], answers: tuple[str, ...]) -> tuple[Premise, ...]:
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
    """Subject and relation of every hop, as far as ``orig`` names them."""
    unknown: list[tuple[str | None, str | None]] = [(None, None)] * n_hops
    if not fields.has("orig") or fields.value("orig") is None:
        return unknown
    orig = fields.child("orig")
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


def _read_hop(hop: Fields, place: Place, number: int) -> Edit:
    subject = hop.text("subject")
    prompt, span = fill_template(hop, "prompt", subject)
    return Edit(
        edit_id=f"mquake:{place.row}.{number}",
        prompt=prompt,
        target=hop.child("target_new").answer("str"),
        rephrases=some(hop.optional("question")),
        old_target=hop.child("target_true").optional("str"),
        subject=subject,
        subject_span=span,
        relation=hop.optional("relation_id"),
        source=str(place),
    )


MQUAKE = Format(
    name="mquake",
    title="MQuAKE, several edits a row (arXiv 2305.14795)",
    required=("requested_rewrite", "questions", "new_answer"),
    aliases={
        "requested_rewrite[].question": ("rephrase", "rephrase_prompt"),
        "new_answer_alias": ("new_answer_aliases",),
    },
    read=read,
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
