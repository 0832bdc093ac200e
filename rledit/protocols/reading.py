"""One reading of the model's answers, shared by every protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rledit.finite import refuse
from rledit.lazy_torch import F, Tensor, torch
from rledit.micro_batches import MicroBatch
from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.ranks import Deal, shard
from rledit.tokenization import Sample

_NO_RIVAL = -1


@dataclass(frozen=True, eq=False)
class Reading:
    """One prompt's answer positions as the model sees them, teacher-forced.

    Attributes:
        expected: (a,) int64, the answer's tokens.
        predicted: (a,) int64, the most likely token at each answer position.
        nll: Mean negative log-likelihood of the answer, nats per token.
        rival_nll: The same of the rival answer behind the same prompt; None where there is none.
        preferred: (min(a, tokens of the rival),) bool, whether the answer's token has a larger
            logit than the rival's token of the same position; None where there is no rival.
        answer: The expected answer as text; "" where it was not given.
        text: What the model wrote behind the prompt alone; None where it was not asked to.
        free_text: Its free answer, see `rledit.free_answers`; None where it was not asked for one.
        free_tokens: The same as tokens.
    """

    expected: Tensor
    predicted: Tensor
    nll: float
    rival_nll: float | None = None
    preferred: Tensor | None = None
    answer: str = ""
    text: str | None = None
    free_text: str | None = None
    free_tokens: tuple[int, ...] | None = None


@torch.no_grad()
def read(
    model: EditableModel,
    samples: Sequence[Sample],
    rivals: Sequence[Sample | None] | None = None,
    deal: Deal | None = None,
) -> list[Reading]:
    """Read all samples in one batched pass over the model's current weights.

    Several ranks share the samples out; every rank gets all readings.

    Args:
        model: The model.
        samples: Prompts with their expected answers.
        rivals: For every sample the same prompt with another answer, or None.
        deal: Which rank reads which sample; None: as evenly as these can be shared.

    Raises:
        NonFiniteError: The model gives no numbers for a prompt; names it, and the layer.
    """
    others = [r for r in rivals or () if r is not None]
    asked = [*samples, *others]
    own = shard(asked, model.ranks) if deal is None else deal.own(asked)
    tokens, nll = _run(model, asked, own, _rival_labels(samples, rivals))
    next_rival = iter(nll[len(samples) :])
    readings: list[Reading] = []
    for i, sample in enumerate(samples):
        predicted, preferred = tokens[i]
        rival = rivals[i] if rivals is not None else None
        if rival is None:
            readings.append(Reading(sample.answer_ids, predicted, nll[i]))
            continue
        shared = min(len(sample.answer_ids), len(rival.answer_ids))
        readings.append(
            Reading(
                sample.answer_ids,
                predicted,
                nll[i],
                rival_nll=next(next_rival),
                preferred=preferred[:shared].bool(),
            )
        )
    return readings


def _rival_labels(
    samples: Sequence[Sample], rivals: Sequence[Sample | None] | None
) -> list[Tensor]:
    """(a,) per sample: the rival's token at each answer position, `_NO_RIVAL` beyond its end."""
    labels = [torch.full_like(sample.answer_ids, _NO_RIVAL) for sample in samples]
    for own, rival in zip(labels, rivals or (), strict=False):
        if rival is not None:
            shared = min(len(own), len(rival.answer_ids))
            own[:shared] = rival.answer_ids[:shared]
    return labels


def _run(
    model: EditableModel,
    samples: Sequence[Sample],
    own: Sequence[int],
    rival_labels: Sequence[Tensor],
) -> tuple[list[tuple[Tensor, Tensor]], list[float]]:
    """Predicted tokens with preferences, and mean NLL, of every sample; this rank runs its own."""
    counts = [len(s.answer_ids) for s in samples]
    predicted = [torch.zeros(n, dtype=torch.int64) for n in counts]
    preferred = [torch.zeros(n, dtype=torch.int64) for n in counts]
    nll = torch.zeros(len(samples), dtype=torch.float64)
    for micro_batch in model.own_micro_batches(samples, own, SINGLE_PASS_TOKENS):
        places = micro_batch.index.tolist()
        rows = [counts[i] for i in places]
        against = [
            rival_labels[i] if i < len(rival_labels) else torch.full((n,), _NO_RIVAL)
            for i, n in zip(places, rows, strict=True)
        ]
        guesses, wins, losses = _judge_rows(model, micro_batch, against)
        for i, guess, win, part in zip(
            places, guesses.split(rows), wins.split(rows), losses.split(rows), strict=True
        ):
            predicted[i], preferred[i], nll[i] = guess, win, part.mean()
    if model.ranks.size > 1 and samples:
        together = torch.stack((torch.cat(predicted), torch.cat(preferred)))
        model.ranks.all_reduce_(together)
        model.ranks.all_reduce_(nll)
        predicted, preferred = (list(row.split(counts)) for row in together)
    # On every rank alike, of numbers that are there: NaN in any row, +inf or nothing but -inf makes
    # the loss of the row one that is not finite, as an answer that is impossible does.
    broken = (~nll.isfinite()).nonzero().flatten().tolist()
    if broken:
        refuse(model, [samples[i] for i in broken], len(samples), "what the model says")
    return list(zip(predicted, preferred, strict=True)), nll.tolist()


def _judge_rows(
    model: EditableModel, micro_batch: MicroBatch, rival_labels: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows,) each: the argmax, whether the label beats the rival's token, and the loss."""
    against = torch.cat([micro_batch.labels[:0], *rival_labels])
    logits = model.prefix_cache.logits(micro_batch).to(model.compute_dtype)
    labels = micro_batch.labels.to(logits.device)
    guesses = logits.argmax(-1).cpu()
    losses = F.cross_entropy(logits, labels, reduction="none").cpu()
    if bool((against == _NO_RIVAL).all()):
        return guesses, torch.zeros_like(guesses), losses
    rivals = against.clamp_min(0).to(logits.device)
    wins = logits.gather(1, labels[:, None]) > logits.gather(1, rivals[:, None])
    return guesses, wins.flatten().long().cpu(), losses
