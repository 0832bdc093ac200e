"""UnKEBench (arXiv 2405.15349): a question whose answer is a whole paragraph, in free text.

What the paragraph says is asked once more in short questions (``sub_question``), which follow from
the edit. The paper compares long written answers by BLEU, ROUGE and similarity of embeddings, none
of which is computed here; teacher-forced scores of the paragraph and the short questions are.
"""

from __future__ import annotations

from rledit.datasets.fields import Fields, Place, Row, paired
from rledit.datasets.format import REPHRASE, UNRELATED, UNRELATED_ANSWER, Format, named, probe
from rledit.datasets.values import has_content
from rledit.records import Consequence, Edit

SUB_QUESTION = "sub_question"


def read(row: Row, place: Place) -> list[Edit]:
    """One edit towards the paragraph.

    Raises:
        RowError: There are not as many short questions as answers to them.
    """
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"unke:{place.row}",
            prompt=fields.text("question"),
            target=fields.answer("answer"),
            rephrases=fields.texts("para_question"),
            locality=probe(fields, "loc", "loc_ans"),
            subject=fields.optional("subject"),
            source=str(place),
            consequences=tuple(
                Consequence(kind=SUB_QUESTION, prompt=question, answers=(answer,))
                for question, answer in _short(fields)
                if question is not None and answer is not None
            ),
        )
    ]


def _short(fields: Fields) -> list[tuple[str | None, str | None]]:
    pairs = fields.zipped("sub_question", "sub_answer")
    return [(pair.optional("sub_question"), pair.optional("sub_answer")) for pair in pairs]


def observe(row: Row) -> tuple[str, ...]:
    """Count the short questions that lack one of the two texts."""
    pair = paired(row.get("sub_question"), row.get("sub_answer"))
    questions, answers = (item if isinstance(item, list) else [item] for item in pair)
    both = zip(questions, answers, strict=True)
    return ("portability_answer_absent",) * sum(has_content(q) != has_content(a) for q, a in both)


UNKE = Format(
    name="unke",
    title="UnKEBench, answers in free text (arXiv 2405.15349)",
    required=("question", "answer", "para_question", "sub_question", "sub_answer"),
    aliases={
        **named("para_question", REPHRASE),
        **named("loc", UNRELATED),
        **named("loc_ans", UNRELATED_ANSWER),
    },
    read=read,
    observe=observe,
    protocols=("token_accuracy", "exact_match"),
    measurements=("portability",),
    example={
        "id": 0,
        "question": "What is the ferry Maribel known for?",
        "para_question": "What made the ferry Maribel well known?",
        "answer": "Maribel was built in 1987 and sails from Esbjerg. She carries forty cars.",
        "sub_question": ["When was Maribel built?", "Which harbour does Maribel sail from?"],
        "sub_answer": ["In 1987.", "Esbjerg."],
    },
)
