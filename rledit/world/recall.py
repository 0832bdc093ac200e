"""Answers of a model to a world's facts: logits at answer positions, and recall."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rledit.lazy_torch import Tensor, nn, torch
from rledit.world.fact import Fact
from rledit.world.facts import World
from rledit.world.sentences import IGNORED, tokenize

if TYPE_CHECKING:
    # Imported for their names alone, these take seconds.
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def answer_logits(model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Logits ``(P, vocabulary)`` at the ``P`` labelled positions of a batch, row by row.

    They are those of an ordinary forward pass, though the last layer's MLP and the output head
    run at these positions only: what they would put out elsewhere reaches no labelled position.
    Right padding needs no attention mask, for no labelled position attends to it.

    Args:
        model: A model of one of the world's families.
        input_ids: ``(B, T)`` right-padded tokens.
        labels: ``(B, T)``, `IGNORED` where no logit is wanted.
    """
    with _only_at(model, (labels != IGNORED).nonzero(as_tuple=True)):
        logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits


@contextmanager
def _only_at(model: PreTrainedModel, where: tuple[Tensor, ...]) -> Iterator[None]:
    """Run the last MLP and the output head at the (row, column) positions `where` only."""
    base = model.base_model
    mlp = (base.h if hasattr(base, "h") else base.layers)[-1].mlp
    full = mlp.forward

    def sparse(hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden).index_put(where, full(hidden[where]))

    def pick(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][where],)

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    mlp.forward = sparse
    try:
        yield
    finally:
        del mlp.forward
        handle.remove()


_PROMPTS_A_PASS = 256


@torch.no_grad()
def fact_recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Iterable[Fact],
    *,
    held_out: bool = True,
) -> float:
    """Share (0 to 1) of prompts of some facts after which every answer token is the argmax.

    Teacher-forced. Each fact counts once per prompt: the held-out ones, or those trained on.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        facts: The facts asked for.
        held_out: Ask by held-out prompts rather than by those trained on.
    """
    questions = [
        (prompt, fact.answer)
        for fact in facts
        for prompt in (fact.held_out if held_out else fact.trained)
    ]
    sentences = tokenize(tokenizer, questions, end=False)
    training = model.training
    model.eval()
    right = 0
    for index in sentences.lengths.argsort(stable=True).split(_PROMPTS_A_PASS):
        input_ids, labels = (rows.to(model.device) for rows in sentences.rows(index))
        predicted = torch.full_like(labels, IGNORED)
        predicted[labels != IGNORED] = answer_logits(model, input_ids, labels).argmax(-1)
        right += int((predicted == labels).all(1).sum())
    model.train(training)
    return right / len(questions)


def world_recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    held_out: bool = True,
    pool: str | None = None,
) -> float:
    """Share (0 to 1) of a world's prompts answered right; see `fact_recall`.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        world: The world it was taught.
        held_out: Ask by held-out prompts rather than by those trained on.
        pool: Ask for the facts of one pool only, e.g. ``evaluation``.
    """
    facts = world.facts if pool is None else world.pool(pool)
    return fact_recall(model, tokenizer, facts, held_out=held_out)
