"""RippleEdits (arXiv 2307.12976): edits of Wikidata facts with six kinds of tests.

The edit is a whole statement (``edit.prompt``, "The capital of X is Y."), which is taken apart
into prompt and target: where the row's own tests name the target, before it; else behind the last
of its linking words that the statement of the former fact shares. Subjects are named by their
number in Wikidata alone: the subject is known where one of the row's tests gives its label.

``Relation_Specificity`` (other facts of the subject) and ``Forgetfulness`` (former answers of a
fact with several) must stay, and are locality; the four other kinds follow from the edit. Each
query is asked for itself: the release joins queries by ``test_condition``, wants all answers of a
query that has several, and asks only where the unedited model meets ``condition_queries``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.format import Format
from rledit.occurrences import occurrences
from rledit.records import Consequence, Edit, Locality, Premise

_STAY = ("Relation_Specificity", "Forgetfulness")
_FOLLOW = (
    "Logical_Generalization",
    "Compositionality_I",
    "Compositionality_II",
    "Subject_Aliasing",
)
_FORMER = ("original_fact", "previous_fact")
_LINK = re.compile(r"\b(?:is followed by|is|are|follows) ")


def read(row: Row, place: Place) -> list[Edit]:
    """The edit of one row."""
    fields = Fields(row, place)
    edit = fields.child("edit")
    labels = _labels(fields)
    prompt, target, old = _taken_apart(edit, labels)
    subject = labels.get(edit.scalar("subject_id") or "")
    return [
        Edit(
            edit_id=f"ripple_edits:{place.row}",
            prompt=prompt,
            target=target,
            locality=tuple(
                Locality(prompt=query, answer=answers[0])
                for kind in _STAY
                for query, answers, _ in _tests(fields, kind)
            ),
            old_target=old,
            subject=subject if subject and len(occurrences(prompt, subject)) == 1 else None,
            relation=edit.optional("relation"),
            source=str(place),
            consequences=tuple(
                Consequence(
                    kind=kind,
                    prompt=query,
                    answers=answers,
                    premises=_second_hop(edit, test, target, answers),
                )
                for kind in _FOLLOW
                for query, answers, test in _tests(fields, kind)
            ),
        )
    ]


def _taken_apart(edit: Fields, labels: dict[str, str]) -> tuple[str, str, str | None]:
    """Prompt, target and former target of a statement.

    Raises:
        RowError: Nothing tells where the answer begins.
    """
    statement, before = _statements(edit)
    splits = _splits(edit, labels)
    if not splits:
        edit.fail(
            "prompt",
            "does not say where its answer begins; expected a statement such as 'The capital of "
            f"X is Y.', found {statement!r}; leave the row out",
        )
    prompt, target = statement[: splits[-1]].rstrip(), statement[splits[-1] :]
    old = before.removeprefix(prompt).strip() if before and before.startswith(prompt) else None
    return prompt, target, old or None


def _splits(edit: Fields, labels: dict[str, str]) -> list[int]:
    """Where the answer of a statement may begin: one place where a test names it."""
    statement, before = _statements(edit)
    target = labels.get(edit.scalar("target_id") or "")
    if target and statement.endswith(f" {target}"):
        return [len(statement) - len(target)]
    ends = [found.end() for found in _LINK.finditer(f"{statement} ")]
    if before is None:
        return ends
    return [end for end in ends if f"{before} ".startswith(statement[:end])] or ends


def _statements(edit: Fields) -> tuple[str, str | None]:
    """The statement of the edit and that of the former fact, each without its full stop."""
    former = next((key for key in _FORMER if edit.has(key)), None)
    before = None if former is None else edit.child(former).text("prompt")
    return _without_stop(edit.text("prompt")), None if before is None else _without_stop(before)


def _without_stop(statement: str) -> str:
    """A statement without its full stop, and not without that of "Jr."."""
    return statement.strip().removesuffix(".")


def _labels(fields: Fields) -> dict[str, str]:
    """What the row's tests say that numbers of Wikidata are called."""
    found: dict[str, str] = {}
    for kind in (*_STAY, *_FOLLOW):
        for query in _queries(fields, kind):
            hops = query.optional("query_type") == "two_hop"
            numbers = query.scalars("second_hop_target_ids" if hops else "target_ids")
            values = [answer.optional("value") for answer in _listed(query, "answers")]
            if len(numbers) == len(values):
                named = zip(numbers, values, strict=True)
                found |= {number: value.strip() for number, value in named if value}
    return found


