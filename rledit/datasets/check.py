"""The report behind ``rledit data check``: what each file is, its counts, its hash, its traps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from rledit.datasets.audit import Audit, audit, audit_report
from rledit.datasets.downstream import DownstreamReport, find_schema, map_downstream
from rledit.datasets.edits import ReadReport, map_rows
from rledit.datasets.errors import DataFileError, DatasetError, RowErrors
from rledit.datasets.format import Format
from rledit.datasets.known import REQUIRED, differing_templates, is_known, map_known
from rledit.datasets.overlap import Overlap, overlap
from rledit.datasets.registry import FORMATS, match_format
from rledit.datasets.rows import RowFile, open_rows
from rledit.datasets.times import in_order, steps
from rledit.datasets.values import has_content, shown_key

Opener = Callable[[str], RowFile]

_SHOWN_KEYS = 20
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")


@dataclass
class _Found:
    """What the check has gathered so far."""

    lines: list[str] = field(default_factory=list)
    reports: list[ReadReport] = field(default_factory=list)
    abilities: list[DownstreamReport] = field(default_factory=list)
    n_traps: int = 0
    failed: bool = False


def check_paths(
    paths: Sequence[str | Path], strict: bool = False, opener: Opener = open_rows
) -> tuple[list[str], int]:
    """Describe data files: format, counts, hash, traps, and what they share with each other.

    Args:
        paths: Files, or directories that are searched for JSON, JSONL, CSV and Parquet files.
        strict: Make every trap an error.
        opener: Opens a file; another one than this package's own reads Parquet and URIs.

    Returns:
        The lines to print, and the exit code: 1 where a file cannot be opened or its rows cannot
        be mapped, or where a trap is present and `strict` is set; else 0.
    """
    found = _Found()
    for path in paths:
        for file in data_files(path):
            _check_file(file, found, opener)
    _compare_edits(found)
    _compare_downstream(found)
    if strict and found.n_traps:
        found.lines.append(f"strict: {found.n_traps} kinds of traps present")
    return found.lines, int(found.failed or (strict and found.n_traps > 0))


def data_files(path: str | Path) -> Iterable[str]:
    """A file, or the JSON, JSONL, CSV and Parquet files of a folder."""
    directory = Path(path)
    if not directory.is_dir():
        return [str(path)]
    files = sorted(p for p in directory.rglob("*") if p.suffix.lower() in _SUFFIXES)
    # An empty directory is passed on: opening it explains what is wrong.
    return [str(file) for file in files] or [str(path)]


def _check_file(path: str, found: _Found, opener: Opener) -> None:
    found.lines.append(path)
    try:
        _describe(opener(path), found)
    except RowErrors as error:
        found.failed = True
        count = len(error.errors)
        found.lines.append(f"  ERROR     {count:,} rows cannot be mapped")
        found.lines.extend(
            f"    {line}" for message in error.lines() for line in message.split("\n")
        )
    except (DataFileError, DatasetError) as error:
        found.failed = True
        found.lines.append(f"  ERROR     {error}")


def _describe(file: RowFile, found: _Found) -> None:
    """Describe one open file by what its first recognisable row is."""
    for _, row in file.rows:
        if match_format(row) is not None:
            break
        if is_known(row):
            return _describe_known(file, found)
        schema = find_schema(row)
        if schema is not None:
            _describe_downstream(map_downstream(file, schema), found)
            found.lines += _unread_line(_left(file, schema.keys))
            return
    report = map_rows(file)
    found.reports.append(report)
    return _describe_edits(report, audit_report(report), found)


def _describe_edits(report: ReadReport, counts: Audit, found: _Found) -> None:
    found.lines += [
        f"  format    {report.format}: {FORMATS[report.format].title}",
        f"  rows      {report.n_rows:,}: {counts.n_edits:,} edits of {counts.n_prompts:,} prompts, "
        f"{len(report.skipped):,} skipped",
        f"  sha256    {report.data_hash}",
        *_scored_by(FORMATS[report.format]),
        *_asks(report),
        *_times(report),
    ]
    if counts.contradicting_prompts:
        found.lines.append(
            f"  prompts   {counts.contradicting_prompts:,} carry more than one target "
            f"({counts.count('contradicting_edit'):,} edits)"
        )
    found.lines += [f"  trap      {trap}" for trap in counts.traps]
    found.lines += [f"  note      {note}" for note in counts.notes]
    if report.adapted:
        keys = ", ".join(f"`{key}`" for key in report.adapted)
        found.lines.append(f"  adapted   {keys}: read, though not this format's own name for it")
    found.lines += _unread_line(report.unread)
    found.n_traps += len(counts.traps)


def _scored_by(form: Format) -> list[str]:
    """By what the format's papers score it."""
    if not form.protocols:
        return []
    beside = f"; measurements: {', '.join(form.measurements)}" if form.measurements else ""
    return [f"  scored by {', '.join(form.protocols)}{beside}"]


