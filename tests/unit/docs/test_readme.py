"""Commands of the README and of docs/first-steps.md work as they stand there."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.inputs.checkpoints import hub_reachable
from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from pipeline.results.tables import build_table
from rledit.datasets import FORMATS
from tests.unit.docs.test_commands import parsed
from tests.unit.helpers.lake_fixtures import demo_cells
from tests.unit.helpers.small_editing import learnt

README = Path(__file__).parents[3] / "README.md"
PAGES = (README, README.parent / "docs" / "first-steps.md")
TEXT = "\n".join(page.read_text() for page in PAGES)
# Every line that is typed, a line's continuation joined to it, without its comment.
LINES = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
INLINE = [text.split() for text in re.findall(r"`([^`]+)`", PROSE)]
RLEDIT = [words[1:] for words in LINES if words[0] == ".venv/bin/rledit"]
RLEDIT += [words[1:] for words in INLINE if words[0] == "rledit" and "jobs/" in " ".join(words)]
RLEDIT = [words for i, words in enumerate(RLEDIT) if words not in RLEDIT[:i]]
JOBS = [words[2:] for words in (*LINES, *INLINE) if words[:2] == ["python", "-m"]]
CHEAP = ("plan", "data", "table", "query", "diff")


def test_there_is_something_to_test() -> None:
    others = {"run", "submit", "status", "export", "answers", "mlflow"}
    assert {words[0] for words in RLEDIT} == {*CHEAP, *others}
    assert [words[0] for words in JOBS] == ["jobs.faults"]


@pytest.mark.parametrize("words", JOBS, ids=" ".join)
def test_modules_and_their_options_exist(words: list[str]) -> None:
    job = typer.Typer()
    job.command()(importlib.import_module(words[0]).main)
    parsed(typer.main.get_command(job), words[1:])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to type in: the project's grids, results of the demo, a data file; no hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RLEDIT_RESULTS", raising=False)
    hub_reachable.cache_clear()
    (tmp_path / "jobs").symlink_to(README.parent / "jobs")
    lake = Lake(str(tmp_path / "results" / "lake"))
    for result in demo_cells(seeds=2, streams=(4,)):
        lake.commit(result)
    shutil.copytree(tmp_path / "results" / "lake", tmp_path / "other" / "lake")
    data = tmp_path / "path" / "to" / "zsre.json"
    data.parent.mkdir(parents=True)
    data.write_text(json.dumps([FORMATS["zsre_mend"].example]))
    return tmp_path


def typed(words: list[str]) -> tuple[int, str]:
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, SystemExit | None), (words, done.exception)
    return done.exit_code, done.output


def cheap(name: str) -> list[list[str]]:
    return [words for words in RLEDIT if words[0] == name and "my-8b" not in " ".join(words)]


def test_cheap_commands_are_typed_as_they_stand_there(place: Path) -> None:
    said = {name: [typed(words) for words in cheap(name)] for name in CHEAP}
    codes = {name: [code for code, _ in answers] for name, answers in said.items()}
    assert codes == {name: [0] * len(answers) for name, answers in said.items()}
    text = {name: "\n".join(output for _, output in answers) for name, answers in said.items()}
    assert "cells, " in text["plan"] and "core-hours" in text["plan"]
    assert "zsre_mend: ZsRE in MEND's schema" in text["data"]
    assert "rledit" in text["query"] and "n_batches" in text["query"]
    assert "\\begin{tabular}" in text["table"] and "Table 2: main comparison" in text["table"]
    assert text["diff"].endswith("equal\n")


def test_the_query_gives_the_figures_of_the_table(place: Path) -> None:
    """One protocol and one stream a row, as the table has them."""
    (words,) = cheap("query")
    code, text = typed([*words, "--format", "csv"])
    assert code == 0
    rows = build_table(runs(str(place / "results" / "lake"), "demo"), protocols=["token_accuracy"])
    (panel,) = rows.panels
    shown = {
        (line.editor, line.variant, column.stream[0]): panel.value(line, column).mean
        for line in rows.lines
        for column in panel.columns
        if column.metric == "efficacy"
    }
    head, *answers = [line.split(",") for line in text.strip().splitlines()]
    assert head == ["editor", "variant", "n_batches", "eff"]
    found = {(editor, variant, int(n)): float(value) for editor, variant, n, value in answers}
    assert found == pytest.approx(shown)


def test_check_finds_nothing_to_compare_on_a_lake_without_the_table(place: Path) -> None:
    (table,) = [words for words in cheap("table") if words[1] == "table2"]
    assert typed([*table, "--check"])[0] == 2


def test_table_2_with_a_model_of_my_own_on_two_gpus(place: Path) -> None:
    """The dry run, with a folder of ours for the one that is named: a configuration is enough."""
    sizes = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
             "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
             "vocab_size": 128256}  # fmt: skip
    mine = place / "my-8b"
    mine.mkdir()
    (mine / "config.json").write_text(json.dumps(sizes))
    (words,) = [words for words in RLEDIT if "my-8b" in " ".join(words)]
    assert " ".join(words).count("/models/my-8b") == 1
    code, text = typed([word.replace("/models/my-8b", str(mine)) for word in words])
    assert code == 1  # no weights and no data yet
    assert "mine: llama, 8,030 M parameters, 16.1 GB in bfloat16; sizes: config.json" in text
    assert f"MISSING: mine: {mine} has no weights; 16.1 GB are needed" in text
    assert "MISSING: data: data/zsre_eval.json is not there" in text
    assert "each cell on 2 ranks" in text
    for editor in ("none", "ft", "memit", "malmen_star", "rledit"):
        assert re.search(rf"^  {editor} .* (h|min|s) .* yes ", text, re.MULTILINE), editor
    assert re.search(r"total: [\d,.]+ GPU-hours, peak \d+\.?\d* GB per rank, disk \d", text)
    assert "28 cells, 28 to run" in text and "DOES NOT FIT" not in text
    assert {path.name for path in mine.iterdir()} == {"config.json"}


@pytest.mark.long
def test_the_notebook_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, but for a smaller world and its smaller model."""
    (_, snippet) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    small = snippet.replace('WORLD_MODELS["llama"]', 'WORLD_MODELS["tiny"]').replace(
        "World()", "World(WorldConfig(n_subjects=60))"
    )
    assert small.count("tiny") == small.count("n_subjects") == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("from rledit.world import WorldConfig\n" + small, names)
    assert 0 < names["efficacy"] <= 100


