"""The sequential editors on a real model, SmolLM2-135M: a few false facts of our own."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import pytest
import torch

from pipeline.config.presets import PRESETS
from rledit.decoding import generate
from rledit.editors import editor_class
from rledit.facts.sentences import sentences
from rledit.locate.covariance import CovarianceFingerprint, KeyCovariance, accumulate
from rledit.model import EditableModel
from rledit.protocols import protocol
from rledit.records import Edit
from rledit.scoring import Scorer
from tests.unit.rledit.editors.test_memories_smollm2 import facts, smollm2

MODULES = ("down:8,9",)
SUBJECTS = ("France", "The Eiffel Tower", "Brazil", "Japan", "Mount Everest", "Albert Einstein")
VALUE: dict[str, Any] = {"value_steps": 12, "value_lr": 0.5, "value_decay": 1e-3, "clamp": 4.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "lyaplock": {"moment_weight": 30.0, "drift_budget": 0.7},
    "betaedit": {"moment_weight": 30.0, "ridge": 1.0, "refresh_every": 2},
    "deltaedit": {"ridge": 1.0, "settling_edits": 2, "deviations": 0.5, "space_floor": 1e-3},
}


def with_subjects() -> list[Edit]:
    return [replace(edit, subject=subject) for edit, subject in zip(facts(), SUBJECTS, strict=True)]


@lru_cache(maxsize=1)
def covariances() -> dict[str, KeyCovariance]:
    """Over some of the sentences that ship with the package."""
    model = EditableModel(*smollm2(), MODULES)
    found = {
        name: KeyCovariance(
            CovarianceFingerprint(model_hash="smollm2", module=name, corpus_hash="sentences"),
            model.shape(name)[0],
        )
        for name in model.modules
    }
    accumulate(model, [model.encoder.prompt_ids(t) for t in islice(sentences(), 300)], found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_sequential_editor_edits_a_real_model_and_leaves_it_as_it_was(name: str) -> None:
    setting = PRESETS["smollm2-135m"].settings[name]["any"]
    assert setting.origin == "our own setting" and setting.values["modules"] == ("down:8-12",)
    model = EditableModel(*smollm2(), MODULES)
    edits = with_subjects()
    cls = editor_class(name)
    editor = cls(model, cls.Config(modules=MODULES, **VALUE, **SETTINGS[name]))
    editor.load_covariance(covariances())
    scorer = Scorer(model, edits, [protocol("token_accuracy")])
    before = scorer.score(len(edits))
    parameters = {k: v.clone() for k, v in model.model.state_dict().items()}
    written = generate(model, [e.prompt for e in edits], 4)
    measured = [editor.edit(editor.encode(edits[i : i + 2])) for i in range(0, len(edits), 2)]
    after = scorer.score(len(edits))

    def mean(scores: Any, score: str) -> float:
        return sum(getattr(s, score) for s in scores) / len(scores)

    names = ("efficacy", "generalization", "specificity_self")
    print(name, {n: (mean(before, n), mean(after, n)) for n in names}, measured[-1])
    assert mean(before, "efficacy") < 20
    assert mean(after, "efficacy") > 65
    assert mean(after, "specificity_self") > 65
    if name == "lyaplock":
        assert measured[-1]["preservation_weight_8"] > 1
    if name == "deltaedit":
        assert sum(m["projected_edits"] for m in measured) > 0
    model.weights.restore()
    now = model.model.state_dict()
    assert all(torch.equal(now[k], v) for k, v in parameters.items())
    assert scorer.score(len(edits)) == before
    assert generate(model, [e.prompt for e in edits], 4) == written
