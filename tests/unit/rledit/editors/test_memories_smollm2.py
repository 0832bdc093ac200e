"""The editors with a memory on a real model, SmolLM2-135M: a few false facts of our own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.config.presets import PRESETS
from pipeline.inputs.checkpoints import fetch_whole
from pipeline.inputs.model_loading import load_model
from rledit.decoding import generate
from rledit.editors import editor_class
from rledit.editors.overlay_editor import OverlayEditor
from rledit.measurements.routing import routing
from rledit.model import EditableModel
from rledit.prompt_inputs import PromptInputs
from rledit.protocols import protocol
from rledit.records import Edit, Locality
from rledit.scoring import Scorer
from rledit.tokenization import EditBatch

LAYER = 20
TEMPLATES = ("It is well known: {}", "Here is a fact. {}")
SETTINGS: dict[str, dict[str, Any]] = {
    "grace": {"radius": 5.0, "steps": 50, "lr": 0.5},
    "wise": {"steps": 15, "lr": 1.0, "alpha": 0.5, "beta": 2.0, "gamma": 1.0, "ratio": 0.7,
             "contexts": TEMPLATES},
    "memoir": {"steps": 15, "overlap": 0.5, "contexts": TEMPLATES},
}  # fmt: skip
# Prompt, rephrase, new answer; unrelated prompt and its answer.
FACTS = (
    ("The capital of France is the city of", "France has its capital in the city of", "Oslo",
     "The largest planet of the solar system is", "Jupiter"),
    ("The Eiffel Tower stands in the city of", "The place of the Eiffel Tower is the city of",
     "Rome", "The author of Hamlet is William", "Shakespeare"),
    ("The official language of Brazil is", "People in Brazil officially speak", "Finnish",
     "Water is made of hydrogen and", "oxygen"),
    ("The currency of Japan is the", "In Japan people pay with the", "dollar",
     "The first president of the United States was George", "Washington"),
    ("Mount Everest lies on the continent of", "Everest is a mountain of the continent of",
     "Africa", "The opposite of hot is", "cold"),
    ("Albert Einstein was born in the country of", "The country of Einstein's birth is", "Canada",
     "The sun rises in the", "east"),
)  # fmt: skip


def facts() -> list[Edit]:
    return [
        Edit(
            edit_id=str(i), prompt=prompt, target=target, rephrases=(rephrase,),
            locality=(Locality(prompt=other, answer=answer),), source=f"own:{i}",
        )
        for i, (prompt, rephrase, target, other, answer) in enumerate(FACTS)
    ]  # fmt: skip


@lru_cache(maxsize=1)
def smollm2() -> tuple[Any, Any]:
    folder = fetch_whole(PRESETS["smollm2-135m"].checkpoint)
    return load_model(folder, torch.float32), AutoTokenizer.from_pretrained(folder)


def drawn(model: EditableModel, n: int, seed: int) -> Sequence[EditBatch]:
    """Unrelated prompts: about other things than the edits and their locality prompts."""
    kinds = ("rivers", "birds", "bread", "chess", "glass", "winter", "bridges", "horses")
    texts = [f"What people like about {kinds[(seed + i) % 8]} {seed} is" for i in range(4)]
    edits = [
        Edit(edit_id=t, prompt=t, target="that", locality=(Locality(prompt=t, answer="that"),))
        for t in texts
    ]
    return [model.encoder.batch(edits, 4)] * n


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_memory_edits_a_real_model_and_leaves_it_as_it_was(name: str) -> None:
    modules = (f"down:{LAYER}",)
    model = EditableModel(*smollm2(), modules)
    edits = facts()
    cls = editor_class(name)
    editor = cls(model, cls.Config(modules=modules, **SETTINGS[name]))
    assert isinstance(editor, OverlayEditor)
    if "training_data" in editor.needs:
        editor.load_training_data(lambda n, seed: drawn(model, n, seed))
    scorer = Scorer(model, edits, [protocol("token_accuracy")])
    before = scorer.score(len(edits))
    written = generate(model, [e.prompt for e in edits], 4)
    for first in range(0, len(edits), 3):
        editor.edit(editor.encode(edits[first : first + 3]))
    after = scorer.score(len(edits))
    found = routing(editor.memory, dict(enumerate(scorer.asked(len(edits)))))

    def mean(scores: Any, score: str) -> float:
        return sum(getattr(s, score) for s in scores) / len(scores)

    names = ("efficacy", "generalization", "specificity_self")
    print(name, {n: (mean(before, n), mean(after, n)) for n in names}, found)
    assert mean(before, "efficacy") < 20
    assert mean(after, "efficacy") > 90
    assert mean(after, "specificity_self") > 80
    assert found["routed_edit_right"] > 80
    now = generate(model, [e.prompt for e in edits], 4)
    assert sum(e.target in text for e, text in zip(edits, now, strict=True)) >= 5
    model.weights.restore()
    assert scorer.score(len(edits)) == before
    assert generate(model, [e.prompt for e in edits], 4) == written


@pytest.mark.slow
def test_the_first_token_says_nothing_of_itself_without_bos_either() -> None:
    """Why MEMOIR's `paper` leaves it out of a prompt's mean whoever wrote it: its inputs of the
    linear are one small vector, whatever the token is, and would weigh 1/T in the mean."""
    modules = (f"down:{LAYER}",)
    model = EditableModel(*smollm2(), modules)
    assert not model.encoder.lead
    texts = [text.removeprefix("The ") for fact in FACTS for text in (fact[0], fact[3])]
    prompts = [torch.tensor(model.encoder.prompt_ids(text)) for text in texts]
    assert len({int(ids[0]) for ids in prompts}) > 8
    found = dict(PromptInputs(model, model.modules[0]).of(prompts))
    first = torch.stack([found[i][0] for i in range(len(prompts))])
    others = torch.cat([found[i][1:] for i in range(len(prompts))])

    def alike(rows: torch.Tensor) -> float:
        unit = torch.nn.functional.normalize(rows, dim=1)
        n = len(rows)
        return float(((unit @ unit.T).sum() - n) / (n * (n - 1)))

    size = float(others.norm(dim=1).mean() / first.norm(dim=1).mean())
    print(alike(first), alike(others), size)
    assert alike(first) > 0.99 and alike(others) < 0.5 and size > 10
