"""Runs of cells: how one is written, recognised, and found to be whole."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from pipeline.results.lake.records import CellAddress, CellResult
from pipeline.results.tracking.answers_table import ARTIFACT, answers_table
from pipeline.results.tracking.logged_run import ADDRESS_TAGS, Logged, address_tags
from pipeline.results.tracking.presentation import (
    COLOUR,
    COMMIT,
    NOTE,
    cell_note,
    colour_of,
    dataset_of,
    source_tags,
)
from pipeline.storage.redaction import redact

logger = logging.getLogger(__name__)

_INVOCATION = "invocation"
_PARENT = "mlflow.parentRunId"  # of cells as earlier versions logged them
_DIGEST = "content_digest"


def write_cell_run(
    client: MlflowClient,
    experiment_id: str,
    result: CellResult,
    logged: Logged,
    *,
    invocation: str,
    code: str,
) -> str:
    """Writes the run of a cell and returns its id.

    Args:
        invocation: The run of the call that logs it.
        code: The version of the code that runs; a cell that it made gets the commit it is of.
    """
    run = client.create_run(
        experiment_id,
        start_time=_milliseconds(result.started_at),
        run_name=_run_name(result),
        tags={
            _INVOCATION: invocation,
            NOTE: redact(cell_note(result)),
            COLOUR: colour_of(result.address.editor),
            **_source(result, code),
            **logged.tags,
        },
    )
    run_id = str(run.info.run_id)
    if data := dataset_of(result):
        used = [InputTag("mlflow.data.context", "evaluation")]
        client.log_inputs(run_id, [DatasetInput(Dataset(**data), used)])
    params = [Param(key, value) for key, value in logged.params.items()]
    moment = _milliseconds(result.finished_at) or run.info.start_time
    metrics = [Metric(key, value, moment, step) for key, value, step in logged.metrics]
    client.log_batch(run_id, metrics, params)  # in as many requests as it takes
    _log_answers(client, run_id, result)
    # The digest comes last: a run without it is a crash's remainder and is superseded.
    client.log_batch(run_id, tags=[RunTag(_DIGEST, logged.digest)])
    ending = "FAILED" if result.status == "failed" else "FINISHED"
    client.set_terminated(run_id, ending, _milliseconds(result.finished_at))
    return run_id


def is_whole(run: Run, logged: Logged) -> bool:
    """Whether a run has ended and holds just this content."""
    return run.info.status != "RUNNING" and run.data.tags.get(_DIGEST) == logged.digest


def invocation_of(run: Run) -> str | None:
    """The invocation that a cell's run was logged by; None for an invocation."""
    tags = run.data.tags
    return tags.get(_INVOCATION) or tags.get(_PARENT)


def place_of(run: Run) -> tuple[str, ...]:
    """Which cell a run is of, and at which address."""
    return _place(run.data.tags)


def place_at(address: CellAddress) -> tuple[str, ...]:
    """What `place_of` gives for the run of a cell at an address."""
    return _place(address_tags(address))


def _place(tags: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(tags.get(name, "") for name in ADDRESS_TAGS)


def _run_name(result: CellResult) -> str:
    a = result.address
    editor = f"{a.editor}-{a.variant}" if a.variant else a.editor
    return f"{editor} {a.model} {a.dataset} {a.n_batches}x{a.batch_size} seed {a.seed}"


def _source(result: CellResult, code: str) -> dict[str, str]:
    """Where a cell comes from; the commit only where it was made by the code that runs."""
    tags = source_tags()
    if result.code_version != code:
        tags.pop(COMMIT, None)
    return tags


def _log_answers(client: MlflowClient, run_id: str, result: CellResult) -> None:
    """Keep the answers with the run; a store of artifacts that is away costs only a warning."""
    table = answers_table(result)
    if not table:
        return
    try:
        client.log_table(run_id, table, ARTIFACT)
    except Exception as error:  # each kind of store has errors of its own library
        logger.warning(
            "the answers of cell %s could not be stored with its run (%s); the lake has them, and "
            "`rledit answers` shows them",
            result.address.cell_key, redact(str(error)),
        )  # fmt: skip


def _milliseconds(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1000)
