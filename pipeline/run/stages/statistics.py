"""Second moments of the edited linears' inputs: one shard of the corpus a worker, resumable.

Each file holds one linear's sum over one shard, with its identity; the sums of all shards add up.
A linear is summed once, whichever cells need it. A file of the whole corpus, such as another user
has shared, stands for all shards.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from pipeline.cells import Cell
from pipeline.corpus import open_corpus
from pipeline.identity import digest
from pipeline.run.cache import Cache
from pipeline.run.gang import ALONE, Gang
from pipeline.run.report import Report
from pipeline.run.stages.prepare import open_model
from pipeline.run.state import StateFolder, load_together, write_tensors
from pipeline.storage import Storage
from pipeline.yaml_location import ConfigError
from rledit.locate.statistics import MomentIdentity, SecondMoment, StatisticsError, accumulate
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
    gang: Gang = ALONE,
) -> None:
    """Sum one shard of the corpus; all ranks of a gang make the same passes, the leader writes."""
    folder = statistics_folder(cell)
    model = open_model(cell, model_folder, gang)
    lacking = [
        name
        for name in model.modules
        if gang.decide(gang.leads and not _there(folder, name, shard, cache))
    ]
    if not lacking:
        return
    texts = shard_of(cell, model, shard)
    moments = {
        name: SecondMoment(identity, model.shape(name)[0])
        for name, identity in moment_identities(cell, lacking).items()
    }
    # Other cells may be summing other linears of the same shard.
    place = f"shard{shard}-{digest({'modules': lacking})}{PROGRESS}"
    progress = StateFolder(cache.storage.join(*folder.split("/"), place))
    done, before = _resume(moments, progress, gang)
    began = last_save = time.perf_counter()
    for first in range(done, len(texts), DOCUMENTS_PER_PASS):
        report("statistics", first, len(texts))
        # A sum depends on no earlier document through a cache's last bits.
        model.trunk.clear()
        accumulate(model, texts[first : first + DOCUMENTS_PER_PASS], moments)
        if gang.leads and time.perf_counter() - last_save > SAVE_EVERY_SECONDS:
            seconds = before + time.perf_counter() - began
            _save(moments, progress, min(first + DOCUMENTS_PER_PASS, len(texts)), seconds)
            last_save = time.perf_counter()
    report("statistics", len(texts), len(texts))
    if not gang.leads:
        return
    seconds = (before + time.perf_counter() - began) / len(moments)
    for name, moment in moments.items():
        file = shard_file(folder, name, shard)
        facts = {**moment.metadata(), SECONDS: str(seconds)}
        write_tensors(cache.folder / file, moment.tensors(), facts)
        cache.publish(file)
    progress.clear()


def load_statistics(cell: Cell, cache: Cache, modules: Sequence[str]) -> dict[str, SecondMoment]:
    """The moments of a cell's linears, all shards added up.

    Raises:
        StatisticsError: A file is missing, or was made from something else.
    """
    folder = statistics_folder(cell)
    found: dict[str, SecondMoment] = {}
    for name, identity in moment_identities(cell, modules).items():
        whole = cache.file(whole_file(folder, name))
        if whole is not None:
            found[name] = read_moment(whole, identity)
            continue
        for shard in range(cell.statistics.shards):
            file = shard_file(folder, name, shard)
            path = cache.file(file)
            if path is None:
                raise StatisticsError(f"{cache.storage} has no {file}; run the grid again")
            moment = read_moment(path, identity)
            if name in found:
                found[name].merge(moment)
            else:
                found[name] = moment
    return found


def statistics_facts(cell: Cell, moments: Mapping[str, SecondMoment]) -> dict[str, Any]:
    """How much text a cell's moments are of: a corpus may be shorter than was asked for."""
    return {
        "corpus": cell.statistics.corpus or "the embedded world's text",
        "documents": cell.corpus_documents,
        "asked_for": cell.statistics.documents,
        "tokens": min((moment.count for moment in moments.values()), default=0),
    }


def statistics_seconds(cell: Cell, cache: Cache, modules: Sequence[str]) -> float:
    """Seconds that the sums of a cell's linears took, whoever made them; 0 for imported ones."""
    folder, seconds = statistics_folder(cell), 0.0
    for name in modules:
        for shard in range(cell.statistics.shards):
            path = cache.file(shard_file(folder, name, shard))
            if path is not None:
                with safe_open(path, framework="pt") as file:
                    seconds += float((file.metadata() or {}).get(SECONDS, 0.0))
    return seconds


def read_moment(path: Path, identity: MomentIdentity | None = None) -> SecondMoment:
    """The moment in a file.

    Raises:
        StatisticsError: It is broken, or made from something else than `identity`; names the file
            and both.
    """
    try:
        with safe_open(path, framework="pt") as file:
            moment = SecondMoment.load(load_file(path), file.metadata() or {})
        if identity is not None:
            identity.require(moment.identity)
    except (SafetensorError, StatisticsError) as error:
        raise StatisticsError(f"{path}: {error}") from None
    return moment


def moment_identities(cell: Cell, modules: Sequence[str]) -> dict[str, MomentIdentity]:
    """What each edited linear's moment has to be made from."""
    return {
        name: MomentIdentity(
            model_hash=cell.model_hash,
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
    most = min(limit, entry.max_tokens)
    try:
        return [model.encoder.text_ids(text)[:most] for text in documents]
    except TokenizationError as error:
        raise ConfigError(f"statistics.corpus {entry.corpus!r}: a document: {error}") from None


def statistics_folder(cell: Cell) -> str:
    """Where in the cache the moments lie: one folder per model, corpus and precision."""
    return f"statistics/{cell.statistics_key}"


def shard_file(folder: str, module: str, shard: int) -> str:
    """A linear's sum over one shard."""
    return f"{folder}/{module}.shard{shard}.safetensors"


def whole_file(folder: str, module: str) -> str:
    """A linear's sum over the whole corpus, as it is shared."""
    return f"{folder}/{module}.whole.safetensors"


def finished_sums(storage: Storage) -> list[str]:
    """Resume states of shards whose sums are all there, left by who was killed before clearing."""
    names = set(storage.list("statistics"))
    found: list[str] = []
    for place in {name.rpartition("/")[0] for name in names if f"{PROGRESS}/" in name}:
        summed = StateFolder(storage.join(*place.split("/"))).facts().get("counts", {})
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
    moments: dict[str, SecondMoment], progress: StateFolder, gang: Gang
) -> tuple[int, float]:
    """Documents that are summed already, and the seconds that took."""
    saved = load_together(progress, gang)
    if saved is None:
        return 0, 0.0
    tensors, facts = saved
    for name, moment in moments.items():
        moment.total.copy_(tensors[name])
        moment.count = facts["counts"][name]
    return int(facts["documents"]), float(facts.get(SECONDS, 0.0))


def _save(
    moments: dict[str, SecondMoment], progress: StateFolder, documents: int, seconds: float
) -> None:
    tensors = {name: moment.total for name, moment in moments.items()}
    counts = {name: moment.count for name, moment in moments.items()}
    facts = {"documents": documents, "counts": counts, SECONDS: seconds}
    progress.save(tensors, facts, version=documents)
