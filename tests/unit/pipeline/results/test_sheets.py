"""Sheets: what a cell says, and one table on a terminal, in Markdown, LaTeX, HTML and CSV."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.results.fitting import split, split_at
from pipeline.results.latex import SIZES, WIDTHS, fitted, latex_lines
from pipeline.results.pages import drawn, known_fit, markdown_lines, render_page
from pipeline.results.ranking import ranked
from pipeline.results.sheets import Head, Sheet, SheetCell, TableError, as_csv, as_terminal
from pipeline.results.tables import Table

SHEET = Sheet(
    heads=[
        Head(label="method", left=True),
        Head(label="Eff", groups=("4×10",)),
        Head(label="Spe", groups=("4×10",)),
        Head(label="Eff", groups=("8×10",)),
    ],
    rows=[
        [
            "ft|x",
            SheetCell(value=71.25, std=1.5),
            SheetCell(value=50.0, best=True),
            SheetCell(text="failed"),
        ],
        [
            "rledit",
            SheetCell(value=61.0),
            SheetCell(value=9.5, second=True),
            SheetCell(value=9.0, note="n=1"),
        ],
    ],
    apart=1,
)


def page(fmt: str) -> str:
    table = Table(title="", grid="g", n_seeds=1, lines=(), panels=())
    panels = [{"name": "token_accuracy", "definition": "", "piece": drawn(SHEET, fmt)}]
    return render_page("pipeline.results", "table", fmt, table=table, panels=panels, about="a")


def wide(models: int, datasets: int, metrics: int = 3) -> Sheet:
    """Figures of so many models on so many datasets."""
    heads = [
        Head(label=f"metric {k}", groups=(f"model-{i}", f"data-{j}"))
        for i in range(models)
        for j in range(datasets)
        for k in range(metrics)
    ]
    cells = [SheetCell(value=float(n), std=1.0) for n in range(len(heads))]
    return Sheet(heads=[Head(label="method", left=True), *heads], rows=[["ft", *cells]])


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (SheetCell(), "–"),
        (SheetCell(text="failed"), "failed"),
        (SheetCell(value=2.0, form=".2f", std=0.125), "2.00 ± 0.12"),
        (SheetCell(value=-1.5, form="+.1f"), "-1.5"),
        (SheetCell(value=1.8, std=0.1, form="g"), "1.8 ± 0.1"),
        (SheetCell(value=50.0, interval=(40.04, 60.0), mark="‡", note="n=1"),
         "50.0 [40.0, 60.0] ‡ (n=1)"),
    ],
)  # fmt: skip
def test_a_cell_says_what_stands_around_its_number(cell: SheetCell, text: str) -> None:
    assert str(cell) == text


def test_on_a_terminal_columns_line_up_below_their_heads() -> None:
    assert as_terminal(SHEET) == [
        "method   4×10: Eff   Spe  8×10: Eff",
        "------  ----------  ----  ---------",
        "ft|x    71.2 ± 1.5  50.0     failed",
        "rledit        61.0   9.5  9.0 (n=1)",
    ]


def test_markdown_names_a_group_at_its_first_column() -> None:
    assert [line for line in page("md").splitlines() if line.startswith("|")] == [
        "| method |  4×10: Eff |  Spe | 8×10: Eff |",
        "| :----- | ---------: | ---: | --------: |",
        r"| ft\|x  | 71.2 ± 1.5 | 50.0 |    failed |",
        "| rledit |       61.0 |  9.5 | 9.0 (n=1) |",
    ]


def test_html_and_latex_span_the_columns_of_a_group() -> None:
    html, latex = page("html"), page("latex")
    assert '<th colspan="2" scope="colgroup" class="group">4×10</th>' in html
    assert '<div class="scroll" style="overflow-x: auto">' in html
    assert html.count('<th scope="row">') == 2 and "<b>50.0</b>" in html and "<u>9.5</u>" in html
    assert r"\begin{tabular}{@{}lrrr@{}}" in latex
    assert r"& \multicolumn{2}{c}{4$\times$10} & \multicolumn{1}{c}{8$\times$10} \\" in latex
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-4}" in latex
    assert "ft$|$x & 71.2$_{\\pm 1.5}$ & \\textbf{50.0} & failed \\\\\n\\midrule" in latex
    assert r"rledit & 61.0 & \underline{9.5} & 9.0 (n=1) \\" in latex
    assert r"\providecommand{\toprule}{\hline}" in latex  # without booktabs


def test_a_sheet_that_is_too_wide_is_broken_along_what_its_columns_share() -> None:
    sheet = wide(3, 2)
    assert split(sheet, lambda _: True) == [sheet]
    parts = split(sheet, lambda s: len(s.heads) <= 10)
    assert [part.title for part in parts] == ["data-0", "data-1"]  # two, where models were three
    assert [part.values(0) for part in parts] == [["model-0", "model-1", "model-2"]] * 2
    numbers = [str(cell) for part in parts for cell in part.rows[0][1:]]
    assert sorted(numbers) == sorted(str(cell) for cell in sheet.rows[0][1:])
    few = split(sheet, lambda s: len(s.heads) <= 4)
    assert [part.title for part in few] == [
        f"model-{i} · data-{j}" for i in range(3) for j in (0, 1)
    ]
    single = split(sheet, lambda s: len(s.heads) <= 3)
    assert all(2 <= len(part.heads) <= 3 and part.heads[0].left for part in single)
    assert sum(len(part.heads) - 1 for part in single) == 18
    assert len(split(sheet, lambda _: False)) == 18  # one column at least
    assert [part.title for part in split_at(sheet, 0)] == ["model-0", "model-1", "model-2"]


def test_markdown_is_no_wider_than_a_terminal_and_has_a_block_for_each_model() -> None:
    piece = drawn(wide(2, 4), "md", blocks=True)
    titles = [sheet.title for sheet in piece.sheets]
    assert len(titles) > 2 and all(title.startswith(("model-0", "model-1")) for title in titles)
    for sheet in piece.sheets:
        assert all(len("| " + " | ".join(line) + " |") <= 120 for line in markdown_lines(sheet))


def test_latex_fits_the_width_that_is_asked_for() -> None:
    column, page_wide = fitted(wide(1, 1), "column"), fitted(wide(3, 2), "page")
    assert (column.n_sheets, column.environment) == (1, "table")
    assert page_wide.environment == "table*" and page_wide.n_sheets <= 3
    assert fitted(wide(3, 2), "column").n_sheets > page_wide.n_sheets
    assert fitted(wide(1, 1)).fit == "column" and fitted(wide(3, 2)).fit == "page"
    assert set(WIDTHS) == {"column", "page"} and page_wide.size in SIZES
    # More rows than a page holds are continued in another float.
    long = fitted(replace(wide(1, 1), rows=wide(1, 1).rows * 90))
    assert len(long.floats) > 1 and sum(len(s.rows) for f in long.floats for s in f) == 90
    heads = [Head(label="m", left=True), Head(label="Eff")]
    name = "a_very_long_name of a method, with a variant"
    broken = Sheet(heads=heads, rows=[[name, SheetCell(value=1.0)]])
    (line,) = [s for s in latex_lines(broken, "column", SIZES[0]) if "very" in s]
    assert line.startswith(r"\parbox[t]{72pt}{\raggedright") and r"a\_\allowbreak{}very" in line


def test_only_comparable_figures_are_ranked_as_they_are_shown() -> None:
    cells = [SheetCell(value=v) for v in (99.0, 70.01, 70.04, 60.0, 50.0)]
    found = ranked(cells, [None, "a", "a", "a", "b"])  # unedited, three alike, one on other data
    assert [cell.best for cell in found] == [False, True, True, False, False]
    assert not any(cell.second for cell in found)  # two are best
    found = ranked(cells[2:], ["a", "a", "a"], least=True)
    assert [cell.best for cell in found] == [False, False, True]
    assert [cell.second for cell in found] == [False, True, False]
    assert ranked(cells[:2], [None, "a"]) == cells[:2]  # a figure alone is not the best


@pytest.mark.parametrize(("fmt", "fit"), [("md", "page"), ("csv", "column"), ("latex", "pages")])
def test_a_width_that_there_is_not_is_refused(fmt: str, fit: str) -> None:
    with pytest.raises(TableError, match=f"--fit {fit}"):
        known_fit(fmt, fit)
    assert known_fit("latex", "page") == "page" and known_fit("md", None) is None


def test_csv_is_unrounded_and_none_is_empty() -> None:
    assert as_csv(("a", "b"), [(1 / 3, None), ("x,y", 2)]) == (
        'a,b\n0.3333333333333333,\n"x,y",2\n'
    )  # fmt: skip


def test_an_unknown_format_names_the_known() -> None:
    with pytest.raises(TableError, match="md, latex, html, csv"):
        page("pdf")
