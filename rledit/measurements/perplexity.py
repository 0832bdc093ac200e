"""Perplexity of a fixed sample of text: what editing does to a model's grasp of language."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rledit.finite import NonFiniteError, origin
from rledit.lazy_torch import torch
from rledit.model import EditableModel
from rledit.protocols.reading import read
from rledit.tokenization import IGNORED, Sample

MAX_TOKENS = 512
"""A text is cut to so many tokens, or to the model's positions where those are fewer."""
_LARGEST = 709.0
"""Of exponents of e whose power is a float64."""


def text_samples(model: EditableModel, texts: Sequence[str]) -> list[Sample]:
    """Texts as samples in which every token but the first is to be predicted.

    Raises:
        ValueError: No text is longer than one token.
    """
    limit = min(MAX_TOKENS, model.encoder.max_length or MAX_TOKENS)
    samples: list[Sample] = []
    for text in texts:
        ids = torch.tensor(model.encoder.text_ids(text)[: limit + 1], dtype=torch.long)
        if len(ids) > 1:
            labels = ids[1:].clone()
            # Nothing but BOS stands before the first word.
            labels[: len(model.encoder.lead)] = IGNORED
            if (labels != IGNORED).any():
                samples.append(Sample(ids[:-1], labels))
    if not samples:
        raise ValueError("perplexity needs texts of at least two tokens; none was given")
    return samples


def perplexity(model: EditableModel, samples: Sequence[Sample]) -> float:
    """exp of the mean negative log-likelihood per token over all samples together.

    Raises:
        NonFiniteError: The model gives no numbers, or so small a likelihood that the perplexity is
            beyond float64.
    """
    readings = read(model, samples)
    tokens = sum(len(reading.expected) for reading in readings)
    mean = sum(reading.nll * len(reading.expected) for reading in readings) / tokens
    if mean > _LARGEST:
        raise NonFiniteError(
            f"perplexity is beyond float64: the mean negative log-likelihood of the text is "
            f"{mean:.4g} nats a token; {origin(model, ())}"
        )
    return math.exp(mean)
