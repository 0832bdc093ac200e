"""Sentences of the real facts as running text: true, complete, and of nothing that is scored."""

from __future__ import annotations

from collections import Counter

from rledit.facts import RELATIONS, RealFacts, sentences
from rledit.facts.relations import put
from rledit.records import SPLITS


def test_they_are_the_train_pools_facts_in_every_phrasing() -> None:
    facts = [fact for probes in (False, True) for fact in RealFacts().pool("train", probes)]
    assert len(sentences()) == sum(len(RELATIONS[fact.relation].phrasings) for fact in facts)
    assert "The chemical symbol of" in " ".join(sentences())
    assert all(text.endswith(".") and "{}" not in text for text in sentences())
    assert sentences() == sentences.__wrapped__()  # drawn anew, in the same order


def test_nothing_that_a_stream_edits_or_asks_is_among_them() -> None:
    """Neither an edit's prompt, in whatever phrasing, nor a locality prompt begins one of them."""
    scored = {
        put(phrasing, fact.named)
        for split in SPLITS
        if split != "train"
        for probes in (False, True)
        for fact in RealFacts().pool(split, probes)
        for phrasing in RELATIONS[fact.relation].phrasings
    }
    assert len(scored) > 4_000
    assert not [text for text in sentences() if _begins_with_one(text, scored)]


def test_the_first_ones_are_a_fair_sample() -> None:
    def relations(texts: tuple[str, ...]) -> Counter[str]:
        words = ("city", "element", "")
        return Counter(next(word for word in words if word in text) for text in texts)

    every, first = relations(sentences()), relations(sentences()[:700])
    assert all(abs(10 * first[name] / every[name] - 1) < 0.2 for name in every)


def _begins_with_one(text: str, prompts: set[str]) -> bool:
    """Whether the first words of a text are one of the prompts."""
    words = text.split(" ")
    return any(" ".join(words[:n]) in prompts for n in range(len(words)))