def _tests(fields: Fields, kind: str) -> Iterator[tuple[str, tuple[str, ...], Fields]]:
    """Prompt, accepted answers and query of every test of a kind that has both."""
    for query in _queries(fields, kind):
        prompt, answers = query.optional("prompt"), _answers(query)
        if prompt is not None and answers:
            yield prompt, answers, query


def _answers(query: Fields) -> tuple[str, ...]:
    """The values of a query, each before its aliases; of a blank one, not even those."""
    found: list[str] = []
    for answer in _listed(query, "answers"):
        answer.value("value")  # which has to be there
        if (value := answer.optional("value")) is not None:
            found += [value, *answer.texts("aliases")]
    return tuple(dict.fromkeys(found))


def _queries(fields: Fields, kind: str) -> list[Fields]:
    return [q for test in _listed(fields, kind) for q in _listed(test, "test_queries")]


def _listed(fields: Fields, key: str) -> list[Fields]:
    return fields.children(key) if fields.has(key) else []


def _second_hop(
    edit: Fields, query: Fields, target: str, answers: tuple[str, ...]
) -> tuple[Premise, ...]:
    """The fact that leads on from the edit's target, where a query goes over that."""
    own = all(query.scalar(key) == edit.scalar(key) for key in ("subject_id", "relation"))
    second = query.optional("second_relation")
    if second is None or not own:
        return ()
    return (Premise(answers=answers, subject=target, relation=second, old_answers=answers),)


def observe(row: Row) -> tuple[str, ...]:
    """Name a statement that may be split at several places, and queries without an answer."""
    fields = Fields(row, Place(file="", row=0))
    edit = fields.child("edit")
    traps = ["statement_ambiguous"] * (len(_splits(edit, _labels(fields))) > 1)
    for kinds, trap in ((_STAY, "locality"), (_FOLLOW, "portability")):
        for query in (query for kind in kinds for query in _queries(fields, kind)):
            half = (query.optional("prompt") is None) != (not _answers(query))
            traps += [f"{trap}_answer_absent"] * half
    return tuple(traps)


RIPPLE_EDITS = Format(
    name="ripple_edits",
    title="RippleEdits: recent, random, popular (arXiv 2307.12976)",
    required=("edit", "Relation_Specificity", "Logical_Generalization"),
    read=read,
    observe=observe,
    protocols=("generation_contains", "token_accuracy"),
    measurements=("portability",),
    example={
        "example_type": "popular",
        "edit": {
            "prompt": "The name of the harbour of Maribel is Esbjerg.",
            "subject_id": "Q1",
            "relation": "HARBOUR",
            "target_id": "Q2",
            "original_fact": {
                "prompt": "The name of the harbour of Maribel is Oban.",
                "subject_id": "Q1",
                "relation": "HARBOUR",
                "target_id": "Q3",
            },
        },
        "Relation_Specificity": [
            {
                "test_queries": [
                    {
                        "prompt": "The year of launch of Maribel is",
                        "answers": [{"value": "1987", "aliases": []}],
                        "query_type": "regular",
                        "subject_id": "Q1",
                        "relation": "LAUNCH",
                        "target_ids": [1987],
                    }
                ],
                "test_condition": "OR",
                "condition_queries": [],
            }
        ],
        "Logical_Generalization": [],
        "Subject_Aliasing": [
            {
                "test_queries": [
                    {
                        "prompt": "The name of the harbour of the old Maribel is",
                        "answers": [{"value": "Esbjerg", "aliases": ["Port of Esbjerg"]}],
                        "query_type": "regular",
                        "subject_id": "Q1",
                        "relation": "HARBOUR",
                        "target_ids": ["Q2"],
                    }
                ],
                "test_condition": "OR",
                "condition_queries": [],
            }
        ],
        "Compositionality_I": [
            {
                "test_queries": [
                    {
                        "prompt": "The name of the country of the harbour of Maribel is",
                        "answers": [{"value": "Denmark", "aliases": []}],
                        "query_type": "two_hop",
                        "subject_id": "Q1",
                        "relation": "HARBOUR",
                        "target_ids": ["Q2"],
                        "second_relation": "COUNTRY",
                        "second_hop_target_ids": ["Q35"],
                    }
                ],
                "test_condition": "OR",
                "condition_queries": [],
            }
        ],
        "Compositionality_II": [],
        "Forgetfulness": [],
    },
)
