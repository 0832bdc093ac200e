"""Variants of an edit to train on: other words for the same fact, another fact that must stay.

A pool of a few hundred facts is seen many times in a training. With these variants a network does
not see the same prompts in the same roles again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from rledit.records import Edit


def augmented(edits: Sequence[Edit], seed: str) -> list[Edit]:
    """Each edit in a variant of its own, the same for the same edits and seed.

    In half of them the prompt and one of its rephrases change places. Of several locality prompts
    one comes first, each as likely as the others. A prompt whose subject is to be found in it stays
    where it is, if the rephrase does not have the subject as written.
    """
    rng = random.Random(seed)
    return [_variant(edit, rng) for edit in edits]


def may_stand_first(edit: Edit, rephrase: str) -> bool:
    """Whether a rephrase may take the place of the edit's prompt: its subject has to be in it."""
    return edit.subject is None or edit.subject in rephrase


def _variant(edit: Edit, rng: random.Random) -> Edit:
    swap, rephrase, unrelated = rng.random() < 0.5, rng.random(), rng.random()
    if edit.locality:
        first = int(unrelated * len(edit.locality))
        edit = replace(edit, locality=edit.locality[first:] + edit.locality[:first])
    if not swap or not edit.rephrases:
        return edit
    chosen = int(rephrase * len(edit.rephrases))
    new = edit.rephrases[chosen]
    if not may_stand_first(edit, new):
        return edit
    others = edit.rephrases[:chosen] + edit.rephrases[chosen + 1 :]
    return replace(edit, prompt=new, rephrases=(edit.prompt, *others), subject_span=None)
