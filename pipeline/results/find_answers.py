"""Answers of edited models in words, found in a lake for the terminal and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from pipeline.results.lake.lake import Lake
from pipeline.results.query import Connection, QueryError, connect, query, quoted
from pipeline.results.tables import EDITOR_ORDER, UNEDITED, editor_label
from rledit.written_answers import KINDS, is_answer

Row = Mapping[str, Any]
T = TypeVar("T")

_PLACE = ("edit_index", "probe", "probe_index")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one edited model says.

    Attributes:
        editor: The method, as tables name it.
        answer: Its answer; None where the model gives no numbers.
        held: Whether it is what should be said: it contains the target; to a locality prompt, it is
            what the unedited model says. None where a later edit says something else.
    """

    editor: str
    answer: str | None
    held: bool | None


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt of an edit with the answers of all models.

    Attributes:
        edit_index: Place of the edit in the stream.
        probe: What the prompt is to its edit.
        before: The unedited model's answer.
        held_before: Whether that contains the target.
    """

    edit_index: int
    probe: str
    prompt: str
    target: str
    before: str | None
    held_before: bool
    said: tuple[Said, ...]


@dataclass(frozen=True, kw_only=True)
class StreamAnswers:
    """The questions of one stream on one model and dataset.

    Attributes:
        probes: The kinds of prompts that were asked there, shown or not.
        n_asked: Edits of the stream that were asked, shown or not.
    """

    scale: str
    model: str
    dataset: str
    seed: int
    stream: tuple[int, int]
    n_edits: int
    probes: tuple[str, ...]
    n_asked: int
    questions: tuple[Question, ...]

    @property
    def editors(self) -> list[str]:
        """The methods whose answers are there, in the order of tables."""
        found = {said.editor for question in self.questions for said in question.said}
        return sorted(found, key=_editor_place)


def find_answers(
    lake: str | Lake | Connection,
    grid: str,
    *,
    editors: Sequence[str] = (),
    models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    probes: Sequence[str] = (),
    where: str = "",
    n: int | None = None,
) -> list[StreamAnswers]:
    """The answers of a grid's finished cells, by model and dataset.

    Of several streams the longest is shown, of several seeds the first, and of several checkpoints
    the last; `where` chooses others.

    Args:
        lake: Where to look.
        grid: The grid.
        editors: These methods only, by name or as ``name/variant``; empty: all.
        models: These models only; empty: all.
        datasets: These datasets only; empty: all.
        probes: These kinds of prompts only; empty: all.
        where: An SQL condition on the view `answers`.
        n: Most edits of each stream, spread over those that were asked; None: all.

    Raises:
        QueryError: There is no such grid, nothing of it has answers, or the filters leave none; the
            message says what there is. Or the condition is no SQL.
    """
    connection = lake if not isinstance(lake, str | Lake) else connect(lake)
    rows = query(f"SELECT * FROM answers WHERE grid = {quoted(grid)}", connection).dicts()
    if not rows:
        raise QueryError(_nothing(connection, grid))
    known = {
        "--editor": _names(rows, _filters),
        "--model": _names(rows, lambda r: [r["model"]]),
        "--dataset": _names(rows, lambda r: [r["dataset"]]),
        "--probe": _names(rows, lambda r: [r["probe"]]),
    }
    editors = [UNEDITED if name == "unedited" else name for name in editors]
    given = {"--editor": editors, "--model": models, "--dataset": datasets, "--probe": probes}
    for option, names in given.items():
        for name in names:
            if name not in known[option]:
                raise QueryError(_unknown(option, name, known[option], grid))
    if where:
        kept = query(
            f"SELECT * FROM answers WHERE grid = {quoted(grid)} AND ({where}\n)", connection
        ).dicts()
    else:
        kept = rows
    kept = [
        row for row in kept
        if (not editors or {*_filters(row)} & {*editors})
        and (not models or row["model"] in models)
        and (not datasets or row["dataset"] in datasets)
        and (not probes or row["probe"] in probes)
    ]  # fmt: skip
    if not kept:
        there = "; ".join(f"{option} {', '.join(names)}" for option, names in known.items())
        raise QueryError(
            f"grid {grid!r} has {len(rows)} answers, and none that all these filters let through. "
            f"There are: {there}"
        )
    subjects = sorted({(row["scale"], row["model"], row["dataset"]) for row in kept})
    shown_unedited = UNEDITED in editors
    return [
        _stream_answers(
            [r for r in kept if _subject(r) == s],
            [r for r in rows if _subject(r) == s],
            n,
            shown_unedited,
        )
        for s in subjects
    ]


def spread(items: Sequence[T], n: int | None) -> list[T]:
    """At most `n` of some items, evenly spread, the first and the last among them."""
    if n is None or len(items) <= n:
        return list(items)
    if n == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def _subject(row: Row) -> tuple[str, str, str]:
    return (row["scale"], row["model"], row["dataset"])


def _label(row: Row) -> str:
    return editor_label(row["editor"], row["variant"])


def _filters(row: Row) -> list[str]:
    """What a filter may call the editor of a row."""
    return [row["editor"], *([f"{row['editor']}/{row['variant']}"] if row["variant"] else [])]


def _stream_answers(
    kept: Sequence[Row], rows: Sequence[Row], n: int | None, unedited: bool
) -> StreamAnswers:
    """One model and dataset: the longest stream, its first seed, every cell's last checkpoint."""
    stream = max(((r["n_batches"], r["batch_size"]) for r in kept), key=lambda s: (s[0] * s[1], s))
    kept = [r for r in kept if (r["n_batches"], r["batch_size"]) == stream]
    seed = min(r["seed"] for r in kept)
    last: dict[str, int] = {}
    for row in kept:
        if row["seed"] == seed:
            last[row["cell"]] = max(last.get(row["cell"], 0), row["checkpoint"])
    kept = [r for r in kept if r["checkpoint"] == last.get(r["cell"])]
    own = [r for r in rows if r["cell"] in last]
    edits = sorted({r["edit_index"] for r in kept})
    chosen = set(spread(edits, n))
    by_place: dict[tuple[Any, ...], list[Row]] = {}
    for row in kept:
        if row["edit_index"] in chosen:
            by_place.setdefault(tuple(row[name] for name in _PLACE), []).append(row)
    order = sorted(by_place, key=lambda place: (place[0], KINDS.index(place[1]), place[2]))
    first = kept[0]
    return StreamAnswers(
        scale=first["scale"],
        model=first["model"],
        dataset=first["dataset"],
        seed=seed,
        stream=stream,
        n_edits=max(last.values()),
        probes=tuple(sorted({r["probe"] for r in own}, key=KINDS.index)),
        n_asked=len({r["edit_index"] for r in own}),
        questions=tuple(_question(by_place[place], unedited) for place in order),
    )


