"""Superseded questions: those that a later edit of the stream answers otherwise; not scored.

Everything that judges edits asks here: the protocols, the measurements, the counts of the results
and of ``rledit data check``. What is superseded depends on the edits made so far, never on those
still to come.

An edit says what its prompt and its rephrases are answered with, and what follows from it. Two
edits are of one fact if

- their prompts are the same but for case, spaces and closing punctuation;
- the prompt of one is a rephrase of the other, or both have a rephrase and the subject in common;
- they have the same subject and relation, where the data names relations;
- where it does not, they are questions with the same subject and old answer, as ZsRE asks one fact
  in many words. Statements of different relations often have that in common (born in, died in).

The last edit of a fact says what it is. A consequence holds while its edit's fact and all its
premises are as it takes them to be. Of a question's text, the last edit that says something about
it decides, be it as prompt, rephrase, or consequence that holds. A locality prompt is one as long
as no edit says anything about it at all.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from rledit.records import Consequence, Edit, Premise

_CLOSING = " ?!.:…？！。："
_Key = tuple[str, ...]


@lru_cache(maxsize=100_000)
def normalised(text: str) -> str:
    """A text without what does not change its question: case, spaces, closing punctuation."""
    folded = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return folded.rstrip(_CLOSING) or folded


class Facts:
    """The edits of a set by the fact that they write.

    Args:
        edits: The set, in the order of its stream.
    """

    def __init__(self, edits: Iterable[Edit]) -> None:
        self.edits = tuple(edits)
        self.targets = [normalised(edit.target) for edit in self.edits]
        self._subjects = [_subject(edit.subject) for edit in self.edits]
        self._links = [list(_links(edit)) for edit in self.edits]
        self._places: dict[_Key, list[int]] = defaultdict(list)
        self._said: dict[_Key, set[str]] = defaultdict(set)
        for i, edit in enumerate(self.edits):
            for key in _keys(edit):
                self._places[key].append(i)
                self._said[key].add(self.targets[i])

    def rewritten(self, i: int, n_edits: int) -> bool:
        """Whether a later of the first edits has the same prompt, with whichever target."""
        return self._last(("prompt", normalised(self.edits[i].prompt)), n_edits) > i

    def says(self, text: str, n_edits: int) -> int:
        """The last of the first edits with the text as prompt or rephrase; -1: there is none."""
        return self._last(("says", normalised(text)), n_edits)

    def in_force(self, i: int, n_edits: int) -> bool:
        """Whether the last word of the first edits on the fact of one of them is its target."""
        return self.targets[self.last_word(i, n_edits)] == self.targets[i]

    def last_word(self, i: int, n_edits: int) -> int:
        """The last of the first edits that is of the fact of one of all; -1: there is none."""
        return max(self._last_agreeing(link, i, n_edits) for link in self._links[i])

    def places_of(self, i: int) -> list[int]:
        """The places of all edits of one edit's fact, its own among them, ascending."""
        found = {i}
        for key, compared in self._links[i]:
            places = self._places.get(key, ())
            found |= {j for j in places if not compared or self._agree(i, j)}
        return sorted(found)

    def targets_of(self, i: int) -> set[str]:
        """The targets, normalised, that all edits of one edit's fact give it."""
        found: set[str] = set()
        for key, compared in self._links[i]:
            if compared:
                places = self._places.get(key, ())
                found |= {self.targets[j] for j in places if self._agree(i, j)}
            else:
                found |= self._said.get(key, set())
        return found

    def holds(self, premise: Premise, n_edits: int) -> bool:
        """Whether a fact is what a consequence takes it to be, after the first edits."""
        keys: list[_Key] = [("says", text) for text in _texts(premise.prompts)]
        for answer in premise.old_answers or (None,):
            keys += _fact_keys(premise.subject, premise.relation, answer)[:1]
        last = max((self._last(key, n_edits) for key in keys), default=-1)
        if last < 0:
            return not premise.edited
        return self.targets[last] in _texts(premise.answers)

    def _agree(self, i: int, j: int) -> bool:
        one, other = self._subjects[i], self._subjects[j]
        return one is None or other is None or one == other

    def _last(self, key: _Key, n_edits: int) -> int:
        places = self._places.get(key, ())
        at = bisect_left(places, n_edits)
        return places[at - 1] if at else -1

    def _last_agreeing(self, link: tuple[_Key, bool], i: int, n_edits: int) -> int:
        key, compared = link
        if not compared:
            return self._last(key, n_edits)
        places = self._places.get(key, [])
        before = reversed(places[: bisect_left(places, n_edits)])
        return next((j for j in before if self._agree(i, j)), -1)


