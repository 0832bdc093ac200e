"""Key covariance over the sentences of the shipped real facts: which cells have it, and as what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.inputs.corpus import REAL_FACTS, corpus_metadata, open_corpus
from pipeline.plan.cell_keys import corpus_hash_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.checks import check_corpus
from pipeline.plan.estimate.needs import _files
from pipeline.run.cache import Cache
from pipeline.run.reporting import silent
from pipeline.run.stages.covariance import collect, covariance_metadata, load_covariance, shard_of
from pipeline.run.stages.prepare import open_model
from pipeline.run.tasks import tasks_of
from pipeline.submit.submission import _files as _shared_files
from rledit.facts import sentences
from tests.unit.helpers.knowing_model import byte_pair_tokenizer, small_model

CONTENT = "12fe7d8bcb4f2088be91a9b8e4d6137af4fe180e80f410b9b4a184faf05cb56b"

GRID = """
name: moments
models: [{name: small, checkpoint: %s, modules: ["down:0"]}]
datasets: [{name: facts, real_facts: true}]
editors: [{editor: memit}]
streams: [{n_batches: 2, batch_size: 3}]
covariance: {documents: 70}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    tokenizer = byte_pair_tokenizer(sentences()[:200], 320)
    small_model("llama", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cell_of(checkpoint: Path, folder: Path, *sets: str) -> Cell:
    path = folder / "grid.yaml"
    path.write_text(GRID % checkpoint)
    (cell,) = cells_of(load_grid(path, [*sets, "unedited=false"]))
    return cell


def test_it_is_taken_where_real_facts_are_edited_and_summed(
    checkpoint: Path, tmp_path: Path
) -> None:
    cell, cache = cell_of(checkpoint, tmp_path), Cache(tmp_path / "cache")
    assert cell.corpus == REAL_FACTS
    check_corpus([cell])
    model = open_model(cell, checkpoint)
    first = [model.encoder.text_ids(text) for text in sentences()[:70]]
    assert shard_of(cell, model, 0) == first
    collect(cell, 0, checkpoint, cache, silent)
    found = load_covariance(cell, cache, model.modules)
    (moment,) = found.values()
    assert moment.count == sum(map(len, first)) and moment.finite
    assert torch.linalg.matrix_rank(moment.total) > 1
    assert covariance_metadata(cell, found) == {
        "corpus": "real_facts", "documents": 70, "asked_for": 70, "tokens": moment.count,
    }  # fmt: skip


def test_it_may_be_named_for_other_data_and_is_one_corpus(checkpoint: Path, tmp_path: Path) -> None:
    """Its name is no path: not made absolute, not looked for, not asked of other nodes."""
    own = cell_of(checkpoint, tmp_path)
    named = cell_of(checkpoint, tmp_path, f"covariance.corpus={REAL_FACTS}")
    other = cell_of(checkpoint, tmp_path, "covariance.documents=60")
    assert key_of(own) == key_of(named) and corpus_hash_of(own) != corpus_hash_of(other)
    assert {task.cell.corpus for task in tasks_of([named]).values()} == {REAL_FACTS}
    assert list(_files(named)) == []
    grid = load_grid(tmp_path / "grid.yaml", [f"covariance.corpus={REAL_FACTS}"])
    assert "covariance, corpus" not in dict(_shared_files(grid))


def test_a_file_of_its_own_is_taken_before_it(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One line.\nAnother line.\n")
    cell = cell_of(checkpoint, tmp_path, f"covariance.corpus={text}")
    assert cell.corpus == str(text)
    assert list(_files(cell)) == [("covariance corpus", str(text))]


def test_it_is_known_by_its_content_and_ends_where_it_ends() -> None:
    every = open_corpus(REAL_FACTS, 100_000, None)
    assert every.documents == sentences()
    found = corpus_metadata(REAL_FACTS, 100_000, None)
    assert (found.documents, found.content_hash) == (len(sentences()), every.content_hash)
    # What cells are known by: a change makes other cells, and is to be meant.
    assert every.content_hash == CONTENT


def test_a_checkpoint_with_data_of_its_own_is_told_of_it(checkpoint: Path, tmp_path: Path) -> None:
    data = "datasets=[{name: mine, files: {all: mine.json}}]"
    cell = cell_of(checkpoint, tmp_path, data)
    assert cell.corpus is None
    with pytest.raises(ConfigError, match="ships with covariance.corpus=real_facts, or leave"):
        check_corpus([cell])
