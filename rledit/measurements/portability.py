"""Consequences of edits: questions that an edit answers without stating it (portability)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from rledit.decoding import generate
from rledit.model import EditableModel
from rledit.protocols import generation, token_accuracy
from rledit.protocols.reading import read
from rledit.records import Consequence, Edit
from rledit.superseded import Standing
from rledit.tokenization import Sample

SUPERSEDED = "superseded_portability"
"""Metric: questions of the edits made so far that are not asked, because they are superseded."""

Questions = Sequence[tuple[int, Consequence, Sample]]


def consequences_of(model: EditableModel, edits: Sequence[Edit]) -> Questions:
    """Every consequence with the place of its edit, tokenised with its preferred answer.

    Raises:
        TokenizationError: A question breaks the token contract; names file and row.
    """
    encoder = model.encoder
    return [
        (
            i,
            item,
            encoder.sample(
                encoder.asked(item.prompt), item.answers[0], edit.source or edit.edit_id
            ),
        )
        for i, edit in enumerate(edits)
        for item in edit.consequences
    ]


def portability(
    model: EditableModel, questions: Questions, n_edits: int, standing: Standing
) -> dict[str, float]:
    """Percent by metric name, over the consequences of the first `n_edits` edits (0: of all).

    ``portability_{kind}`` is the teacher-forced token accuracy of the preferred answer, and
    ``portability_{kind}_contains`` the share of questions whose greedily written answer contains
    the answer or one of its aliases. Superseded questions are not asked; where there are some,
    `SUPERSEDED` is their number.

    Args:
        model: The model.
        questions: The consequences of the whole stream.
        n_edits: Edits made.
        standing: What is superseded after them.
    """
    due = [(i, item, sample) for i, item, sample in questions if i < n_edits or not n_edits]
    asked = [(item, sample) for i, item, sample in due if not standing.consequence(i, item)]
    left_out = {SUPERSEDED: float(len(due) - len(asked))} if len(due) > len(asked) else {}
    if not asked:
        return left_out
    readings = read(model, [sample for _, sample in asked])
    texts = generate(model, [model.encoder.asked(item.prompt) for item, _ in asked])
    values: dict[str, list[float]] = defaultdict(list)
    for (item, _), reading, text in zip(asked, readings, texts, strict=True):
        name = f"portability_{item.kind.lower()}"
        values[name].append(token_accuracy.score(reading))
        contained = max(generation.within(answer, text) for answer in item.answers)
        values[f"{name}_contains"].append(contained)
    return {name: 100 * fmean(own) for name, own in sorted(values.items())} | left_out
