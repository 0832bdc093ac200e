"""Stage that edits a cell's stream and scores it; resumable after every scored checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from pipeline.inputs.datasets import known_metadata
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import Cell
from pipeline.plan.imported import imported_of, projections_of
from pipeline.plan.versions import code_version
from pipeline.run.cache import Cache
from pipeline.run.imported_statistics import imported_metadata, load_projections
from pipeline.run.rank_group import SINGLE_PROCESS, Gang
from pipeline.run.reporting import Report
from pipeline.run.resume import StateFolder, load_together, write_tensors
from pipeline.run.stages.answer_rows import StreamAnswers
from pipeline.run.stages.calibrated import calibration_facts, settings_with_step
from pipeline.run.stages.covariance import (
    covariance_metadata,
    load_covariance,
    statistics_seconds,
    texts_of,
)
from pipeline.run.stages.measure import StreamMeasures
from pipeline.run.stages.prefixes import CellStore, fill_store, open_store
from pipeline.run.stages.prepare import held_shares, open_model
from pipeline.run.stages.routing import routing_rows
from pipeline.run.stages.rows import SCORES, edit_rows, free_rows, left_out_rows, score_rows
from pipeline.run.stages.train import Trained, training_batches
from pipeline.run.stages.unedited import UneditedRecord
from rledit.editors import Editor, editor_class
from rledit.editors.base import prefixed, unprefixed
from rledit.editors.overlay_editor import kept_memory
from rledit.finite import NonFiniteError, require_finite
from rledit.free_answers import FreeForm
from rledit.lazy_torch import torch
from rledit.model import EditableModel
from rledit.protocols import protocol
from rledit.records import Edit, asked
from rledit.scoring import Scorer, count_contradicting
from rledit.stream import BatchEdited, StreamScored, after_batch, run_stream
from rledit.tokenization import EditBatch, Encoder, Sample

logger = logging.getLogger(__name__)

SAVE_EVERY_SECONDS = 20.0


@dataclass(kw_only=True)
class StreamRows:
    """Rows of the lake that a stream produced so far; plain JSON, saved with the resume state.

    Attributes:
        facts: What the results say beside them: how prompts were put, how much text was read.
    """

    edits: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    free_answers: list[dict[str, Any]] = field(default_factory=list)
    batches: int = 0
    edit_seconds: float = 0.0
    score_seconds: float = 0.0
    n_contradicting: int = 0
    held_shares: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class StreamBroken(Exception):
    """A stream that cannot go on, with the rows of what it reached.

    Attributes:
        error: Why.
        rows: Its rows; every checkpoint in them is whole.
    """

    def __init__(self, error: Exception, rows: StreamRows) -> None:
        super().__init__(str(error))
        self.error = error
        self.rows = rows


def edit_stream(
    cell: Cell,
    model_folder: Path,
    cache: Cache,
    trained: Trained | None,
    report: Report,
    gang: Gang = SINGLE_PROCESS,
) -> StreamRows:
    """Run the cell's stream to its end, from the newest saved state if there is one.

    Raises:
        NonFiniteError: The unedited model gives no numbers.
        StreamBroken: The model or the editor gives none, or cannot go on, after that.
    """
    model = open_model(cell, model_folder, gang)
    edits = cell.source().draw(cell.dataset.split, cell.n_edits, seed=cell.seed)
    store = open_store(cell, model, cache)
    measures = StreamMeasures(cell, model, edits)
    with UneditedRecord(cell, cache, gang) as unedited:
        scorer = _scorer(cell, model, edits, measures, store, unedited, report)
        editor = editor_class(cell.editor.editor)(model, settings_with_step(cell, cache))
        facts = {"prompt": _prompting(model.encoder, edits), **measures.metadata}
        facts |= {} if store is None else {"prefix_store": store.facts}
        facts |= calibration_facts(cell, cache)
        facts |= known_metadata(cell.dataset, cell.known)
        facts |= _provide(editor, cell, cache)
        if trained is not None:
            editor.load_state_dict(trained.state)
        folder = state_folder(cell, cache)
        rows = _resume(editor, folder, gang)
        answers = StreamAnswers(cell, model, edits)
        if rows is None:
            found = unedited.rows
            rows = StreamRows(**found) if found else _before_editing(cell, edits, scorer, measures)
            rows.n_contradicting = count_contradicting(edits)
            rows.score_seconds += answers.add_missing(rows.answers, 0)
            unedited.keep(scorer.unedited, asdict(rows))
            if "statistics" in cell.needs:
                spent = statistics_seconds(cell, cache, model.modules)
                rows.steps.append({"step": 0, "metric": "statistics_seconds", "value": spent})
    rows.facts = facts
    rows.score_seconds += answers.add_missing(rows.answers, 0)
    try:
        _run(cell, editor, edits, scorer, measures, answers, rows, folder, report, gang)
    except (ValueError, ArithmeticError, torch.linalg.LinAlgError) as error:
        raise StreamBroken(error, rows) from error
    # There already, unless they are asked for since the state that was resumed was saved.
    rows.score_seconds += answers.add_missing(rows.answers, len(edits))
    rows.held_shares = held_shares(model, gang)
    if store is not None:
        store.prefixes.flush()
    if cell.keep_edited:
        _keep(cell, editor, cache, gang)
    # Not a row: how often the cache helps depends on where a run was interrupted.
    logger.info("%s: frozen prefix hit rate %.1f %%", cell.path, 100 * model.prefix_cache.hit_rate)
    return rows


def _scorer(
    cell: Cell,
    model: EditableModel,
    edits: Sequence[Edit],
    measures: StreamMeasures,
    store: CellStore | None,
    unedited: UneditedRecord,
    report: Report,
) -> Scorer:
    """What scores the stream; the prefixes of all its prompts lie in the store then.

    Raises:
        NonFiniteError: The unedited model gives no numbers.
    """
    places = frozenset(cell.scored_places)
    others = [e for i, e in enumerate(edits) if i not in places]
    encoder, probes = model.encoder, cast(Any, cell.probes)

    def prefetch(samples: Sequence[Sample]) -> None:
        assert store is not None
        fill_store(store, model, report, samples)
        # Edits that are written and not scored: their own prompts are needed all the same.
        own = [encoder.sample(encoder.asked(e.prompt), e.target, e.source) for e in others]
        fill_store(store, model, report, own)

    try:
        return Scorer(
            model,
            edits,
            [protocol(p) for p in cell.protocols],
            probes,
            seed=cell.seed,
            beside=measures.samples,
            places=cell.scored_places,
            prefetch=None if store is None else prefetch,
            unedited=unedited.find,
            form=FreeForm(**asdict(cell.wild)),
            whole=True,
            unchanging=editor_class(cell.editor.editor).work_kind == "none",
        )
    except NonFiniteError as error:
        raise error.at(after_batch(0, 0)) from None


def _run(
    cell: Cell,
    editor: Editor,
    edits: list[Edit],
    scorer: Scorer,
    measures: StreamMeasures,
    answers: StreamAnswers,
    rows: StreamRows,
    folder: StateFolder,
    report: Report,
    gang: Gang,
) -> None:
    """Edit the rest of a stream; its rows grow as it goes."""
    total = cell.stream.n_batches
    points = cell.points
    editor.announce(points)
    last_save, took = time.perf_counter(), 0.0
    for event in run_stream(
        editor, edits, cell.stream.batch_size, points, scorer, start=rows.batches
    ):
        if isinstance(event, BatchEdited):
            rows.batches += 1
            rows.edit_seconds += event.seconds
            rows.steps += list(_step_rows(editor, event, cell.stream.batch_size))
            began = time.perf_counter()
            rows.steps += _measured(measures, event.n_edits, rows.batches, rows.batches in points)
            rows.score_seconds += time.perf_counter() - began
            # Where a checkpoint lies, scoring comes next, before the next event.
            report("score" if rows.batches in points else "edit", rows.batches, total)
        else:
            rows.score_seconds += event.seconds
            rows.edits += edit_rows(event, edits, cell)
            rows.scores += score_rows(event, cell)
            rows.free_answers += free_rows(event, edits)
            rows.steps += left_out_rows(event)
            rows.steps += routing_rows(editor, scorer, cell, event.n_edits)
            rows.score_seconds += answers.add_missing(rows.answers, event.n_edits)
            report("edit", rows.batches, total)
        # The longer saving takes, the more seldom it is done: rows grow with the stream.
        due = time.perf_counter() - last_save > SAVE_EVERY_SECONDS * max(1.0, took)
        between = not (isinstance(event, BatchEdited) and rows.batches in points)
        if between and gang.broadcast(due):
            last_save = time.perf_counter()
            _save(editor, folder, rows, gang)
            took = time.perf_counter() - last_save
            last_save += took


def _measured(
    measures: StreamMeasures, n_edits: int, batch: int, checkpoint: bool
) -> list[dict[str, Any]]:
    """What is measured beside the edits; an error says after which batch."""
    try:
        return list(measures.rows(n_edits, checkpoint))
    except NonFiniteError as error:
        raise error.at(after_batch(batch, n_edits)) from None


def _prompting(encoder: Encoder, edits: list[Edit]) -> dict[str, Any]:
    """How prompts reach the model, and how many edits have an answer that no space sets off."""
    pairs = [asked(edit) for edit in edits]
    joined = sum(any(not encoder.answer_lead(p, a) for p, a in own) for own in pairs)
    bare = encoder.style == "bare"
    return {**encoder.prompting, **({"answers_without_space": joined} if bare and joined else {})}


def _before_editing(
    cell: Cell, edits: list[Edit], scorer: Scorer, measures: StreamMeasures
) -> StreamRows:
    """The rows of a stream of which nothing is written yet: what the unedited model does."""
    began = time.perf_counter()
    try:
        scores = scorer.score_unedited()
    except NonFiniteError as error:
        raise error.at(after_batch(0, 0)) from None
    steps = _measured(measures, 0, 0, checkpoint=True)
    seconds = scorer.unedited_seconds + time.perf_counter() - began
    event = StreamScored(n_edits=0, scores=scores, seconds=seconds)
    return StreamRows(
        scores=list(score_rows(event, cell)),
        free_answers=list(free_rows(event, edits)),
        steps=[*steps, *left_out_rows(event)],
        score_seconds=seconds,
    )


def _provide(editor: Editor, cell: Cell, cache: Cache) -> dict[str, Any]:
    """Give the editor what it needs beside the edits; returns how much that was."""
    facts: dict[str, Any] = {}
    if projections_of(cell):
        editor.load_projections(load_projections(cell, cache))
        facts["statistics"] = imported_metadata(cell, cache)
    elif "statistics" in cell.needs:
        covariances = load_covariance(cell, cache, editor.model.modules)
        facts["statistics"] = (
            imported_metadata(cell, cache)
            if imported_of(cell)
            else covariance_metadata(cell, covariances)
        )
        editor.load_covariance(covariances)
    if "training_data" in cell.needs:

        def draw(n_batches: int, seed: int) -> list[EditBatch]:
            return training_batches(cell, editor, n_batches, seed)

        editor.load_training_data(draw)
    if "texts" in cell.needs:
        editor.load_texts(partial(texts_of, cell, editor.model))
    return facts


def edited_name(cell: Cell) -> str:
    """The name in the cache of the matrices that a cell has edited, or of its memory."""
    return f"edited/{key_of(cell)}.safetensors"


def _keep(cell: Cell, editor: Editor, cache: Cache, gang: Gang) -> None:
    """Keep the edited matrices at full precision, or the memory of an editor that edits none.

    Every rank reads them, the leader writes. The file's name tells nothing of the code: its
    metadata do.
    """
    found = kept_memory(editor) or editor.model.weights.state_dict()
    state = {k: v.cpu().contiguous() for k, v in found.items()}
    if gang.is_rank_zero:
        made_by = {"code_version": code_version()}
        write_tensors(cache.folder / edited_name(cell), state, made_by)
        cache.publish(edited_name(cell), replace=True)


def state_folder(cell: Cell, cache: Cache) -> StateFolder:
    """Where the cell's resume state lies."""
    return StateFolder(cache.storage.join("states", key_of(cell)))


