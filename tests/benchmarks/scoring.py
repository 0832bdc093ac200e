"""Scoring a stream: one batched pass over the prefix cache, against a forward per 4 prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.protocols import read
from rledit.tokenization import IGNORED, Sample
from tests.benchmarks.clock import Clock, ClockKind
from tests.benchmarks.models import ModelShape, build, random_batches

_GROUP = 4


@dataclass(frozen=True, kw_only=True)
class ScoringBenchmark:
    """What is scored.

    Attributes:
        shape: The model.
        modules: Target modules; they decide where the prefix cache ends.
        edits: Edits of the stream, three prompts each.
        checkpoints: How often everything edited so far is scored.
        plain_edits: Edits that the plain way is timed on; its cost per prompt is constant.
        seed: Seed of weights and prompts.
    """

    shape: ModelShape
    modules: tuple[str, ...]
    edits: int = 1000
    checkpoints: int = 4
    plain_edits: int = 200
    seed: int = 0


def run_scoring(setting: ScoringBenchmark, device: torch.device, kind: ClockKind) -> dict[str, Any]:
    """Plain / ours per prompt, for the passes of a stream.

    Returns:
        `scoring_ratio`: a whole stream's scoring, `checkpoints` of them: the prompts' prefixes, the
        unedited model's answers to the unrelated prompts, and at each checkpoint all prompts so
        far. `scoring_ratio_warm`: a pass whose prefixes are held, as at every checkpoint.
        `scoring_ratio_cold`: a pass over prompts never seen before.
    """
    clock = Clock(device, kind)
    model = build(setting.shape, device=device, seed=setting.seed)
    batches = random_batches(setting.edits, 1, setting.shape.vocabulary, seed=setting.seed)
    samples = [
        s for b in batches for phase in (b.edit, b.equivalent, b.unrelated) for s in phase.samples
    ]
    plain_samples = samples[: 3 * setting.plain_edits]
    _plain(model, plain_samples[: 4 * _GROUP])
    plain = clock(lambda: _plain(model, plain_samples)) / len(plain_samples)
    stream = clock(lambda: _stream(EditableModel(model, None, setting.modules), samples, setting))
    passes = setting.edits + sum(3 * n for n in _scored(setting))
    editable = EditableModel(model, None, setting.modules)
    cold = clock(lambda: read(editable, samples)) / len(samples)
    warm = clock(lambda: read(editable, samples)) / len(samples)
    return {
        "scoring_ratio": plain * passes / stream,
        "scoring_ratio_warm": plain / warm,
        "scoring_ratio_cold": plain / cold,
        "prompts": len(samples),
        "prompts_read": passes,
        "seconds_per_prompt": {
            "plain": plain,
            "ours": stream / passes,
            "ours_warm": warm,
            "ours_cold": cold,
        },
        "prefix_cache_hit_rate": editable.prefix_cache.hit_rate,
    }


def _scored(setting: ScoringBenchmark) -> list[int]:
    """Edits scored at each checkpoint."""
    return [setting.edits * (i + 1) // setting.checkpoints for i in range(setting.checkpoints)]


def _stream(model: EditableModel, samples: Sequence[Sample], setting: ScoringBenchmark) -> None:
    """What `rledit.scoring.Scorer` reads in the course of a stream."""
    model.prefix_cache.prefetch(model.micro_batches(samples, least=SINGLE_PASS_TOKENS))
    with model.weights.unedited():
        read(model, samples[2::3])
    for n_edits in _scored(setting):
        read(model, samples[: 3 * n_edits])


@torch.no_grad()
def _plain(model: Any, samples: Sequence[Sample]) -> list[tuple[torch.Tensor, float]]:
    """Predicted tokens and mean loss of each sample, by a padded forward per 4 prompts."""
    found: list[tuple[torch.Tensor, float]] = []
    for start in range(0, len(samples), _GROUP):
        group = samples[start : start + _GROUP]
        ids = torch.nn.utils.rnn.pad_sequence([s.input_ids for s in group], batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(
            [s.labels for s in group], batch_first=True, padding_value=IGNORED
        )
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits.float()
        labels = labels.to(logits.device)
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED
        ).view(labels.shape)
        guesses = logits.argmax(-1)
        for row in range(len(group)):
            answer = labels[row] != IGNORED
            found.append((guesses[row, answer].cpu(), float(losses[row, answer].mean())))
    return found
