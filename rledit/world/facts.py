"""The synthetic world: invented facts in disjoint pools, and counterfactual edits of them.

A fact is trained on four of its relation's six templates, drawn for each fact, and held out on
the other two. Pools are cut between subjects, never within one, and the subjects whose facts probe
locality are cut again, one part per split, so that neither an edited fact nor a locality fact of
one split is seen in another.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, get_args

from rledit.records import Edit, Locality, Split
from rledit.world.auxiliary import (
    downstream_rows,
    downstream_training_data,
    passages,
    text_training_data,
)
from rledit.world.claims import VERDICTS, claimed
from rledit.world.fact import Fact
from rledit.world.names import NameMaker
from rledit.world.schema import (
    COMPANY_SUFFIXES,
    MAX_ANSWERS,
    RELATIONS,
    SUBJECT_TYPES,
    TEMPLATES_PER_RELATION,
    Relation,
)

TRAINED_TEMPLATES = 4
SPLITS: tuple[Split, ...] = get_args(Split)
# Part of the content hash: raised when the same content would give other draws.
DRAW_VERSION = 1
_FIRST_NAMES = 24


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Size and shares of a synthetic world; the training pool takes what the shares leave.

    Attributes:
        seed: Seed of names, facts, template choices and pools.
        n_subjects: Number of subjects; each has three facts.
        answers_per_relation: Size of each relation's set of possible answers.
        validation_share: Share of the subjects in the validation pool.
        evaluation_share: Share of the subjects in the evaluation pool.
        locality_share: Share of the subjects that are never edited, split in three parts.
        claims: Ask for verdicts on statements (see `rledit.world.claims`) instead of answers.
        lessons: Teach running text and the downstream tasks too (see
            `rledit.world.auxiliary`), so that perplexity, consistency and ability can be measured.
    """

    seed: int = 0
    n_subjects: int = 700
    answers_per_relation: int = 30
    validation_share: float = 0.195
    evaluation_share: float = 0.195
    locality_share: float = 0.27
    claims: bool = False
    lessons: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.answers_per_relation <= MAX_ANSWERS:
            raise ValueError(
                f"answers_per_relation is {self.answers_per_relation}; it must lie between 2 "
                f"(an edit needs another answer) and {MAX_ANSWERS} (the word lists end there)"
            )
        shares = (self.validation_share, self.evaluation_share, self.locality_share)
        if min(shares) <= 0 or sum(shares) >= 1:
            raise ValueError(
                f"validation, evaluation and locality shares are {shares}; each must be above 0 "
                "and their sum below 1, for the training pool takes the rest"
            )


