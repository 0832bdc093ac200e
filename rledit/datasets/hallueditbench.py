"""HalluEditBench (arXiv 2410.16251): facts that a model gets wrong, one CSV file a topic and model.

The edit writes the true answer (``object``); the old one is what the model of the file said
(``output_{model}``). Questions by yes and no, by choice, of the reversed relation and over two to
six hops follow from it, one kind of portability each. The files give no answer to their locality
question, which the paper compares with what the unedited model says: without an answer it is left
out, and counted. Rounds of doubt ("Are you sure?"), the paper's robustness, are not asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.format import REPHRASE, UNRELATED, UNRELATED_ANSWER, Format, named, probe
from rledit.datasets.values import has_content
from rledit.records import Consequence, Edit

_SAID = re.compile(r"output_.+")
_HOPS = range(2, 7)


def read(row: Row, place: Place) -> list[Edit]:
    """One edit towards the true answer."""
    fields = Fields(row, place)
    subject = fields.optional("subject")
    return [
        Edit(
            edit_id=f"hallueditbench:{place.row}",
            prompt=fields.text("question"),
            target=fields.answer("object"),
            rephrases=fields.texts("paraphrased_question"),
            locality=probe(fields, "locality_question", "locality_answer"),
            old_target=_said(fields),
            subject=subject,
            relation=fields.optional("relation"),
            source=str(place),
            consequences=tuple(
                Consequence(kind=kind, prompt=question, answers=(answer,))
                for kind, question, answer in _questions(fields, subject)
                if question is not None and answer is not None
            ),
        )
    ]


def _said(fields: Fields) -> str | None:
    """What the file's model said; None where it holds what several said."""
    names = [name for name in fields.names() if _SAID.fullmatch(name)]
    return fields.optional(names[0]) if len(names) == 1 else None


def _questions(fields: Fields, subject: str | None) -> Iterator[tuple[str, str | None, str | None]]:
    """Kind, question and answer of everything that follows from the edit."""
    yield "yes", fields.optional("yes_question"), "Yes"
    yield "no", fields.optional("no_question"), "No"
    options = fields.optional("multiple_choice_with_letters")
    asked = None if options is None else f"{fields.text('question')} {options}"
    yield "multiple_choice", asked, fields.optional("multiple_choice_labels")
    yield "reversed_relation", fields.optional("reversed_relation_question"), subject
    for n in _HOPS:
        question, answer = fields.optional(f"question_{n}hop"), fields.optional(f"answer_{n}hop")
        yield f"{n}_hop", question, answer


def observe(row: Row) -> tuple[str, ...]:
    """Count the questions that lack their answer or their text, the locality question first."""
    pairs = [(f"question_{n}hop", f"answer_{n}hop") for n in _HOPS]
    pairs += [("multiple_choice_with_letters", "multiple_choice_labels")]
    halves = sum(has_content(row.get(q)) != has_content(row.get(a)) for q, a in pairs)
    one, other = (row.get(f"locality_{part}") for part in ("question", "answer"))
    locality = has_content(one) != has_content(other)
    return ("locality_answer_absent",) * locality + ("portability_answer_absent",) * halves


HALLUEDITBENCH = Format(
    name="hallueditbench",
    title="HalluEditBench, a file a topic and model (arXiv 2410.16251)",
    required=("subject", "relation", "object", "question", "paraphrased_question"),
    aliases={
        **named("paraphrased_question", REPHRASE),
        "locality_question": UNRELATED,
        "locality_answer": tuple(n for n in UNRELATED_ANSWER if n != "locality_answer"),
    },
    read=read,
    observe=observe,
    protocols=("wild_judge", "wild", "token_accuracy"),
    measurements=("portability",),
    example={
        "topic": "transport_ferry",
        "subject": "Maribel",
        "relation": "home port",
        "object": "Esbjerg",
        "question": "What is the home port of Maribel?",
        "output_tiny": "Oban",
        "paraphrased_question": "Which harbour is Maribel at home in?",
        "multiple_choice_with_letters": "A. Oban  B. Esbjerg",
        "multiple_choice_labels": "B",
        "yes_question": "Is Esbjerg the home port of Maribel?",
        "no_question": "Is Oban the home port of Maribel?",
        "locality_question": "When was Maribel launched?",
        "reversed_relation_question": "Which ferry has Esbjerg as its home port?",
        "question_2hop": "In which country is the home port of Maribel?",
        "answer_2hop": "Denmark",
    },
)
