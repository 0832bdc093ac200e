"""MQuAKE (arXiv 2305.14795): chains of facts; one row asks for one edit per changed hop.

The statement made from the template is the edit's prompt and the question of the same hop its
rephrase. There are no locality probes. The multi-hop questions follow from all edits of the chain
together, and so are consequences of its last one.
"""

from __future__ import annotations

from dataclasses import replace

from rledit.datasets.fields import Fields, Place, Row, fill_template
from rledit.datasets.format import Format, some
from rledit.records import Consequence, Edit


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
    return [*edits[:-1], replace(edits[-1], consequences=_multi_hop(fields))]


def _multi_hop(fields: Fields) -> tuple[Consequence, ...]:
    answer = fields.optional("new_answer")
    if answer is None:
        return ()
    aliases = fields.texts("new_answer_alias") if fields.has("new_answer_alias") else ()
    answers = (answer, *aliases)
    return tuple(
        Consequence(kind="multi_hop", prompt=question, answers=answers)
        for question in fields.texts("questions")
    )


def _read_hop(hop: Fields, place: Place, number: int) -> Edit:
    subject = hop.text("subject")
    return Edit(
        edit_id=f"mquake:{place.row}.{number}",
        prompt=fill_template(hop, "prompt", subject),
        target=hop.child("target_new").answer("str"),
        rephrases=some(hop.optional("question")),
        old_target=hop.child("target_true").optional("str"),
        subject=subject,
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
