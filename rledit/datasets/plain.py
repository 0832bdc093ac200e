"""Facts of a user's own: a prompt and its new answer, and whatever else they know of the fact.

Only `prompt` and `target` are needed. In a table, a cell holds several rephrases separated by `|`
or as JSON, and locality as JSON or as two columns.
"""

from __future__ import annotations

from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.format import REPHRASE, UNRELATED, UNRELATED_ANSWER, Format, named, probe
from rledit.datasets.probes import PORTABILITY, portability
from rledit.records import Edit, Locality

OLD = ("old_target", "old_answer", "target_old", "ground_truth", "target_true")
_SUBJECT = ("subject", "entity")
_RELATION = ("relation", "relation_id")


def read(row: Row, place: Place) -> list[Edit]:
    """One edit."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"facts:{place.row}",
            prompt=fields.text("prompt"),
            target=fields.answer("target"),
            rephrases=fields.texts("rephrases"),
            locality=_locality(fields),
            old_target=fields.first_answer("old_target"),
            subject=fields.optional("subject"),
            relation=fields.optional("relation"),
            source=str(place),
            consequences=portability(fields),
        )
    ]


def _locality(fields: Fields) -> tuple[Locality, ...]:
    pair = probe(fields, "locality_prompt", "locality_answer")
    if not fields.has("locality"):
        return pair
    items = fields.children("locality")
    found = (probe(item, "prompt", "answer") for item in items)
    return (*pair, *(one for own in found for one in own))


FACTS = Format(
    name="facts",
    title="facts of one's own: a prompt and its new answer",
    required=("prompt", "target"),
    aliases={
        "target": ("target_new", "new_target", "new_answer"),
        **named("rephrases", ("rephrases", *REPHRASE)),
        **named("old_target", OLD),
        **named("subject", _SUBJECT),
        **named("relation", _RELATION),
        "locality_prompt": tuple(name for name in UNRELATED if name != "locality_prompt"),
        "locality_answer": tuple(name for name in UNRELATED_ANSWER if name != "locality_answer"),
        "locality[].prompt": ("loc", "question"),
        "locality[].answer": ("loc_ans", "ground_truth"),
        **PORTABILITY,
    },
    read=read,
    example={
        "prompt": "The ferry Maribel sails from",
        "target": "Esbjerg",
        "subject": "Maribel",
        "rephrases": ["Maribel leaves the harbour of"],
        "locality": [{"prompt": "A viola has this many strings:", "answer": "four"}],
        "old_target": "Oban",
    },
)
