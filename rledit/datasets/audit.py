"""Audit of a set of edits: counts of duplicates, contradictions and known traps."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rledit.control_tokens import SPELLINGS
from rledit.datasets.contradictions import Targets
from rledit.datasets.edits import ReadReport
from rledit.datasets.errors import RowIssue
from rledit.datasets.fields import Place
from rledit.long_targets import outruns
from rledit.occurrences import occurrences
from rledit.records import Edit, asked
from rledit.writing_systems import space_between

# Every trap with what it means for a run. The order is that of the report.
TRAPS: dict[str, str] = {
    "blank_target": "the target is blank: skipped, and refused with --strict",
    "target_leading_space": "the target begins with a space: taken off, tokenisation adds one",
    "target_trailing_space": "the target ends with a space: taken off",
    "prompt_trailing_space": "the prompt ends with a space: taken off, the target brings one",
    "text_of_missing": "a text is 'nan', 'None' or the like, as software writes a missing value: "
    "taken for text",
    "duplicate_edit": "the same prompt with the same target as an earlier edit",
    "contradicting_edit": "its prompt is edited to another target too: the last write is scored",
    "conflicting_fact": "the same fact in other words has another target (the same subject and "
    "relation, or in questions subject and old answer; a prompt that differs in case, spaces or "
    "closing punctuation, or that is another's rephrase): the later overwrites it, and is scored",
    "rephrase_contradicted": "its rephrase is edited to another target in this set",
    "target_equals_old": "the target equals the old answer (alt == ans): the edit changes nothing",
    "statement_ambiguous": "the statement holds several words behind which its answer may begin, "
    "and nothing in the row tells which: the last is taken",
    "subject_not_in_prompt": "the subject does not occur in the prompt as a word of its own: "
    "locate-then-edit fails",
    "subject_ambiguous": "the subject occurs more than once in the prompt, and no template says "
    "which one is meant: the first is edited",
    "rephrase_equals_prompt": "the rephrase repeats the prompt: generalisation is efficacy",
    "rephrase_generation_prompt": "the rephrase looks like a generation prompt of the original "
    "CounterFact, which asks something else than the edit",
    "locality_nq_question": 'the locality prompt begins "nq question: "',
    "locality_no_question_mark": 'the "nq question" lacks its question mark, which RLEdit\'s '
    "release appends",
    "locality_answer_absent": "a locality probe lacks its answer or its prompt: left out",
    "portability_answer_absent": "a question of portability lacks its answer or its prompt: left "
    "out",
    "locality_is_edited": "a locality prompt is itself edited in this set: it must not stay, and "
    "is not scored once it is edited",
    "control_token": "a text spells a control token, such as <|endoftext|> or </s>: it is encoded "
    "as the text it is, never as the token; where it stands for no answer, leave it out",
    "no_space_before_answer": "the script of prompt and answer has no space between words: the "
    "answer follows the prompt directly (answer_space: always puts one)",
    "ground_truth_list": "the ground truth is a list: its first text is taken",
    "ground_truth_absent": "there is no ground truth: `choice` protocols cannot be scored",
}

# What a format may lack or be by design: reported, never an error.
NOTES: dict[str, str] = {
    "no_subject": "no subject: methods that edit at the subject's last token cannot run",
    "no_rephrase": "no rephrase: generalisation is undefined",
    "no_locality": "no locality probe: specificity is undefined",
    "long_target": "the target goes on behind a full stop, a line break or 50 words, where a free "
    "answer ends: it cannot be met under `wild`",
}

_NQ = "nq question: "
_MISSING = frozenset({"nan", "NaN", "None", "null", "<NA>", "NaT"})
_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One trap or note of an audit.

    Attributes:
        name: Key of `TRAPS` or `NOTES`.
        count: Edits (or rows, for traps of the raw file) that have it.
        meaning: What it means, in one sentence.
        examples: The first places, ``file:row``.
    """

    name: str
    count: int
    meaning: str
    examples: tuple[str, ...]

    def __str__(self) -> str:
        rows = ", ".join(example.rpartition(":")[2] for example in self.examples)
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.name} {self.count:,}: {self.meaning} (rows {rows}{more})"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The counts of a set of edits.

    Attributes:
        n_edits: Edits.
        n_prompts: Distinct prompts among them.
        contradicting_prompts: Prompts that carry more than one target.
        traps: What may distort a run; only those present.
        notes: Absences by design; only those present.
    """

    n_edits: int
    n_prompts: int
    contradicting_prompts: int
    traps: tuple[Finding, ...]
    notes: tuple[Finding, ...]

    def count(self, name: str) -> int:
        """Count of a trap or note, 0 where it is not present.

        Raises:
            KeyError: No trap or note has that name.
        """
        if name not in TRAPS and name not in NOTES:
            raise KeyError(f"no trap is called {name!r}; known: {', '.join((*TRAPS, *NOTES))}")
        return sum(found.count for found in (*self.traps, *self.notes) if found.name == name)


def audit(edits: Sequence[Edit], issues: Iterable[RowIssue] = ()) -> Audit:
    """Count duplicates, contradictions and traps.

    Args:
        edits: The edits, in stream order.
        issues: What reading found in the raw rows (`ReadReport.skipped` and `.notes`); without
            them, traps that reading repairs cannot be counted.
    """
    places: dict[str, list[str]] = defaultdict(list)
    for issue in issues:
        places[issue.trap].append(str(Place(file=issue.file, row=issue.row)))
    targets = Targets(edits)
    seen: set[tuple[str, str]] = set()
    for i, edit in enumerate(edits):
        for name in _edit_findings(i, edit, targets, seen):
            places[name].append(edit.source or edit.edit_id)
    spelled = dict.fromkeys(s for edit in edits for t in _texts(edit) for s in SPELLINGS.findall(t))
    shown = ", ".join(list(spelled)[:_EXAMPLES]) + (", ..." if len(spelled) > _EXAMPLES else "")
    meanings = TRAPS | {"control_token": f"{TRAPS['control_token']}; here {shown}"}
    return Audit(
        n_edits=len(edits),
        n_prompts=len(targets.by_prompt),
        contradicting_prompts=sum(len(found) > 1 for found in targets.by_prompt.values()),
        traps=_findings(places, meanings),
        notes=_findings(places, NOTES),
    )


def audit_report(report: ReadReport) -> Audit:
    """Audit one file, with what reading found in its raw rows."""
    return audit(report.edits, (*report.skipped, *report.notes))


def _edit_findings(i: int, edit: Edit, targets: Targets, seen: set[tuple[str, str]]) -> list[str]:
    """Names of the traps and notes of one edit; `seen` collects the facts met so far."""
    prompt, target = edit.prompt.strip(), edit.target.strip()
    probes = [probe.prompt for probe in edit.locality]
    nq = [probe for probe in probes if probe.startswith(_NQ)]
    n_places = _subject_places(edit)
    present = {
        "text_of_missing": any(text.strip() in _MISSING for text in _texts(edit)),
        "duplicate_edit": (prompt, target) in seen,
        "contradicting_edit": targets.contradict(i),
        "conflicting_fact": targets.conflict(i),
        "target_equals_old": edit.old_target is not None and edit.old_target.strip() == target,
        "rephrase_contradicted": targets.contradict_rephrase(i),
        "subject_not_in_prompt": n_places == 0,
        "subject_ambiguous": n_places is not None and n_places > 1,
        "rephrase_equals_prompt": any(r.strip() == prompt for r in edit.rephrases),
        "locality_nq_question": bool(nq),
        "locality_no_question_mark": any(not probe.endswith("?") for probe in nq),
        "control_token": any(SPELLINGS.search(text) for text in _texts(edit)),
        "no_space_before_answer": any(not space_between(p, a) for p, a in asked(edit)),
        "locality_is_edited": any(map(targets.edited, probes)),
        "no_subject": edit.subject is None,
        "no_rephrase": not edit.rephrases,
        "no_locality": not edit.locality,
        "long_target": outruns(target),
    }
    seen.add((prompt, target))
    return [name for name, found in present.items() if found]


def _texts(edit: Edit) -> Iterator[str]:
    """Every text of an edit, whether a model is asked it or not."""
    yield from (edit.subject or "", edit.old_target or "")
    for pair in asked(edit):
        yield from pair


def _subject_places(edit: Edit) -> int | None:
    """At how many places of the prompt the subject may stand; None where there is no subject."""
    if edit.subject is None:
        return None
    return len(occurrences(edit.prompt, edit.subject)) if edit.subject_span is None else 1


def _findings(places: dict[str, list[str]], meanings: dict[str, str]) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            name=name,
            count=len(places[name]),
            meaning=meaning,
            examples=tuple(Counter(places[name]))[:_EXAMPLES],
        )
        for name, meaning in meanings.items()
        if name in places
    )
