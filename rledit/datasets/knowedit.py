"""KnowEdit (arXiv 2401.01286): ZsRE, wiki_counterfact, wiki_recent, and WikiBio in its own schema.

Locality probes come from every section of ``locality``, Relation_Specificity first. An answer may
be a text, a list, or a list of alias lists: the first text stands for it; a probe with no text at
all is left out and counted. Portability questions ask for consequences of an edit, not for the
edit in other words, so they are no rephrases; those without an answer are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.format import Format, some
from rledit.records import Consequence, Edit, Locality

_FIRST_SECTION = "Relation_Specificity"


def read(row: Row, place: Place) -> list[Edit]:
    """One edit of the question and statement parts."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"knowedit:{place.row}",
            prompt=fields.text("prompt"),
            target=fields.answer("target_new"),
            rephrases=some(fields.optional("rephrase_prompt")),
            locality=_locality(fields),
            old_target=fields.first_answer("ground_truth"),
            subject=fields.optional("subject"),
            source=str(place),
            consequences=_portability(fields),
        )
    ]


def _portability(fields: Fields) -> tuple[Consequence, ...]:
    if not fields.has("portability") or fields.value("portability") is None:
        return ()
    sections = fields.child("portability")
    return tuple(
        Consequence(kind=name, prompt=prompt, answers=(answer,))
        for name in sections.names()
        for item in sections.children(name)
        if (prompt := item.optional("prompt")) is not None
        if (answer := item.first_answer("ground_truth")) is not None
    )


def read_wikibio(row: Row, place: Place) -> list[Edit]:
    """One edit of WikiBio: the next sentence of a biography is the target."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"knowedit_wikibio:{place.row}",
            prompt=fields.text("text"),
            target=fields.answer("labels"),
            locality=_locality(fields),
            subject=fields.optional("concept"),
            source=str(place),
        )
    ]


def _locality(fields: Fields) -> tuple[Locality, ...]:
    if fields.value("locality") is None:
        return ()
    sections = fields.child("locality")
    names = sorted(sections.names(), key=lambda name: name != _FIRST_SECTION)
    probes = (
        (item.optional("prompt"), item.first_answer("ground_truth"))
        for name in names
        for item in sections.children(name)
    )
    return tuple(Locality(prompt=p, answer=a) for p, a in probes if p is not None and a is not None)


def observe(row: Row) -> tuple[str, ...]:
    """Name how the ground truth is written, and probes without an answer."""
    truth = row.get("ground_truth")
    traps = []
    if truth is None or truth == "" or truth == []:
        traps.append("ground_truth_absent")
    elif isinstance(truth, list):
        traps.append("ground_truth_list")
    return (*traps, *observe_probes(row))


def observe_probes(row: Row) -> tuple[str, ...]:
    """Name the locality probes whose answer holds no text; the row has been read without error."""
    sections = row.get("locality")
    if not isinstance(sections, Mapping):
        return ()
    items = [item for section in sections.values() for item in section or ()]
    place = Place(file="", row=0)
    empty = sum(Fields(item, place).first_answer("ground_truth") is None for item in items)
    return ("locality_answer_absent",) * empty


KNOWEDIT = Format(
    name="knowedit",
    title="KnowEdit: ZsRE, wiki_counterfact, wiki_recent (arXiv 2401.01286)",
    required=("prompt", "target_new", "locality"),
    read=read,
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
        "portability": {},
    },
)
WIKIBIO = Format(
    name="knowedit_wikibio",
    title="KnowEdit's WikiBio (arXiv 2401.01286)",
    required=("text", "labels", "locality"),
    read=read_wikibio,
    observe=observe_probes,
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