def _asks(report: ReadReport) -> list[str]:
    """How many prompts the edits bring beside their own, and of which kinds."""
    follow = Counter(item.kind for edit in report.edits for item in edit.consequences)
    counts = {
        "rephrases": sum(len(edit.rephrases) for edit in report.edits),
        "locality prompts": sum(len(edit.locality) for edit in report.edits),
        "questions that follow": sum(follow.values()),
    }
    said = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
    kinds = ", ".join(f"{kind} {n:,}" for kind, n in follow.items())
    return [f"  asks      {said}{f' ({kinds})' if kinds else ''}"] if said else []


def _times(report: ReadReport) -> list[str]:
    """The time steps of a file's edits, and whether its rows are in their order."""
    named = steps(report.edits)
    if not named:
        return []
    found, without = in_order(report.edits)
    shown = named[0] if len(named) == 1 else f"{len(named):,} steps, {named[0]} to {named[-1]}"
    if without:
        return [f"  time      {shown}; {len(without):,} edits have no usable one: no order by time"]
    if len(named) == 1:
        return [f"  time      {shown}, of all edits"]
    in_file = (
        "the rows are in that order"
        if tuple(found) == report.edits
        else (f"the rows are not in their order, which begins with {found[0].time}")
    )
    return [f"  time      {shown}; {in_file}"]


def _unread_line(unread: Mapping[str, int]) -> list[str]:
    return [f"  unread    {unread_keys(unread)}"] if unread else []


def _left(file: RowFile, used: Collection[str]) -> Mapping[str, int]:
    """Keys of the rows of a file that are not among those in use, with the rows that have them."""
    return Counter(
        shown_key(str(key))
        for _, row in file.rows
        for key, value in row.items()
        if key not in used and has_content(value)
    )


def unread_keys(unread: Mapping[str, int]) -> str:
    """The keys of a file that are not read, each with the rows that have something under it."""
    by_rows = sorted(unread.items(), key=lambda item: -item[1])
    listed = [f"`{key}` {rows:,}" for key, rows in by_rows[:_SHOWN_KEYS]]
    more = f" and {len(unread) - _SHOWN_KEYS:,} more keys" if len(unread) > _SHOWN_KEYS else ""
    return f"{', '.join(listed)}{more}: keys (with rows) that this format has no use for"


def _describe_known(file: RowFile, found: _Found) -> None:
    facts = map_known(file)
    found.lines += [
        "  format    known: facts for causal tracing (arXiv 2202.05262); "
        "they carry no new answer, so they are not edits",
        f"  rows      {len(facts):,} facts of {len({fact.prompt for fact in facts}):,} prompts",
        f"  sha256    {file.data_hash}",
    ]
    differing = differing_templates(file)
    if differing:
        found.lines.append(
            f"  note      template_differs {differing:,}: `template` does not give `prompt`, "
            "which is the one to use"
        )
    found.lines += _unread_line(_left(file, (*REQUIRED, "template")))


def _describe_downstream(report: DownstreamReport, found: _Found) -> None:
    labels = ", ".join(f"{label} {count:,}" for label, count in report.labels.items())
    found.abilities.append(report)
    found.lines += [
        f"  format    ability: downstream items of task {report.task}",
        f"  rows      {report.n_items:,} items, {len(report.texts):,} distinct; labels: {labels}",
        f"  sha256    {report.data_hash}",
        f"  note      constant_answer {report.constant_f1:.1f}: weighted F1 of always giving the "
        "most frequent label; a model below it gains by collapsing",
    ]


def _compare_edits(found: _Found) -> None:
    """What files share, and contradictions that only show over several files."""
    for one, other in combinations(found.reports, 2):
        shared = overlap(one.edits, other.edits)
        if shared.leaks:
            found.n_traps += 1
            found.lines.append(_overlap_line(one.path, other.path, shared))
    for name in dict.fromkeys(report.format for report in found.reports):
        same = [report for report in found.reports if report.format == name]
        edits = [edit for report in same for edit in report.edits]
        counts = audit(edits)
        conflicts = counts.contradicting_prompts or counts.count("conflicting_fact")
        if len(same) > 1 and conflicts:
            found.lines.append(
                f"together: {len(same)} files of {name}, {len(edits):,} edits: "
                f"{counts.contradicting_prompts:,} prompts carry more than one target "
                f"({counts.count('contradicting_edit'):,} edits), "
                f"{counts.count('conflicting_fact'):,} edits of facts that have another target in "
                f"other words, {counts.count('duplicate_edit'):,} duplicates"
            )


def _overlap_line(one: str, other: str, shared: Overlap) -> str:
    return (
        f"overlap: {one} and {other} share {shared.prompts:,} prompts "
        f"({shared.facts:,} with the same target), {shared.rephrases:,} rephrases and "
        f"{shared.subjects:,} subjects; {shared.second_in_first:,} prompts of {other} are "
        f"rephrases in {one}, {shared.first_in_second:,} prompts of {one} are rephrases in {other}"
    )


def _compare_downstream(found: _Found) -> None:
    for one, other in combinations(found.abilities, 2):
        shared = len(one.texts & other.texts)
        if shared:
            found.n_traps += 1
            found.lines.append(
                f"ability overlap: {one.path} ({one.task}) and {other.path} ({other.task}) share "
                f"{shared:,} items: they are not two independent measurements"
            )
