"""Stage that asks an unedited model which real facts it knows, once per model and data set.

Locality and portability of a cell are cut from the answer (see `rledit.facts`). An interrupted pass
goes on where it was, with the same result.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

from pipeline.config.grid import EditorEntry
from pipeline.plan.cache_names import known_name
from pipeline.plan.cell_data import knowing
from pipeline.plan.cell_keys import identity_of
from pipeline.plan.cells import Cell
from pipeline.run.cache import Cache
from pipeline.run.rank_group import SINGLE_PROCESS, Gang
from pipeline.run.reporting import Report
from pipeline.run.resume import StateFolder, load_together
from pipeline.run.stages.prepare import open_model
from pipeline.storage.object_store import Storage
from rledit.facts import RealFacts, known_counts, known_parts
from rledit.facts.knowledge import PART

logger = logging.getLogger(__name__)

SAVE_EVERY_PARTS = 4


def ask_model(
    cell: Cell, model_folder: Path, cache: Cache, report: Report, gang: Gang = SINGLE_PROCESS
) -> None:
    """Ask the cell's unedited model for the facts that its probes depend on, unless the cache has
    the answers. The ranks of a gang share the passes, the leader writes."""
    name = known_name(cell)
    folder = StateFolder(cache.storage.join(*f"{name.removesuffix('.json')}.progress".split("/")))
    if gang.broadcast(gang.is_rank_zero and cache.file(name) is not None):
        if gang.is_rank_zero:
            cache.publish(name)
        return
    # With nothing to edit, the passes are the same for whichever of its cells a model is asked.
    model = open_model(
        replace(cell, editor=EditorEntry(editor="none")).unseeded, model_folder, gang
    )
    facts = RealFacts().to_ask()
    saved = load_together(folder, gang)
    known = {} if saved is None else dict(saved[1]["known"])
    report("ask", len(known), len(facts))
    done = len(known) // PART
    for part in known_parts(model, facts, start=done):
        known |= part
        done += 1
        report("ask", len(known), len(facts))
        if gang.is_rank_zero and done % SAVE_EVERY_PARTS == 0 and len(known) < len(facts):
            folder.save({}, {"known": known}, version=done)
    if gang.is_rank_zero:
        record = {"model": identity_of(cell)["model"], "known": known}
        Storage(cache.folder).write_bytes(name, json.dumps(record, indent=1).encode())
        cache.publish(name)
        folder.clear()
        counts = known_counts(known)
        words = ", ".join(f"{key} {right} of {asked}" for key, (right, asked) in counts.items())
        logger.info("%s knows of the real facts: %s", cell.model.name, words)
        for split, why in RealFacts(known=known).unknowing.items():
            logger.warning("%s, locality of %s: %s", cell.model.name, split, why)


def with_known(cell: Cell, cache: Cache) -> Cell:
    """The cell with what its model knows, which the task before has put into the cache.

    Raises:
        FileNotFoundError: It is not there.
    """
    if not cell.dataset.real_facts or cell.known:
        return cell
    path = cache.file(known_name(cell))
    if path is None:
        raise FileNotFoundError(
            f"{cache.storage} has no {known_name(cell)}, which the model was asked for; is that "
            "path the same storage on every node? Run the same command again to make what is "
            "missing"
        )
    return knowing(cell, str(path))
