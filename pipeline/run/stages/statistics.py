"""Second moments of the edited linears' inputs: one shard of the corpus a worker, resumable.

Each file holds one linear's sum over one shard, with its identity; the sums of all shards add up.
The files can be shared: put into the same place, they are taken if their identity fits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.cells import Cell
from pipeline.corpus import open_corpus
from pipeline.run.report import Report
from pipeline.run.stages.prepare import open_model
from pipeline.run.state import StateFolder, write_tensors
from rledit.locate.statistics import MomentIdentity, SecondMoment, accumulate
from rledit.model import EditableModel

SAVE_EVERY_SECONDS = 20.0
DOCUMENTS_PER_PASS = 64


def collect(cell: Cell, shard: int, model_folder: Path, cache: Path, report: Report) -> Path:
    """Sum one shard of the corpus; returns the folder of the files."""
    folder = statistics_folder(cell, cache)
    model = open_model(cell, model_folder)
    identities = moment_identities(cell, model_folder)
    files = {name: _file(folder, name, shard) for name in identities}
    if all(path.is_file() for path in files.values()):
        return folder
    texts = shard_of(cell, model, shard)
    moments = {
        name: SecondMoment(identity, model.linear(name).in_features)
        for name, identity in identities.items()
    }
    progress = StateFolder(folder / f"shard{shard}.progress")
    done = _resume(moments, progress)
    last_save = time.perf_counter()
    for first in range(done, len(texts), DOCUMENTS_PER_PASS):
        report("statistics", first, len(texts))
        # A sum depends on no earlier document through a cache's last bits.
        model.trunk.clear()
        accumulate(model, texts[first : first + DOCUMENTS_PER_PASS], moments)
        if time.perf_counter() - last_save > SAVE_EVERY_SECONDS:
            _save(moments, progress, min(first + DOCUMENTS_PER_PASS, len(texts)))
            last_save = time.perf_counter()
    for name, moment in moments.items():
        write_tensors(files[name], moment.tensors(), moment.metadata())
    progress.clear()
    report("statistics", len(texts), len(texts))
    return folder


def load_statistics(cell: Cell, model_folder: Path, cache: Path) -> dict[str, SecondMoment]:
    """The moments of a cell's linears, all shards added up.

    Raises:
        StatisticsError: A file was made from something else.
    """
    folder = statistics_folder(cell, cache)
    found: dict[str, SecondMoment] = {}
    for name, identity in moment_identities(cell, model_folder).items():
        for shard in range(cell.statistics.shards):
            path = _file(folder, name, shard)
            with safe_open(path, framework="pt") as file:
                moment = SecondMoment.load(load_file(path), file.metadata())
            identity.require(moment.identity)
            if name in found:
                found[name].merge(moment)
            else:
                found[name] = moment
    return found


def moment_identities(cell: Cell, model_folder: Path) -> dict[str, MomentIdentity]:
    """What each edited linear's moment has to be made from."""
    modules = open_model(cell, model_folder).modules
    return {
        name: MomentIdentity(
            model_hash=model_folder.name,
            module=name,
            corpus_hash=cell.corpus_hash,
            dtype=cell.statistics.dtype,
        )
        for name in modules
    }


def shard_of(cell: Cell, model: EditableModel, shard: int) -> list[Sequence[int]]:
    """Token ids of a shard's documents, cut to the model's length."""
    entry = cell.statistics
    corpus = open_corpus(
        entry.corpus, entry.documents, None if cell.model.checkpoint else cell.world()
    )
    limit = model.encoder.max_length or entry.max_tokens
    # Whole passes are dealt, so that a pass holds the same documents, and gives the same rounding,
    # whatever the number of shards.
    passes = range(
        shard * DOCUMENTS_PER_PASS, len(corpus.documents), entry.shards * DOCUMENTS_PER_PASS
    )
    documents = [
        text for first in passes for text in corpus.documents[first : first + DOCUMENTS_PER_PASS]
    ]
    return [model.encoder.prompt_ids(text)[: min(limit, entry.max_tokens)] for text in documents]


def statistics_folder(cell: Cell, cache: Path) -> Path:
    """Where the moments lie: one folder per model, corpus and precision."""
    return cache / "statistics" / cell.statistics_key


def _file(folder: Path, module: str, shard: int) -> Path:
    return folder / f"{module}.shard{shard}.safetensors"


def _resume(moments: dict[str, SecondMoment], progress: StateFolder) -> int:
    saved = progress.load()
    if saved is None:
        return 0
    tensors, facts = saved
    for name, moment in moments.items():
        moment.total.copy_(tensors[name])
        moment.count = facts["counts"][name]
    return int(facts["documents"])


def _save(moments: dict[str, SecondMoment], progress: StateFolder, documents: int) -> None:
    tensors = {name: moment.total for name, moment in moments.items()}
    counts = {name: moment.count for name, moment in moments.items()}
    progress.save(tensors, {"documents": documents, "counts": counts}, version=documents)
