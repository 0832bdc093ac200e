"""Contradictory edits: those of a set that state different things of one fact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rledit.records import Edit
from rledit.superseded import Facts, normalised


class Targets:
    """The targets that a set of edits gives, by what is edited.

    A prompt as it is written is what a stream rewrites. A fact may be asked in other words: which
    edits are of one fact, and that its last edit is scored, `rledit.superseded` says.

    Args:
        edits: The set. Its edits are named by their place in it.

    Attributes:
        by_prompt: Prompt as written → its targets as written.
    """

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._facts = Facts(edits)
        self.by_prompt: dict[str, set[str]] = defaultdict(set)
        self._asked: dict[str, set[str]] = defaultdict(set)  # both normalised
        for edit in edits:
            self.by_prompt[edit.prompt.strip()].add(edit.target.strip())
            self._asked[normalised(edit.prompt)].add(normalised(edit.target))

    def contradict(self, i: int) -> bool:
        """Whether an edit of the same prompt, as written, has another target."""
        return len(self._own(i)) > 1

    def conflict(self, i: int) -> bool:
        """Whether the fact has a target under other words that it has not under this prompt."""
        return bool(self._facts.targets_of(i) - {normalised(target) for target in self._own(i)})

    def contradict_rephrase(self, i: int) -> bool:
        """Whether a rephrase of the edit is itself edited to another target."""
        edit = self._facts.edits[i]
        found = (self._asked.get(normalised(text), set()) for text in edit.rephrases)
        return bool(set().union(*found) - {normalised(edit.target)})

    def edited(self, text: str) -> bool:
        """Whether a text is the prompt or a rephrase of an edit."""
        return self._facts.says(text, len(self._facts.edits)) >= 0

    def _own(self, i: int) -> set[str]:
        return self.by_prompt[self._facts.edits[i].prompt.strip()]
