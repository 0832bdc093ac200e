"""Edits as locate-then-edit methods see them: tokenised in every context, with the subject found.

Models are causal, so whatever is read at the subject's last token depends on nothing behind it:
the prompts that only give keys are cut there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rledit.locate.contexts import Contexts, fill
from rledit.locate.subject import last_token, subject_of, subject_span
from rledit.records import Edit
from rledit.tokenization import IGNORED, Encoder, Sample, TokenizationError


@dataclass(frozen=True, eq=False)
class Request:
    """One edit, ready to be located.

    Attributes:
        edit: The edit.
        rewriting: The prompt with its target, once per context, the bare prompt first.
        positions: The subject's last token in each of them.
        keys: The same prompts cut at the subject's last token, which is their only labelled row.
        essence: The subject alone, cut alike: what "{subject} is a" shows there.
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


def make_requests(encoder: Encoder, edits: Sequence[Edit], contexts: Contexts) -> list[Request]:
    """Tokenise edits for locating.

    Raises:
        TokenizationError: An edit breaks the token contract, or has no subject in its prompt.
    """
    if not edits:
        raise TokenizationError(
            "locate-then-edit methods need the text of the edits, but the batch holds only tokens"
        )
    return [_request(encoder, edit, contexts) for edit in edits]


def _request(encoder: Encoder, edit: Edit, contexts: Contexts) -> Request:
    where = edit.source or edit.edit_id
    _, end = subject_span(edit)
    rewriting: list[Sample] = []
    positions: list[int] = []
    for template in contexts.all:
        text, before = fill(template, edit.prompt)
        rewriting.append(encoder.sample(text, edit.target, where))
        positions.append(last_token(encoder, text, before + end, where))
    subject = subject_of(edit)
    # What follows belongs to the prompt the method names; cutting at the subject drops it.
    essence = f"{subject} is a"
    ids = torch.tensor(encoder.prompt_ids(essence), dtype=torch.long)
    cut = last_token(encoder, essence, len(subject), where)
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