def _question(rows: Sequence[Row], unedited: bool) -> Question:
    edited = [r for r in rows if r["editor"] != UNEDITED]
    shown = rows if unedited or not edited else edited
    first = rows[0]
    said = [Said(editor=_label(r), answer=r["answer"], held=_held(r)) for r in shown]
    return Question(
        edit_index=first["edit_index"],
        probe=first["probe"],
        prompt=first["prompt"],
        target=first["target"],
        before=first["before"],
        held_before=bool(first["had_target"]),
        said=tuple(sorted(said, key=lambda one: _editor_place(one.editor))),
    )


def _held(row: Row) -> bool | None:
    if row["superseded"]:
        return None
    if row["probe"] != "locality":
        return bool(row["has_target"])
    before, now = row["before"], row["answer"]
    return before is not None and now is not None and is_answer(now, before)


def _editor_place(label: str) -> tuple[int, str]:
    name = label.partition(" (")[0]
    name = UNEDITED if name == editor_label(UNEDITED) else name
    place = EDITOR_ORDER.index(name) if name in EDITOR_ORDER else len(EDITOR_ORDER)
    return place, label


def _names(rows: Sequence[Row], of: Callable[[Row], Iterable[str]]) -> list[str]:
    return sorted({name for row in rows for name in of(row)})


def _unknown(option: str, name: str, known: Sequence[str], grid: str) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return (
        f"{option} {name}: grid {grid!r} has no answers of it{hint} There are: {', '.join(known)}"
    )


def _nothing(connection: Connection, grid: str) -> str:
    """Why a grid has no answers: it has no cells, none is done, or they were not asked."""
    there = query("SELECT grid, status, count(*) FROM cells GROUP BY ALL ORDER BY ALL", connection)
    cells: dict[str, dict[str, int]] = {}
    for name, status, count in there.rows:
        cells.setdefault(name, {})[status] = count
    if grid not in cells:
        near = get_close_matches(grid, cells, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return f"no cells of grid {grid!r} here{hint} Grids there: {', '.join(cells) or 'none yet'}"
    counts = ", ".join(f"{count} {status}" for status, count in cells[grid].items())
    if "done" not in cells[grid]:
        return f"grid {grid!r} has no finished cell yet ({counts}), and so no answers"
    return (
        f"grid {grid!r} has no answers in words: its cells ({counts}) were run with "
        "`answers: {sample: 0}`, or by a version of rledit that kept none. A finished cell is not "
        "run again for them, as they change no score; run the grid into another lake (rledit run "
        "GRID.yaml --lake LAKE; models and trained networks come from the cache), or, where an "
        "earlier version ran it, again with --rerun-other-code"
    )