class World:
    """A world of invented facts; an `EditSource`.

    Args:
        config: Its size and shares.

    Attributes:
        config: The same.
        facts: All facts, ordered by subject.
        truths: The same as statements of what is true, also where the facts are claims.
        answers: Possible answers of each relation, by the relation's name.

    Raises:
        ValueError: The shares leave a pool, or a part of the locality pool, without a subject.
    """

    name = "world"

    def __init__(self, config: WorldConfig | None = None) -> None:
        self.config = config or WorldConfig()
        rng = random.Random(f"world/{self.config.seed}")
        reserved = {w for r in RELATIONS for t in r.templates for w in t.strip("?").split()}
        reserved |= {w for r in RELATIONS for words in r.words for w in words}
        names = NameMaker(rng, reserved | set(COMPANY_SUFFIXES))
        self.answers = {r.name: self._answers(r, names, rng) for r in RELATIONS}
        first_names = names.coin_many(_FIRST_NAMES)
        subjects = [
            (subject_type, f"{subject_type}-{index // len(SUBJECT_TYPES)}")
            for index in range(self.config.n_subjects)
            for subject_type in (SUBJECT_TYPES[index % len(SUBJECT_TYPES)],)
        ]
        by_subject = {
            subject_id: tuple(
                self._fact(relation, subject_id, name, rng)
                for relation in RELATIONS
                if relation.subject_type == subject_type
            )
            for subject_type, subject_id in subjects
            for name in (_subject_name(subject_type, names, first_names, rng),)
        }
        self.truths = tuple(fact for facts in by_subject.values() for fact in facts)
        if self.config.claims:
            by_subject = claimed(by_subject, self.answers, self.config.seed)
            self.answers = dict.fromkeys(self.answers, VERDICTS)
        self.facts = tuple(fact for facts in by_subject.values() for fact in facts)
        self._pools = {
            pool: tuple(fact for subject_id in members for fact in by_subject[subject_id])
            for pool, members in self._partition([s for _, s in subjects], rng).items()
        }

    def _answers(self, relation: Relation, names: NameMaker, rng: random.Random) -> tuple[str, ...]:
        n = self.config.answers_per_relation
        if relation.words:
            return tuple(rng.sample(relation.word_answers, n))
        return names.coin_many(n)

    def _fact(self, relation: Relation, subject_id: str, name: str, rng: random.Random) -> Fact:
        order = rng.sample(range(TEMPLATES_PER_RELATION), TEMPLATES_PER_RELATION)
        prompts = tuple(relation.templates[index].format(name) for index in order)
        return Fact(
            fact_id=f"{subject_id}/{relation.name}",
            subject=name,
            relation=relation.name,
            answer=rng.choice(self.answers[relation.name]),
            trained=prompts[:TRAINED_TEMPLATES],
            held_out=prompts[TRAINED_TEMPLATES:],
        )

    def _partition(self, subject_ids: list[str], rng: random.Random) -> dict[str, list[str]]:
        """Subject ids of each pool; ``locality_{split}`` are the parts of the locality pool."""
        n_types, n = len(SUBJECT_TYPES), len(subject_ids)
        # Subject types alternate, and shuffling within each keeps it so: every pool, being a
        # slice, holds the types in equal shares.
        order = list(subject_ids)
        for offset in range(n_types):
            of_type = order[offset::n_types]
            rng.shuffle(of_type)
            order[offset::n_types] = of_type
        part = round(n * self.config.locality_share / len(SPLITS))
        sizes = {f"locality_{split}": part for split in SPLITS}
        sizes["validation"] = round(n * self.config.validation_share)
        sizes["evaluation"] = round(n * self.config.evaluation_share)
        sizes["train"] = n - sum(sizes.values())
        if min(sizes.values()) < 1:
            raise ValueError(
                f"{n} subjects give pools of {sizes} subjects; none may be empty: "
                "raise n_subjects or the share"
            )
        members = iter(order)
        return {pool: [next(members) for _ in range(size)] for pool, size in sizes.items()}

    def pool(self, name: str) -> tuple[Fact, ...]:
        """Facts of a pool: a split, ``locality_{split}``, or ``locality`` for all its parts.

        Raises:
            ValueError: No pool has that name.
        """
        if name == "locality":
            return tuple(f for split in SPLITS for f in self._pools[f"locality_{split}"])
        if name not in self._pools:
            raise ValueError(f"no pool {name!r}; there are {['locality', *self._pools]}")
        return self._pools[name]

    def sizes(self) -> dict[str, int]:
        """Number of facts per pool; ``locality`` is the sum of the ``locality_{split}`` parts."""
        names = (*SPLITS, "locality", *(f"locality_{split}" for split in SPLITS))
        return {name: len(self.pool(name)) for name in names}

    @cached_property
    def lessons(self) -> tuple[tuple[str, str], ...]:
        """What is taught beside the facts, as prompts with their continuations.

        An ability item is shown as often as a fact, which each of its training prompts shows once.
        """
        return tuple(
            example
            for lessons, times in (
                (text_training_data(self.truths), 1),
                (downstream_training_data(self.downstream_items), TRAINED_TEMPLATES),
            )
            for example in lessons
            for _ in range(times)
        )

    @cached_property
    def downstream_items(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of the six tasks of `measurements.downstream`, about facts that are never edited."""
        unedited = {fact.fact_id for fact in self.pool("locality")}
        return downstream_rows([f for f in self.truths if f.fact_id in unedited], self.config.seed)

    @cached_property
    def unedited_texts(self) -> tuple[str, ...]:
        """Running text about the subjects that are never edited."""
        unedited = {fact.subject for fact in self.pool("locality")}
        return tuple(text for subject, text in passages(self.truths) if subject in unedited)

    @cached_property
    def references(self) -> dict[str, tuple[str, ...]]:
        """By ``relation/answer``: the running texts about the subjects of which it is true."""
        texts = dict(passages(self.truths))
        found: dict[str, list[str]] = {}
        for fact in self.truths:
            found.setdefault(f"{fact.relation}/{fact.answer}", []).append(texts[fact.subject])
        return {key: tuple(texts) for key, texts in sorted(found.items())}

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 (hex) of everything a draw depends on: facts, templates, answers, pools."""
        content = {
            "draw_version": DRAW_VERSION,
            "seed": self.config.seed,
            "facts": [asdict(fact) for fact in self.facts],
            "answers": self.answers,
            "pools": {
                pool: [fact.fact_id for fact in facts] for pool, facts in self._pools.items()
            },
        }
        if self.config.lessons:
            content["lessons"] = self.lessons
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def draw(self, split: Split, n: int, seed: int) -> list[Edit]:
        """A stream of `n` edits to fresh counterfactual answers, no fact twice.

        Each edit asks for its fact by a template the model was trained on; its rephrases are the
        fact's held-out prompts; its one locality probe is a fact of the split's own part of the
        locality pool. Those are dealt in shuffled rounds, so that all are used before one returns.
        A shorter draw is a prefix of a longer one of the same seed.

        Args:
            split: The pool to edit.
            n: Length of the stream.
            seed: Another seed gives another order, other prompts and other answers.

        Raises:
            ValueError: There is no such split, or it holds fewer than `n` facts.
        """
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are {SPLITS}")
        pool = self._pools[split]
        if not 0 <= n <= len(pool):
            raise ValueError(
                f"a stream of {n} edits was asked of the {split} pool, which holds {len(pool)} "
                "facts; ask for fewer, or raise n_subjects of the world"
            )
        rng = random.Random(f"draw/{self.config.seed}/{split}/{seed}")
        order = rng.sample(pool, len(pool))
        probes = _rounds(self._pools[f"locality_{split}"], rng)
        return [self._edit(fact, next(probes), rng) for fact in order[:n]]

    def _edit(self, fact: Fact, probe: Fact, rng: random.Random) -> Edit:
        target = rng.choice([a for a in self.answers[fact.relation] if a != fact.answer])
        return Edit(
            edit_id=f"{fact.fact_id}={target.replace(' ', '_')}",
            prompt=rng.choice(fact.trained),
            target=target,
            rephrases=fact.held_out,
            locality=(Locality(prompt=rng.choice(probe.trained), answer=probe.answer),),
            old_target=fact.answer,
            subject=fact.subject,
            relation=fact.relation,
            source=f"world {self.config.seed}: {fact.fact_id}",
            generation_prompts=tuple(p for p in fact.trained if not p.endswith("?")),
            reference_key=f"{fact.relation}/{target}",
        )


def _subject_name(
    subject_type: str, names: NameMaker, first_names: tuple[str, ...], rng: random.Random
) -> str:
    """One token for a city; two, the second or the first of them shared, for the others."""
    if subject_type == "person":
        return f"{rng.choice(first_names)} {names.coin()}"
    if subject_type == "company":
        return f"{names.coin()} {rng.choice(COMPANY_SUFFIXES)}"
    return names.coin()


def _rounds(facts: tuple[Fact, ...], rng: random.Random) -> Iterator[Fact]:
    """Every fact once in random order, then every fact again in another order, for ever."""
    while True:
        yield from rng.sample(facts, len(facts))
