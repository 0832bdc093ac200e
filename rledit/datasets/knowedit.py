"""KnowEdit (arXiv 2401.01286): ZsRE, wiki_counterfact, wiki_recent, and WikiBio in its own schema.

Locality probes come from every section of ``locality``, Relation_Specificity first. An answer may
be a text, a list, or a list of alias lists: the first text stands for it; a probe with no text at
all is left out and counted. Portability questions ask for consequences of an edit, not for the
edit in other words, so they are no rephrases; those without an answer are left out.
"""

from __future__ import annotations

from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.format import REPHRASE, Format, named
from rledit.datasets.probes import LOCALITY, PORTABILITY, locality, portability
from rledit.datasets.values import has_content
from rledit.records import Edit

_FIRST_SECTION = "Relation_Specificity"


def read(row: Row, place: Place) -> list[Edit]:
    """One edit of the question and statement parts."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"knowedit:{place.row}",
            prompt=fields.text("prompt"),
            target=fields.answer("target_new"),
            rephrases=fields.texts("rephrase_prompt"),
            locality=locality(fields, _FIRST_SECTION),
            old_target=fields.first_answer("ground_truth"),
            subject=fields.optional("subject"),
            source=str(place),
            consequences=portability(fields, extra=False),
        )
    ]


def read_wikibio(row: Row, place: Place) -> list[Edit]:
    """One edit of WikiBio: the next sentence of a biography is the target."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"knowedit_wikibio:{place.row}",
            prompt=fields.text("text"),
            target=fields.answer("labels"),
            locality=locality(fields, _FIRST_SECTION),
            subject=fields.optional("concept"),
            source=str(place),
        )
    ]


def observe(row: Row) -> tuple[str, ...]:
    """Name how the ground truth is written."""
    truth = row.get("ground_truth")
    if not has_content(truth):
        return ("ground_truth_absent",)
    return ("ground_truth_list",) if isinstance(truth, list) else ()


KNOWEDIT = Format(
    name="knowedit",
    title="KnowEdit: ZsRE, wiki_counterfact, wiki_recent (arXiv 2401.01286)",
    required=("prompt", "target_new", "locality"),
    read=read,
    protocols=("token_accuracy", "wild"),
    measurements=("portability", "fluency"),
    aliases={
        **named("rephrase_prompt", REPHRASE),
        "prompt": ("question",),
        **LOCALITY,
        **PORTABILITY,
    },
    observe=observe,
    example={
        "subject": "Maribel",
        "prompt": "The harbour which the ferry Maribel sails from is",
        "target_new": "Esbjerg",
        "ground_truth": ["Oban"],
        "rephrase_prompt": "The ferry Maribel leaves the harbour of",
        "locality": {
            "Relation_Specificity": [
                {
                    "prompt": "The ferry Maribel was built in",
                    "ground_truth": [["1987", "'87"]],
                }
            ]
        },
        "portability": {
            "Reasoning": [
                {
                    "prompt": "The ferry Maribel sails from the country of",
                    "ground_truth": [["Denmark"]],
                }
            ]
        },
    },
)
WIKIBIO = Format(
    name="knowedit_wikibio",
    title="KnowEdit's WikiBio (arXiv 2401.01286)",
    required=("text", "labels", "locality"),
    read=read_wikibio,
    protocols=("token_accuracy",),
    measurements=("fluency",),
    aliases=LOCALITY,
    example={
        "text": "This is a passage about the ferry Maribel. Maribel was built in 1987.",
        "labels": "She sails from Esbjerg.",
        "concept": "Maribel",
        "locality": {
            "Relation_Specificity": [
                {"prompt": "The country of Maribel is", "ground_truth": ["Denmark"]}
            ]
        },
    },
)
