"""Tables: figures, order, statuses and escapes, and one table from the lake and its files."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import statistics
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from pipeline.results.rendering import FORMATS, render_table
from pipeline.results.tables import TableError, build_table
from tests.unit.helpers.lake_fixtures import RUN_COLUMNS, address, cell, demo_cells
from tests.unit.helpers.turns import marked


def row(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "grid": "g", "cell": "", "editor": "ft", "variant": "", "model": "m", "dataset": "d",
        "scale": "world", "seed": 0, "batch_size": 10, "n_batches": 20, "n_edits": 200,
        "final": True, "protocol": "exact_match", "prompt": "bare", "efficacy": 50.0,
        "generalization": 40.0, "specificity": 30.0, "specificity_self": 20.0,
        "train_seconds": None, "edit_ms": 2.0, "peak_memory_gb": 1.0, "data_hash": "h",
        "code_version": "v", "status": "done", "remark": "",
        "scored_edits": None, "stream_order": "shuffled",
    } | changes  # fmt: skip
    assert tuple(values) == RUN_COLUMNS
    place = ("editor", "variant", "model", "seed", "batch_size", "n_batches")
    return values | {"cell": values["cell"] or "-".join(str(values[name]) for name in place)}


def failed(**changes: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("n_edits", "final", "protocol", "efficacy", "generalization",
                             "specificity", "specificity_self", "edit_ms"))  # fmt: skip
    return row(**(nothing | {"status": "failed"} | changes))


def lines(
    rows: list[dict[str, Any]], long: bool = False, fmt: str = "md", **options: Any
) -> list[list[str]]:
    text = render_table(build_table(rows, **options), fmt, long=long)
    return [
        [part.strip() for part in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_seeds_give_mean_and_sample_deviation() -> None:
    values = [50.0, 52.0, 57.5]
    rows = [row(seed=i, efficacy=v) for i, v in enumerate(values)]
    head, _, body = lines(rows, long=True)
    assert head == ["method", "Eff", "Gen", "Spe", "Spe(self)", "Mean", "ms/edit", "train s"]
    mean, std = statistics.mean(values), statistics.stdev(values)
    means = [(value + 40.0 + 30.0) / 3 for value in values]
    assert body == ["ft", f"{mean:.1f} ± {std:.1f}", "40.0 ± 0.0", "30.0 ± 0.0", "20.0 ± 0.0",
                    f"{statistics.mean(means):.1f} ± {statistics.stdev(means):.1f}",
                    "2.00 ± 0.00", "–"]  # fmt: skip
    short, _, body = lines(rows)
    assert short == ["method", "Eff", "Gen", "Spe", "Mean"] and len(body) == 5
    text = render_table(build_table([row(seed=i) for i in range(3)]), "md")
    assert "over 3 seeds (0, 1, 2)" in text
    assert "One seed (0)" in render_table(build_table([row()]), "md")


def test_failed_and_absent_cells_show_as_such() -> None:
    rows = [
        row(editor="a"),
        row(editor="a", seed=1),
        row(editor="b", n_batches=40),
        failed(editor="b"),
        failed(editor="c", seed=1),
        row(editor="c", efficacy=70.0),
        row(editor="none", efficacy=None),
    ]
    body = {line[0]: line[1:] for line in lines(rows)[2:]}
    assert body["a"][0] == "50.0 ± 0.0" and body["a"][3] == "–"
    assert body["b"][0] == "failed" and body["b"][3] == "50.0 (n=1)"
    assert body["c"][0] == "70.0 (n=1, 1 failed)"
    assert body["unedited"][0] == "–"
    assert "2 cells failed." in render_table(build_table(rows), "md")
    only = render_table(build_table([failed()]), "md")
    assert only.count("| failed") + only.count(" failed |") > 0 and "1 cell failed." in only


def test_the_references_come_first_then_methods_in_their_order() -> None:
    names = [("rledit", ""), ("ft", "fast"), ("untrained", ""), ("none", ""), ("ft", "")]
    rows = [row(editor=editor, variant=variant) for editor, variant in names]
    assert [line[0] for line in lines(rows)[2:]] == [
        "unedited", "untrained", "ft", "ft (fast)", "rledit"]  # fmt: skip


def test_numbers_in_variants_sort_as_numbers() -> None:
    names = ["", "0.00015", "0.0003", "0.00045", "1e-3", "2 steps", "10 steps", "m=5", "m=50"]
    rows = [row(variant=name) for name in reversed(names)]
    shown = [line.variant for line in build_table(rows).lines]
    assert shown == names


def test_streams_and_protocols_stand_in_the_header() -> None:
    rows = [row(n_batches=n, protocol=p) for n in (100, 20) for p in ("choice", "token_accuracy")]
    text = render_table(build_table(rows), "md")
    found = re.findall(r"^Protocol \*\*(\w+)\*\*", text, re.M)
    assert found == ["token_accuracy", "choice"]
    heads = [line for line in lines(rows) if "Eff" in line[1]]
    assert heads == 2 * [["method", "20×10: Eff", "Gen", "Spe", "Mean",
                          "100×10: Eff", "Gen", "Spe", "Mean"]]  # fmt: skip
    assert "token_accuracy" not in render_table(build_table(rows, protocols=["choice"]), "md")
    for fmt in ("html", "latex"):
        text = render_table(build_table(rows), fmt)
        assert "token" in text and "100" in text and text.count("ft") >= 2


def test_what_varies_has_a_column_and_kinds_of_model_never_mix() -> None:
    rows = [row(), row(scale="full", efficacy=60.0), row(dataset="e", efficacy=70.0)]
    text = render_table(build_table(rows), "md")
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        "### m (full) · d", "### m (world)"]  # fmt: skip
    full, _, own, world, _, other = lines(rows)
    assert full == ["method", "Eff", "Gen", "Spe", "Mean"] and own[1] == "60.0"
    assert world[1::4] == ["d: Eff", "e: Eff"] and other[1::4] == ["50.0", "70.0"]


def test_two_cells_at_one_place_are_refused() -> None:
    with pytest.raises(TableError, match=r"cells one and two .*seed=0.*variant"):
        build_table([row(cell="one"), row(cell="two")])


def test_only_the_end_of_the_stream_counts() -> None:
    rows = [row(), row(final=False, n_edits=100, efficacy=99.0)]
    assert lines(rows)[2][1] == "50.0"
    with pytest.raises(TableError, match="run the grid first"):
        build_table([row(final=False)])


def test_mixed_versions_are_said() -> None:
    text = render_table(build_table([row(), row(seed=1, code_version="w")]), "md")
    assert "Mixed code versions: v, w." in text


def test_mixed_data_is_said_of_every_dataset() -> None:
    rows = [row(), row(seed=1, data_hash="i"), row(dataset="e", data_hash="j")]
    notes = build_table(rows).notes
    assert [note for note in notes if "data" in note] == ["Mixed data hashes of d: h, i."]


def test_seeds_of_different_settings_are_named_and_do_not_compete() -> None:
    one, two = ({"settings": {"settings": {"step": step}}} for step in (1, 5))
    rows = [row(editor=editor, seed=seed, efficacy=efficacy) | one
            for editor, efficacy in (("a", 60.0), ("b", 50.0)) for seed in (0, 1)]  # fmt: skip
    mixed = [row(seed=0, efficacy=99.0) | one, row(seed=1, efficacy=99.0) | two]
    text = render_table(build_table([*rows, *mixed]), "html")
    assert "<b>60.0" in text and "<u>50.0" in text and "<b>99.0" not in text
    note = "ranked: ft 20×10 on m, d (settings.step: 1 → 5 of seed 1)."
    assert any(said.endswith(note) for said in build_table([*rows, *mixed]).notes)
    assert not any("different settings" in said for said in build_table(rows).notes)


def test_what_a_seed_changes_in_an_identity_is_no_other_setting(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for seed in (0, 1):
        of = {"settings": {"lr": 1, "seed": seed}, "protocols": ["choice"] * seed, "threads": 1}
        of |= {"seed": seed, "training_seed": seed}
        lake.commit(dataclasses.replace(cell(seed=seed), identity=of))
    settings = [each["settings"] for each in runs(lake)]
    assert settings == [{"settings": {"lr": 1}}] * len(settings)


def test_the_best_edited_model_is_bold_and_the_unedited_does_not_compete() -> None:
    rows = [row(editor="none", specificity=100.0), row(editor="a", specificity=60.0, edit_ms=9.0),
            row(editor="b", specificity=70.0)]  # fmt: skip
    html = render_table(build_table(rows), "html", long=True)
    assert "<b>70.0</b>" in html and "<u>60.0</u>" in html and ">100.0<" in html
    assert "<b>2.00</b>" in html and "<u>9.00</u>" in html
    latex = render_table(build_table(rows), "latex")
    assert r"\textbf{70.0}" in latex and r"\underline{60.0}" in latex
    assert re.search(r"\\midrule\nunedited & .*\n\\midrule\na & ", latex)  # apart from the others


def test_names_are_escaped() -> None:
    rows = [row(editor="a_b&<c|d>", variant="5%")]
    table = build_table(rows, title="x_y & <z>")
    assert r"a\_b\&\textless{}c$|$d\textgreater{} (5\%)" in render_table(table, "latex")
    assert "a_b&amp;&lt;c|d&gt; (5%)" in render_table(table, "html")
    assert r"a_b&\<c\|d> (5%)" in render_table(table, "md")


def test_markdown_lines_up() -> None:
    text = render_table(build_table([row(), row(editor="a-long-name", efficacy=100.0)]), "md")
    widths = {len(line) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_prompts_in_a_chat_are_named_in_the_header() -> None:
    def text(*rows: dict[str, Any], fmt: str = "md") -> str:
        return render_table(build_table(list(rows)), fmt)

    assert "prompt" not in text(row())
    assert "Grid g; scale world; model m; dataset d; prompt chat; stream 20×10 (20 batches of" in (
        text(row(prompt="chat"))
    )
    assert "prompt chat" in text(row(prompt="chat"), fmt="latex")
    both = text(row(), row(prompt="chat", model="n"))
    assert "### m · bare" in both and "### n · chat" in both
    parsed = list(csv.DictReader(io.StringIO(text(row(prompt="chat"), fmt="csv"))))
    assert {line["prompt"] for line in parsed} == {"chat"}


def test_csv_is_unrounded() -> None:
    rows = [row(seed=i, efficacy=v) for i, v in enumerate([1 / 3, 2 / 3])] + [failed(editor="b")]
    parsed = list(csv.DictReader(io.StringIO(render_table(build_table(rows), "csv"))))
    (found,) = [r for r in parsed if r["metric"] == "efficacy" and r["editor"] == "ft"]
    assert float(found["mean"]) == 0.5 and float(found["std"]) == statistics.stdev([1 / 3, 2 / 3])
    assert (found["n_batches"], found["protocol"], found["n_seeds"]) == ("20", "exact_match", "2")
    assert {r["status"] for r in parsed if r["editor"] == "b"} == {"failed"}


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(TableError, match=r"'choice'; there are: exact_match"):
        build_table([row()], protocols=["choice"])
    with pytest.raises(TableError, match="md, latex, html, csv"):
        render_table(build_table([row()]), "pdf")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Every editor on two streams and seeds, with failures and variants."""
    lake = Lake(str(tmp_path_factory.mktemp("tables") / "lake"))
    for result in (*demo_cells(seeds=2), cell(variant="official", model="a/b_c")):
        lake.commit(result)
    for where in (address(editor="ft", seed=2), address(editor="mend", variant="big")):
        lake.record_failure(where, "out of memory", identity={}, code_version="1")
    return lake


