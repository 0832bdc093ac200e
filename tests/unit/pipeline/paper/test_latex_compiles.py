"""Tables in LaTeX, compiled: in one and two columns nothing stands out of its column.

Needs a LaTeX: ``apt-get install --no-install-recommends texlive-latex-base`` is enough; with
booktabs (texlive-latex-recommended) the rules are finer.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.parse import load_grid
from pipeline.paper.reference_grids import reference_grid
from pipeline.paper.rendering import render_paper_table
from pipeline.paper.table import paper_table
from pipeline.plan.cells import cells_of
from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from pipeline.results.rendering import render_table
from pipeline.results.tables import build_table
from tests.unit.helpers.lake_fixtures import LEVELS, cell
from tests.unit.pipeline.plan.test_proxy_tables import made_up

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here"),
]
MOST = 5.0  # points that a line may stand out


def overfull(text: str, folder: Path) -> list[float]:
    """By how many points lines stand out, in one and two columns; LaTeX's error if it fails."""
    (folder / "table.tex").write_text(text)
    found: list[float] = []
    for columns in ("onecolumn", "twocolumn"):
        (folder / "paper.tex").write_text(
            f"\\documentclass[{columns}]{{article}}\n"
            "\\IfFileExists{booktabs.sty}{\\usepackage{booktabs}}{}\n"
            "\\begin{document}\nText.\n\\input{table}\n\\end{document}\n"
        )
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
            cwd=folder, capture_output=True, text=True, errors="replace", timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Float too large" not in done.stdout
        found += map(float, re.findall(r"Overfull \\hbox \(([\d.]+)pt", done.stdout))
    return found


def test_table_2_of_proxy_models(tmp_path: Path) -> None:
    """Three seeds, so that every figure has its spread, and ROME refused on FEVER."""
    lake = Lake(str(tmp_path / "lake"))
    for n, planned in enumerate(cells_of(load_grid(reference_grid("table2"), (), "proxy"))):
        for seed in range(3):
            done = made_up(planned, f"{n:015}{seed}")
            done = replace(done, address=replace(done.address, seed=seed))
            if (planned.editor_name, planned.dataset.name) == ("rome", "FEVER"):
                lake.record_failure(done.address, "names no subject", identity=done.identity,
                                    code_version="v", status="skipped")  # fmt: skip
                continue
            draw = random.Random(f"{n} {seed}")
            scores = {name: draw.uniform(0, 100) for name in ("efficacy", "specificity")}
            rows = [{**row, **scores} for row in done.scores]  # type: ignore[dict-item]
            lake.commit(replace(done, scores=rows, resolved={"parameters": 271_040}))
    table = paper_table(lake, "table2")
    for fit in ("column", "page", None):
        text = render_paper_table(table, "latex", fit=fit)  # type: ignore[arg-type]
        assert "$_{\\pm " in text and "ROME on FEVER: names no subject" in text
        assert max(overfull(text, tmp_path), default=0.0) <= MOST, fit
    assert max(overfull(render_paper_table(table, "latex", long=True), tmp_path), default=0.0) <= 5


def test_a_grid_of_ones_own_with_long_names(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    for model in ("Meta_Llama-3.1-8B-Instruct & Co", "m"):
        for editor in LEVELS:
            for seed in range(2):
                key = f"{len(model)}-{editor}-{seed}"
                lake.commit(cell(editor=editor, seed=seed, model=model, cell_key=key,
                                 variant="a_long_name of 50% #1"))  # fmt: skip
    table = build_table(runs(lake, "demo"), title="a_b & c: 100 %")
    for long in (False, True):
        for fit in ("column", "page"):
            text = render_table(table, "latex", long=long, fit=fit)  # type: ignore[arg-type]
            assert max(overfull(text, tmp_path), default=0.0) <= MOST, (long, fit)