def _save(editor: Editor, folder: StateFolder, rows: StreamRows, gang: Gang) -> None:
    # Every rank reads the weights, which a sharded model has to gather; the leader writes.
    tensors = prefixed("weights.", editor.model.weights.state_dict())
    tensors |= prefixed("editor.", editor.state_dict())
    if gang.is_rank_zero:
        made = {"rows": vars(rows), "code_version": code_version()}
        folder.save(tensors, made, version=rows.batches)


def _resume(editor: Editor, folder: StateFolder, gang: Gang) -> StreamRows | None:
    saved = load_together(folder, gang)
    if saved is None:
        return None
    tensors, facts = saved
    made_by = facts.get("code_version", "an earlier release")
    ours = gang.all_gather(float(made_by == code_version()))
    if len(set(ours)) > 1:
        raise RuntimeError("the ranks are of other versions of the code; all nodes need the same")
    if not ours[0]:
        # Its rows would say that one version made all of them, and repeat neither's numbers.
        if gang.is_rank_zero:
            logger.warning("%s: a state of other code (%s): begun anew", folder, made_by)
        return None
    editor.model.weights.load_state_dict(unprefixed("weights.", tensors))
    editor.load_state_dict(unprefixed("editor.", tensors))
    return StreamRows(**facts["rows"])


