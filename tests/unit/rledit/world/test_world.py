"""The synthetic world: pools, draws and the word-level tokenizer."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from rledit.records import EditSource, Split
from rledit.world import World, WorldConfig, word_tokenizer, world_words
from rledit.world.facts import SPLITS
from rledit.world.schema import RELATIONS, SUBJECT_TYPES, TEMPLATES_PER_RELATION

SMALL = WorldConfig(n_subjects=60, answers_per_relation=8)


@pytest.fixture(scope="module")
def world() -> World:
    """The default world."""
    return World()


@pytest.fixture(scope="module")
def small() -> World:
    """A world of 180 facts."""
    return World(SMALL)


def test_schema_holds_three_relations_per_type_with_six_templates_each() -> None:
    assert Counter(r.subject_type for r in RELATIONS) == dict.fromkeys(SUBJECT_TYPES, 3)
    templates = [t for r in RELATIONS for t in r.templates]
    assert len(set(templates)) == len(RELATIONS) * TEMPLATES_PER_RELATION
    for relation in RELATIONS:
        assert all(t.count("{}") == 1 for t in relation.templates)
        assert all(t.endswith("?") for t in relation.questions)
        assert not any(t.endswith("?") for t in relation.clozes)


def test_default_world_is_large_enough_for_the_longest_stream(world: World) -> None:
    sizes = world.sizes()
    assert len(world.facts) >= 2000
    assert all(sizes[split] >= 400 for split in SPLITS)
    assert sum(sizes[p] for p in (*SPLITS, "locality")) == len(world.facts)
    assert sizes["locality"] == sum(sizes[f"locality_{split}"] for split in SPLITS)
    assert all(len(world.draw(split, 400, seed=0)) == 400 for split in SPLITS)


def test_world_is_an_edit_source(world: World) -> None:
    assert isinstance(world, EditSource)


def test_pools_share_no_subject_and_no_prompt(world: World) -> None:
    pools = [world.pool(p) for p in (*SPLITS, *(f"locality_{split}" for split in SPLITS))]
    for values in (
        [{fact.subject for fact in pool} for pool in pools],
        [{prompt for fact in pool for prompt in fact.trained + fact.held_out} for pool in pools],
    ):
        assert sum(map(len, values)) == len(set().union(*values))


def test_every_pool_holds_every_relation(world: World) -> None:
    for split in SPLITS:
        for pool in (split, f"locality_{split}"):
            counts = Counter(fact.relation for fact in world.pool(pool))
            assert len(counts) == len(RELATIONS)
            assert max(counts.values()) - min(counts.values()) <= 1


def test_names_and_answers_are_one_or_two_words(world: World) -> None:
    subjects = {fact.subject for fact in world.facts}
    assert len(subjects) == world.config.n_subjects
    assert {len(subject.split()) for subject in subjects} == {1, 2}
    assert {len(a.split()) for answers in world.answers.values() for a in answers} == {1, 2}
    assert all(len(set(answers)) == 30 for answers in world.answers.values())


def test_trained_and_held_out_prompts_are_the_six_templates(small: World) -> None:
    templates = {r.name: r.templates for r in RELATIONS}
    for fact in small.facts:
        assert (len(fact.trained), len(fact.held_out)) == (4, 2)
        every = {template.format(fact.subject) for template in templates[fact.relation]}
        assert {*fact.trained, *fact.held_out} == every
    held_out = Counter(
        prompt.replace(fact.subject, "{}") for fact in small.facts for prompt in fact.held_out
    )
    assert len(held_out) == len(RELATIONS) * TEMPLATES_PER_RELATION


@pytest.mark.parametrize("split", SPLITS)
def test_edits_are_counterfactual_and_never_probe_their_own_prompt(
    small: World, split: Split
) -> None:
    facts = {fact.fact_id: fact for fact in small.pool(split)}
    probes = {p: f.answer for f in small.pool(f"locality_{split}") for p in f.trained}
    for edit in small.draw(split, len(facts), seed=3):
        fact = facts.pop(edit.edit_id.split("=")[0])
        assert edit.target != edit.old_target == fact.answer
        assert edit.target in small.answers[fact.relation]
        assert edit.prompt in fact.trained and edit.subject == fact.subject
        assert edit.rephrases == fact.held_out
        assert [probes[probe.prompt] for probe in edit.locality] == [
            probe.answer for probe in edit.locality
        ]
    assert not facts, "a stream of the pool's size edits every fact of it once"


def test_draws_are_prefixes_and_depend_on_the_seed(small: World) -> None:
    long = small.draw("evaluation", 30, seed=1)
    assert small.draw("evaluation", 11, seed=1) == long[:11]
    assert World(SMALL).draw("evaluation", 30, seed=1) == long
    other = small.draw("evaluation", 30, seed=2)
    assert [e.subject for e in other] != [e.subject for e in long]
    targets = {e.edit_id.split("=")[0]: e.target for e in long}
    assert any(targets.get(e.edit_id.split("=")[0], e.target) != e.target for e in other), (
        "another seed draws other answers for the same fact"
    )


def test_locality_probes_are_dealt_evenly(small: World) -> None:
    n = len(small.pool("locality_train"))
    edits = small.draw("train", 2 * n, seed=0)
    by_answer = {p: f.fact_id for f in small.pool("locality_train") for p in f.trained}
    counts = Counter(by_answer[e.locality[0].prompt] for e in edits)
    assert set(counts.values()) == {2} and len(counts) == n


def test_too_long_a_stream_says_how_many_there_are(small: World) -> None:
    held = small.sizes()["validation"]
    with pytest.raises(ValueError, match=f"holds {held} facts"):
        small.draw("validation", held + 1, seed=0)
    with pytest.raises(ValueError, match="no split 'test'"):
        small.draw("test", 1, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no pool 'test'"):
        small.pool("test")


def test_data_hash_is_of_the_content(small: World) -> None:
    assert small.data_hash == World(SMALL).data_hash
    # Written down: a machine, or a version of Python, that gives another has another world.
    assert small.data_hash[:16] == "b44db39e8323c2c1"
    changes = ({"seed": 1}, {"n_subjects": 61}, {"answers_per_relation": 9})
    shares = ({"locality_share": 0.3}, {"validation_share": 0.25}, {"evaluation_share": 0.25})
    others = {
        World(dataclasses.replace(SMALL, **change)).data_hash for change in (*changes, *shares)
    }
    assert len(others | {small.data_hash}) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers_per_relation": 1}, "answers_per_relation is 1"),
        ({"answers_per_relation": 1000}, "answers_per_relation is 1000"),
        ({"locality_share": 0.7}, "sum below 1"),
        ({"validation_share": 0.0}, "above 0"),
        ({"n_subjects": 4}, "none may be empty"),
    ],
)
def test_impossible_worlds_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        World(dataclasses.replace(SMALL, **change))


def test_prompt_and_answer_tokens_are_the_sentence_tokens(small: World) -> None:
    tokenizer = word_tokenizer(world_words(small), add_bos=True)
    for fact in small.facts:
        answer = tokenizer(f" {fact.answer}", add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(answer) == fact.answer.split()
        for prompt in fact.trained + fact.held_out:
            ids = tokenizer(prompt)["input_ids"]
            assert ids[0] == tokenizer.bos_token_id
            assert tokenizer.unk_token_id not in ids
            assert tokenizer(f"{prompt} {fact.answer}")["input_ids"] == ids + answer


def test_bos_only_where_the_family_has_it(small: World) -> None:
    prompt = small.facts[0].trained[0]
    with_bos, without = (
        word_tokenizer(world_words(small), add_bos=add_bos) for add_bos in (True, False)
    )
    bare = without(prompt)["input_ids"]
    assert with_bos(prompt)["input_ids"] == [with_bos.bos_token_id, *bare]
    assert with_bos(prompt, add_special_tokens=False)["input_ids"] == bare
    special = (without.pad_token, without.bos_token, without.eos_token, without.unk_token)
    assert len(set(special)) == 4 and None not in special
