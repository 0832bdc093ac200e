"""The benchmark of generation runs, at a very small size."""

from __future__ import annotations

from rledit.model import EditableModel
from tests.benchmarks.generation import generation_seconds, step_ms
from tests.unit.helpers.text_edits import random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model


def test_both_ways_write_the_same_and_fewer_passes_take_less() -> None:
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), ("down:2",))
    found = generation_seconds(model, [edit.prompt for edit in random_edits(24)], 12)
    assert found["equal"] is True and found["tokens"] > 24
    assert 0 < found["prompts_alone_seconds"] < found["together_seconds"]
    assert found["together_seconds"] < found["by_length_seconds"]
    found = step_ms(model, (1, 8))
    assert found["1"] > found["8"] > 0
