"""Edits as locate-then-edit methods see them: tokenised in every context, with the place found.

Models are causal, so whatever is read at that place depends on nothing behind it: the prompts that
only give keys are cut there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rledit.lazy_torch import torch
from rledit.locate.contexts import Contexts, fill
from rledit.locate.subject import last_token, subject_of, subject_span
from rledit.records import Edit
from rledit.tokenization import IGNORED, Encoder, Sample, TokenizationError

FactToken = Literal["subject_last", "last"]
"""Where a fact is written: at the subject's last token, or at the prompt's."""


@dataclass(frozen=True, eq=False)
class Request:
    """One edit, ready to be located.

    Attributes:
        edit: The edit.
        rewriting: The prompt with its target, once per context, the bare prompt first.
        positions: The fact's token in each of them.
        keys: The same prompts cut at the fact's token, which is their only labelled row.
        essence: "{subject} is a", cut alike.
    """

    edit: Edit
    rewriting: tuple[Sample, ...]
    positions: tuple[int, ...]
    keys: tuple[Sample, ...]
    essence: Sample

    @property
    def where(self) -> str:
        """File and row, or the edit's name."""
        return self.edit.source or self.edit.edit_id


def make_requests(
    encoder: Encoder,
    edits: Sequence[Edit],
    contexts: Contexts,
    fact_token: FactToken = "subject_last",
) -> list[Request]:
    """Tokenise edits for locating.

    Raises:
        TokenizationError: An edit breaks the token contract, or has no subject in its prompt.
    """
    if not edits:
        raise TokenizationError(
            "locate-then-edit methods need the text of the edits, but the batch holds only tokens"
        )
    return [_request(encoder, edit, contexts, fact_token) for edit in edits]


def _request(encoder: Encoder, edit: Edit, contexts: Contexts, fact_token: FactToken) -> Request:
    where = edit.source or edit.edit_id
    _, end = subject_span(edit)
    at_end = fact_token == "last"
    rewriting: list[Sample] = []
    positions: list[int] = []
    for template in contexts.all:
        text, before = fill(template, edit.prompt)
        sample = encoder.sample(text, edit.target, where)
        rewriting.append(sample)
        # The prompt's last token is the one that predicts the target's first.
        first = int((sample.labels != IGNORED).nonzero()[0])
        positions.append(first if at_end else last_token(encoder, text, before + end, where))
    subject = subject_of(edit)
    essence = f"{subject} is a"
    ids = torch.tensor(encoder.prompt_ids(essence), dtype=torch.long)
    cut = len(ids) - 1 if at_end else last_token(encoder, essence, len(subject), where)
    return Request(
        edit=edit,
        rewriting=tuple(rewriting),
        positions=tuple(positions),
        keys=tuple(
            _cut(s.input_ids, position) for s, position in zip(rewriting, positions, strict=True)
        ),
        essence=_cut(ids, cut),
    )


def _cut(ids: torch.Tensor, position: int) -> Sample:
    """The tokens up to and including a position, with one labelled row there."""
    labels = torch.full((position + 1,), IGNORED)
    labels[-1] = 0
    return Sample(ids[: position + 1].clone(), labels)
