"""AKEW (arXiv 2402.18909): facts beside free texts that state them, in three readings.

Its files CounterFact, MQuAKE-CF and WikiUpdate give every fact three times:

- ``akew``, what is read of itself: the text (``fact_new_uns``) is the target, as in the lines of
  UnKE and AnyEdit. The fact's short answer and the triples of the text (``unsfact_triplets_GPT``,
  of which those lines ask the first five) are questions that follow from it.
- ``akew_structured``: the fact by its template, towards its short answer.
- ``akew_extracted``: the triples, each of them an edit.

The last two have to be asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rledit.datasets.fields import Fields, Place, Row, fill_template
from rledit.datasets.format import REPHRASE, Format, named, nothing_odd
from rledit.datasets.mquake import multi_hop, old_target, target
from rledit.datasets.unke import SUB_QUESTION
from rledit.datasets.values import RowObject
from rledit.records import Consequence, Edit, Locality
from rledit.superseded import normalised

SHORT_ANSWER = "short_answer"


def read_unstructured(row: Row, place: Place) -> list[Edit]:
    """One edit for each fact, towards the text that states it."""

    def of_fact(fields: Fields, rewrite: Fields, name: str) -> list[Edit]:
        wordings = _wordings(rewrite)
        edit = Edit(
            edit_id=f"akew:{name}",
            prompt=wordings[0],
            target=rewrite.text("fact_new_uns"),
            rephrases=fields.texts("paraphrase_prompts"),
            locality=_neighbours(fields, rewrite),
            subject=rewrite.optional("subject"),
            relation=rewrite.optional("relation_id"),
            source=str(place),
            time=_since(rewrite),
            consequences=(*_short_answers(rewrite, wordings[1:]), *_triples(rewrite)),
        )
        return [edit]

    return _read(row, place, of_fact)


def read_structured(row: Row, place: Place) -> list[Edit]:
    """One edit for each fact, towards its short answer."""

    def of_fact(fields: Fields, rewrite: Fields, name: str) -> list[Edit]:
        prompt, span = fill_template(rewrite, "prompt", rewrite.text("subject"))
        others = [text for text in _wordings(rewrite) if normalised(text) != normalised(prompt)]
        edit = Edit(
            edit_id=f"akew_structured:{name}",
            prompt=prompt,
            target=target(rewrite, "target_new"),
            rephrases=tuple(dict.fromkeys((*fields.texts("paraphrase_prompts"), *others))),
            locality=_neighbours(fields, rewrite),
            old_target=old_target(rewrite),
            subject=rewrite.optional("subject"),
            subject_span=span,
            relation=rewrite.optional("relation_id"),
            source=str(place),
            time=_since(rewrite),
        )
        return [edit]

    return _read(row, place, of_fact)


def read_extracted(row: Row, place: Place) -> list[Edit]:
    """One edit for each triple of the texts; the facts' own questions follow from the last."""

    def of_fact(fields: Fields, rewrite: Fields, name: str) -> list[Edit]:
        triples = rewrite.children("unsfact_triplets_GPT")
        if not triples:
            rewrite.fail("unsfact_triplets_GPT", "is missing or empty: there is nothing to edit")
        edits = []
        for number, triple in enumerate(triples, start=1):
            prompt, span = fill_template(triple, "prompt", triple.text("subject"))
            edits.append(
                Edit(
                    edit_id=f"akew_extracted:{name}.{number}",
                    prompt=prompt,
                    target=triple.answer("target"),
                    subject=triple.text("subject"),
                    subject_span=span,
                    source=str(place),
                    time=_since(rewrite),
                )
            )
        own = _short_answers(rewrite, _wordings(rewrite))
        edits[-1] = replace(edits[-1], locality=_neighbours(fields, rewrite), consequences=own)
        return edits

    return _read(row, place, of_fact)


def _read(
    row: Row, place: Place, of_fact: Callable[[Fields, Fields, str], list[Edit]]
) -> list[Edit]:
    """The edits of one row, whose multi-hop questions follow from all of them."""
    fields = Fields(row, place)
    several = isinstance(fields.value("requested_rewrite"), list)
    rewrites = _rewrites(fields)
    if not rewrites:
        fields.fail("requested_rewrite", "is missing or empty: the row asks for no edit")
    edits: list[Edit] = []
    for number, rewrite in enumerate(rewrites, start=1):
        name = f"{place.row}.{number}" if several else str(place.row)
        edits += of_fact(fields, rewrite, name)
    follows = multi_hop(fields, edits) if fields.has("questions") else ()
    last = edits[-1]
    return [*edits[:-1], replace(last, consequences=(*last.consequences, *follows))]


def _rewrites(fields: Fields) -> list[Fields]:
    """The facts of a row, one or a list."""
    if isinstance(fields.value("requested_rewrite"), list):
        return fields.children("requested_rewrite")
    return [fields.child("requested_rewrite")]