def parquet_rows(root: str) -> list[dict[str, Any]]:
    """Rows of `runs` by plain duckdb, from nothing but the files."""
    read = "read_parquet('{}/{}/**/*.parquet', hive_partitioning=true, union_by_name=true)"
    sql = f"""
        SELECT c.grid, c.cell_key AS cell, c.editor, c.variant, c.model, c.dataset, c.scale,
               c.seed, c.batch_size, c.n_batches, s.n_edits, s.final, s.protocol,
               coalesce(c.identity->>'$.model.prompt.template', 'bare') AS prompt, s.efficacy,
               s.generalization, s.specificity, s.specificity_self, c.train_seconds, c.edit_ms,
               c.peak_memory_gb, c.data_hash, c.code_version, c.status,
               coalesce(c.resolved->>'$.remark', '') AS remark, c.reason
        FROM {read.format(root, "cells")} c
        LEFT JOIN {read.format(root, "scores")} s USING (cell_key)"""
    answer = duckdb.sql(sql)
    return [dict(zip(answer.columns, values, strict=True)) for values in answer.fetchall()]


@pytest.mark.parametrize("fmt", marked(FORMATS, list(FORMATS)[:1]))
def test_one_table_from_the_lake_and_from_its_plain_files(lake: Lake, fmt: str) -> None:
    expected = render_table(build_table(runs(lake, "demo")), fmt)
    assert "failed" in expected and ("official" in expected)
    assert render_table(build_table(parquet_rows(str(lake.storage))), fmt) == expected


def test_a_changed_score_changes_the_table(tmp_path: Path) -> None:
    """Guards the equalities above against comparing constants."""
    lake = Lake(str(tmp_path))
    result = cell()
    for seed in range(2):
        lake.commit(dataclasses.replace(result, address=address(seed=seed)))
    before = render_table(build_table(runs(lake, "demo")), "csv")
    lake.commit(cell(noise=1))
    assert render_table(build_table(runs(lake, "demo")), "csv") != before


def test_a_stream_in_an_order_of_its_own_is_named_below() -> None:
    timed = row(cell="b", dataset="wiki", stream_order="time")
    notes = build_table([row(cell="a"), timed]).notes
    assert [note for note in notes if "Order" in note] == ["Order of the edits of wiki: time."]
    mixed = [timed, row(cell="c", dataset="wiki", n_batches=5, stream_order="shuffled")]
    assert "Order of the edits of wiki: shuffled, time." in build_table(mixed).notes
    assert not any("Order" in note for note in build_table([row(cell="a")]).notes)
