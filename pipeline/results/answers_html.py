"""Answers before and after as a section of the report, changed words marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from markupsafe import Markup, escape

from pipeline.results.answers_text import shown
from pipeline.results.find_answers import Question, Said, StreamAnswers, find_answers, spread
from pipeline.results.pages import render_page
from pipeline.results.query import Connection, query, quoted
from pipeline.results.tables import stream_label

SHOWN_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class AnswerLine:
    """A prompt with an edited model's answer beside the unedited one's, as HTML."""

    edit: int
    probe: str
    prompt: str
    target: str
    before: Markup
    after: Markup
    held: bool | None


@dataclass(frozen=True, kw_only=True)
class MethodAnswers:
    """What one method's model says."""

    editor: str
    summary: str
    lines: tuple[AnswerLine, ...]
    opened: bool


def answers_html(connection: Connection, grid: str) -> Markup:
    """The section as HTML; nothing where the grid has no answers."""
    (count,) = query(f"SELECT count(*) FROM answers WHERE grid = {quoted(grid)}", connection).rows[
        0
    ]
    if not count:
        return Markup()
    parts = [(_where(answers), _methods(answers)) for answers in find_answers(connection, grid)]
    values = {"grid": grid, "parts": parts, "most": SHOWN_ROWS}
    return Markup(render_page("pipeline.results", "answers", "html", **values))


def marked(before: str, after: str) -> tuple[Markup, Markup]:
    """Two answers with the words marked in which they differ: gone from one, new in the other."""
    old, new = _words(before), _words(after)
    was, now = Markup(), Markup()
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        was += _tagged("del", "".join(old[a:b]), kind != "equal")
        now += _tagged("ins", "".join(new[c:d]), kind != "equal")
    return was, now


def _tagged(tag: str, text: str, differs: bool) -> Markup:
    if not (differs and text.strip()):
        return escape(text)
    return Markup("<{0}>{1}</{0}>").format(tag, text)


def _words(text: str) -> list[str]:
    """Words, marks, and the spaces between them."""
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def _where(answers: StreamAnswers) -> str:
    return (
        f"{answers.dataset} on {answers.model}, {stream_label(answers.stream)}, "
        f"seed {answers.seed}: after all {answers.n_edits} edits"
    )


def _methods(answers: StreamAnswers) -> list[MethodAnswers]:
    """Every method with the same questions; the one that holds most of its edits is open."""
    edits = [q for q in answers.questions if q.probe == "edit"]
    held = {name: _held(edits, name) for name in answers.editors}
    best = max(held, key=lambda name: held[name][0] / max(held[name][1], 1))
    return [
        MethodAnswers(
            editor=name,
            summary=f"{held[name][0]} of {held[name][1]} edit prompts say the target",
            lines=tuple(_lines(_chosen(answers.questions, name), name)),
            opened=name == best,
        )
        for name in answers.editors
    ]


def _chosen(questions: Sequence[Question], editor: str) -> list[Question]:
    """At most `SHOWN_ROWS` questions: edits spread over the stream, each with all its prompts."""
    questions = [q for q in questions if any(said.editor == editor for said in q.said)]
    edits = sorted({q.edit_index for q in questions})
    each = max(1, -(-len(questions) // max(len(edits), 1)))
    places = set(spread(edits, max(1, SHOWN_ROWS // each)))
    return [q for q in questions if q.edit_index in places][:SHOWN_ROWS]


def _held(questions: Sequence[Question], editor: str) -> tuple[int, int]:
    """Of a method's answers that stand: how many are what they should be, and how many there
    are."""
    found = [s.held for q in questions for s in q.said if s.editor == editor and s.held is not None]
    return sum(found), len(found)


def _lines(questions: Sequence[Question], editor: str) -> Iterator[AnswerLine]:
    for question in questions:
        for said in question.said:
            if said.editor == editor:
                yield _line(question, said)


def _line(question: Question, said: Said) -> AnswerLine:
    before, after = marked(shown(question.before), shown(said.answer))
    return AnswerLine(
        edit=question.edit_index + 1,
        probe=question.probe,
        prompt=shown(question.prompt),
        target=shown(question.target),
        before=before,
        after=after,
        held=said.held,
    )
