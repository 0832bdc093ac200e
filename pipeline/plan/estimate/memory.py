"""Memory of a cell: the device, peak memory of a rank part by part, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.config.resources import ResourcesEntry
from pipeline.plan.checks import unshardable
from pipeline.plan.estimate.workload import Workload
from rledit.editors import editor_class
from rledit.model import SHARDED_PASS_TOKENS

_MOST_RANKS = 16


# What is tried, in this order: the fewest GPUs, slices in host memory before a second machine.
_CANDIDATES = ((2, False), (4, False), (8, False), (2, True), (4, True), (8, True), (16, False))


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """A cell that cannot run where it is to run.

    Attributes:
        needs_gb: Peak memory of a rank.
        has_gb: Memory of its GPU.
        part: What takes most of it.
    """

    model: str
    editor: str
    needs_gb: float
    has_gb: float
    part: str


def out_of_memory_lines(out_of_memory_cells: Sequence[OutOfMemory]) -> list[str]:
    """A line for every model, with the editors that do not fit with it."""
    lines = []
    for model in dict.fromkeys(m.model for m in out_of_memory_cells):
        own = [m for m in out_of_memory_cells if m.model == model]
        editors = ", ".join(dict.fromkeys(m.editor for m in own))
        worst = max(own, key=lambda m: m.needs_gb)
        lines.append(
            f"{model} × {editors}: up to {worst.needs_gb:.0f} GB on each GPU, which has "
            f"{worst.has_gb:g} (most of it: {worst.part})"
        )
    return lines


def out_of_memory(work: Workload, placement: Placement, memory: Memory) -> OutOfMemory | None:
    """None where the memory suffices, or is not that of a GPU."""
    has = placement.device.memory_gb
    if has is None or memory.gigabytes <= has:
        return None
    cell = work.cell
    return OutOfMemory(
        model=cell.model.name,
        editor=cell.label,
        needs_gb=memory.gigabytes,
        has_gb=has,
        part=memory.largest,
    )


def smallest_fit(works: Sequence[Workload], placement: Placement) -> Placement | None:
    """The first of the candidates under ZeRO-3 on which all of these fit; None without one."""
    has = placement.device.memory_gb
    assert has is not None
    if not all(shardable(work) for work in works):
        return None
    for ranks, offload in _CANDIDATES:
        candidate = replace(placement, sharded=True, ranks=ranks, offload=offload)
        if peak_gb(works, candidate) <= has:
            return candidate
    return None


def widest(placement: Placement) -> Placement:
    """The most GPUs of the candidates, each with as little of the model as can be."""
    return replace(placement, sharded=True, ranks=_MOST_RANKS, offload=True)


def peak_gb(works: Sequence[Workload], placement: Placement) -> float:
    """The memory that the largest of these needs."""
    return max(memory_of(work, placement).gigabytes for work in works)


def shardable(work: Workload) -> bool:
    """Whether the model of a cell may lie in slices."""
    return unshardable(work.cell) is None


GB = 1e9
ASSUMED_TFLOPS = 0.04
"""Of a core that was not measured."""
SUSTAINED = 0.9
"""Share of a core's measured rate that passes are taken to reach: chosen, not measured."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Sustained rates, not those of a data sheet.

    Attributes:
        name: For the reader.
        memory_gb: Memory in GB (1e9 bytes); None: the host's, which is not checked.
        tflops: Matrix products in the checkpoint's precision, 1e12 operations per second.
        double_tflops: Solves in float64.
        bandwidth_gb: Reads of weights, GB per second.
        gather_gb: Reads of weights that lie on other ranks, GB per second.
        token_budget: Padded tokens of a physical batch on a whole model, see
            `rledit.model.Execution`.
    """

    name: str
    memory_gb: float | None
    tflops: float
    double_tflops: float
    bandwidth_gb: float
    gather_gb: float
    token_budget: int


def gpu(memory_gb: float = 80.0) -> Device:
    """A GPU of the A100's class, at 40 % of its peak."""
    return Device(
        name=f"GPUs with {memory_gb:g} GB at 125 TFLOP/s (an A100 at 40 % of its peak)",
        memory_gb=memory_gb,
        tflops=125.0,
        double_tflops=8.0,
        bandwidth_gb=1500.0,
        gather_gb=150.0,
        token_budget=8192,
    )


