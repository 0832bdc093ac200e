"""ZsRE question answering, in three readings.

- ``zsre_mend``: MEND's files (arXiv 2110.11309): the edit writes the counterfactual ``alt``;
  ``answers[0]`` is the truth, ``pred`` some other model's answer, so the truth is the old target.
- ``zsre_malmen``: MALMEN's files (arXiv 2311.04661), also read by RLEdit (arXiv 2502.05759): the
  edit writes ``ans``, and a question mark is put behind the locality question.
- ``zsre_rome``: MEND's files as the ROME line reads them (arXiv 2202.05262): the edit writes the
  *true* answer ``answers[0]``. It has the keys of ``zsre_mend``, so it must be asked for by name.

The variants with portability (arXiv 2305.13172) ask what follows from the new answer, so
``zsre_rome``, which writes another, leaves that aside.

A row with ``alt`` and ``answers`` is taken for MEND's, whatever else it holds; a row with ``ans``
and no ``answers`` for MALMEN's.
"""

from __future__ import annotations

from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.format import REPHRASE, UNRELATED, UNRELATED_ANSWER, Format, named, probe
from rledit.datasets.probes import PORTABILITY, portability
from rledit.records import Edit, Locality


def read_mend(row: Row, place: Place) -> list[Edit]:
    """One edit towards the counterfactual answer; the locality question stays as written."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"zsre_mend:{place.row}",
            prompt=fields.text("src"),
            target=fields.answer("alt"),
            rephrases=fields.texts("rephrase"),
            locality=probe(fields, "loc", "loc_ans"),
            old_target=fields.first_answer("answers"),
            subject=fields.optional("subject"),
            source=str(place),
            consequences=portability(fields),
        )
    ]


def read_malmen(row: Row, place: Place) -> list[Edit]:
    """One edit towards ``ans``."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"zsre_malmen:{place.row}",
            prompt=fields.text("src"),
            target=fields.answer("ans"),
            rephrases=fields.texts("rephrase"),
            locality=tuple(map(_as_question, probe(fields, "loc", "loc_ans"))),
            subject=fields.optional("subject"),
            source=str(place),
            consequences=portability(fields),
        )
    ]


def read_rome(row: Row, place: Place) -> list[Edit]:
    """One edit towards the true answer, so there is no old target."""
    fields = Fields(row, place)
    if not fields.has("answers"):
        fields.fail("answers", "is missing (null or NaN), and the edit's target is taken from it")
    return [
        Edit(
            edit_id=f"zsre_rome:{place.row}",
            prompt=fields.text("src"),
            target=fields.first_answer("answers") or "",
            rephrases=fields.texts("rephrase"),
            locality=tuple(map(_as_question, probe(fields, "loc", "loc_ans"))),
            subject=fields.optional("subject"),
            source=str(place),
        )
    ]


def _as_question(locality: Locality) -> Locality:
    """The probe with a question mark, which the files leave out (never a second one)."""
    if locality.prompt.endswith("?"):
        return locality
    return Locality(prompt=f"{locality.prompt}?", answer=locality.answer)


_ALIASES = {
    **named("rephrase", REPHRASE),
    **named("loc", UNRELATED),
    **named("loc_ans", UNRELATED_ANSWER),
}
_EXAMPLE = {
    "src": "Which harbour does the ferry Maribel sail from?",
    "rephrase": "From which harbour does the ferry Maribel leave?",
    "loc": "nq question: how many strings does a viola have",
    "loc_ans": "four",
    "subject": "Maribel",
}
_MEND_EXAMPLE = {**_EXAMPLE, "alt": "Esbjerg", "answers": ["Oban"], "pred": "Oban"}

MEND = Format(
    name="zsre_mend",
    title="ZsRE in MEND's schema, target `alt` (arXiv 2110.11309)",
    required=("src", "alt", "answers", "rephrase", "loc", "loc_ans"),
    aliases={
        "src": ("prompt", "question"),
        "answers": ("ground_truth",),
        **_ALIASES,
        **PORTABILITY,
    },
    read=read_mend,
    protocols=("token_accuracy", "exact_match", "wild"),
    example=_MEND_EXAMPLE,
)
MALMEN = Format(
    name="zsre_malmen",
    title="ZsRE in MALMEN's and RLEdit's schema, target `ans` (arXiv 2311.04661, 2502.05759)",
    required=("src", "ans", "rephrase", "loc", "loc_ans"),
    aliases={"src": ("question",), "ans": ("answer",), **_ALIASES, **PORTABILITY},
    read=read_malmen,
    protocols=("token_accuracy", "exact_match", "wild"),
    example={**_EXAMPLE, "ans": "Esbjerg"},
)
ROME = Format(
    name="zsre_rome",
    title="ZsRE in MEND's schema as the ROME line reads it, target `answers[0]` (arXiv 2202.05262)",
    required=("src", "answers", "rephrase", "loc", "loc_ans"),
    aliases={"src": ("prompt", "question"), **_ALIASES},
    read=read_rome,
    protocols=("token_accuracy", "exact_match", "wild"),
    detected=False,
    example=_MEND_EXAMPLE,
)
