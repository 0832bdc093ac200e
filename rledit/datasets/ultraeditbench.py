"""UltraEditBench (arXiv 2505.14679): two million question edits, with neither subject nor truth.

Files of one's own with these keys may have subject, relation and old answer beside them.
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
from rledit.datasets.probes import PORTABILITY, portability
from rledit.records import Edit


def read(row: Row, place: Place) -> list[Edit]:
    """One edit towards ``ans``."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"ultraeditbench:{place.row}",
            prompt=fields.text("prompt"),
            target=fields.answer("ans"),
            rephrases=fields.texts("rephrase_prompt"),
            locality=probe(fields, "loc", "loc_ans"),
            old_target=fields.first_answer("old_target"),
            subject=fields.optional("subject"),
            relation=fields.optional("relation"),
            source=str(place),
            consequences=portability(fields),
        )
    ]


ULTRAEDITBENCH = Format(
    name="ultraeditbench",
    title="UltraEditBench (arXiv 2505.14679)",
    required=("prompt", "ans", "rephrase_prompt", "loc", "loc_ans"),
    aliases={
        "prompt": ("question",),
        "ans": ("answer", "target_new", "target"),
        **named("rephrase_prompt", REPHRASE),
        **named("old_target", OLD),
        **named("subject", SUBJECT),
        **named("relation", RELATION),
        **named("loc", UNRELATED),
        **named("loc_ans", UNRELATED_ANSWER),
        **PORTABILITY,
    },
    read=read,
    protocols=("token_accuracy", "wild"),
    example={
        "prompt": "Which harbour does the ferry Maribel sail from?",
        "ans": "Esbjerg",
        "rephrase_prompt": "From which harbour does the ferry Maribel leave?",
        "loc": "How many strings does a viola have?",
        "loc_ans": "four",
    },
)
