"""The fifty facts of docs/editing.md into SmolLM2-135M, as a new user would: one slow test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.inputs.checkpoint_files import CheckpointError
from pipeline.run.editing import Wishes, ask, edit_facts, export_ledger, open_host, open_ledger
from rledit.editing import Ledger, Session

PRESET = "smollm2-135m"
MINE = Path(__file__).parents[4] / "docs" / "mine.csv"


@pytest.mark.slow
def test_fifty_facts_of_ones_own_into_smollm(tmp_path: Path) -> None:
    try:
        host = open_host(PRESET)
    except CheckpointError as error:
        if "cannot be reached" not in str(error) and "pip says" not in str(error):
            raise
        pytest.skip(str(error))
    session = Session(host, Ledger.create(tmp_path / "out", host.record(PRESET)))
    result = edit_facts(session, str(MINE), Wishes())
    assert len(result.facts) == 50 and len(result.failed) <= 5, str(result)
    assert result.cost_after.kept >= 0.85 * result.cost_after.known
    assert result.cost_after.perplexity < 1.1 * result.cost_before.perplexity
    again = open_ledger(tmp_path / "out")
    for name in host._matrices:
        assert torch.equal(host.matrix(name), again.host.matrix(name))
    fact = next(f.edit for f in result.facts if f.took)
    (asked,) = ask(again, [fact.prompt], 5)
    assert asked.edited.startswith(fact.target) and asked.edited != asked.unedited
    made = export_ledger(again, "checkpoint", tmp_path / "whole")
    loaded = AutoModelForCausalLM.from_pretrained(made.path)
    for name in host._matrices:
        assert torch.equal(loaded.get_submodule(name).weight, host.matrix(name))
    again.undo([1])
    unedited = open_host(PRESET)
    for (name, one), (_, other) in zip(
        again.host.model.named_parameters(), unedited.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
