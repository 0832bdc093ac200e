"""Stage that sums key covariance: one corpus shard per worker, resumable.

Each file holds one linear's sum over one shard, with its identity; the sums of all shards add up.
A linear is summed once, whichever cells need it. A file of the whole corpus, such as another user
has shared, stands for all shards.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pipeline.errors import ConfigError
from pipeline.inputs.content_hashes import fingerprint
from pipeline.inputs.corpus import open_corpus
from pipeline.plan.cache_names import covariance_folder, shard_file, whole_file
from pipeline.plan.cell_data import read_corpus
from pipeline.plan.cell_keys import corpus_hash_of, model_hash_of
from pipeline.plan.cells import Cell
from pipeline.plan.imported import imported_of
from pipeline.run.cache import Cache
from pipeline.run.imported_statistics import load_imported, read_covariance
from pipeline.run.rank_group import SINGLE_PROCESS, Gang
from pipeline.run.reporting import Report
from pipeline.run.resume import StateFolder, load_together, write_tensors
from pipeline.run.stages.prepare import open_model
from pipeline.storage.object_store import Storage
from rledit.locate.covariance import (
    CovarianceError,
    CovarianceFingerprint,
    KeyCovariance,
    sum_over_ranks,
)
from rledit.locate.output_gradients import accumulate_all, covariances_of, width_of
from rledit.model import EditableModel
from rledit.tokenization import TokenizationError

SAVE_EVERY_SECONDS = 20.0
SECONDS = "seconds"  # in a file's metadata: its share of the passes, of all attempts
DOCUMENTS_PER_PASS = 64
PROGRESS = ".progress"


def collect(
    cell: Cell,
    shard: int,
    model_folder: Path,
    cache: Cache,
    report: Report,
    gang: Gang = SINGLE_PROCESS,
) -> bool:
    """Sum one shard of the corpus; the ranks of a gang share its documents, the leader writes.

    Returns:
        Whether there was anything to sum that the cache did not have.
    """
    folder = covariance_folder(cell)
    model = open_model(cell, model_folder, gang)
    lacking = [
        name
        for name in covariances_of(model.modules, cell.needs)
        if gang.broadcast(gang.is_rank_zero and not _there(folder, name, shard, cache))
    ]
    if not lacking:
        return False
    texts = shard_of(cell, model, shard)
    covariances = {
        name: KeyCovariance(identity, width_of(model, name), model.device)
        for name, identity in covariance_fingerprints(cell, lacking).items()
    }
    # Other cells may be summing other linear layers of the same shard.
    place = f"shard{shard}-{fingerprint({'modules': lacking})}{PROGRESS}"
    progress = StateFolder(cache.storage.join(*folder.split("/"), place))
    done, before = _resume(covariances, progress, gang)
    began = last_save = time.perf_counter()
    for first in range(done, len(texts), DOCUMENTS_PER_PASS):
        report("statistics", first, len(texts))
        # A sum depends on no earlier document through a cache's last bits.
        model.prefix_cache.clear()
        accumulate_all(model, texts[first : first + DOCUMENTS_PER_PASS], covariances)
        if gang.broadcast(time.perf_counter() - last_save > SAVE_EVERY_SECONDS):
            sum_over_ranks(gang.together, covariances)
            if gang.is_rank_zero:
                seconds = before + time.perf_counter() - began
                _save(covariances, progress, min(first + DOCUMENTS_PER_PASS, len(texts)), seconds)
            else:  # the leader goes on with the sums
                for moment in covariances.values():
                    moment.reset()
            last_save = time.perf_counter()
    sum_over_ranks(gang.together, covariances)
    report("statistics", len(texts), len(texts))
    if not gang.is_rank_zero:
        return True
    seconds = (before + time.perf_counter() - began) / len(covariances)
    for name, moment in covariances.items():
        file = shard_file(folder, name, shard)
        metadata = {**moment.metadata(), SECONDS: str(seconds)}
        write_tensors(cache.folder / file, moment.tensors(), metadata)
        cache.publish(file)
    progress.clear()
    return True


def load_covariance(cell: Cell, cache: Cache, modules: Sequence[str]) -> dict[str, KeyCovariance]:
    """The moments of a cell's linear layers, of all that its editor needs, all shards added up.

    Raises:
        CovarianceError: A file is missing, or was made from something else.
    """
    if imported_of(cell):
        return load_imported(cell, cache)
    return load_sums(cell, cache, covariances_of(modules, cell.needs))


def load_sums(cell: Cell, cache: Cache, names: Sequence[str]) -> dict[str, KeyCovariance]:
    """Moments over a cell's corpus by their names, all shards added up.

    Raises:
        CovarianceError: A file is missing, or was made from something else.
    """
    folder = covariance_folder(cell)
    found: dict[str, KeyCovariance] = {}
    for name, identity in covariance_fingerprints(cell, names).items():
        whole = cache.file(whole_file(folder, name))
        if whole is not None:
            found[name] = read_covariance(whole, identity)
            continue
        for shard in range(cell.statistics.shards):
            file = shard_file(folder, name, shard)
            path = cache.file(file)
            if path is None:
                raise CovarianceError(f"{cache.storage} has no {file}; run the grid again")
            moment = read_covariance(path, identity)
            if name in found:
                found[name].merge(moment)
            else:
                found[name] = moment
    return found


def covariance_metadata(cell: Cell, covariances: Mapping[str, KeyCovariance]) -> dict[str, Any]:
    """How much text a cell's moments are of: a corpus may be shorter than was asked for."""
    return {
        "corpus": cell.corpus or "the synthetic world's text",
        "documents": read_corpus(cell).documents,
        "asked_for": cell.statistics.documents,
        "tokens": min((moment.count for moment in covariances.values()), default=0),
    }


