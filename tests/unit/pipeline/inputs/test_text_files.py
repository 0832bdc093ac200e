"""Files of running text: what each kind gives, and what is wrong with a broken one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.grid import EvalDataEntry
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.inputs.corpus import open_corpus
from pipeline.inputs.eval_data import load_eval_data
from pipeline.plan.cell_data import read_corpus
from pipeline.plan.cells import cells_of

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
TEXTS = ("The first.", "Zwölf Boxkämpfer.", "The last.")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1000\n"


def jsonl(rows: list[Any]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_every_kind_of_file_gives_its_documents(tmp_path: Path) -> None:
    rows = [{"text": text, "id": 5} for text in TEXTS]
    (tmp_path / "a.txt").write_text("\ufeff" + "\r\n\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "a.jsonl").write_bytes(jsonl([*rows[:2], {"text": "  "}, rows[2]]))
    for name in ("a.ndjson", "a.JSONL"):
        (tmp_path / name).write_bytes((tmp_path / "a.jsonl").read_bytes())
    parquet(tmp_path / "a.parquet", [*rows[:2], {"text": "", "id": 6}, rows[2]])
    found = [open_corpus(str(tmp_path / f"a.{kind}"), 9, None) for kind in _KINDS]
    assert {corpus.documents for corpus in found} == {TEXTS}
    assert len({corpus.content_hash for corpus in found}) == 1
    assert open_corpus(str(tmp_path / "a.parquet"), 2, None).documents == TEXTS[:2]


_KINDS = ("txt", "jsonl", "parquet", "ndjson", "JSONL")

BROKEN: dict[str, tuple[str, bytes, str]] = {
    "latin-1 text": ("a.txt", b"fine\ncaf\xe9\n", r"a.txt, row 2: is not UTF-8.*iconv"),
    "latin-1 jsonl": ("a.jsonl", b'{"text": "caf\xe9"}\n', r"a.jsonl, row 1: is not UTF-8.*iconv"),
    "utf-16": ("a.txt", "a text".encode("utf-16"), "is UTF-16, not UTF-8.*iconv -f utf-16"),
    "git-lfs pointer, text": ("a.txt", LFS, "git-lfs pointer.*git lfs pull"),
    "git-lfs pointer, jsonl": ("a.jsonl", LFS, "git-lfs pointer.*git lfs pull"),
    "git-lfs pointer, parquet": ("a.parquet", LFS, "git-lfs pointer.*git lfs pull"),
    "null": ("a.jsonl", jsonl([{"text": "a"}, {"text": None}]), "row 2: `text` is null, not text"),
    "number": ("a.jsonl", jsonl([{"text": 5}]), "row 1: `text` is a number, not text"),
    "no text": ("a.jsonl", jsonl([{"txt": "b"}]), "row 1: has the keys txt; expected a JSON obj"),
    "a list": ("a.jsonl", jsonl([["b"]]), "row 1: is a list; expected a JSON object with the key"),
    "no JSON": ("a.jsonl", b'{"text": ', "row 1: is not valid JSON"),
    "half a surrogate": ("a.jsonl", b'{"text": "\\ud800"}', "row 1: .*surrogate"),
    "gzip": ("a.jsonl", b"\x1f\x8b\x08", "gzip-compressed.*gunzip"),
    "a login page": ("a.txt", b"<!DOCTYPE html><html>", "HTML page"),
    "no parquet": ("a.parquet", b"\x00\x01", "named .parquet and is no Parquet file"),
    "cut parquet": ("a.parquet", b"PAR1 and nothing", "corrupt or truncated Parquet.*again"),
    "a JSON array": ("a.json", b'[{"text": "a"}]', "does not say where a document ends.*jsonl"),
    "a table": (
        "a.csv",
        b"id,text\n1,a\n",
        "a.csv: is a table, whose lines are no documents.*jsonl",
    ),
    "another table": ("a.TSV", b"id\ttext\n1\ta\n", "a.TSV: is a table.*`text` a line as .jsonl"),
    "objects by another name": ("a.txt", jsonl([{"text": "a"}]), "objects in its lines.*jsonl or "),
    "nothing": ("a.txt", b"\n\n", "there is no document in it"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_file_is_one_message_with_the_remedy(broken: str, tmp_path: Path) -> None:
    name, content, message = BROKEN[broken]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"(?s)^covariance.corpus.*{message}"):
        open_corpus(str(path), 9, None)
    with pytest.raises(ConfigError, match=f"(?s)^eval_data.text.*{message}"):
        load_eval_data(EvalDataEntry(text=str(path)), ["perplexity"], None)


def test_parquet_without_text(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"body": "a", "id": 1}])
    with pytest.raises(ConfigError, match="has no column 'text' but body, id.*Rename"):
        open_corpus(str(path), 9, None)
    path = parquet(path, [{"text": "a"}, {"text": None}])
    with pytest.raises(ConfigError, match=r"a.parquet, row 2: `text` is null, not text"):
        open_corpus(str(path), 9, None)
    assert open_corpus(str(path), 1, None).documents == ("a",)


def test_the_command_line_says_it_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"caf\xe9\n")
    sets = ["editors=[{editor: memit}]", f"statistics={{corpus: {path}}}"]
    arguments = [part for value in sets for part in ("--set", value)]
    result = CliRunner().invoke(app, ["plan", str(GRID), *arguments, "--results", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)  # which the entry point prints as a message
    assert f"{path}, row 1: is not UTF-8" in str(result.exception)


def test_a_short_file_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("one\ntwo\n")
    sets = ["editors=[{editor: memit}, {editor: alphaedit}]"]
    with caplog.at_level(logging.WARNING):
        cells = cells_of(load_grid(GRID, [*sets, f"statistics={{corpus: {path}, documents: 5}}"]))
        assert [read_corpus(cell).documents for cell in cells] == [2] * len(cells)
    message = f"covariance.corpus: {path} holds 2 documents, not the 5 that were asked for"
    assert caplog.text.count(message) == 1  # once, however many cells
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_eval_data(EvalDataEntry(text=str(path), documents=3), ["perplexity"], None)
    assert f"eval_data.text: {path} holds 2 documents, not the 3" in caplog.text
    # The world's own text is as long as it is, and nobody asked for a number of it.
    caplog.clear()
    assert read_corpus(cells_of(load_grid(GRID, sets))[0]).documents > 5 and not caplog.text
