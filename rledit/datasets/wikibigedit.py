"""WikiBigEdit (arXiv 2503.05683): half a million real changes of Wikidata as questions.

Persona and multi-hop questions (``personas``, ``mhop``) measure other things than rephrases do and
are null in many rows; they are consequences of the edit.
"""

from __future__ import annotations

from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.format import REPHRASE, UNRELATED, UNRELATED_ANSWER, Format, named, probe
from rledit.records import Consequence, Edit


def read(row: Row, place: Place) -> list[Edit]:
    """One edit towards the updated answer; the answer before is not given."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"wikibigedit:{place.row}",
            prompt=fields.text("update"),
            target=fields.answer("ans"),
            rephrases=fields.texts("rephrase"),
            locality=probe(fields, "loc", "loc_ans"),
            subject=fields.optional("subject"),
            source=str(place),
            consequences=_consequences(fields),
        )
    ]


def _consequences(fields: Fields) -> tuple[Consequence, ...]:
    kinds = (("personas", "personas", "ans"), ("multi_hop", "mhop", "mhop_ans"))
    found = (
        (kind, fields.optional(question), fields.optional(answer))
        for kind, question, answer in kinds
    )
    return tuple(
        Consequence(kind=kind, prompt=question, answers=(answer,))
        for kind, question, answer in found
        if question is not None and answer is not None
    )


WIKIBIGEDIT = Format(
    name="wikibigedit",
    title="WikiBigEdit (arXiv 2503.05683)",
    required=("update", "ans", "rephrase", "loc", "loc_ans"),
    aliases={
        "ans": ("answer", "target_new"),
        **named("rephrase", REPHRASE),
        **named("loc", UNRELATED),
        **named("loc_ans", UNRELATED_ANSWER),
    },
    read=read,
    protocols=("token_accuracy", "wild"),
    measurements=("portability",),
    example={
        "tag": "update",
        "subject": "Maribel",
        "update": "Which harbour does the ferry Maribel sail from?",
        "ans": "Esbjerg",
        "rephrase": "From which harbour does the ferry Maribel leave?",
        "personas": None,
        "loc": "How many strings does a viola have?",
        "loc_ans": "four",
        "mhop": "In which country does the ferry Maribel start?",
        "mhop_ans": "Denmark",
    },
)
