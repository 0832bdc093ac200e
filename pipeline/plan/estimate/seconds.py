"""Seconds of a cell by its operations over a stated rate, where none in the lake is like it.

A pass takes as long as its matrix products at the device's rate, or as reading the weights once
per physical batch, whichever is longer; sharded weights are read from other ranks.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config.grid import HARNESS
from pipeline.plan.architecture import Architecture
from pipeline.plan.cell_data import VALIDATED_BATCHES
from pipeline.plan.cells import Cell
from pipeline.plan.estimate.memory import GB, Device, Placement
from pipeline.plan.estimate.workload import DOCUMENT_TOKENS, Workload
from pipeline.plan.prefixes import prefix_bytes, training_store_choice
from rledit.editors import editor_class
from rledit.facts import RealFacts
from rledit.measurements.downstream import TASKS
from rledit.measurements.downstream.tasks import ITEMS_PER_TASK
from rledit.measurements.fluency import TEXT_TOKENS
from rledit.protocols import protocol

if TYPE_CHECKING:
    from rledit.editors.overlay_editor import OverlayEditor

TERA = 1e12
KINDS = 3  # edit, rephrase and locality prompt
GENERATED_TOKENS = 16
FREE_TOKENS = 25  # of a free answer, of the 50 that it may have
GPU_LAUNCH, CPU_LAUNCH = 2e-4, 5e-4  # seconds that a layer's operations take however small
OPEN_SECONDS, OPEN_GB = 3.0, 1.0  # of a worker that opens a model, and GB it reads per second
WORLD_TOKENS = 12  # of a sentence that a model of the synthetic world is trained on
# An item of the ability tests: read once for what is written, once for each of its answers.
ITEM_PASSES = 4
ITEM_TOKENS = 100 * ITEM_PASSES


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall time of one cell.

    Attributes:
        setup: Opening the model, and training before the first edit.
        edit: The whole stream.
        score: All points, and what is measured beside the edits.
        measured: Whether they come from rows of the lake.
        training: The part of the set-up that trains a network, validations included.
    """

    setup: float
    edit: float
    score: float
    measured: bool = False
    training: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.setup + self.edit + self.score


def modelled(
    work: Workload, placement: Placement, *, stored: bool = False, asked: bool = False
) -> Seconds:
    """The time of a cell by its operations.

    Args:
        work: The cell.
        placement: What it is given.
        stored: Whether the prefixes of its stream are there when it begins.
        asked: Whether what its unedited model says of the stream is.
    """
    model = _Passes(work, placement)
    cell = work.cell
    training = _training(model) / placement.ranks
    return Seconds(
        setup=_opening(work) + training,
        training=training,
        edit=cell.stream.n_batches * _edit_batch(model),
        score=_scoring(model, stored, asked) / placement.ranks,
    )


def statistics_seconds(work: Workload, placement: Placement, names: Collection[str]) -> float:
    """Covariances of text by their names, once per model, corpus and linear layers; 0 for none."""
    if not names:
        return 0.0
    model, tokens = _Passes(work, placement), work.documents * work.document_tokens
    products = sum(2.0 * work.covariances[name] ** 2 for name in names) * tokens
    last = work.architecture.layers  # the forward pass is run whole
    passes = 0.0
    if any(name in work.target_modules for name in names):
        passes += model.forward(tokens, last, 0)
    if any(name not in work.target_modules for name in names):  # of output gradients
        passes += model.forward(tokens, last, model.above, tokens)
    return passes + products / (placement.device.tflops * TERA)


def model_seconds(cell: Cell, architecture: Architecture, device: Device) -> float:
    """Training of a model of the synthetic world; 0 for one that is loaded."""
    if cell.model.checkpoint is not None:
        return 0.0
    spec = cell.model_spec
    tokens = float(spec.steps * spec.batch * WORLD_TOKENS)
    launch = 3 * CPU_LAUNCH * architecture.layers * spec.steps
    return 6.0 * tokens * architecture.parameters / (device.tflops * TERA) + launch


def asking_seconds(work: Workload, placement: Placement) -> float:
    """Asking an unedited model for every real fact that a probe depends on."""
    model, facts = _Passes(work, placement), len(RealFacts().to_ask())
    return _opening(work) + model.prompts(facts, work.architecture.layers, 0) / placement.ranks


def _opening(work: Workload) -> float:
    return OPEN_SECONDS + work.architecture.parameters * work.dtype_bytes / GB / OPEN_GB


