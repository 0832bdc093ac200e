"""Edits of real facts: pools, targets, probes, chains."""

from __future__ import annotations

from collections import defaultdict

import pytest

from rledit.facts import FEWEST_KNOWN, RealFacts, real_facts, untrue
from rledit.records import SPLITS, Edit, EditSource, Split
from rledit.superseded import Facts, Standing

DATA_HASH = "c7f78bc3a06e992f940c91dc299399ca907d882c061b187f4a13d9d694899252"
FACTS = {fact.fact_id: fact for fact in real_facts()}


def whole(split: Split, source: RealFacts | None = None, seed: int = 0) -> list[Edit]:
    source = source or RealFacts()
    return source.draw(split, source.sizes()[split], seed=seed)


def fact_of(edit: Edit) -> str:
    return f"{edit.relation}/{edit.subject}"


def half_known() -> dict[str, list[int]]:
    """Every other fact is known, in one of its phrasings."""
    asked = RealFacts().to_ask()
    return {fact.fact_id: [i // 2 % 2] if i % 2 else [] for i, fact in enumerate(asked)}


def test_it_is_a_source_of_edits_whose_content_is_pinned() -> None:
    source = RealFacts()
    assert isinstance(source, EditSource)
    # What a cell is known by: a change makes other cells, and is to be meant.
    assert source.data_hash == DATA_HASH


def test_pools_are_large_enough_for_their_streams() -> None:
    sizes = RealFacts().sizes()
    assert sizes["evaluation"] >= 400
    assert sizes["validation"] >= 200
    assert sizes["train"] >= 1000


def test_no_subject_and_no_group_is_in_two_pools() -> None:
    source = RealFacts()
    places = defaultdict(set)
    for split in SPLITS:
        for probes in (False, True):
            for fact in source.pool(split, probes):
                places["subject", fact.subject].add((split, probes))
                places["group", fact.group].add((split, probes))
    assert {key: found for key, found in places.items() if len(found) > 1} == {}
    assert sum(len(source.pool(s, p)) for s in SPLITS for p in (False, True)) == len(FACTS)


def test_a_country_and_its_capital_are_in_one_pool() -> None:
    source = RealFacts()
    pool = {f.fact_id: (s, p) for s in SPLITS for p in (False, True) for f in source.pool(s, p)}
    pairs = [
        (pool[f.fact_id], pool[f"city_country/{f.answer}"])
        for f in real_facts()
        if f.relation == "country_capital" and f"city_country/{f.answer}" in pool
    ]
    assert len(pairs) > 50
    assert all(one == other for one, other in pairs)


@pytest.mark.parametrize("split", SPLITS)
def test_locality_asks_the_same_pools_facts_that_are_never_edited(split: Split) -> None:
    source = RealFacts()
    prompts = {edit.prompt for edit in whole(split)}
    answers = defaultdict(set)
    for fact in source.pool(split, probes=True):
        answers[fact.answer].add(fact.subject)
    for edit in whole(split):
        assert 1 <= len(edit.locality) <= 2
        for probe in edit.locality:
            assert probe.prompt not in prompts
            assert any(subject in probe.prompt for subject in answers[probe.answer])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_target_is_a_true_answer(split: Split, seed: int) -> None:
    for edit in whole(split, seed=seed):
        fact = FACTS[fact_of(edit)]
        assert edit.old_target == fact.answer
        assert edit.target not in untrue(fact)
        assert edit.target in {f.answer for f in real_facts() if f.relation == fact.relation}
        assert edit.subject is not None and edit.subject in edit.prompt
        assert len(edit.rephrases) >= 3 and edit.prompt not in edit.rephrases


def test_a_stream_edits_no_fact_twice_and_supersedes_nothing() -> None:
    edits = whole("evaluation")
    assert len({fact_of(edit) for edit in edits}) == len(edits)
    standing = Standing(Facts(edits), len(edits))
    assert not any(standing.edit(i) for i in range(len(edits)))
    assert not any(standing.locality(p.prompt) for edit in edits for p in edit.locality)


def test_a_shorter_draw_begins_a_longer_one_and_seeds_differ() -> None:
    source = RealFacts()
    longer = source.draw("train", 300, seed=4)
    assert RealFacts().draw("train", 120, seed=4) == longer[:120]
    other = source.draw("train", 300, seed=5)
    assert [e.prompt for e in other] != [e.prompt for e in longer]
    shared = {fact_of(e): e.target for e in longer}
    targets = [(e.target, shared[fact_of(e)]) for e in other if fact_of(e) in shared]
    assert sum(a != b for a, b in targets) > len(targets) / 2


def test_more_than_the_pool_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="5000 edits was asked of the train pool, which holds"):
        RealFacts().draw("train", 5000, seed=0)


def test_what_a_model_knows_changes_the_probes_alone() -> None:
    known = half_known()
    before = whole("evaluation")
    source = RealFacts().knowing(known)
    after = whole("evaluation", source)
    assert source.data_hash == RealFacts().data_hash
    for one, other in zip(before, after, strict=True):
        for name in ("edit_id", "prompt", "target", "rephrases", "old_target"):
            assert getattr(one, name) == getattr(other, name)
        assert set(other.consequences) <= set(one.consequences)
    assert source.sizes()["locality_evaluation"] < RealFacts().sizes()["locality_evaluation"]
    asked = {probe.prompt for edit in after for probe in edit.locality}
    unknown = [f for f in source.pool("evaluation", True) if not known[f.fact_id]]
    capitals = [f for f in unknown if f.relation == "country_capital"]
    assert not asked & {f"The capital of {f.named} is the city of" for f in capitals}


def test_a_locality_prompt_is_a_phrasing_in_which_the_fact_is_known() -> None:
    known = {fact.fact_id: [1] for fact in RealFacts().to_ask()}
    prompts = {p.prompt for e in whole("train", RealFacts(known=known)) for p in e.locality}
    assert any(prompt.startswith("The seat of government of ") for prompt in prompts)
    assert not any(prompt.startswith("The capital of ") for prompt in prompts)


def test_a_model_that_knows_too_little_is_asked_everything_and_that_is_said() -> None:
    few: dict[str, list[int]] = {f.fact_id: [] for f in RealFacts().to_ask()}
    cities = [f for f in RealFacts().pool("train", True) if f.relation.startswith("city_")]
    for fact in cities[:FEWEST_KNOWN]:
        few[fact.fact_id] = [0]
    source = RealFacts(known=few)
    assert source.sizes()["locality_train"] == FEWEST_KNOWN
    assert source.sizes()["locality_evaluation"] == RealFacts().sizes()["locality_evaluation"]
    assert set(source.unknowing) == {"validation", "evaluation"}
    assert "knows 0 of the" in source.unknowing["evaluation"]
    assert all(edit.locality for edit in whole("evaluation", source))
    # No chain can be followed by a model that does not know its last fact.
    assert not any(edit.consequences for edit in whole("evaluation", source))


def test_chains_lead_to_facts_of_the_new_country_that_differ_from_the_old_ones() -> None:
    edits = [e for e in whole("evaluation") if e.relation == "city_country"]
    assert sum(bool(e.consequences) for e in edits) > len(edits) / 2
    for edit in edits:
        country = edit.target.removeprefix("the ")
        for item in edit.consequences:
            link = FACTS[f"country_{item.kind}/{country}"]
            assert item.answers == (link.answer,)
            assert edit.subject is not None and edit.subject in item.prompt
            assert country not in item.prompt
            old = FACTS.get(f"country_{item.kind}/{(edit.old_target or '').removeprefix('the ')}")
            assert old is None or old.answer != link.answer
            assert item.premises[0].subject == country
