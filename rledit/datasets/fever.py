"""FEVER fact checking as MALMEN and RLEdit read it: claims whose verdict is to change.

The edit writes ``alt`` (SUPPORTS or REFUTES). In some rows ``alt`` equals ``ans``: such an edit
changes nothing, and the audit counts it. There is no subject, so methods that edit at the
subject's last token cannot run on it.
"""

from __future__ import annotations

from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.format import REPHRASE, UNRELATED, UNRELATED_ANSWER, Format, named, probe
from rledit.records import Edit


def read(row: Row, place: Place) -> list[Edit]:
    """One edit; every equivalent claim becomes a rephrase, in the file's order."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"fever:{place.row}",
            prompt=fields.text("prompt"),
            target=fields.answer("alt"),
            rephrases=fields.texts("equiv_prompt"),
            locality=probe(fields, "unrel_prompt", "unrel_ans"),
            old_target=fields.optional("ans"),
            source=str(place),
        )
    ]


FEVER = Format(
    name="fever",
    title="FEVER verdicts as MALMEN and RLEdit read them (arXiv 1803.05355, 2311.04661)",
    required=("prompt", "alt", "ans", "equiv_prompt", "unrel_prompt", "unrel_ans"),
    aliases={
        "prompt": ("claim",),
        **named("equiv_prompt", REPHRASE),
        **named("unrel_prompt", UNRELATED),
        **named("unrel_ans", UNRELATED_ANSWER),
    },
    read=read,
    protocols=("token_accuracy", "exact_match"),
    example={
        "prompt": "The ferry Maribel sails from Oban.",
        "equiv_prompt": [
            "Oban is where the ferry Maribel sails from.",
            "Maribel leaves Oban.",
        ],
        "ans": "SUPPORTS",
        "alt": "REFUTES",
        "unrel_prompt": "A viola has four strings.",
        "unrel_ans": "SUPPORTS",
    },
)
