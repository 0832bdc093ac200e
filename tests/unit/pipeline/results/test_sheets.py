"""Sheets: what a cell says, and one table on a terminal, in Markdown, LaTeX, HTML and CSV."""

from __future__ import annotations

import pytest

from pipeline.results.sheets import Cell, Head, Sheet, TableError, as_csv, as_terminal, render_page
from pipeline.results.tables import Table

SHEET = Sheet(
    heads=[
        Head(label="editor", left=True),
        Head(label="Eff", group="4×10"),
        Head(label="Spe", group="4×10"),
        Head(label="Eff", group="8×10"),
    ],
    rows=[
        ["ft|x", Cell(value=71.25, std=1.5), Cell(value=50.0, best=True), Cell(text="failed")],
        ["rledit", Cell(value=61.0), Cell(), Cell(value=9.0, note="n=1")],
    ],
    name="token_accuracy",
)


def page(fmt: str) -> str:
    table = Table(title="", grid="g", n_seeds=1, lines=(), panels=())
    panels = [{"definition": "", "sheet": SHEET}]
    return render_page("pipeline.results", "table", fmt, table=table, panels=panels)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Cell(), "–"),
        (Cell(text="failed"), "failed"),
        (Cell(value=2.0, form=".2f", std=0.125), "2.00 ± 0.12"),
        (Cell(value=-1.5, form="+.1f"), "-1.5"),
        (Cell(value=1.8, std=0.1, form="g"), "1.8 ± 0.1"),
        (Cell(value=50.0, interval=(40.04, 60.0), mark="‡", note="n=1"),
         "50.0 [40.0, 60.0] ‡ (n=1)"),
    ],
)  # fmt: skip
def test_a_cell_says_what_stands_around_its_number(cell: Cell, text: str) -> None:
    assert str(cell) == text


def test_on_a_terminal_columns_line_up_below_their_heads() -> None:
    assert as_terminal(SHEET) == [
        "token_accuracy    4×10 Eff  4×10 Spe   8×10 Eff",
        "--------------  ----------  --------  ---------",
        "ft|x            71.2 ± 1.5      50.0     failed",
        "rledit                61.0         –  9.0 (n=1)",
    ]


def test_markdown_has_the_group_before_each_head_and_the_name_over_the_rows() -> None:
    assert [line for line in page("md").splitlines() if line.startswith("|")] == [
        "| token_accuracy |   4×10 Eff | 4×10 Spe |  8×10 Eff |",
        "| :------------- | ---------: | -------: | --------: |",
        r"| ft\|x          | 71.2 ± 1.5 | **50.0** |    failed |",
        "| rledit         |       61.0 |        – | 9.0 (n=1) |",
    ]


def test_html_and_latex_span_the_columns_of_a_group() -> None:
    html, latex = page("html"), page("latex")
    assert '<th colspan="2" scope="colgroup" class="group">4×10 · token_accuracy</th>' in html
    assert html.count('<th scope="row">') == 2 and "<b>50.0</b>" in html
    assert r"\begin{tabular}{lrrr}" in latex
    assert r" & \multicolumn{2}{c}{4$\times$10, token\_accuracy}" in latex
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-4}" in latex
    assert r"ft|x & 71.2 $\pm$ 1.5 & \textbf{50.0} & failed \\" in latex


def test_csv_is_unrounded_and_none_is_empty() -> None:
    assert as_csv(("a", "b"), [(1 / 3, None), ("x,y", 2)]) == (
        'a,b\n0.3333333333333333,\n"x,y",2\n'
    )  # fmt: skip


def test_an_unknown_format_names_the_known() -> None:
    with pytest.raises(TableError, match="md, latex, html, csv"):
        page("pdf")