class Standing:
    """What is superseded of a stream after its first edits.

    Args:
        facts: The stream's edits by the fact they write.
        n_edits: Edits made; 0: what will be superseded at the end, for the unedited model.
    """

    def __init__(self, facts: Facts, n_edits: int) -> None:
        self._facts = facts
        self._n = n_edits or len(facts.edits)
        # Text → the edits with a consequence that holds, in their order.
        self._implied: dict[str, dict[int, set[str]]] = defaultdict(dict)
        for i, edit in enumerate(facts.edits[: self._n]):
            for item in edit.consequences:
                if self._holds(i, item):
                    said = self._implied[normalised(item.prompt)]
                    said.setdefault(i, set()).add(item.answers[0].strip())

    def edit(self, i: int) -> bool:
        """Whether an edit is superseded: its prompt is rewritten, or its fact now is another."""
        edit = self._facts.edits[i]
        return (
            self._facts.rewritten(i, self._n)
            or not self._in_force(i)
            or self._overruled(edit.prompt, edit.target)
        )

    def rephrase(self, i: int, prompt: str) -> bool:
        """Whether a rephrase of an edit has another answer now."""
        return self._overruled(prompt, self._facts.edits[i].target)

    def locality(self, prompt: str) -> bool:
        """Whether a locality prompt is one no more, because an edit says something about it."""
        return self._facts.says(prompt, self._n) >= 0 or normalised(prompt) in self._implied

    def consequence(self, i: int, item: Consequence) -> bool:
        """Whether a consequence of an edit does not follow any more, or not yet."""
        return not self._holds(i, item) or self._overruled(item.prompt, item.answers[0])

    def _in_force(self, i: int) -> bool:
        return self._facts.in_force(i, self._n)

    def _holds(self, i: int, item: Consequence) -> bool:
        return self._in_force(i) and all(self._facts.holds(p, self._n) for p in item.premises)

    def _overruled(self, prompt: str, answer: str) -> bool:
        """Whether the last edit that says something about a text gives it another answer.

        The texts of two edits may differ in their form alone, and so may their answers: of the two
        wordings the later is scored.
        """
        direct = self._facts.says(prompt, self._n)
        implied = self._implied.get(normalised(prompt), {})
        last = max(implied, default=-1)
        if direct < 0 and last < 0:
            return False
        # An edit's own word goes before what follows from it.
        said = {self._facts.edits[direct].target.strip()} if direct >= last else implied[last]
        return answer.strip() not in said


def count_contradicting(edits: Sequence[Edit]) -> int:
    """Edits whose fact another edit of the stream sets to a different target."""
    facts = Facts(edits)
    return sum(bool(facts.targets_of(i) - {facts.targets[i]}) for i in range(len(facts.edits)))


def _keys(edit: Edit) -> set[_Key]:
    """Under what an edit can be found."""
    prompt, rephrases = normalised(edit.prompt), _texts(edit.rephrases)
    keys: list[_Key] = [("prompt", prompt), ("says", prompt)]
    keys += [(kind, text) for text in rephrases for kind in ("rephrase", "says")]
    if (subject := _subject(edit.subject)) is not None:
        keys += [("both", text, subject) for text in rephrases]
    facts = _fact_keys(edit.subject, edit.relation, edit.old_target)
    return {*keys, *facts, *_wordless(edit)}


def _links(edit: Edit) -> Iterator[tuple[_Key, bool]]:
    """Where other edits of an edit's fact are found, and whether subjects are to be compared."""
    subject, prompt = _subject(edit.subject), normalised(edit.prompt)
    yield ("prompt", prompt), False
    yield ("rephrase", prompt), True
    for text in _texts(edit.rephrases):
        yield ("prompt", text), True
        if subject is not None:
            yield ("both", text, subject), False
    for key in _wordless(edit):
        yield key, False


def _wordless(edit: Edit) -> list[_Key]:
    """What stands for the fact of an edit whatever its wording; one key, or none."""
    if edit.relation is not None:
        return _fact_keys(edit.subject, edit.relation, None)
    if not edit.prompt.rstrip().endswith(("?", "？")):
        return []
    return [("question", *key) for key in _fact_keys(edit.subject, None, edit.old_target)]


def _texts(texts: Iterable[str]) -> set[str]:
    return {normalised(text) for text in texts}


def _subject(subject: str | None) -> str | None:
    return normalised(subject) if subject and subject.strip() else None


def _fact_keys(subject: str | None, relation: str | None, old: str | None) -> list[_Key]:
    """Subject and relation, then subject and old answer, as far as they are known."""
    named = _subject(subject)
    if named is None:
        return []
    keys: list[_Key] = [] if relation is None else [("relation", named, relation)]
    return keys if old is None else [*keys, ("old", named, normalised(old))]
