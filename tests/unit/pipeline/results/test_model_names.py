"""Names of models in captions: proxies are called so, with their size where it is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.results.lake.lake import Lake
from pipeline.results.model_names import model_name, row_titles, size_of
from pipeline.results.query import runs
from pipeline.results.rendering import render_table
from pipeline.results.tables import build_table
from tests.unit.helpers.lake_fixtures import address, cell


@pytest.mark.parametrize(
    ("parameters", "words"),
    [(271_040, "0.27 M"), (1_048_576, "1 M"), (134_515_008, "135 M"), (8_030_261_248, "8 B")],
)
def test_sizes_are_read_at_a_glance(parameters: int, words: str) -> None:
    assert size_of(parameters) == words


def test_a_small_model_never_has_the_name_that_it_stands_for() -> None:
    assert model_name("Llama-3-8B", "proxy") == "Llama-3-8B proxy"
    assert model_name("Llama-3-8B", "full") == "Llama-3-8B"
    assert model_name("Llama-3-8B", "world", preset=True) == "Llama-3-8B proxy"
    assert model_name("llama-world", "world") == "llama-world"  # it stands for none
    rows = [{"scale": scale, "model": "m", "parameters": 2_000_000} for scale in ("full", "world")]
    assert row_titles([*rows, {"scale": "proxy", "model": "m"}]) == {
        ("full", "m"): ("m (full)", "m (full), 2 M parameters"),
        ("world", "m"): ("m (world)", "m (world), 2 M parameters"),
        ("proxy", "m"): ("m proxy", "m proxy"),
    }


def test_tables_take_sizes_and_refusals_from_the_lake(tmp_path: object) -> None:
    lake = Lake(str(tmp_path))
    for editor in ("none", "ft", "rledit"):
        done = cell(editor=editor, model="Llama-3-8B", dataset="FEVER", scale="proxy")
        lake.commit(replace(done, resolved={**done.resolved, "parameters": 1_048_576}))
    where = address(editor="rome", model="Llama-3-8B", dataset="FEVER", scale="proxy")
    lake.record_failure(
        where, "FEVER names no subject", identity={}, code_version="1", status="skipped"
    )
    table = build_table(runs(lake, "demo"), protocols=["token_accuracy"])
    for fmt in ("md", "latex", "html"):
        text = render_table(table, fmt)
        assert "Llama-3-8B proxy, 1 M parameters" in text
        assert "rome on FEVER: FEVER names no subject." in text
        assert "Llama-3-8B" not in text.replace("Llama-3-8B proxy", "")
