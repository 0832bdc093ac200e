"""Which entry of a memory answers the prompts of a stream, and how long that takes to decide."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rledit.lazy_torch import torch
from rledit.overlay import NONE, Overlay
from rledit.scoring import Question, Questions


def routing(memory: Overlay, asked: Mapping[int, Questions]) -> dict[str, float]:
    """What a memory does with edit, rephrase and locality prompts.

    Every rank of a sharded model makes this call.

    Args:
        memory: The memory.
        asked: The questions of edits, by place in the stream.

    Returns:
        ``routed_edit_right``: edit prompts answered by their own entry, or one of the same target,
        in percent; one that the model knew is right without any. ``routed_edit_wrong``: those
        answered by another entry. ``routed_rephrase_right``, ``_wrong``: the same of rephrases.
        ``routed_locality_wrong``: unrelated prompts answered by any entry. ``route_ms``:
        milliseconds to decide for a prompt whose inputs are known. ``unannounced_prompts``: prompts
        of passes by other libraries so far, decided by their last token. A share of no prompts is
        left out.
    """
    found: dict[str, float] = {}
    if memory.unannounced:
        found["unannounced_prompts"] = float(memory.unannounced)
    kinds: dict[str, list[tuple[int, Question]]] = {"edit": [], "rephrase": [], "locality": []}
    for place, questions in asked.items():
        kinds["edit"].append((place, questions.edit))
        kinds["rephrase"] += [(place, q) for q in questions.equivalent]
        kinds["locality"] += [(place, q) for q in questions.unrelated]
    seconds, prompts = 0.0, 0
    for kind, own in kinds.items():
        if not own:
            continue
        entries, spent = _decided(memory, [q for _, q in own])
        seconds, prompts = seconds + spent, prompts + len(own)
        if kind == "locality":
            found["routed_locality_wrong"] = _percent([e != NONE for e in entries])
            continue
        right = [memory.right(place, e) for (place, _), e in zip(own, entries, strict=True)]
        wrong = [e != NONE and not fine for e, fine in zip(entries, right, strict=True)]
        found[f"routed_{kind}_right"] = _percent(right)
        found[f"routed_{kind}_wrong"] = _percent(wrong)
    if prompts:
        found["route_ms"] = 1000 * seconds / prompts
    return found


def _decided(memory: Overlay, questions: Sequence[Question]) -> tuple[list[int], float]:
    """The entry of each question's prompt, and the seconds that deciding took."""
    entries: list[int] = []
    seconds = 0.0
    for first in range(0, len(questions), _TOGETHER):
        part = questions[first : first + _TOGETHER]
        summaries = memory.summaries([q.sample.prompt for q in part])
        if memory.model.device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        entries += memory.decide(summaries).tolist()
        seconds += time.perf_counter() - began
    return entries, seconds


_TOGETHER = 64


def _percent(shares: Sequence[bool]) -> float:
    return 100 * sum(shares) / len(shares)
