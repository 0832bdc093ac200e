"""Streams of real rows without locality prompts, or without rephrases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rledit.datasets import read_edits
from rledit.editors import EDITORS, TrainableEditor
from rledit.model import EditableModel
from rledit.protocols import protocol
from rledit.records import Edit
from rledit.scoring import Scorer
from rledit.stream import StreamScored, run_stream
from rledit.tokenization import TokenizationError
from tests.data.test_scoring_rows import texts_of
from tests.unit.helpers.knowing_model import byte_pair_tokenizer, small_model
from tests.unit.helpers.text_edits import equip

DATA = Path(os.environ.get("RLEDIT_DATA", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("RLEDIT_DATA"), reason="RLEDIT_DATA does not name a directory of real rows"
)
# File → which scores its rows allow beside efficacy.
FILES = {
    "mquake/MQuAKE-CF-3k-v2_first3.json": {"generalization"},
    "knowedit/wiki_counterfact_train_cf_first1100.json": {"specificity"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ft": {"lr": 0.05, "steps": 60},
    "memit": {"value_steps": 4},
    "ultraedit": {"step": 1e-2},
    "none": {"modules": ()},
}


def rows(name: str, n: int = 4) -> list[Edit]:
    """Rows with a subject inside their prompt, one locality prompt each at most."""
    edits = read_edits(DATA / name).edits
    located = [e for e in edits if e.subject and e.subject in e.prompt]
    return [replace(e, locality=e.locality[:1]) for e in located[:n]]


def opened(edits: Sequence[Edit]) -> EditableModel:
    essences = [f"{e.subject} is a" for e in edits]
    tokenizer = byte_pair_tokenizer([*texts_of(list(edits)), *essences])
    return EditableModel(small_model("llama", tokenizer).double(), tokenizer, ["down:all"])


@pytest.mark.parametrize("editor", SETTINGS)
@pytest.mark.parametrize("name", FILES)
def test_editors_that_do_not_learn_from_them_run(name: str, editor: str) -> None:
    edits = rows(name)
    model = opened(edits)
    cls = EDITORS[editor]
    made = cls(model, cls.Config(**{"modules": model.modules, **SETTINGS[editor]}))
    equip(made)
    scorer = Scorer(model, edits, [protocol("token_accuracy"), protocol("generation")])
    *_, last = run_stream(made, edits, 3, [2], scorer)  # the last batch is smaller
    assert isinstance(last, StreamScored)
    for score in last.scores:
        assert score.efficacy is not None
        for metric in ("generalization", "specificity", "specificity_self"):
            known = metric.removesuffix("_self") in FILES[name]
            assert (getattr(score, metric) is not None) == known
    if editor == "ft":
        accuracy = [s.efficacy or 0.0 for s in last.scores if s.protocol == "token_accuracy"]
        assert sum(accuracy) / len(accuracy) > 50


@pytest.mark.parametrize(
    ("name", "lacking"), zip(FILES, ("locality prompt", "rephrase"), strict=True)
)
@pytest.mark.parametrize("editor", ["rledit", "malmen", "mend"])
def test_hypernetworks_refuse_to_train_and_name_the_row(
    name: str, lacking: str, editor: str
) -> None:
    edits = rows(name)
    model = opened(edits)
    cls = EDITORS[editor]
    made = cls(model, cls.Config(modules=model.modules, initial_step=1e-3, rank=4, n_blocks=1))
    assert isinstance(made, TrainableEditor)
    batch = model.encoder.batch(edits, made.group_size)
    with pytest.raises(
        TokenizationError, match=rf"{Path(name).name}:\d+: the edit has no {lacking}"
    ):
        made.train_step([batch])
    assert made.edit(batch)["edit_loss"] > 0  # a stream to be edited may lack it


def test_a_reward_without_locality_needs_no_locality_prompts() -> None:
    edits = rows("mquake/MQuAKE-CF-3k-v2_first3.json")
    model = opened(edits)
    cls = EDITORS["rledit"]
    config = cls.Config(modules=model.modules, initial_step=1e-3, rank=4, n_blocks=1, loc_coef=0.0)
    made = cls(model, config)
    assert isinstance(made, TrainableEditor)
    batch = model.encoder.batch(edits, made.group_size)
    trained = made.train_step([batch, batch])
    assert trained["equivalence"] > 0 and trained["divergence"] == 0
