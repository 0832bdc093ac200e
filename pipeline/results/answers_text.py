"""Answers of edited models as text for a terminal, at most `WIDTH` columns wide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len, chop_cells

from pipeline.results.find_answers import Question, StreamAnswers, find_answers
from pipeline.results.lake.lake import Lake
from pipeline.results.query import Connection
from pipeline.results.tables import stream_label

WIDTH = 120
NOTHING = "(nothing)"
NO_NUMBERS = "(no numbers)"
_LONGEST_NAME = 28
_BEFORE = "unedited"
_LEGEND = (
    "✓ says the target; to a locality prompt: what the unedited model says    ✗ does not    "
    "· a later edit says otherwise"
)


def render_answers(found: Sequence[StreamAnswers]) -> str:
    """All answers, a block for each prompt, and a legend."""
    lines = [line for answers in found for line in _block(answers)]
    return "\n".join([*lines, _LEGEND])


def ten_edits(lake: str | Lake | Connection, grid: str, editor: str | None = None) -> str:
    """Ten edits of a grid before and after, in words, as a run prints them at its end.

    They are of the grid's first model, dataset, stream and seed.

    Args:
        lake: Where to look.
        grid: The grid.
        editor: The method; None: `rledit` where the grid has it, else its last method.

    Raises:
        QueryError: There are no such answers; says what there is.
    """
    if editor is None:
        there = [
            e for answers in find_answers(lake, grid, probes=["edit"]) for e in answers.editors
        ]
        editor = "rledit" if "rledit" in there else there[-1].partition(" (")[0]
    found = find_answers(lake, grid, editors=[editor], probes=["edit"], n=10)
    return "\n".join(_in_words(found[0]))


def shown(text: str | None) -> str:
    """An answer as a line: control characters are spaces, and silence has a name."""
    if text is None:
        return NO_NUMBERS
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain or NOTHING


def clipped(text: str, width: int, keep_end: bool = False) -> str:
    """A line of at most so many columns, "…" where something is left out.

    Args:
        keep_end: Leave out the beginning: of a prompt, what the answer follows says most.
    """
    if cell_len(text) <= width:
        return text
    if keep_end:
        return "…" + chop_cells(text[::-1], width - 1)[0][::-1]
    return chop_cells(text, width - 1)[0] + "…"


def _block(answers: StreamAnswers) -> Iterator[str]:
    yield clipped(_title(answers), WIDTH)
    yield ""
    names = [*answers.editors, _BEFORE]
    wide = min(_LONGEST_NAME, max(cell_len(name) for name in names))
    for question in answers.questions:
        yield from _lines(question, wide)
        yield ""
    yield from _counts(answers)


def _title(answers: StreamAnswers) -> str:
    edits = f"all {answers.n_edits} edits" if answers.n_edits > 1 else "the edit"
    return (
        f"{answers.model} · {answers.dataset} · {stream_label(answers.stream)}, "
        f"seed {answers.seed}: answers before and after {edits}; {answers.n_asked} were asked"
    )


def _lines(question: Question, wide: int) -> Iterator[str]:
    kind = "" if question.probe == "edit" else f", {question.probe}"
    head = f"edit {question.edit_index + 1}{kind}: "
    yield head + clipped(shown(question.prompt), WIDTH - cell_len(head), keep_end=True)
    yield _line(" ", "target", question.target, wide)
    yield _line(_sign(_held_before(question)), _BEFORE, question.before, wide)
    for said in question.said:
        yield _line(_sign(said.held), said.editor, said.answer, wide)


def _held_before(question: Question) -> bool | None:
    return question.held_before if question.probe != "locality" else True


def _line(sign: str, name: str, text: str | None, wide: int) -> str:
    label = clipped(name, wide)
    label += " " * (wide - cell_len(label))
    head = f"  {sign} {label}  "
    return head + clipped(shown(text), WIDTH - cell_len(head))


def _sign(held: bool | None) -> str:
    return {True: "✓", False: "✗", None: "·"}[held]


def _counts(answers: StreamAnswers) -> Iterator[str]:
    """Of each kind of prompt, how many answers of each model are what they should be."""
    for probe in dict.fromkeys(question.probe for question in answers.questions):
        own = [q for q in answers.questions if q.probe == probe]
        parts = []
        if probe != "locality":
            parts.append(f"{_BEFORE} {sum(q.held_before for q in own)} of {len(own)}")
        for editor in answers.editors:
            held = [s.held for q in own for s in q.said if s.editor == editor]
            standing = [h for h in held if h is not None]
            parts.append(f"{editor} {sum(standing)} of {len(standing)}")
        what = "keep their answer" if probe == "locality" else "say the target"
        yield from _wrapped(f"{probe} prompts that {what}: ", parts)
    left = [name for name in answers.probes if name not in {q.probe for q in answers.questions}]
    if left:
        yield f"also asked: {', '.join(left)} (--probe all shows them)"
    yield ""


def _wrapped(head: str, parts: Sequence[str]) -> Iterator[str]:
    """A list after a head, over as many lines as it takes."""
    line = head
    for i, part in enumerate(parts):
        piece = part + (", " if i + 1 < len(parts) else "")
        if line.strip() and cell_len(line + piece.rstrip()) > WIDTH and line != head:
            yield line.rstrip()
            line = "    "
        line += piece
    yield line.rstrip()


def _in_words(answers: StreamAnswers) -> Iterator[str]:
    """An edit after another: what was asked, what is wanted, and what is said before and after."""
    editor = answers.editors[0]
    questions = answers.questions
    yield clipped(
        f"{len(questions)} edits before and after, in words: {editor} on {answers.model}, "
        f"{answers.dataset}, after all {answers.n_edits} edits",
        WIDTH,
    )
    for i, question in enumerate(questions, start=1):
        now = question.said[0]
        mark = "  (a later edit says otherwise)" if now.held is None else ""
        head = f"{i:>4}. "
        tail = f"  [to become: {clipped(shown(question.target), 40)}]"
        room = WIDTH - cell_len(head) - cell_len(tail)
        yield head + clipped(shown(question.prompt), room, keep_end=True) + tail
        yield _before_after("before", question.before, question.held_before, "")
        yield _before_after("after", now.answer, now.held, mark)
    standing = [q for q in questions if q.said[0].held is not None]
    after = sum(bool(q.said[0].held) for q in standing)
    before = sum(q.held_before for q in standing)
    yield f"      {before} of {len(standing)} say the new answer before, {after} after"


def _before_after(name: str, text: str | None, held: bool | None, mark: str) -> str:
    head = f"      {_sign(held)} {name:<6}  "
    return head + clipped(shown(text), WIDTH - cell_len(head) - cell_len(mark)) + mark
