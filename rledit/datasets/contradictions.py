"""Which edits of a set say different things of one fact, in whatever words and in every schema."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from rledit.records import Edit

_CLOSING = " ?!.:"


def normalised(text: str) -> str:
    """A text without what does not change its question: case, spaces, closing punctuation."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.rstrip(_CLOSING) or folded


class Targets:
    """The targets that a set of edits gives, by what is edited.

    A prompt as it is written is what a stream rewrites, and its last target is what is scored. A
    fact may be asked in other words: the same prompt but for case, spaces or closing punctuation, a
    prompt that is another edit's rephrase, or one with the same subject and old answer, where the
    data gives them.

    Args:
        edits: The set.

    Attributes:
        by_prompt: Prompt as written → its targets as written.
    """

    def __init__(self, edits: Iterable[Edit]) -> None:
        self.by_prompt: dict[str, set[str]] = defaultdict(set)
        # All normalised: prompt → targets, rephrase → targets, fact → targets.
        self._asked: dict[str, set[str]] = defaultdict(set)
        self._rephrased: dict[str, set[str]] = defaultdict(set)
        self._facts: dict[tuple[str, str], set[str]] = defaultdict(set)
        for edit in edits:
            target = normalised(edit.target)
            self.by_prompt[edit.prompt.strip()].add(edit.target.strip())
            self._asked[normalised(edit.prompt)].add(target)
            for rephrase in edit.rephrases:
                self._rephrased[normalised(rephrase)].add(target)
            if (fact := _fact(edit)) is not None:
                self._facts[fact].add(target)

    def contradict(self, edit: Edit) -> bool:
        """Whether an edit of the same prompt, as written, has another target."""
        return len(self.by_prompt[edit.prompt.strip()]) > 1

    def conflict(self, edit: Edit) -> bool:
        """Whether the fact has a target under other words that it has not under this prompt."""
        prompt = normalised(edit.prompt)
        others = self._of(self._asked, prompt) | self._of(self._rephrased, prompt)
        others |= self._of_rephrases(edit)
        if (fact := _fact(edit)) is not None:
            others |= self._facts.get(fact, set())
        own = self.by_prompt.get(edit.prompt.strip(), set())
        return bool(others - {normalised(target) for target in own})

    def contradict_rephrase(self, edit: Edit) -> bool:
        """Whether a rephrase of the edit is itself edited to another target."""
        return bool(self._of_rephrases(edit) - {normalised(edit.target)})

    def _of_rephrases(self, edit: Edit) -> set[str]:
        found = (self._of(self._asked, normalised(text)) for text in edit.rephrases)
        return set().union(*found)

    @staticmethod
    def _of(targets: dict[str, set[str]], text: str) -> set[str]:
        return targets.get(text, set())


def _fact(edit: Edit) -> tuple[str, str] | None:
    """What stands for a fact whatever its wording: the subject and the old answer."""
    if edit.subject is None or edit.old_target is None:
        return None
    return normalised(edit.subject), normalised(edit.old_target)
