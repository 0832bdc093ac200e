"""Check that passes restarted in the middle of a model's layers give what the whole model gives.

Run once on a model whose family was found from its classes: those tell the layout, and not whether
layers also hand things on beside the hidden states (shared keys and values, embeddings per layer).
"""

from __future__ import annotations

from typing import Any

from rledit.families import Family, UneditableError
from rledit.lazy_torch import Tensor, nn, torch
from rledit.micro_batches import make_micro_batches
from rledit.prefix_cache import PrefixCache
from rledit.tokenization import IGNORED, Sample

_LENGTHS = (7, 4)
# Relative to the largest logit: what two orders of the same sums differ by, with room.
_TOLERANCE = {"float64": 1e-4, "float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}


@torch.no_grad()
def require_exact(model: nn.Module, family: Family, first_layer: int) -> None:
    """Compare both ways on two short texts.

    Args:
        model: The model, with its weights.
        family: Its description.
        first_layer: The lowest edited layer.

    Raises:
        UneditableError: They differ by more than round-off.
    """
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    samples = []
    for length in _LENGTHS:
        ids = torch.randint(0, config.vocab_size, (length,), generator=generator)
        labels = torch.full((length,), IGNORED)
        labels[-3:] = ids[-3:]
        samples.append(Sample(ids, labels))
    prefix_cache = PrefixCache(model, family, first_layer, cache_bytes=0)
    for micro_batch in make_micro_batches(samples, sum(_LENGTHS) * 2):
        found = prefix_cache.logits(micro_batch).double()
        expected = torch.cat([_whole(model, sample) for sample in micro_batch.samples]).double()
        if not bool(expected.isfinite().all()):
            return  # nothing to compare: what a model that is no number scores is said elsewhere
        error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not error <= _TOLERANCE[str(next(model.parameters()).dtype).removeprefix("torch.")]:
            raise UneditableError(
                f"model_type {family.name!r}: passes that begin at layer {first_layer} give other "
                f"logits than the whole model (by {error:.1e} of the largest), so its layers hand "
                "on more than the hidden states; its results would be wrong, and none are made"
            )


def _whole(model: nn.Module, sample: Sample) -> Tensor:
    device = next(model.parameters()).device
    output: Tensor = model(input_ids=sample.input_ids[None].to(device), use_cache=False).logits
    return output[0, sample.answer_positions.to(device)]
