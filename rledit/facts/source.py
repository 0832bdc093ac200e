"""Edits of real facts in three pools that share no subject, locality cut from what a model knows.

Which facts are edited, and to what, does not depend on a model: a counterfactual edit is one
whether or not the old answer was known. So pools and streams are known before a model is asked.
What it knows (`rledit.facts.knowledge`) decides only which facts probe locality, and which chains
of facts probe portability.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import accumulate

from rledit.datasets.cut import digest
from rledit.facts.relations import ASKED, RELATIONS, put
from rledit.facts.table import RealFact, real_facts
from rledit.records import SPLITS, Consequence, Edit, Locality, Premise, Split

Known = Mapping[str, Sequence[int]]
"""By a fact's id: in which of the asked statements a model gives its answer."""

SHARES: Mapping[Split, float] = {"train": 0.58, "validation": 0.15, "evaluation": 0.27}
PROBE_SHARES: Mapping[Split, float] = {"train": 0.24, "validation": 0.34, "evaluation": 0.32}
"""Share of a pool's facts whose subjects are never edited, so that they may probe locality."""
FEWEST_KNOWN = 20
"""Known facts of a pool with which it can probe locality; with fewer, it takes unknown ones too."""
# Part of the content hash: raised when the same content would give other draws.
DRAW_VERSION = 1


class RealFacts:
    """The real facts as a source of edits; an `EditSource`.

    Args:
        name: Name of the dataset in results.
        known: What the unedited model knows; None: it was not asked, all facts count as known.

    Attributes:
        name: Name of the dataset.
        data_hash: sha256 of all that a draw depends on beside what a model knows.
    """

    def __init__(self, name: str = "real_facts", known: Known | None = None) -> None:
        self.name = name
        self.data_hash = _data_hash()
        self._known = known
        self._pools = _pools()
        self._probes = {split: self._known_of(self._pools[split, True]) for split in SPLITS}

    def knowing(self, known: Known) -> RealFacts:
        """The same edits, locality and portability cut from what a model knows."""
        return RealFacts(self.name, known)

    def sizes(self) -> dict[str, int]:
        """Facts that are edited per pool, and ``locality_{split}``: those that probe locality."""
        found = {str(split): len(self._pools[split, False]) for split in SPLITS}
        return found | {f"locality_{split}": len(self._probes[split]) for split in SPLITS}

    def to_ask(self) -> tuple[RealFact, ...]:
        """The facts whose knowledge the probes depend on."""
        probes = {fact.fact_id: fact for split in SPLITS for fact in self._pools[split, True]}
        links = {fact.fact_id: fact for own in _links().values() for fact in own}
        return tuple(fact for _, fact in sorted((probes | links).items()))

    @property
    def unknowing(self) -> dict[str, str]:
        """Pools whose locality probes are not known facts only → why."""
        if self._known is None:
            return {}
        return {
            split: f"the unedited model knows {n} of the {len(self._pools[split, True])} facts "
            f"that may probe locality, fewer than {FEWEST_KNOWN}: all are asked"
            for split in SPLITS
            if (n := self._count(self._pools[split, True])) < FEWEST_KNOWN
        }

    @property
    def known_counts(self) -> dict[str, list[int]]:
        """Known and asked facts by relation."""
        return known_counts(self._known or {})

    def pool(self, split: Split, probes: bool = False) -> tuple[RealFact, ...]:
        """The facts of a pool that are edited, or that may probe locality."""
        return self._pools[split, probes]

    def draw(self, split: Split, n: int, seed: int) -> list[Edit]:
        """A stream of `n` edits to other answers of the same relation, no fact twice.

        An edit's prompt is one of its relation's statements, its rephrases are all other phrasings.
        Its first locality prompt is a fact of whatever relation, dealt in shuffled rounds, so that
        all are used before one returns; the second one of its own relation, where there is one. A
        shorter draw is a prefix of a longer one of the same seed.

        Raises:
            ValueError: There is no such split, or it holds fewer than `n` facts.
        """
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are {SPLITS}")
        pool = self._pools[split, False]
        if not 0 <= n <= len(pool):
            raise ValueError(
                f"{self.name}: a stream of {n} edits was asked of the {split} pool, which holds "
                f"{len(pool)} real facts; ask for fewer"
            )
        order = random.Random(f"facts/{split}/{seed}").sample(pool, len(pool))
        lots = random.Random(f"locality/{split}/{seed}")
        dealt = _rounds(self._probes[split], lots)
        return [self._edit(fact, split, seed, next(dealt), lots) for fact in order[:n]]

    def _edit(
        self, fact: RealFact, split: Split, seed: int, probe: RealFact, lots: random.Random
    ) -> Edit:
        # Of its own, so that no edit depends on what a model knows.
        rng = random.Random(f"edit/{split}/{seed}/{fact.fact_id}")
        relation = RELATIONS[fact.relation]
        target = rng.choice([a for a in _answers(fact.relation) if a not in untrue(fact)])
        prompts = [put(phrasing, fact.named) for phrasing in relation.phrasings]
        prompt = rng.choice(prompts[: len(relation.statements)])
        rephrases = [text for text in prompts if text != prompt]
        alike = [f for f in self._probes[split] if f.relation == fact.relation and f != probe]
        probes = [probe, *([lots.choice(alike)] if alike else [])]
        return Edit(
            edit_id=f"{fact.fact_id}={target}".replace(" ", "_"),
            prompt=prompt,
            target=target,
            rephrases=tuple(rng.sample(rephrases, len(rephrases))),
            locality=tuple(self._locality(item, lots) for item in probes),
            old_target=fact.answer,
            subject=fact.subject,
            relation=fact.relation,
            source=f"real facts: {fact.fact_id}",
            generation_prompts=tuple(prompts[: len(relation.statements)]),
            consequences=tuple(self._chains(fact, target)),
        )

    def _locality(self, fact: RealFact, lots: random.Random) -> Locality:
        statements = RELATIONS[fact.relation].statements[:ASKED]
        right = None if self._known is None else self._known.get(fact.fact_id)
        phrasing = statements[lots.choice(list(right or range(ASKED)))]
        return Locality(prompt=put(phrasing, fact.named), answer=fact.answer)

    def _chains(self, fact: RealFact, target: str) -> Iterator[Consequence]:
        """Questions about the country that a city is moved to, as far as their answer changes."""
        if fact.relation != "city_country":
            return
        before = {link.relation: link.answer for link in _links().get(_plain(fact.answer), ())}
        for link in self._known_of(_links().get(_plain(target), ()), fewest=0):
            relation = RELATIONS[link.relation]
            if relation.chain is None or before.get(link.relation) in (link.answer, *link.also):
                continue
            yield Consequence(
                kind=link.relation.removeprefix("country_"),
                prompt=put(relation.chain, fact.named),
                answers=(link.answer,),
                premises=(
                    Premise(
                        answers=(link.answer,),
                        prompts=tuple(put(text, link.named) for text in relation.phrasings),
                        subject=link.subject,
                        relation=link.relation,
                    ),
                ),
            )

    def _count(self, facts: Sequence[RealFact]) -> int:
        return sum(bool((self._known or {}).get(fact.fact_id)) for fact in facts)

    def _known_of(
        self, facts: Sequence[RealFact], fewest: int = FEWEST_KNOWN
    ) -> tuple[RealFact, ...]:
        """Those of some facts that are known; all of them, where nobody was asked or few are."""
        if self._known is None or self._count(facts) < fewest:
            return tuple(facts)
        return tuple(fact for fact in facts if self._known.get(fact.fact_id))


