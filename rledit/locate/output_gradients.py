"""Uncentred covariance B = E[g gᵀ] of the output gradients of linears over text.

g is the gradient of a text's negative log-likelihood, summed over its tokens, with respect to the
linear's output at one position. It is taken at the true next tokens, so that B, beside the key
covariance A = E[k kᵀ], makes B ⊗ A the empirical Fisher matrix of the linear in Kronecker form. B
is summed, saved, added up and refused exactly as A is, under a name of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rledit.capture import taken
from rledit.finite import NonFiniteError, origin
from rledit.lazy_torch import F, Tensor, torch
from rledit.locate.covariance import (
    OUTPUT_GRADIENTS,
    CovarianceFingerprint,
    KeyCovariance,
    RowSum,
    accumulate,
    called,
)
from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.ranks import shard
from rledit.tokenization import Sample


def gradients_of(linear: str) -> str:
    """The name that the covariance of a linear's output gradients goes by."""
    return f"{linear}{OUTPUT_GRADIENTS}"


def linear_of(name: str) -> str:
    """The linear that a covariance is of, whichever side of it."""
    return name.removesuffix(OUTPUT_GRADIENTS)


def covariances_of(linears: Iterable[str], needs: Collection[str]) -> list[str]:
    """Names of the covariances that an editor takes of some linears, by what it needs."""
    linears = list(linears)
    return [*linears, *(map(gradients_of, linears) if "output_gradients" in needs else ())]


def width_of(model: EditableModel, name: str) -> int:
    """Features of a covariance: d_in of the linear, or d_out where it is of gradients."""
    d_in, d_out = model.shape(linear_of(name))
    return d_out if name.endswith(OUTPUT_GRADIENTS) else d_in


def accumulate_all(
    model: EditableModel,
    texts: Sequence[Sequence[int]],
    covariances: Mapping[str, KeyCovariance],
) -> None:
    """Add some texts to covariances of keys and of output gradients, by their names.

    Keys are taken as `accumulate` takes them, whether gradients are or not, so that the sums of
    keys have the same bits for every editor.
    """
    gradients = {n: c for n, c in covariances.items() if n.endswith(OUTPUT_GRADIENTS)}
    keys = {n: c for n, c in covariances.items() if n not in gradients}
    if keys:
        accumulate(model, texts, keys)
    if gradients:
        accumulate_curvature(model, as_samples(texts), {}, gradients)


def as_samples(texts: Iterable[Sequence[int]]) -> list[Sample]:
    """Texts as samples of which every token but the first is predicted; shorter ones are left
    out."""
    found = (torch.as_tensor(ids, dtype=torch.long) for ids in texts)
    return [Sample(ids[:-1], ids[1:]) for ids in found if len(ids) > 1]


def observe_gradients(model: EditableModel, texts: Sequence[Sequence[int]], linear: str) -> Tensor:
    """B (d_out, d_out) of one linear over a sample of texts."""
    name = gradients_of(linear)
    identity = CovarianceFingerprint(model_hash="", module=name, corpus_hash="sample")
    moment = KeyCovariance(identity, width_of(model, name), model.device)
    model.prefix_cache.clear()
    accumulate_curvature(model, as_samples(texts), {}, {name: moment})
    model.prefix_cache.clear()
    return moment.mean()


def accumulate_curvature(
    model: EditableModel,
    samples: Sequence[Sample],
    keys: Mapping[str, RowSum],
    gradients: Mapping[str, RowSum],
) -> None:
    """Add the inputs of linears, and the gradients at their outputs, where tokens are predicted.

    Several ranks share the samples out; each adds what it has seen to its own sums.

    Args:
        model: The model, as it is now.
        samples: What to run; the loss is the sum over all answer tokens.
        keys: Linear → what its inputs are added to.
        gradients: Name by `gradients_of` → what the output gradients are added to.

    Raises:
        NonFiniteError: A sum is not finite; names the linear and the layer it comes from.
    """
    linears = {linear_of(n): model.linear(linear_of(n)) for n in (*keys, *gradients)}
    own = shard(samples, model.ranks)
    for micro_batch in model.own_micro_batches(samples, own, SINGLE_PASS_TOKENS):
        rows = micro_batch.rows.to(model.device)
        with torch.enable_grad(), taken(linears) as found:
            logits = model.prefix_cache.logits(micro_batch, narrow=False).to(model.compute_dtype)
            loss = F.cross_entropy(logits, micro_batch.labels.to(model.device), reduction="sum")
            outputs = [found[name][1] for name in linears]
            slopes = dict(zip(linears, torch.autograd.grad(loss, outputs), strict=True))
        for name, total in keys.items():
            total.update(found[name][0].flatten(0, -2)[rows])
        for name, total in gradients.items():
            total.update(slopes[linear_of(name)].flatten(0, -2)[rows])
    _require_finite(model, samples, {**keys, **gradients})


def _require_finite(
    model: EditableModel, samples: Sequence[Sample], sums: Mapping[str, Any]
) -> None:
    broken = torch.tensor([not total.finite for total in sums.values()]).long()
    model.ranks.all_reduce_(broken)
    for name, is_broken in zip(sums, broken.tolist(), strict=True):
        if is_broken:
            raise NonFiniteError(f"{called(name)}: not finite; {origin(model, samples)}")