class _Passes:
    """Times of passes of one model on one placement."""

    def __init__(self, work: Workload, placement: Placement) -> None:
        self.work, self.placement = work, placement
        self.batch = work.cell.stream.batch_size
        self.above = work.architecture.layers - work.first_layer

    def forward(self, tokens: float, layers: float, back: float, answers: float = 0.0) -> float:
        """Seconds of `tokens` through `layers` forward and `back` layers backward."""
        architecture, device = self.work.architecture, self.placement.device
        crossed = layers + back
        operations = 2.0 * tokens * architecture.layer_parameters * crossed
        operations += (
            2.0 * answers * architecture.vocabulary * architecture.hidden * (2 if back else 1)
        )
        micro_batches = max(1, math.ceil(tokens / self.placement.token_budget))
        read = micro_batches * crossed * architecture.layer_parameters * self.work.dtype_bytes / GB
        rate = device.gather_gb if self.placement.sharded else device.bandwidth_gb
        launch = CPU_LAUNCH if device.memory_gb is None else GPU_LAUNCH
        products = operations / (device.tflops * TERA)
        return max(products, read / rate) + micro_batches * crossed * launch

    def prompts(self, n: float, layers: float, back: float) -> float:
        """Seconds of `n` prompts with their answers."""
        return self.forward(n * self.work.tokens, layers, back, n * self.work.answer_tokens)

    def network(self, passes: float) -> float:
        """Seconds of the hypernetworks on the rows of a batch, `passes` forwards' worth."""
        rows = self.batch * self.work.answer_tokens * max(1, len(self.work.target_modules))
        shapes = max(1, len(set(self.work.target_modules.values())))
        operations = 2.0 * passes * rows * self.work.network_parameters / shapes
        # In float32: an eighth of the rate of bfloat16 on a GPU, the same on a CPU.
        slower = 1.0 if self.placement.device.memory_gb is None else 8.0
        return operations * slower / (self.placement.device.tflops * TERA)


def _edit_batch(model: _Passes) -> float:
    """One batch of the stream."""
    work, settings = model.work, model.work.cell.settings
    layers, ranks = work.architecture.layers, model.placement.ranks
    capture = model.prompts(model.batch, layers, model.above)
    if work.kind == "none":
        return 0.0
    if work.kind == "tuned":
        passes = getattr(settings, "steps", None) or settings.passes
        descent = float(passes) * model.prompts(model.batch, layers, 2 * model.above) / ranks
        return descent + (_projecting(model, settings) if work.covariances else 0.0)
    if work.kind == "remembered":
        passes = _remembering(work).passes_of(settings)
        trained = passes * model.prompts(model.batch, model.above, model.above)
        # A prompt of each kind is looked at once, from the bottom up to the memory.
        return (trained + model.prompts(KINDS * model.batch, work.first_layer, 0)) / ranks
    if work.kind == "located":
        return _located_batch(model, settings)
    return capture / ranks + model.network(1.0)


def _projecting(model: _Passes, settings: Any) -> float:
    """Of a batch, for an editor that projects every step: the projections, and the eigenvectors
    behind them, which a sequential stream takes anew for each batch."""
    device, shapes = model.placement.device, model.work.target_modules.values()
    steps = settings.passes * math.ceil(model.batch / settings.batch_size)
    each = sum(4.0 * d_in * d_out * (d_in + d_out) for d_in, d_out in shapes)
    slower = 1.0 if device.memory_gb is None else 8.0  # in float32
    vectors = sum(9.0 * (d_in**3 + d_out**3) for d_in, d_out in shapes)
    again = 1.0 if settings.mode == "sequential" else 1.0 / model.work.cell.stream.n_batches
    solves = again * vectors / (device.double_tflops * TERA)
    return steps * each * slower / (device.tflops * TERA) + solves


def _remembering(work: Workload) -> type[OverlayEditor]:
    from rledit.editors.overlay_editor import OverlayEditor

    cls = editor_class(work.cell.editor.editor)
    assert issubclass(cls, OverlayEditor)
    return cls


def _located_batch(model: _Passes, settings: Any) -> float:
    """Value vectors, keys of every layer, and a solve in float64 for each."""
    work = model.work
    layers = work.architecture.layers
    contexts = 1 + len(settings.contexts)
    values = settings.value_steps * model.prompts(model.batch * contexts, model.above, model.above)
    keys = len(work.target_modules) * model.prompts(model.batch * contexts, layers, 0)
    solves = sum(8.0 / 3.0 * d_in**3 for d_in, _ in work.target_modules.values())
    return values + keys + solves / (model.placement.device.double_tflops * TERA)


