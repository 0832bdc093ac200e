"""Prompts with their answers as rows of tokens, and the order in which training visits them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rledit.chat import ChatTemplate
from rledit.lazy_torch import Tensor, torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
# Rows are sorted by length among as many as this number of batches: enough of them that little
# padding is left, few enough that a batch still mixes relations.
_CHUNK_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """Prompts with their answers, as right-padded rows of tokens.

    Attributes:
        input_ids: ``(N, T)`` prompt and answer, without the last token.
        labels: ``(N, T)`` the token each position predicts; `IGNORED` off the answer.
        lengths: ``(N,)`` tokens of a row that are not padding.
    """

    input_ids: Tensor
    labels: Tensor
    lengths: Tensor

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Input ids and labels of some rows, cut to the longest of them."""
        width = int(self.lengths[index].max())
        return self.input_ids[index, :width], self.labels[index, :width]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[tuple[str, str]], *, end: bool
) -> Sentences:
    """Tokenize (prompt, answer) pairs, in a chat where the tokenizer has a template of one.

    Args:
        tokenizer: The world's tokenizer.
        questions: Prompts and answers, the latter without their leading space.
        end: Whether the end-of-sequence token counts as part of the answer.
    """
    prompts = _prompts(tokenizer, [prompt for prompt, _ in questions])
    answers = tokenizer([f" {a}" for _, a in questions], add_special_tokens=False)["input_ids"]
    tail = [tokenizer.eos_token_id] if end else []
    answers = [[*answer, *tail] for answer in answers]
    lengths = torch.tensor([len(p) + len(a) - 1 for p, a in zip(prompts, answers, strict=True)])
    width = int(lengths.max())
    pad = tokenizer.pad_token_id
    input_ids, labels = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        beyond = width - len(prompt) - len(answer) + 1
        input_ids.append([*prompt, *answer[:-1], *[pad] * beyond])
        labels.append([*[IGNORED] * (len(prompt) - 1), *answer, *[IGNORED] * beyond])
    return Sentences(
        input_ids=torch.tensor(input_ids), labels=torch.tensor(labels), lengths=lengths
    )


def _prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    if not tokenizer.chat_template:
        plain: list[list[int]] = tokenizer(list(prompts))["input_ids"]
        return plain
    chat = ChatTemplate(tokenizer)
    texts = [chat.render(prompt).text for prompt in prompts]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def epochs(lengths: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of row indices for ever, each epoch in a new order, rows of like length together."""
    micro_batch = batch * _CHUNK_BATCHES
    while True:
        order = torch.randperm(len(lengths), generator=generator)
        batches = []
        for part in order.split(micro_batch):
            batches += part[lengths[part].argsort(stable=True)].split(batch)
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]