def core(threads: int = 1, measured: float | None = None) -> Device:
    """Cores of a CPU.

    Args:
        threads: How many.
        measured: Rate of one, see `matrix_rate.matrix_tflops`; None: what is assumed of any.
    """
    each = ASSUMED_TFLOPS if measured is None else SUSTAINED * measured
    rate = f"{each * threads:.2g} TFLOP/s"
    source = "" if measured is None else " (measured here)"
    return Device(
        name=f"{threads} CPU core{'s' * (threads > 1)} at {rate}{source}",
        memory_gb=None,
        tflops=each * threads,
        double_tflops=each * threads / 2,
        bandwidth_gb=10.0,
        gather_gb=1.0,
        token_budget=512,
    )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a cell is given.

    Attributes:
        device: Of every rank.
        ranks: Processes that work on one cell.
        sharded: Whether each holds a slice of the model (ZeRO-3) instead of all of it.
        offload: Whether the slices lie in host memory.
    """

    device: Device
    ranks: int = 1
    sharded: bool = False
    offload: bool = False

    @property
    def token_budget(self) -> int:
        """Padded tokens of a physical batch."""
        budget = self.device.token_budget
        return max(budget, SHARDED_PASS_TOKENS) if self.sharded else budget

    @property
    def words(self) -> str:
        """The `resources` entry, as a grid spells it."""
        if not self.sharded:
            return f"{self.ranks} rank{'s' * (self.ranks > 1)}"
        return f"ZeRO-3 on {self.ranks} GPUs" + (" with offload" if self.offload else "")


def placed(resources: ResourcesEntry, device: Device) -> Placement:
    """A cell's placement by its grid's `resources`."""
    return Placement(
        device=device,
        ranks=resources.ranks,
        sharded=resources.sharding == "zero3",
        offload=resources.offload,
    )


# Activations kept for one token and layer in a backward pass, in units of the layer's widths:
# residual stream, norms, queries, keys, values and attention output; gate, up, their product.
KEPT_HIDDEN, KEPT_INNER = 10.0, 4.0
# The CUDA context, libraries, and what the allocator cannot use.
RUNTIME_GB, FRAGMENTATION = 1.0, 0.06
FLOAT, DOUBLE = 4, 8
REFERENCE_CACHE_GB = 1.07  # the unedited model's references, at most 1 GiB
# Matrices of the size of a key covariance that a float64 solve holds at once.
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
        # Beside its slice a rank holds the output embedding, and the largest module it gathers, and
        # the next one. An input embedding of its own is as large as the output's.
        embedding = architecture.vocabulary * architecture.hidden * dtype
        layer = architecture.layer_parameters * dtype
        parts["weights"] = 0 if placement.offload else weights / placement.ranks
        parts["output embedding"] = embedding
        parts["gathered layers"] = 2 * (layer if architecture.tied else max(embedding, layer))
    # The unedited copy, and an fp32 master where the model's precision is lower.
    masters = FLOAT if dtype < FLOAT else 0
    parts["edited matrices"] = work.edited_parameters * (dtype + masters)
    parts["activations"] = _activations(work, placement)
    parts |= _editor(work)
    return Memory(parts=parts)


def _activations(work: Workload, placement: Placement) -> float:
    """Of the largest pass: a micro-batch of prompts through the layers that gradients cross."""
    architecture = work.architecture
    tokens = min(placement.token_budget, _pass_tokens(work))
    per_token = KEPT_HIDDEN * architecture.hidden + KEPT_INNER * architecture.intermediate
    layers = 1 if work.kind == "none" else architecture.layers - work.first_layer
    kept = tokens * per_token * work.dtype_bytes * max(layers, 1)
    answers = tokens * work.answer_tokens / work.tokens
    # Logits of the answer positions: log-probabilities, their gradient and the references.
    return kept + 3 * answers * architecture.vocabulary * FLOAT


def _projections(work: Workload) -> dict[str, float]:
    """Of an editor that projects its steps: sums over text and edits, eigenvectors, their
    products."""
    if not work.covariances:
        return {}
    squares = sum(width * width for width in work.covariances.values())
    largest = max(d_in * d_out for d_in, d_out in work.target_modules.values())
    widest = max(work.covariances.values())
    return {
        "covariances of text and edits": 2.0 * FLOAT * squares,
        "projections": FLOAT * squares + float(work.edited_parameters),
        "solve": float(DOUBLE * (SOLVE_COPIES * widest * widest + 3 * largest)),
    }


def _pass_tokens(work: Workload) -> float:
    """Tokens there are to run at once."""
    batch = work.cell.stream.batch_size * work.tokens
    if work.kind == "trained":
        return 2 * batch * getattr(work.cell.settings, "depth", 1)
    if work.kind == "located":
        contexts = 1 + len(work.cell.settings.contexts)
        return batch * contexts
    return 3 * batch


def memory_bytes(work: Workload) -> float | None:
    """What the memory of an editor that keeps one takes at most; None of other editors."""
    if work.kind != "remembered":
        return None
    from rledit.editors.overlay_editor import OverlayEditor

    cls = editor_class(work.cell.editor.editor)
    assert issubclass(cls, OverlayEditor)
    (shape,) = work.target_modules.values()
    return cls.bytes_of(work.cell.settings, shape, work.cell.n_edits)


def _editor(work: Workload) -> dict[str, float]:
    """What the method keeps beside the model."""
    widest = max((d_in for d_in, _ in work.target_modules.values()), default=0)
    if work.kind == "trained":
        # Parameters, gradients and Adam's two moments.
        parts = {"hypernetwork": 4.0 * FLOAT * work.network_parameters}
        batch = work.cell.stream.batch_size * work.answer_tokens * work.architecture.hidden
        kept = float(FLOAT * batch * work.cell.trajectory_batches)
        parts["references"] = min(REFERENCE_CACHE_GB * GB, kept)
        parts["edits so far"] = float(FLOAT * work.past_parameters * work.cell.n_edits)
        return parts | _past_keys(work)
    if work.kind == "tuned":
        return {"optimiser": 3.0 * FLOAT * work.edited_parameters, **_projections(work)}
    if work.kind == "remembered":
        return {"memory": memory_bytes(work) or 0.0}
    if work.kind == "located":
        from rledit.editors.locate_editor import LocateEditor

        cls = editor_class(work.cell.editor.editor)
        assert issubclass(cls, LocateEditor)
        moments = sum(d_in * d_in for d_in, _ in work.target_modules.values())
        return {
            "key covariance": 2.0 * FLOAT * moments,  # and the keys, or projections, of the past
            "past edits": float(sum(map(cls.more_bytes_of, work.target_modules.values()))),
            "solve": float(SOLVE_COPIES * DOUBLE * widest * widest),
        }
    return _past_keys(work)


def _past_keys(work: Workload) -> dict[str, float]:
    """The products of the keys so far, and one shape's system and factor beside them."""
    products = past_key_bytes(work)
    return {"past keys": float(3 * products)} if products else {}


def past_key_bytes(work: Workload) -> int:
    """What an editor keeps of the keys of earlier batches (`past_keys`), in memory and on disk."""
    if not getattr(work.cell.settings, "past_keys", 0.0):
        return 0
    return DOUBLE * sum(d_in * d_in for d_in, _ in work.target_modules.values())
