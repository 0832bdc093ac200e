"""Shares of right and wrong routes, on a codebook that answers its own prompts and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rledit.editors.grace import GRACE, GRACEConfig
from rledit.measurements.routing import routing
from rledit.model import EditableModel
from rledit.overlay import NONE
from rledit.protocols import protocol
from rledit.records import Edit, Locality
from rledit.scoring import Questions, questions
from tests.unit.helpers.text_edits import random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model

STREAM = [replace(edit, target=f"w{i + 1:02}") for i, edit in enumerate(random_edits(4))]
FAR = [edit.prompt for edit in random_edits(8, seed=7)]


@pytest.fixture(scope="module")
def editor() -> GRACE:
    """Four entries of radius 0."""
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), ("down:2",))
    config = GRACEConfig(modules=("down:2",), radius=0.0, steps=1, only_errors=False)
    made = GRACE(model, config)
    made.edit(made.encode(STREAM))
    assert made.memory.owners == [0, 1, 2, 3]
    found = made.memory.route([made.model.encoder.sample(far, "w01").prompt for far in FAR])
    assert set(found.tolist()) == {NONE}
    return made


def asked(editor: GRACE, edit: Edit, rephrases: list[str], unrelated: list[str]) -> Questions:
    probes = tuple(replace(edit.locality[0], prompt=prompt) for prompt in unrelated)
    assert all(isinstance(probe, Locality) for probe in probes)
    shown = replace(edit, rephrases=tuple(rephrases), locality=probes)
    return questions(editor.model.encoder, shown, [protocol("token_accuracy")])


def test_shares_are_those_of_prompts_by_the_place_of_their_edit(editor: GRACE) -> None:
    """Two edits find their entries, the fourth is asked with the prompt of the second."""
    first, second, third, fourth = STREAM
    found = routing(
        editor.memory,
        {
            1: asked(editor, second, [third.prompt], [first.prompt]),
            2: asked(editor, third, [FAR[0]], [FAR[1]]),
            3: asked(editor, replace(fourth, prompt=second.prompt), [fourth.prompt], [FAR[2]]),
        },
    )
    assert found.pop("route_ms") > 0
    assert found == pytest.approx(
        {
            "routed_edit_right": 200 / 3,
            "routed_edit_wrong": 100 / 3,
            "routed_rephrase_right": 100 / 3,
            "routed_rephrase_wrong": 100 / 3,
            "routed_locality_wrong": 100 / 3,
        }
    )


def test_shares_of_no_prompts_and_passes_nobody_announced(editor: GRACE) -> None:
    found = routing(editor.memory, {0: asked(editor, STREAM[0], [], [])})
    assert found.keys() == {"routed_edit_right", "routed_edit_wrong", "route_ms"}
    ids = editor.model.encoder.sample(STREAM[0].prompt, "w01").prompt[None]
    editor.model.model(input_ids=ids)
    found = routing(editor.memory, {0: asked(editor, STREAM[0], [], [])})
    assert found["unannounced_prompts"] == 1
    assert found.keys() == {
        "routed_edit_right", "routed_edit_wrong", "route_ms", "unannounced_prompts"
    }  # fmt: skip
