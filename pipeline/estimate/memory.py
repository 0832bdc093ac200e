"""Peak memory of a rank, part by part, from the model's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.estimate.device import GB, Placement
from pipeline.estimate.workload import Workload

# Activations kept for one token and layer in a backward pass, in units of the layer's widths:
# residual stream, norms, queries, keys, values and attention output; gate, up, their product.
KEPT_HIDDEN, KEPT_INNER = 10.0, 4.0
# The CUDA context, libraries, and what the allocator cannot use.
RUNTIME_GB, FRAGMENTATION = 1.0, 0.06
FLOAT, DOUBLE = 4, 8
REFERENCE_CACHE_GB = 1.07  # the unedited model's references, at most 1 GiB
# Matrices of the size of a second moment that a float64 solve holds at once.
SOLVE_COPIES = 4


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by part."""

    parts: Mapping[str, float]

    @property
    def gigabytes(self) -> float:
        """All parts, with what the runtime takes, in GB (1e9 bytes)."""
        return RUNTIME_GB + (1 + FRAGMENTATION) * sum(self.parts.values()) / GB

    @property
    def largest(self) -> str:
        """The part that takes most."""
        return max(self.parts, key=lambda name: self.parts[name])


def memory_of(work: Workload, placement: Placement) -> Memory:
    """What one rank holds at its fullest moment."""
    architecture, dtype = work.architecture, work.dtype_bytes
    weights = architecture.parameters * dtype
    parts: dict[str, float] = {"weights": weights}
    if placement.sharded:
        # Beside its slice a rank holds the largest module it gathers, and the next one.
        embedding = architecture.vocabulary * architecture.hidden
        gathered = max(embedding, architecture.layer_parameters) * dtype
        parts["weights"] = 0 if placement.offload else weights / placement.ranks
        parts["gathered layers"] = 2 * gathered
    # The unedited copy, and an fp32 master where the model's precision is lower.
    masters = FLOAT if dtype < FLOAT else 0
    parts["edited matrices"] = work.edited_parameters * (dtype + masters)
    parts["activations"] = _activations(work, placement)
    parts |= _editor(work)
    return Memory(parts=parts)


def _activations(work: Workload, placement: Placement) -> float:
    """Of the largest pass: a chunk of prompts through the layers that gradients cross."""
    architecture = work.architecture
    tokens = min(placement.device.token_budget, _pass_tokens(work))
    per_token = KEPT_HIDDEN * architecture.hidden + KEPT_INNER * architecture.intermediate
    layers = 1 if work.kind == "none" else architecture.layers - work.first_layer
    kept = tokens * per_token * work.dtype_bytes * max(layers, 1)
    answers = tokens * work.answer_tokens / work.tokens
    # Logits of the answer positions: log-probabilities, their gradient and the references.
    return kept + 3 * answers * architecture.vocabulary * FLOAT


def _pass_tokens(work: Workload) -> float:
    """Tokens there are to run at once."""
    batch = work.cell.stream.batch_size * work.tokens
    if work.kind == "trained":
        return 2 * batch * work.cell.settings.depth
    if work.kind == "located":
        contexts = 1 + len(work.cell.settings.contexts)
        return batch * contexts
    return 3 * batch


def _editor(work: Workload) -> dict[str, float]:
    """What the method keeps beside the model."""
    widest = max((d_in for d_in, _ in work.linears.values()), default=0)
    if work.kind == "trained":
        # Parameters, gradients and Adam's two moments.
        parts = {"hypernetwork": 4.0 * FLOAT * work.network_parameters}
        batch = work.cell.stream.batch_size * work.answer_tokens * work.architecture.hidden
        kept = float(FLOAT * batch * work.cell.trajectory_batches)
        parts["references"] = min(REFERENCE_CACHE_GB * GB, kept)
        return parts
    if work.kind == "tuned":
        return {"optimiser": 3.0 * FLOAT * work.edited_parameters}
    if work.kind == "located":
        moments = sum(d_in * d_in for d_in, _ in work.linears.values())
        return {
            "second moments": 2.0 * FLOAT * moments,  # and the keys, or projections, of the past
            "solve": float(SOLVE_COPIES * DOUBLE * widest * widest),
        }
    return {}
