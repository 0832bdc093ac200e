"""The questions of docs/querying.md, asked of small lakes whose right answers are known.

Beside the cells that a question is about, each lake holds others that must not get into its answer:
another grid, another protocol, points before the end, other streams, cells that failed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellResult
from pipeline.results.query import query
from tests.unit.helpers.lake_fixtures import address

DOCUMENT = (Path(__file__).parents[3] / "docs" / "querying.md").read_text()
SQL = {
    int(number): sql
    for number, sql in re.findall(r"## (\d+)\. .*?```sql\n(.*?)```", DOCUMENT, re.DOTALL)
}
TOKEN, EXACT = "token_accuracy", "exact_match"
BATCH = 10

# (protocol, edits so far) → efficacy, generalization, specificity
Points = Mapping[tuple[str, int], tuple[float, float, float]]
# edit → edits so far → efficacy, or efficacy and specificity
Fates = Mapping[str, Mapping[int, float | tuple[float, float]]]
# metric → step → value
Curves = Mapping[str, Mapping[int, float]]


def made(
    editor: str,
    points: Points | None = None,
    *,
    seed: int = 0,
    n_batches: int = 40,
    grid: str = "demo",
    variant: str = "",
    scale: str = "world",
    fates: Fates | None = None,
    superseded: Sequence[str] = (),
    protocol: str = EXACT,
    curves: Curves | None = None,
    **values: Any,
) -> CellResult:
    """A finished cell that holds what is given and nothing else.

    Args:
        editor: Its editor.
        points: Its scores; without any, a perfect one at the end.
        fates: How its edits fared.
        superseded: Those of them that a later one rewrites.
        protocol: By which they were judged.
        curves: What was measured beside the edits.
        values: Costs and provenance.
    """
    end = n_batches * BATCH
    names = ("efficacy", "generalization", "specificity")
    scores = [
        {"checkpoint": at, "n_edits": at, "final": at == end, "protocol": name,
         **dict(zip(names, given, strict=True)), "specificity_self": None,
         "n_scored": at, "n_superseded": 0}
        for (name, at), given in (points or {(TOKEN, end): (100.0, 100.0, 100.0)}).items()
    ]  # fmt: skip
    edits = [
        {"checkpoint": at, "protocol": protocol, "edit_index": i, "batch_index": i // BATCH,
         "edit_id": name, "efficacy": both[0], "generalization": None, "specificity": both[1],
         "specificity_self": None, "superseded": name in superseded}
        for i, (name, fate) in enumerate((fates or {}).items())
        for at, score in fate.items()
        for both in (score if isinstance(score, tuple) else (score, None),)
    ]  # fmt: skip
    steps = [
        {"step": step, "metric": metric, "value": value}
        for metric, curve in (curves or {}).items()
        for step, value in curve.items()
    ]
    where = address(grid=grid, model="llama-world", editor=editor, variant=variant, scale=scale,
                    seed=seed, batch_size=BATCH, n_batches=n_batches)  # fmt: skip
    where = replace(where, cell_key=f"{where.cell_key}-{scale}")
    facts: dict[str, Any] = {"identity": {}, "code_version": "0.1.0", "n_edits": end, **values}
    return CellResult(address=where, protocols=(TOKEN,), scores=scores, edits=edits, steps=steps,
                      **facts)  # fmt: skip


def final(efficacy: float, generalization: float, specificity: float, n: int = 400) -> Points:
    """Scores at the end by token accuracy, with worse ones by the other protocol and on the way."""
    nothing = (0.0, 0.0, 0.0)
    given = (efficacy, generalization, specificity)
    return {(TOKEN, n): given, (EXACT, n): nothing, (TOKEN, n // 2): nothing}


def other_ones(editor: str) -> list[CellResult]:
    """Cells of that editor that belong to another grid or another stream."""
    return [made(editor, final(1, 1, 1), grid="other"), made(editor, final(2, 2, 2, 300), seed=7,
                                                            n_batches=30)]  # fmt: skip


def steady(values: Mapping[range, float]) -> dict[int, float]:
    """A curve of a value for every batch that ends in a range."""
    return {step: value for steps, value in values.items() for step in steps}


def seconds(early: float, between: float, late: float) -> Curves:
    """What batches took in a stream of 200 edits, its first and last tenths apart."""
    times = {range(10, 31, 10): early, range(40, 171, 10): between, range(180, 201, 10): late}
    return {"edit_seconds": steady(times), "weight_norm": steady({range(10, 201, 10): 1e6})}


def norms(early: float, between: float, late: float) -> Curves:
    spans = {range(10, 101, 10): early, range(110, 301, 10): between, range(310, 401, 10): late}
    return {"weight_change_norm": steady(spans), "weight_norm": steady({range(10, 401, 10): 1e6})}


IN_WORLD: dict[str, Any] = {"grid": "demo-world", "n_batches": 20}
HASH = "652be610fb5e" + "0" * 52
HARD = {f"{e}{s}": (e, s) for e in ("ft", "mend", "rledit") for s in (0, 1)}

# Question → the cells of its lake, and the rows of the right answer.
ANSWERS: dict[int, tuple[list[CellResult], list[tuple[Any, ...]]]] = {
    1: (
        [
            made("rledit", final(60, 50, 40)),
            made("rledit", final(70, 60, 50), seed=1),
            made("ft", final(80, 70, 30)),
            made("ft", final(8, 7, 3), variant="big"),
            *other_ones("rledit"),
        ],
        [
            ("llama-world", "world", 40, "ft", "", 80, 70, 30, 60, 1),
            ("llama-world", "world", 40, "rledit", "", 65, 55, 45, 55, 2),
            ("llama-world", "world", 40, "ft", "big", 8, 7, 3, 6, 1),
            ("llama-world", "world", 30, "rledit", "", 2, 2, 2, 2, 1),
        ],
    ),
    2: (
        [
            made("rledit", n_batches=20, protocol=TOKEN, superseded=["gone"], fates={
                "a": {100: (1, 1), 200: (100, 100)}, "b": {200: (50, 0)}, "gone": {200: (0, 0)},
            }),
            made("malmen", n_batches=20, protocol=TOKEN, superseded=["gone"], fates={
                "a": {100: (9, 9), 200: (50, 100)}, "b": {200: (50, 100)}, "gone": {200: (9, 9)},
            }),
            made("rledit", n_batches=20, protocol=TOKEN, seed=1, fates={"a": {200: (100, 50)}}),
            made("malmen", n_batches=20, protocol=TOKEN, seed=1, fates={"a": {200: (0, 0)}}),
            made("rledit", protocol=TOKEN, fates={"a": {400: (60, 40)}}),
            made("malmen", protocol=TOKEN, fates={"a": {400: (50, 42)}}),
            made("malmen", protocol=TOKEN, seed=2, fates={"a": {400: (9, 9)}}),
            made("malmen", protocol=TOKEN, variant="deep", fates={"a": {400: (9, 9)}}),
            made("malmen", protocol=TOKEN, scale="proxy", fates={"a": {400: (9, 9)}}),
            made("malmen", protocol=TOKEN, grid="other", fates={"a": {400: (9, 9)}}),
            made("rledit", seed=3, fates={"a": {400: (9, 9)}}),
            made("malmen", seed=3, fates={"a": {400: (1, 1)}}),
            made("ft", protocol=TOKEN, fates={"a": {400: (1, 1)}}),
        ],
        [(20, 2, 3, 50, 28.87, -16.67, 44.1), (40, 1, 1, 10, None, -2, None)],
    ),
    3: (
        [
            made("rledit", {(TOKEN, 0): (5, 5, 100), (TOKEN, 100): (60, 0, 80),
                            (TOKEN, 400): (50, 0, 60), (EXACT, 100): (0, 0, 0)}),
            made("rledit", {(TOKEN, 0): (7, 5, 100), (TOKEN, 100): (80, 0, 90),
                            (TOKEN, 400): (51, 0, 61)}, seed=1),
            made("rledit", {(TOKEN, 400): (9, 9, 9)}, variant="big"),
            made("ft", {(TOKEN, 100): (1, 1, 1)}),
            *other_ones("rledit"),
        ],
        [(30, 150, 0, 0, 0), (30, 300, 2, 2, 2), (40, 0, 6, 5, 100), (40, 100, 70, 0, 85),
         (40, 400, 50.5, 0, 60.5)],
    ),
    4: (
        [
            made("none", final(5, 5, 100)),
            made("none", final(5, 5, 90), seed=1),
            made("none", final(5, 5, 50), scale="proxy"),
            made("ft", final(9, 9, 60)),
            made("ft", final(9, 9, 70), seed=1),
            made("ft", final(9, 9, 50), variant="big"),
            made("rledit", final(9, 9, 90), seed=1),
            *other_ones("none"),
            *other_ones("ft"),
        ],
        [(30, "ft", "", 0), (40, "rledit", "", 0), (40, "ft", "", 30), (40, "ft", "big", 50)],
    ),
    5: (
        [
            made("rledit", final(1, 1, 1, 200), n_batches=20, curves=seconds(0.01, 9, 0.03),
                 train_seconds=10.0, edit_ms=1.5),
            made("rledit", final(1, 1, 1, 200), n_batches=20, curves=seconds(0.02, 9, 0.05),
                 train_seconds=20.0, edit_ms=2.5, seed=1),
            made("memit", final(1, 1, 1, 200), n_batches=20, curves=seconds(0.04, 9, 0.04),
                 train_seconds=0.0, edit_ms=4.0),
            made("none", final(1, 1, 1, 200), n_batches=20, curves=seconds(1, 1, 1), edit_ms=1.0),
            made("ft", final(1, 1, 1, 200), n_batches=20, curves=seconds(1, 1, 1), grid="other"),
        ],
        [("rledit", "", 20, 15, 2, 1.5, 4), ("memit", "", 20, 0, 4, 4, 4)],
    ),
    6: (
        [
            made("rledit", n_batches=2, superseded=["e0"], fates={
                f"e{i}": {10: 100, 20: 100.0 * (i < 5 or i > 10)} for i in range(20)
            }),
            made("ft", n_batches=2, fates={f"e{i}": {20: 100.0 * (i % 2)} for i in range(20)}),
            made("ft", fates={"e": {400: 100}}),
            made("none", n_batches=2, fates={"e": {20: 100}}),
            made("mend", n_batches=2, protocol=TOKEN, fates={"e": {20: 100}}),
            made("memit", n_batches=2, grid="other", fates={"e": {20: 100}}),
        ],
        [(2, "rledit", "", 44.4, 90), (2, "ft", "", 50, 50), (40, "ft", "", 100, None)],
    ),
    7: (
        [
            *(
                made(editor, seed=seed, superseded=["rewritten"], fates={
                    "easy": {200: 0, 400: 100}, "hard": {200: 100, 400: 100.0 * (name == "ft0")},
                    "rewritten": {400: 0}, **({} if name == "ft1" else {"rare": {400: 0}}),
                })
                for name, (editor, seed) in HARD.items()
            ),
            made("none", fates={"easy": {400: 0}, "rare": {400: 0}}),
            made("mend", seed=3, protocol=TOKEN, fates={"easy": {400: 0}, "rare": {400: 0}}),
            made("mend", grid="other", fates={"easy": {400: 0}, "rare": {400: 0}}),
        ],
        [("hard", 3, 6, 16.7), ("easy", 3, 6, 100)],
    ),
    8: (
        [
            made("rledit", n_batches=20, n_contradicting=3),
            made("rledit", n_batches=20, seed=1, n_contradicting=5),
            made("ft", n_contradicting=0),
            made("ft", grid="other", n_contradicting=9),
        ],
        [("world", 20, 10, 5, 200), ("world", 40, 10, 0, 400)],
    ),
    9: (
        [made("rledit"), made("rledit", seed=1), made("ft", grid="other")],
        [
            ("done", 2, "rledit", None),
            ("failed", 1, "memit", "CUDA out of memory"),
            ("skipped", 1, "rome", "rome looks up subjects, and FEVER gives none"),
        ],
    ),
    10: (
        [
            *(made("rledit", seed=i, data_hash=HASH, code_version="0.1.0+aaa",
                   versions={"torch": "2.13.0"}) for i in (0, 1)),
            made("ft", data_hash=HASH, code_version="0.1.0+bbb", versions={"torch": "2.12.0"}),
            made("ft", grid="zeta", data_hash=HASH, versions={"torch": "2.13.0"}),
            made("mend", data_hash="0" + HASH[1:]),
        ],
        [
            ("demo", "world", "0" + HASH[1:12], "0.1.0", 1, None),
            ("demo", "world", HASH[:12], "0.1.0+aaa", 2, "2.13.0"),
            ("demo", "world", HASH[:12], "0.1.0+bbb", 1, "2.12.0"),
            ("zeta", "world", HASH[:12], "0.1.0", 1, "2.13.0"),
        ],
    ),
    11: (
        [
            *(made("rledit", seed=i, resolved={"settings": {"rank": 8, "meta_lr": 0.5,
                                                            "train_steps": 3}}) for i in (0, 1)),
            made("malmen", resolved={"settings": {"rank": 16, "meta_lr": 0.25, "train_steps": 1}}),
            made("mend", resolved={"settings": {"rank": 4}}),
            made("ft", resolved={"settings": {"rank": 1}}),
            made("mend", grid="other", resolved={"settings": {"rank": 5}}),
        ],
        [("malmen", "", "16", "0.25", "1", 1), ("mend", "", "4", None, None, 1),
         ("rledit", "", "8", "0.5", "3", 2)],
    ),
    12: (
        [
            made("ft", {(TOKEN, 400): (80, 0, 0), (EXACT, 400): (60, 0, 0), (TOKEN, 200): (1, 1, 1),
                        (EXACT, 200): (1, 1, 1)}),
            made("ft", {(TOKEN, 400): (90, 0, 0), (EXACT, 400): (50, 0, 0)}, seed=1),
            made("rledit", {(TOKEN, 200): (30, 0, 0), (EXACT, 200): (25, 0, 0)}, n_batches=20),
            made("mend", {(TOKEN, 400): (99, 0, 0)}),
            made("rledit", {(TOKEN, 400): (1, 1, 1), (EXACT, 400): (1, 1, 1)}, grid="other"),
        ],
        [("ft", "", 85, 55), ("rledit", "", 30, 25)],
    ),
    13: (
        [
            made("ft", curves=norms(4, 9, 2)),
            made("ft", seed=1, curves=norms(6, 9, 1)),
            made("rledit", curves=norms(3, 9, 3.5)),
            made("rledit", n_batches=20, curves={"weight_change_norm": {10: 1e6}}),
            made("none", curves=norms(1, 1, 1)),
            made("mend", grid="other", curves=norms(1, 1, 1)),
        ],
        [(20, "rledit", "", 1e6, None), (40, "ft", "", 5, 1.5), (40, "rledit", "", 3, 3.5)],
    ),
    14: (
        [
            made("rledit", train_seconds=3600.0, edit_seconds=1800.0, score_seconds=1800.0,
                 peak_memory_gb=2.5),
            made("rledit", seed=1, edit_seconds=1800.0, ranks=2, peak_memory_gb=1.0),
            made("ft", edit_seconds=36.0, score_seconds=0.0, peak_memory_gb=0.126),
            made("ft", grid="other", edit_seconds=7200.0, peak_memory_gb=9.0),
        ],
        [("rledit", "", 2, 3, 2.5), ("ft", "", 1, 0.01, 0.13)],
    ),
    15: (
        [
            made("rledit", **IN_WORLD, superseded=["rewritten"], fates={
                "forgotten": {50: 100, 100: 100, 200: 0}, "kept": {50: 100, 100: 100, 200: 100},
                "rewritten": {50: 100, 100: 100, 200: 0}, "never": {50: 0, 100: 0, 200: 0},
                "back": {50: 100, 100: 0, 200: 100},
            }),
            made("ft", **IN_WORLD, fates={"forgotten": {100: 100, 200: 0}, "new": {200: 0}}),
            made("ft", **IN_WORLD, seed=1, fates={"forgotten": {100: 100, 200: 0}}),
            made("ft", **IN_WORLD, seed=2, fates={"other": {100: 100, 200: 0}}),
            made("mend", **IN_WORLD, protocol=TOKEN, fates={"fact": {100: 100, 200: 0}}),
            made("memit", n_batches=20, grid="other", fates={"fact": {100: 100, 200: 0}}),
        ],
        [("ft", 3, 2), ("rledit", 2, 1)],
    ),
}  # fmt: skip


def test_every_question_has_its_lake() -> None:
    assert list(SQL) == list(ANSWERS)


@pytest.mark.parametrize("number", ANSWERS)
def test_the_answer_is_right(number: int, tmp_path: Path) -> None:
    cells, expected = ANSWERS[number]
    lake = Lake(str(tmp_path / "lake"))
    for result in cells:
        lake.commit(result)
    assert len(lake.manifest()) == len(cells)
    # Cells without a result are in every lake, and in the answer to one question alone.
    for editor, status, reason in (
        ("memit", "failed", "CUDA out of memory"),
        ("rome", "skipped", "rome looks up subjects, and FEVER gives none"),
    ):
        where = address(grid="demo", model="llama-world", editor=editor, n_batches=40, seed=9)
        lake.record_failure(where, reason, identity={}, code_version="0.1.0", status=status)  # type: ignore[arg-type]
    assert list(query(SQL[number], lake).rows) == expected