def _training(model: _Passes) -> float:
    """All batches of training: each one's own gradients, and the reward of its window."""
    work = model.work
    if not work.trained_batches:
        return 0.0
    settings: Any = work.cell.settings
    own = model.prompts(model.batch, model.above, model.above)
    references = model.prompts(model.batch, model.above, 0)  # to unrelated prompts
    older = _window(work.cell) - 1
    scored = 1 + older * getattr(settings, "window_share", 1.0)
    kinds = 3 if getattr(settings, "prompt_coef", 0.0) else 2
    reward = model.prompts(kinds * model.batch * scored, model.above, model.above)
    batches = work.trained_batches * (own + references + reward + model.network(3.0))
    return _below_training(model) + batches + _validating(model, own)


def _window(cell: Cell) -> float:
    """Batches that a training step scores, on average: the window fills along a trajectory."""
    depth, length = getattr(cell.settings, "depth", 1), max(1, cell.trajectory_batches)
    return sum(min(place + 1, depth) for place in range(length)) / length


def _below_training(model: _Passes) -> float:
    """What training draws, run up to the first edited layer: with a store once for each prompt
    that there is room for."""
    work = model.work
    edits = float(work.trained_batches * model.batch)
    choice = training_store_choice(work.cell)
    if work.train_pool and choice.made:
        room = choice.budget / prefix_bytes(work.cell, work.architecture, KINDS * work.tokens)
        kept = min(1.0, room / work.train_pool)
        edits = min(edits, kept * work.train_pool + (1 - kept) * edits)
    return model.prompts(KINDS * edits, work.first_layer, 0)


def _validating(model: _Passes, own: float) -> float:
    """All validations of a training that goes on to its limit, and of the search over steps after
    it; the prefixes are run once.

    Args:
        own: Seconds of one batch's own gradients, from the first edited layer up.
    """
    cell = model.work.cell
    if cell.stopping is None:
        return 0.0
    count = 1 + -(-cell.settings.train_steps // cell.stopping.validate_every)
    count += sum(factor != 1 for factor in cell.stopping.step_search)
    # What the pool holds may not be known yet: data that is away can be planned for.
    batches = cell.stopping.batches or min(cell.stream.n_batches, VALIDATED_BATCHES)
    edits = batches * model.batch
    # Every prompt kind is scored, and two of them count in the reward.
    each = batches * (own + model.network(1.0))
    each += model.prompts((KINDS + 2) * edits, model.above, 0)
    return model.prompts(KINDS * edits, model.work.first_layer, 0) + count * each


def _scoring(model: _Passes, stored: bool, asked: bool) -> float:
    """Everything edited so far, at every point: teacher-forced in one pass, generation in more.

    The unedited model is scored on all of it, unless it was `asked` before.
    """
    cell = model.work.cell
    layers = model.work.architecture.layers
    edits = len(cell.scored_places)
    share = edits / cell.n_edits
    scored = share * sum(point * model.batch for point in model.work.points)
    scored += 0 if asked else edits
    if model.work.kind == "none":
        scored = 0 if asked else edits  # read once, for all points
    # The layers below the first edited one are run once for the whole stream.
    below = 0.0 if stored else model.prompts(KINDS * edits, model.work.first_layer, 0)
    above = model.prompts(KINDS * scored, layers - model.work.first_layer, 0)
    generated = 0.0
    if any("text" in protocol(name).asks for name in cell.protocols):
        generated = GENERATED_TOKENS * model.forward(KINDS * scored, layers, 0, KINDS * scored)
    if cell.writes_freely:
        generated += FREE_TOKENS * model.forward(KINDS * scored, layers, 0, KINDS * scored)
    return below + above + generated + _measuring(model)


def _measuring(model: _Passes) -> float:
    """Perplexity after every batch, the rest at every point, and all of it before the first edit.

    Consequences of edits are left out: how many there are is in the rows.
    """
    cell = model.work.cell
    names = frozenset(cell.measurements)
    layers, points = model.work.architecture.layers, 1 + len(model.work.points)
    seconds = 0.0
    if "perplexity" in names:
        tokens = cell.material.documents * (
            WORLD_TOKENS if cell.model.checkpoint is None else DOCUMENT_TOKENS
        )
        seconds += (1 + cell.stream.n_batches) * model.forward(tokens, layers, 0, tokens)
    if names & {"fluency", "consistency"}:
        prompts = float(min(cell.material.prompts, cell.n_edits))
        seconds += points * TEXT_TOKENS * model.forward(prompts, layers, 0, prompts)
    items = float(len(TASKS) * ITEMS_PER_TASK)
    for _ in names & {"ability", HARNESS}:
        seconds += points * model.forward(items * ITEM_TOKENS, layers, 0, items * ITEM_PASSES)
    return seconds