def _step_rows(editor: Editor, event: BatchEdited, batch_size: int) -> Iterator[dict[str, Any]]:
    weights = editor.model.weights
    metrics: Mapping[str, float] = {
        **event.metrics,
        "edit_seconds": event.seconds,
        "weight_change_norm": sum(weights.delta_norm(n) ** 2 for n in weights.names) ** 0.5,
        "weight_norm": sum(float(weights.read(n).norm()) ** 2 for n in weights.names) ** 0.5,
    }
    try:
        require_finite(metrics, "what is measured of the edited matrices", editor.model)
    except NonFiniteError as error:
        batch = -(-event.n_edits // batch_size)
        raise error.at(after_batch(batch, event.n_edits)) from None
    for name, value in metrics.items():
        yield {"step": event.n_edits, "metric": name, "value": float(value)}


def reached(rows: StreamRows) -> str:
    """What a stream that cannot go on was scored at last, as a sentence; empty where nothing."""
    last = max((row["checkpoint"] for row in rows.scores), default=0)
    if not last:
        return "no checkpoint was reached" if rows.scores else ""
    parts = []
    for row in rows.scores:
        if row["checkpoint"] == last:
            values = [f"{name} {row[name]:.2f}" for name in SCORES if row[name] is not None]
            parts.append(f"{row['protocol']} {', '.join(values)}")
    return f"kept: {last} edits, {'; '.join(parts)}"
