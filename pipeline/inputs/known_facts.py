"""A checkpoint's folder asked which of the shipped facts it knows, outside a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from pipeline.inputs.model_loading import load_model
from rledit.facts import Known, known_parts, real_facts
from rledit.model import EditableModel

_TELL_EVERY = 8


def ask_folder(folder: Path, tell: Callable[[str], None]) -> Known:
    """What the model of a folder knows of all facts, asked without a chat template.

    Args:
        folder: The checkpoint.
        tell: Told how far it is.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = EditableModel(load_model(folder, "float32"), tokenizer, ())
    facts = real_facts()
    known: dict[str, Sequence[int]] = {}
    for i, part in enumerate(known_parts(model, facts), start=1):
        known |= part
        if i % _TELL_EVERY == 0:
            tell(f"  asked {len(known):,} of {len(facts):,}")
    return known
