"""Which cells keep their prompts' prefixes in a store, and why others do not.

See `rledit.prefix_store`.

A prefix that is found has other last bits than one that a cell records in the company of its own
prompts. Whether a cell keeps them is therefore told by its spec and its model's sizes alone, never
by what lies in the cache; and whether a training does, by what its network is known by.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.inputs.content_hashes import fingerprint
from pipeline.plan.architecture import Architecture, architecture_of, read_layer_of
from pipeline.plan.cell_keys import model_hash_of
from pipeline.plan.cells import Cell

PREFIXES = "prefixes"
GB = 1e9
LEAST_SHARE = 0.25  # of the layers that lie below the first edited one
LEAST_OPERATIONS = 5e10  # of all prompts of a stream below it: about a second of a core
# Of a GPU, a second, assumed: what `estimate.memory.gpu` has it compute, and what it can be sent.
GPU_OPERATIONS, GPU_LINK_BYTES = 1.25e14, 5e9
GPU_GAIN = 4.0  # times that computing takes longer than being sent, where prefixes are kept
KINDS = 3  # edit, rephrase and locality prompt
TOKENS = 16  # of a prompt with its answer, whatever the data is
_BYTES = {"float32": 4, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True, kw_only=True)
class StoreChoice:
    """Whether a cell keeps prefixes.

    Attributes:
        layer: Its first edited layer; of the unedited row the one that it is read from.
        budget: Bytes that the store may come to.
        reason: Why it keeps none; None where it does.
    """

    layer: int
    budget: int
    reason: str | None

    @property
    def made(self) -> bool:
        """Whether it keeps them."""
        return self.reason is None


def store_choice(cell: Cell) -> StoreChoice:
    """Whether a cell keeps prefixes.

    Raises:
        ConfigError: The model's configuration cannot be had.
    """
    architecture = architecture_of(cell)
    layer = read_layer_of(cell, architecture)
    budget = int(cell.resources.prefix_store_gb * GB)
    return StoreChoice(
        layer=layer, budget=budget, reason=_reason(cell, architecture, layer, budget)
    )


def training_store_choice(cell: Cell) -> StoreChoice:
    """Whether the training of a cell's network keeps prefixes.

    Cells of streams of any length share the network, so that theirs do not enter. Nor does the
    budget on a CPU, unless it is 0, which the network's key has: prompts that a store has no room
    for are run as those are that it takes. On a GPU those would cost more than without a store, in
    passes that are mostly filler: there all that is drawn has to fit.

    Raises:
        ConfigError: The model's configuration cannot be had.
    """
    architecture = architecture_of(cell)
    layer = read_layer_of(cell, architecture)
    budget = int(cell.resources.prefix_store_gb * GB)
    steps = max(1, int(getattr(cell.settings, "train_steps", 1)))
    edits = steps * cell.trajectory_batches * cell.stream.batch_size
    tokens = float(KINDS * edits * TOKENS)
    reason = _never(cell, architecture, layer, budget) or _small(cell, architecture, layer, tokens)
    if reason is None and cell.resources.gpus:
        what = f"{edits:,} edits that training draws"
        reason = _too_large(cell, architecture, what, tokens, budget)
    return StoreChoice(layer=layer, budget=budget, reason=reason)


def prefix_folder(cell: Cell, layer: int) -> str:
    """Where in the cache the prefixes of a model at a layer lie, a folder for each way of adding.

    Cells of any data, stream, seed and editor share them.
    """
    model = {"model": model_hash_of(cell), "threads": cell.threads}
    return f"{PREFIXES}/{fingerprint(model | {'layer': layer})}"


def prefix_bytes(cell: Cell, architecture: Architecture, tokens: float) -> float:
    """Bytes of the prefixes of so many tokens."""
    dtype = cell.model.dtype if cell.model.checkpoint is not None else "float32"
    return 2.0 * architecture.hidden * _BYTES[dtype] * tokens


def _never(cell: Cell, architecture: Architecture, layer: int, budget: int) -> str | None:
    """Why a cell keeps none, however many prompts it has."""
    resources, layers = cell.resources, architecture.layers
    if not budget:
        return "prefix_store_gb is 0"
    if layer == layers:
        return "nothing is edited"
    if resources.gang:
        return "only cells of one rank keep prefixes"
    if layer < LEAST_SHARE * layers:
        return (
            f"the first edited layer is {layer} of {layers}, and at least {LEAST_SHARE:.0%} of "
            "them have to lie below it"
        )
    if resources.gpus:
        made = _operations(architecture, layer, 1.0) / GPU_OPERATIONS
        if made < GPU_GAIN * prefix_bytes(cell, architecture, 1.0) / GPU_LINK_BYTES:
            return "a GPU runs the layers below about as fast as it is sent what they give"
    return None


def _small(cell: Cell, architecture: Architecture, layer: int, tokens: float) -> str | None:
    least = GPU_OPERATIONS if cell.resources.gpus else LEAST_OPERATIONS
    if _operations(architecture, layer, tokens) < least:
        return "the layers below the first edited one take about a second"
    return None


def _operations(architecture: Architecture, layer: int, tokens: float) -> float:
    """Of so many tokens below a layer."""
    return 2.0 * tokens * layer * architecture.layer_parameters


def _reason(cell: Cell, architecture: Architecture, layer: int, budget: int) -> str | None:
    tokens = float(KINDS * len(cell.scored_places) * TOKENS)
    reason = _never(cell, architecture, layer, budget) or _small(cell, architecture, layer, tokens)
    what = f"{len(cell.scored_places):,} edits that are scored"
    return reason or _too_large(cell, architecture, what, tokens, budget)


def _too_large(
    cell: Cell, architecture: Architecture, what: str, tokens: float, budget: int
) -> str | None:
    if (size := prefix_bytes(cell, architecture, tokens)) <= budget:
        return None
    return (
        f"those of the {what} take about {size / GB:.2g} GB, and prefix_store_gb is "
        f"{cell.resources.prefix_store_gb:g}"
    )
