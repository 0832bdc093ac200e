"""The world written as files in the schemas of the field's datasets.

A proxy for a dataset: the readers take these files as they take the real ones, and the world's
models know what they ask for. Every pool becomes a file; all edits of a pool are in it, each with
one new answer, so that a stream is drawn from a file as from the real one.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rledit.names import look_up
from rledit.records import Edit, Locality, Split
from rledit.world.fact import Fact
from rledit.world.facts import SPLITS, World

NEIGHBOURS = 10
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One dataset's way to write an edit down.

    Attributes:
        row: Writes an edit as a row.
        carries: What the schema can say of an edit beside prompt and target; ``texts`` are what
            fluency and consistency need, ``template`` the relation and the place of the subject.
        questions: Whether prompts are questions; None where the dataset has no such habit.
        rephrases: How many rephrases a row holds; None for all.
        claims: Whether the edits are verdicts: the world must be made with ``claims``.
        neighbours: Whether locality prompts are facts of the same answer, as CounterFact's are.
    """

    row: Callable[[int, Edit], dict[str, Any]]
    carries: frozenset[str]
    questions: bool | None = None
    rephrases: int | None = 1
    claims: bool = False
    neighbours: bool = False


def render_schema(world: World, schema: str, folder: Path) -> dict[str, Path]:
    """Write the pools of a world as JSON files.

    Args:
        world: The world.
        schema: A name in `SCHEMAS`.
        folder: Where the files go; made if absent. Files of that name are replaced, each at once.

    Returns:
        The file of each pool: ``train``, ``validation`` and ``evaluation``.

    Raises:
        ValueError: No such schema, or the world does not hold what it asks for.
    """
    written = look_up(SCHEMAS, schema, "schema").row
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for split in SPLITS:
        rows = [
            written(number, edit) for number, edit in enumerate(schema_edits(world, schema, split))
        ]
        files[split] = folder / f"{schema}_{split}.json"
        _replace(files[split], json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return files


def schema_edits(world: World, schema: str, split: Split) -> list[Edit]:
    """The edits of one pool as the schema can say them, in file order.

    CounterFact's neighbours share the edited fact's old answer: facts whose answer no locality
    fact of the pool has are left out. Fewer answers per relation leave out fewer.

    Raises:
        ValueError: No such schema, or the world does not hold what it asks for.
    """
    form = look_up(SCHEMAS, schema, "schema")
    if form.claims != world.config.claims:
        raise ValueError(
            f"schema {schema!r} asks for {'verdicts' if form.claims else 'answers'}; "
            f"make the world with claims={form.claims}"
        )
    facts = {fact.fact_id: fact for fact in world.pool(split)}
    probes = {p: f for f in world.pool(f"locality_{split}") for p in f.trained + f.held_out}
    drawn = world.draw(split, len(facts), _SEED)
    edits = [
        _worded(edit, facts[edit.edit_id.split("=")[0]], probes[edit.locality[0].prompt], form)
        for edit in drawn
    ]
    if form.neighbours:
        known = world.pool(f"locality_{split}")
        edits = [
            replace(edit, locality=_neighbours(facts[edit.edit_id.split("=")[0]], known))
            for edit in edits
        ]
        edits = [edit for edit in edits if edit.locality]
    if not edits:
        raise ValueError(
            f"no fact of the {split} pool has a neighbour with its answer; raise n_subjects or "
            "lower answers_per_relation of the world"
        )
    return [_carried(edit, form) for edit in edits]


def _worded(edit: Edit, fact: Fact, probe: Fact, form: Schema) -> Edit:
    """The edit in the wording the dataset has: questions or statements to complete."""
    if form.questions is None:
        return edit
    return replace(
        edit,
        prompt=_phrased(fact, form.questions),
        locality=(Locality(prompt=_phrased(probe, form.questions), answer=probe.answer),),
    )


def _phrased(fact: Fact, question: bool) -> str:
    """A trained prompt of that kind; four of three questions and three clozes hold one of each."""
    return next(prompt for prompt in fact.trained if prompt.endswith("?") == question)


def _neighbours(fact: Fact, known: tuple[Fact, ...]) -> tuple[Locality, ...]:
    """Statements of facts with the same relation and answer that are never edited."""
    near = [f for f in known if (f.relation, f.answer) == (fact.relation, fact.answer)]
    prompts = [p for kind in zip(*(f.trained for f in near), strict=True) for p in kind]
    statements = [p for p in prompts if not p.endswith("?")][:NEIGHBOURS]
    return tuple(Locality(prompt=prompt, answer=fact.answer) for prompt in statements)


def _carried(edit: Edit, form: Schema) -> Edit:
    return replace(
        edit,
        rephrases=edit.rephrases[: form.rephrases],
        old_target=edit.old_target if "old_target" in form.carries else None,
        subject=edit.subject if "subject" in form.carries else None,
        subject_span=_slot(edit) if "template" in form.carries else None,
        relation=edit.relation if "template" in form.carries else None,
        generation_prompts=edit.generation_prompts if "texts" in form.carries else (),
        reference_key=edit.reference_key if "texts" in form.carries else None,
    )


def _slot(edit: Edit) -> tuple[int, int]:
    """Where the template of an edit's prompt has its slot."""
    assert edit.subject is not None
    start = edit.prompt.index(edit.subject)
    return start, start + len(edit.subject)


def _zsre(_: int, edit: Edit) -> dict[str, Any]:
    probe = edit.locality[0]
    return {
        "subject": edit.subject,
        "src": edit.prompt,
        "pred": edit.old_target,
        "rephrase": edit.rephrases[0],
        "alt": edit.target,
        "answers": [edit.old_target],
        "loc": probe.prompt,
        "loc_ans": probe.answer,
        "cond": f"{edit.old_target} >> {edit.target} || {edit.prompt}",
    }


def _fever(_: int, edit: Edit) -> dict[str, Any]:
    probe = edit.locality[0]
    return {
        "prompt": edit.prompt,
        "equiv_prompt": list(edit.rephrases),
        "ans": edit.old_target,
        "alt": edit.target,
        "unrel_prompt": probe.prompt,
        "unrel_ans": probe.answer,
    }


def _counterfact(number: int, edit: Edit) -> dict[str, Any]:
    assert edit.subject is not None and edit.reference_key is not None
    relation, _, target = edit.reference_key.partition("/")
    return {
        "case_id": number,
        "requested_rewrite": {
            "prompt": edit.prompt.replace(edit.subject, "{}", 1),
            "relation_id": relation,
            "target_new": {"str": edit.target, "id": target},
            "target_true": {"str": edit.old_target},
            "subject": edit.subject,
        },
        "paraphrase_prompts": list(edit.rephrases),
        "neighborhood_prompts": [probe.prompt for probe in edit.locality],
        "attribute_prompts": [],
        "generation_prompts": list(edit.generation_prompts),
    }


def _wikibigedit(_: int, edit: Edit) -> dict[str, Any]:
    probe = edit.locality[0]
    return {
        "tag": "update",
        "subject": edit.subject,
        "update": edit.prompt,
        "rephrase": edit.rephrases[0],
        "ans": edit.target,
        "personas": None,
        "loc": probe.prompt,
        "loc_ans": probe.answer,
        "mhop": None,
        "mhop_ans": None,
    }


def _ultraeditbench(_: int, edit: Edit) -> dict[str, Any]:
    probe = edit.locality[0]
    return {
        "prompt": edit.prompt,
        "ans": edit.target,
        "rephrase_prompt": edit.rephrases[0],
        "loc": probe.prompt,
        "loc_ans": probe.answer,
    }


SCHEMAS: Mapping[str, Schema] = MappingProxyType(
    {
        "zsre": Schema(row=_zsre, carries=frozenset({"old_target", "subject"}), questions=True),
        "fever": Schema(row=_fever, carries=frozenset({"old_target"}), rephrases=None, claims=True),
        "counterfact": Schema(
            row=_counterfact,
            carries=frozenset({"old_target", "subject", "texts", "template"}),
            questions=False,
            rephrases=None,
            neighbours=True,
        ),
        "wikibigedit": Schema(row=_wikibigedit, carries=frozenset({"subject"}), questions=True),
        "ultraeditbench": Schema(row=_ultraeditbench, carries=frozenset(), questions=True),
    }
)


def _replace(path: Path, text: str) -> None:
    """Write a file so that another process sees the old one or the new one, whole."""
    part = path.with_name(f".{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    part.write_text(text, "utf-8")
    os.replace(part, path)