def known_counts(known: Known) -> dict[str, list[int]]:
    """Known and asked facts by relation, in the order of `RELATIONS`."""
    relations = {fact.fact_id: fact.relation for fact in real_facts()}
    asked = Counter(relations[name] for name in known)
    right = Counter(relations[name] for name, places in known.items() if places)
    return {name: [right[name], asked[name]] for name in RELATIONS if asked[name]}


def untrue(fact: RealFact) -> frozenset[str]:
    """Answers that an edit of a fact must not write: the true one, and those taken for true."""
    return frozenset((fact.answer, *fact.also))


def _plain(country: str) -> str:
    return country.removeprefix("the ")


@lru_cache(maxsize=16)
def _answers(relation: str) -> tuple[str, ...]:
    return tuple(sorted({fact.answer for fact in real_facts() if fact.relation == relation}))


@lru_cache(maxsize=1)
def _links() -> Mapping[str, tuple[RealFact, ...]]:
    """Facts of countries that a chain may end in, by country."""
    found: dict[str, list[RealFact]] = defaultdict(list)
    for fact in real_facts():
        if RELATIONS[fact.relation].chain is not None:
            found[fact.subject].append(fact)
    return {country: tuple(facts) for country, facts in found.items()}


@lru_cache(maxsize=1)
def _pools() -> Mapping[tuple[Split, bool], tuple[RealFact, ...]]:
    """Facts by pool, and by whether they may probe locality; all facts of a group in one place.

    Countries, cities and elements are cut each for itself, so that every pool has a like share of
    them.
    """
    kinds: dict[str, dict[str, list[RealFact]]] = defaultdict(lambda: defaultdict(list))
    for fact in real_facts():
        kinds[_kind(fact)][fact.group].append(fact)
    shares = {
        (split, probes): share * (PROBE_SHARES[split] if probes else 1 - PROBE_SHARES[split])
        for split, share in SHARES.items()
        for probes in (False, True)
    }
    pools: dict[tuple[Split, bool], list[RealFact]] = {place: [] for place in shares}
    for groups in kinds.values():
        total = sum(len(group) for group in groups.values())
        ends = [total * end for end in accumulate(shares.values())]
        passed = 0
        for name in sorted(groups, key=lambda group: digest(["real facts", group])):
            place = list(shares)[min(bisect_right(ends, passed), len(ends) - 1)]
            pools[place] += groups[name]
            passed += len(groups[name])
    return {place: tuple(facts) for place, facts in pools.items()}


def _kind(fact: RealFact) -> str:
    """What a group of subjects is: a city by itself, else a country with its capital, an element.

    A capital's own facts are in its country's group.
    """
    if fact.group.startswith("city-"):
        return fact.relation
    return "country" if fact.relation.startswith(("country_", "city_")) else "element"


@lru_cache(maxsize=1)
def _data_hash() -> str:
    return digest(
        {
            "draw_version": DRAW_VERSION,
            "facts": [asdict(fact) for fact in real_facts()],
            "relations": {name: asdict(relation) for name, relation in RELATIONS.items()},
            "shares": [dict(SHARES), dict(PROBE_SHARES), FEWEST_KNOWN, ASKED],
        }
    )


def _rounds(facts: Sequence[RealFact], rng: random.Random) -> Iterator[RealFact]:
    """Every fact once in random order, then every fact again in another order, for ever."""
    while True:
        yield from rng.sample(facts, len(facts))
