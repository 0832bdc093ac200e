"""``rledit data check --model``: rows that a model's tokenizer cannot take are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from pipeline.cli import app
from rledit.datasets import FORMATS
from rledit.world import World, WorldConfig
from rledit.world.words import save_tokenizer, word_tokenizer, world_words

WORLD = World(WorldConfig(n_subjects=60))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint's description: its tokenizer and a config of few positions; no weights."""
    folder = tmp_path / "model"
    LlamaConfig(max_position_embeddings=64).save_pretrained(folder)
    save_tokenizer(word_tokenizer(world_words(WORLD), add_bos=True), folder, "llama")
    return folder


def row(index: int, **other: Any) -> dict[str, Any]:
    """An edit of the world in MEND's schema."""
    edit = WORLD.draw("evaluation", 3, seed=0)[index]
    found = {
        "src": edit.prompt, "alt": edit.target, "pred": "x", "answers": ["x"],
        "rephrase": edit.rephrases[0], "subject": edit.subject,
        "loc": edit.locality[0].prompt, "loc_ans": edit.locality[0].answer,
    }  # fmt: skip
    return found | other


def checked(path: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "check", str(path), *more])
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done.exit_code, done.output


def test_every_row_that_the_tokenizer_cannot_take_is_named(tmp_path: Path, model: Path) -> None:
    long = row(1, src=f"{row(1)['src']} " * 60)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row(0), long, row(2, loc_ans="Nowhereville")]))
    assert checked(path)[0] == 0
    code, text = checked(path, "--model", str(model))
    assert code == 1
    assert f"with the tokenizer of {model}" in text
    assert f"ERROR     2 of the 3 edits of {path} cannot be used" in text
    assert "rows.json:2: prompt" in text and "64 positions" in text
    assert "rows.json:3: " in text and "Nowhereville" in text


def test_a_file_that_fits_says_so_and_a_subject_is_no_error(tmp_path: Path, model: Path) -> None:
    other = row(1, src=row(2)["src"])
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row(0), other]))
    code, text = checked(path, "--model", str(model))
    assert code == 0
    assert f"{path}: all 2 edits can be used" in text
    assert "1 of the 2 edits" in text and "by methods that look up subjects" in text


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([FORMATS["zsre_mend"].example]))
    done = CliRunner().invoke(app, ["data", "check", str(path), "--model", str(tmp_path / "no")])
    assert done.exit_code == 1 and str(tmp_path / "no") in str(done.exception)