def _wordings(rewrite: Fields) -> list[str]:
    """In which words the fact is asked: in full, as a question, and by its template.

    Raises:
        RowError: It is asked neither in full nor as a question, or the template has no slot.
    """
    full = rewrite.optional("prompt_full")
    question = rewrite.text("question") if full is None else rewrite.optional("question")
    filled, _ = fill_template(rewrite, "prompt", rewrite.text("subject"))
    texts = [text for text in (full, question, filled) if text is not None]
    return list({normalised(text): text for text in reversed(texts)}.values())[::-1]


def _short_answers(rewrite: Fields, wordings: list[str]) -> tuple[Consequence, ...]:
    """The fact's short answer to wordings that are not edited themselves."""
    said = (target(rewrite, "target_new"), rewrite.optional("answer_new") or "")
    aliases = rewrite.texts("answer_new_alias")
    answers = tuple(dict.fromkeys(text for text in (*said, *aliases) if text.strip()))
    asked = wordings if answers else []
    return tuple(Consequence(kind=SHORT_ANSWER, prompt=text, answers=answers) for text in asked)


def _triples(rewrite: Fields) -> tuple[Consequence, ...]:
    """What the text's triples ask."""
    found = []
    for triple in _listed_triples(rewrite):
        prompt, _ = fill_template(triple, "prompt", triple.text("subject"))
        answer = triple.optional("target")
        if answer is not None:
            found.append(Consequence(kind=SUB_QUESTION, prompt=prompt, answers=(answer,)))
    return tuple(found)


def _listed_triples(rewrite: Fields) -> list[Fields]:
    named = rewrite.has("unsfact_triplets_GPT")
    return rewrite.children("unsfact_triplets_GPT") if named else []


def observe(row: Row) -> tuple[str, ...]:
    """Count the triples without a target."""
    rewrites = _rewrites(Fields(row, Place(file="", row=0)))
    triples = [triple for rewrite in rewrites for triple in _listed_triples(rewrite)]
    return ("portability_answer_absent",) * sum(t.optional("target") is None for t in triples)


def _neighbours(fields: Fields, rewrite: Fields) -> tuple[Locality, ...]:
    """CounterFact's neighbours, whose answer is the fact's true one."""
    true = old_target(rewrite)
    prompts = fields.texts("neighborhood_prompts")
    if prompts and true is None:
        rewrite.fail("target_true", "is missing or blank, but the neighbourhood prompts need it")
    return tuple(Locality(prompt=prompt, answer=true or "") for prompt in prompts)


def _since(rewrite: Fields) -> str | None:
    """Since when the fact holds, where the file says so (WikiUpdate)."""
    if not rewrite.has("time_new"):
        return None
    if isinstance(rewrite.value("time_new"), RowObject):
        return rewrite.child("time_new").scalar("start_time")
    return rewrite.scalar("time_new")


_ALIASES = named("paraphrase_prompts", REPHRASE)
_MARKS = ("requested_rewrite.fact_new_uns",)
_EXAMPLE = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The ferry {} sails from",
        "subject": "Maribel",
        "relation_id": "P1",
        "target_new": {"str": "Esbjerg", "id": "Q2"},
        "target_true": {"str": "Oban", "id": "Q3"},
        "question": "Which harbour does the ferry Maribel sail from?",
        "fact_new_uns": "Maribel was built in 1987. Ever since, she has sailed from Esbjerg.",
        "unsfact_triplets_GPT": [
            {"subject": "Maribel", "prompt": "{} was built in", "target": "1987"},
            {"subject": "Maribel", "prompt": "{} has sailed from", "target": "Esbjerg"},
        ],
        "time_new": {"start_time": "2023-05-01", "end_time": None},
    },
}

UNSTRUCTURED = Format(
    name="akew",
    title="AKEW, towards the free text that states the fact (arXiv 2402.18909)",
    required=("requested_rewrite",),
    marks=_MARKS,
    aliases=_ALIASES,
    read=read_unstructured,
    observe=observe,
    protocols=("token_accuracy", "exact_match"),
    measurements=("portability",),
    example=_EXAMPLE,
)
STRUCTURED = replace(
    UNSTRUCTURED,
    name="akew_structured",
    title="AKEW, towards the fact's short answer (arXiv 2402.18909)",
    read=read_structured,
    observe=nothing_odd,
    protocols=("generation_contains", "wild", "token_accuracy"),
    detected=False,
    example={
        **_EXAMPLE,
        "questions": ["In which country does the ferry Maribel start?"],
        "new_answer": "Denmark",
    },
)
EXTRACTED = replace(
    STRUCTURED,
    name="akew_extracted",
    title="AKEW, the triples taken from the text (arXiv 2402.18909)",
    read=read_extracted,
    protocols=("generation_contains", "token_accuracy"),
)
