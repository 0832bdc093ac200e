"""Training of a world model: a small language model learns the facts of a synthetic world.

Departures from a plain training loop, none of which changes the loss:

- Only answers are learned, so the last layer's MLP and the output head, more than half of the
  arithmetic at two layers, run at the positions that predict an answer and nowhere else.
- Batches are drawn from length-sorted micro-batches of the epoch, so that little padding is
    computed.

An answer is learned up to and including its end-of-sequence token, so that greedy generation from
a prompt stops by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from rledit.lazy_torch import nn, torch
from rledit.world.facts import World
from rledit.world.presets import WorldModelSpec
from rledit.world.recall import answer_logits
from rledit.world.sentences import IGNORED, epochs, tokenize

if TYPE_CHECKING:
    # Imported for their names alone, these take seconds.
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROGRESS_EVERY = 10

Progress = Callable[[int, int, dict[str, float]], None]


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    spec: WorldModelSpec,
    progress: Progress | None = None,
) -> float:
    """Teach a world's facts by their training prompts, and its lessons if it is to have any.

    Returns:
        The last steps' mean loss.

    Args:
        model: The model, trained in place.
        tokenizer: The world's tokenizer.
        world: What to teach.
        spec: Steps, batch size, learning rate and the like.
        progress: Called now and then with steps done, steps in all, and loss and learning rate.
    """
    questions = [(prompt, fact.answer) for fact in world.facts for prompt in fact.trained]
    if world.config.lessons:
        questions += world.lessons
    sentences = tokenize(tokenizer, questions, end=True)
    generator = torch.Generator().manual_seed(spec.seed)
    batches = epochs(sentences.lengths, spec.batch, generator)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=spec.lr,
        betas=(0.9, 0.98),
        weight_decay=spec.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, spec))
    model.train()
    recent: list[float] = []
    for step in range(1, spec.steps + 1):
        input_ids, labels = sentences.rows(next(batches))
        logits = answer_logits(model, input_ids, labels)
        loss = nn.functional.cross_entropy(logits, labels[labels != IGNORED])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
        optimizer.step()
        schedule.step()
        recent = [*recent[1 - _PROGRESS_EVERY :], loss.item()]
        if progress and (step % _PROGRESS_EVERY == 0 or step == spec.steps):
            mean, rate = sum(recent) / len(recent), float(schedule.get_last_lr()[0])
            progress(step, spec.steps, {"loss": mean, "lr": rate})
    model.eval()
    return sum(recent) / len(recent)


def _schedule(step: int, spec: WorldModelSpec) -> float:
    """Share of the peak rate for the step after `step` steps: linear up, cosine down to zero."""
    if step < spec.warmup:
        return (step + 1) / spec.warmup
    done = (step - spec.warmup) / (spec.steps - spec.warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
