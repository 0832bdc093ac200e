"""Facts of a user's own: a prompt and its new answer, and whatever else they know of the fact.

Only `prompt` and `target` are needed. In a table, a cell holds several rephrases separated by `|`
or as JSON, and locality as JSON or as two columns.
"""

from __future__ import annotations

from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.format import (
    OLD,
    RELATION,
    REPHRASE,
    SUBJECT,
    UNRELATED,
    UNRELATED_ANSWER,
    Format,
    named,
    probe,
)
from rledit.datasets.probes import LOCALITY, ONE_HOP, PORTABILITY, locality, portability
from rledit.records import Edit

OWN = frozenset({"rephrases", "old_target"})
"""Names that no other schema has: a row with one is of this one, whatever else it holds."""


def read(row: Row, place: Place) -> list[Edit]:
    """One edit."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"facts:{place.row}",
            prompt=fields.text("prompt"),
            target=fields.answer("target"),
            rephrases=fields.texts("rephrases"),
            locality=(
                *probe(fields, "locality_prompt", "locality_ground_truth"),
                *locality(fields, ONE_HOP),
            ),
            old_target=fields.first_answer("old_target"),
            subject=fields.optional("subject"),
            relation=fields.optional("relation"),
            source=str(place),
            consequences=portability(fields),
        )
    ]


FACTS = Format(
    name="facts",
    title="facts of one's own: a prompt and its new answer",
    required=("prompt", "target"),
    aliases={
        **named("rephrases", ("rephrases", *REPHRASE)),
        **named("old_target", OLD),
        **named("subject", SUBJECT),
        **named("relation", RELATION),
        **named("locality_prompt", UNRELATED),
        **named("locality_ground_truth", UNRELATED_ANSWER),
        **LOCALITY,
        **PORTABILITY,
    },
    read=read,
    example={
        "prompt": "The ferry Maribel sails from",
        "target": "Esbjerg",
        "subject": "Maribel",
        "rephrases": ["Maribel leaves the harbour of"],
        "locality": [{"prompt": "A viola has this many strings:", "ground_truth": "four"}],
        "old_target": "Oban",
    },
)
