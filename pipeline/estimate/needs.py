"""What has to be there before a grid can run: weights, access to them, room on disk."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.architecture import Architecture
from pipeline.cells import Cell
from pipeline.checkpoints import cached, is_folder, missing_weights, weight_files
from pipeline.estimate.device import GB
from pipeline.estimate.need import Need
from pipeline.estimate.workload import BYTES, Workload
from pipeline.pickled import is_pickled
from pipeline.presets import PRESETS

_ROW_BYTES = 48  # of an edit's row in Parquet, measured on the demo
FLOAT = 4


def model_needs(cell: Cell, architecture: Architecture, trained: bool = False) -> list[Need]:
    """Weights of a model: there, to be fetched, or out of reach.

    Args:
        cell: A cell of the model.
        architecture: Its sizes.
        trained: Whether a model of the embedded world lies in the cache.
    """
    checkpoint = cell.model.checkpoint
    if checkpoint is None:
        how = "trained before, and in the cache" if trained else "trained on the spot"
        return [Need(text=f"{cell.model.name}: {how}")]
    size = architecture.parameters * BYTES[cell.model.dtype] / GB
    folder = cached(checkpoint)
    if folder is not None and _whole(folder):
        return [_here(cell, architecture, folder)]
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
            )
        )
    return needs


def statistics_need(works: Sequence[Workload], summed: Collection[str]) -> list[Need]:
    """The second moments of one model's linears, in a line; nothing where no editor needs them.

    Args:
        works: Cells of the model whose editors need second moments.
        summed: The linears whose moments are in the cache.
    """
    if not works:
        return []
    linears = {name for work in works for name in work.linears}
    editors = ", ".join(dict.fromkeys(work.cell.label for work in works))
    first = works[0]
    there = f", {len(summed)} of them in the cache" if summed else ""
    return [
        Need(
            text=f"{first.cell.model.name}: second moments of {len(linears)} linears{there} "
            f"({editors}), over {first.documents:,} documents of about "
            f"{first.document_tokens:.0f} tokens"
        )
    ]


def _here(cell: Cell, architecture: Architecture, folder: Path) -> Need:
    """Weights that lie on this machine."""
    files = weight_files(folder)
    size = sum(path.stat().st_size for path in files) / GB
    text = f"{cell.model.name}: weights are here ({_gb(size)}{_as(architecture)}, "
    text += f"{cell.model.checkpoint}){_loading(cell, architecture)}"
    return Need(text=text + (_converting(files[0].name, size) if is_pickled(files[0]) else ""))


def _fetched(cell: Cell, architecture: Architecture, folder: Path | None) -> Need:
    """Weights that the hub has: as large as it says, or else as the model is."""
    checkpoint = str(cell.model.checkpoint)
    sizes = missing_weights(checkpoint, folder) if folder is not None else None
    known = [size for size in (sizes or {}).values() if size is not None]
    size = architecture.parameters * BYTES[cell.model.dtype] / GB
    if sizes and len(known) == len(sizes):
        size = sum(known) / GB
    text = f"{cell.model.name}: fetch {checkpoint}, {_gb(size)}{_as(architecture)}"
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
        sum(work.points) * work.cell.stream.batch_size * len(work.cell.protocols) for work in works
    )
    trained = {network_place(work.cell): work for work in works if work.cell.trains}
    networks = sum(3 * FLOAT * work.network_parameters for work in trained.values())
    located = {
        (work.cell.model.name, name): d_in
        for work in works
        if "statistics" in work.cell.needs
        for name, (d_in, _) in work.linears.items()
    }
    moments = sum(FLOAT * d_in * d_in for d_in in located.values())
    # A cell's resume state: the edited matrices' masters and the editor's own.
    states = [FLOAT * (w.edited_parameters + w.network_parameters) for w in works]
    return {
        "rows of the lake": _ROW_BYTES * rows / GB,
        "trained networks": networks / GB,
        "second moments": moments / GB,
        "resume state of a running cell (at most)": max(states, default=0) / GB,
    }


def network_place(cell: Cell) -> tuple[object, ...]:
    """What cells that share a trained network have in common, told without reading their data."""
    trained = (cell.trajectory_batches, cell.stream.batch_size, cell.seed)
    return (cell.model.name, cell.dataset.name, cell.label, *trained)


def _whole(folder: Path) -> bool:
    files = weight_files(folder)
    return bool(files) and all(path.is_file() for path in files)


def _token() -> bool:
    from huggingface_hub import get_token

    return bool(os.environ.get("HF_TOKEN")) or get_token() is not None