@pytest.mark.long
def test_the_three_lines_that_edit_a_model_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As written, but for a smaller model that lies with its tokenizer."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small, tokenizer = learnt()
    small.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    tokenizer.save_pretrained(tmp_path / "model")
    (snippet, _) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, Any] = {"model": AutoModelForCausalLM.from_pretrained(tmp_path / "model")}
    exec(snippet, names)
    assert "The mayor of Oslo is" in capsys.readouterr().out
    unedited = {name: p.detach().clone() for name, p in small.named_parameters()}
    names["result"].undo()
    assert all(torch.equal(p, unedited[n]) for n, p in names["model"].named_parameters())


def test_the_figures_of_the_readme_are_those_of_the_full_table() -> None:
    """Five rows of a full table of the demo's page, with the names of its columns."""
    (short,) = re.findall(r"<!-- demo-table:begin -->(.*?)<!-- demo-table:end -->", TEXT, re.S)
    page = (README.parent / "docs" / "demo.md").read_text()
    tables = re.findall(r"<!-- demo-(?:world-)?table:begin -->(.*?)<!--", page, re.S)
    (head, *shown) = _cells(short)
    assert len(shown) == 5
    assert shown in [_rows(table, head, {row[0] for row in shown}) for table in tables]


def _rows(table: str, head: list[str], chosen: set[str]) -> list[list[str]]:
    """Rows of a full table, in columns that are named without the stream."""
    if "|" not in table:
        return []
    (names, *rows) = _cells(table)
    assert len(rows) in (10, 12)  # of the world's page, and of the real model's
    plain = [name.partition("×10 ")[2] or name for name in names]
    named = [dict(zip(plain, row, strict=True)) for row in rows]
    return [[row[name] for name in head] for row in named if row.get(head[0]) in chosen]


def _cells(text: str) -> list[list[str]]:
    """The table of a text, without the line below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])
    ]


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    targets = set(re.findall(r"^make ([a-z-]+)", TEXT, re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
