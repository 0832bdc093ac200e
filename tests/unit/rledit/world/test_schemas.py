"""The world written in the schemas of the field's datasets, and read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rledit.datasets import FileEditSource, audit, overlap, read_edits
from rledit.records import Edit
from rledit.world import SCHEMAS, World, WorldConfig, render_schema, schema_edits
from rledit.world.facts import SPLITS

SMALL = WorldConfig(n_subjects=90, answers_per_relation=6)
FORMATS = {"zsre": "zsre_mend"}


def world_for(schema: str) -> World:
    return World(dataclasses.replace(SMALL, claims=SCHEMAS[schema].claims))


def anonymous(edit: Edit) -> Edit:
    """The edit without what a reader names after its own file."""
    return dataclasses.replace(edit, edit_id="", source="")


@pytest.mark.parametrize("schema", SCHEMAS)
def test_readers_read_back_what_was_rendered(schema: str, tmp_path: Path) -> None:
    world = world_for(schema)
    files = render_schema(world, schema, tmp_path)
    assert list(files) == list(SPLITS)
    for split in SPLITS:
        report = read_edits(files[split])
        assert report.format == FORMATS.get(schema, schema)
        expected = schema_edits(world, schema, split)
        assert [anonymous(e) for e in report.edits] == [anonymous(e) for e in expected]
        assert not report.skipped and not report.notes
        assert not audit(report.edits).traps
    assert overlap(*(read_edits(files[s]).edits for s in ("train", "evaluation"))).prompts == 0


@pytest.mark.parametrize("schema", SCHEMAS)
def test_rendered_edits_are_the_worlds_facts(schema: str) -> None:
    world = world_for(schema)
    knows = {prompt: f.answer for f in world.facts for prompt in f.trained + f.held_out}
    for edit in schema_edits(world, schema, "evaluation"):
        old = {knows[prompt] for prompt in (edit.prompt, *edit.rephrases)}
        assert len(old) == 1 and edit.target not in old
        assert edit.old_target in (None, *old)
        assert all(knows[probe.prompt] == probe.answer for probe in edit.locality)
        if schema == "counterfact":
            assert {probe.answer for probe in edit.locality} == old
            assert not edit.prompt.endswith("?") and 0 < len(edit.locality) <= 10
        if schema in ("zsre", "wikibigedit", "ultraeditbench"):
            assert edit.prompt.endswith("?") and edit.locality[0].prompt.endswith("?")


def test_fever_has_no_subject_and_half_of_the_claims_hold(tmp_path: Path) -> None:
    world = world_for("fever")
    edits = read_edits(render_schema(world, "fever", tmp_path)["train"]).edits
    assert all(edit.subject is None and len(edit.rephrases) == 2 for edit in edits)
    assert {(e.old_target, e.target) for e in edits} == {
        ("SUPPORTS", "REFUTES"),
        ("REFUTES", "SUPPORTS"),
    }
    plain = World(SMALL)
    truth = {fact.fact_id: fact.answer for fact in plain.facts}
    for claim in world.facts:
        assert all(
            p.endswith(truth[claim.fact_id]) == (claim.answer == "SUPPORTS")
            for p in claim.trained + claim.held_out
        )


def test_rendering_is_the_same_every_time_and_draws_as_a_file(tmp_path: Path) -> None:
    one = render_schema(World(SMALL), "zsre", tmp_path / "a")
    two = render_schema(World(SMALL), "zsre", tmp_path / "b")
    assert all(one[s].read_bytes() == two[s].read_bytes() for s in SPLITS)
    source = FileEditSource(**one)  # type: ignore[arg-type]
    assert source.sizes() == {s: World(SMALL).sizes()[s] for s in SPLITS}
    assert len(source.draw("evaluation", 20, seed=1)) == 20


def test_a_schema_that_the_world_cannot_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="claims=True"):
        render_schema(World(SMALL), "fever", tmp_path)
    with pytest.raises(ValueError, match="counterfact"):
        render_schema(World(SMALL), "counterfacts", tmp_path)
