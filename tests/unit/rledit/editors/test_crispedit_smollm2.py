"""CrispEdit on a real model, SmolLM2-135M: a few false facts, in both modes, off the text's
curvature."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rledit.editors import CrispEdit
from rledit.editors.crispedit import CrispEditConfig
from rledit.facts.sentences import sentences
from rledit.locate.covariance import CovarianceFingerprint, KeyCovariance
from rledit.locate.flat_directions import flat_directions
from rledit.locate.output_gradients import (
    accumulate_all,
    covariances_of,
    gradients_of,
    width_of,
)
from rledit.model import EditableModel
from rledit.protocols import protocol
from rledit.scoring import Scorer
from tests.unit.rledit.editors.test_memories_smollm2 import facts, smollm2

MODULES = ("down:26-27",)


def moments(model: EditableModel) -> dict[str, KeyCovariance]:
    found = {
        name: KeyCovariance(
            CovarianceFingerprint(model_hash="smollm2", module=name, corpus_hash="shipped"),
            width_of(model, name),
        )
        for name in covariances_of(model.modules, ("output_gradients",))
    }
    texts = [model.encoder.text_ids(text) for text in sentences()[:200]]
    accumulate_all(model, texts, found)
    return found


@pytest.mark.slow
def test_it_edits_a_real_model_along_flat_directions_and_leaves_it_as_it_was() -> None:
    model = EditableModel(*smollm2(), MODULES)
    covariance, edits = moments(model), facts()
    scorer = Scorer(model, edits, [protocol("token_accuracy")])
    original = {name: model.weights.read(name).clone() for name in model.modules}
    before = efficacy(scorer, len(edits))
    for settings in ({"mode": "together"}, {"mode": "sequential"}):
        config: Any = {"energy": 0.9, "lr": 1e-3, "passes": 20, "batch_size": 6, **settings}
        editor = CrispEdit(model, CrispEditConfig(modules=MODULES, **config))
        editor.load_covariance(covariance)
        editor.edit(editor.encode(edits))
        assert efficacy(scorer, len(edits)) > before + 50
        for name, value in original.items():
            a, b = covariance[name].mean().double(), covariance[gradients_of(name)].mean().double()
            flat = flat_directions(a, b, 0.9, name, torch.float64)
            moved = (model.weights.read(name) - value).double()
            assert moved.any() and float((moved - flat(moved)).norm()) < 1e-3 * float(moved.norm())
            curvature = torch.trace(moved @ a @ moved.T @ b)
            assert float(curvature) <= flat.threshold * float(moved.square().sum())
        model.weights.restore()
        assert all(torch.equal(model.weights.read(name), v) for name, v in original.items())
        assert efficacy(scorer, len(edits)) == before


def efficacy(scorer: Scorer, n: int) -> float:
    return sum(score.efficacy or 0.0 for score in scorer.score(n)) / n