def statistics_seconds(cell: Cell, cache: Cache, modules: Sequence[str]) -> float:
    """Seconds that the sums of a cell's linear layers took, whoever made them; 0 for imported
    ones."""
    folder, seconds = covariance_folder(cell), 0.0
    for name in covariances_of(modules, cell.needs):
        for shard in range(cell.statistics.shards):
            path = cache.file(shard_file(folder, name, shard))
            if path is not None:
                with safe_open(path, framework="pt") as file:
                    seconds += float((file.metadata() or {}).get(SECONDS, 0.0))
    return seconds


def covariance_fingerprints(cell: Cell, modules: Sequence[str]) -> dict[str, CovarianceFingerprint]:
    """What each moment has to be made from, by the linear or the name of its gradients."""
    return {
        name: CovarianceFingerprint(
            model_hash=model_hash_of(cell),
            module=name,
            corpus_hash=corpus_hash_of(cell),
            dtype=cell.statistics.dtype,
        )
        for name in modules
    }


def texts_of(cell: Cell, model: EditableModel) -> list[Sequence[int]]:
    """Token ids of all documents that a cell's moments are of."""
    return [ids for shard in range(cell.statistics.shards) for ids in shard_of(cell, model, shard)]


def shard_of(cell: Cell, model: EditableModel, shard: int) -> list[Sequence[int]]:
    """Token ids of a shard's documents, cut to the model's length."""
    entry = cell.statistics
    corpus = open_corpus(
        cell.corpus, entry.documents, None if cell.model.checkpoint else cell.world()
    )
    limit = model.encoder.max_length or entry.max_tokens
    # Whole passes are sharded, so that a pass holds the same documents, and gives the same
    # rounding, whatever the number of shards.
    passes = range(
        shard * DOCUMENTS_PER_PASS, len(corpus.documents), entry.shards * DOCUMENTS_PER_PASS
    )
    documents = [
        text for first in passes for text in corpus.documents[first : first + DOCUMENTS_PER_PASS]
    ]
    most = min(limit, entry.max_tokens)
    try:
        return [model.encoder.text_ids(text)[:most] for text in documents]
    except TokenizationError as error:
        raise ConfigError(f"covariance.corpus {cell.corpus!r}: a document: {error}") from None


def finished_sums(storage: Storage) -> list[str]:
    """Resume states of shards whose sums are all there, left by who was killed before clearing."""
    names = set(storage.list("statistics"))
    found: list[str] = []
    for place in {name.rpartition("/")[0] for name in names if f"{PROGRESS}/" in name}:
        summed = StateFolder(storage.join(*place.split("/"))).metadata().get("counts", {})
        folder, _, state = place.rpartition("/")
        shard = int(state.partition("-")[0].removeprefix("shard"))
        if summed and all(
            {shard_file(folder, m, shard), whole_file(folder, m)} & names for m in summed
        ):
            found += sorted(name for name in names if name.startswith(f"{place}/"))
    return found


def _there(folder: str, module: str, shard: int, cache: Cache) -> bool:
    """Whether a linear need not be summed; what is there is handed to all other nodes."""
    for file in (whole_file(folder, module), shard_file(folder, module, shard)):
        if cache.file(file) is not None:
            cache.publish(file)
            return True
    return False


def _resume(
    covariances: dict[str, KeyCovariance], progress: StateFolder, gang: Gang
) -> tuple[int, float]:
    """Documents that are summed already, and the seconds that took; the leader goes on with the
    sums."""
    saved = load_together(progress, gang)
    if saved is None:
        return 0, 0.0
    tensors, metadata = saved
    if gang.is_rank_zero:
        for name, moment in covariances.items():
            moment.total.copy_(tensors[name])
            moment.count = metadata["counts"][name]
    return int(metadata["documents"]), float(metadata.get(SECONDS, 0.0))


def _save(
    covariances: dict[str, KeyCovariance], progress: StateFolder, documents: int, seconds: float
) -> None:
    tensors = {name: moment.total for name, moment in covariances.items()}
    counts = {name: moment.count for name, moment in covariances.items()}
    metadata = {"documents": documents, "counts": counts, SECONDS: seconds}
    progress.save(tensors, metadata, version=documents)
