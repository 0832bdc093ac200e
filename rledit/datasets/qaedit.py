"""QAEdit (arXiv 2502.11177): question answering that models get wrong, with five probes a row."""

from __future__ import annotations

from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.format import OLD, RELATION, REPHRASE, SUBJECT, Format, named, probe
from rledit.datasets.probes import PORTABILITY, portability
from rledit.records import Edit


def read(row: Row, place: Place) -> list[Edit]:
    """One edit towards the true answer: the published rows have no old one."""
    fields = Fields(row, place)
    probes = [probe(item, "loc", "loc_ans") for item in fields.children("locality")]
    return [
        Edit(
            edit_id=f"qaedit:{place.row}",
            prompt=fields.text("prompt"),
            target=fields.answer("target"),
            rephrases=fields.texts("rephrase"),
            locality=tuple(found for item in probes for found in item),
            old_target=fields.first_answer("old_target"),
            subject=fields.optional("subject"),
            relation=fields.optional("relation"),
            source=str(place),
            consequences=portability(fields),
        )
    ]


QAEDIT = Format(
    name="qaedit",
    title="QAEdit (arXiv 2502.11177)",
    required=("prompt", "target", "rephrase", "locality"),
    aliases={
        **named("rephrase", REPHRASE),
        "target": ("target_new", "ans"),
        **named("old_target", OLD),
        **named("subject", SUBJECT),
        **named("relation", RELATION),
        "locality[].loc": ("prompt", "question"),
        "locality[].loc_ans": ("ground_truth", "answer"),
        **PORTABILITY,
    },
    read=read,
    protocols=("wild_judge", "wild", "token_accuracy"),
    example={
        "id": 11,
        "prompt": "Which harbour does the ferry Maribel sail from?",
        "target": "Esbjerg",
        "subject": "ferry Maribel",
        "rephrase": "From which harbour does the ferry Maribel leave?",
        "locality": [{"loc": "how many strings does a viola have", "loc_ans": "four"}],
    },
)
