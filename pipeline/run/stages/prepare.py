"""Stage that prepares a cell's model (trained, fetched or converted) and opens it for editing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipeline.inputs.checkpoints import cached, fetch_whole, weight_files
from pipeline.inputs.model_loading import load_model
from pipeline.inputs.pickled_weights import converted, is_pickled
from pipeline.inputs.tokenizer_files import tokenizer_in
from pipeline.plan.architecture import architecture_of, read_layer_of
from pipeline.plan.cache_names import MODELS
from pipeline.plan.cells import Cell
from pipeline.run import heap, kept_model
from pipeline.run.cache import Cache
from pipeline.run.device import device_of
from pipeline.run.rank_group import SINGLE_PROCESS, Gang
from pipeline.run.reporting import Report
from rledit.lazy_torch import torch
from rledit.model import EditableModel
from rledit.world import build_world_model, world_model_key
from rledit.world.model import TRAINING_FILE

CONVERTED = "converted"


def has_model(cell: Cell, cache: Cache) -> bool:
    """Whether the cell's model is there as it is opened, so that nothing has to be prepared."""
    if cell.model.checkpoint is None:
        name = f"{MODELS}/{world_model_key(cell.world(), cell.model_spec)}"
        return cache.tree(name, last=TRAINING_FILE) is not None
    folder = cached(cell.model.checkpoint)
    files = [] if folder is None else weight_files(folder)
    return bool(files) and all(path.is_file() and not is_pickled(path) for path in files)


def prepare_model(cell: Cell, cache: Cache, report: Report) -> Path:
    """The folder of the cell's model, in safetensors.

    One of the synthetic world is trained on the spot when the cache does not have it, and pickled
    weights are converted there. A GGUF file is dequantised beside this user's other caches.
    """
    if cell.model.checkpoint is not None:
        folder = fetch_whole(cell.model.checkpoint, partial(report, "prepare"))
        pickles = any(is_pickled(path) for path in weight_files(folder))
        return converted(folder, cache.folder / CONVERTED) if pickles else folder
    name = f"{MODELS}/{world_model_key(cell.world(), cell.model_spec)}"
    cache.tree(name, last=TRAINING_FILE)

    def progress(step: int, steps: int, _: dict[str, float]) -> None:
        report("prepare", step, steps)

    made = build_world_model(cell.world(), cell.model_spec, cache.folder / MODELS, progress)
    cache.publish_tree(name, last=TRAINING_FILE)
    return made


def open_model(cell: Cell, folder: Path, gang: Gang = SINGLE_PROCESS) -> EditableModel:
    """Load the model and mark the cell's target modules; every rank of a gang makes this call.

    A worker whose last task had the same model has it at hand, see `pipeline.run.kept_model`.
    """
    torch.set_num_threads(cell.threads)
    torch.manual_seed(cell.seed)
    if gang.sharding == "zero3":
        return _open_sharded(cell, folder, gang)
    dtype = cell.model.dtype if cell.model.checkpoint is not None else "auto"
    device = device_of(cell.resources)
    model = kept_model.take(folder, dtype, device, lambda: load_model(folder, dtype).to(device))
    heap.freeze()
    # Whether it was loaded or at hand, what is drawn from here on is the same.
    torch.manual_seed(cell.seed)
    opened = EditableModel(
        model,
        tokenizer_in(folder),
        cell.settings.modules,
        ranks=gang.together,
        first_layer=_read_from(cell),
        **cell.prompting,
    )
    kept_model.lend(opened)
    return opened


def _read_from(cell: Cell) -> int | None:
    """The layer that the unedited row is read from; None: the editor's modules tell."""
    if cell.settings.modules:
        return None
    architecture = architecture_of(cell)
    layer = read_layer_of(cell, architecture)
    return layer if layer < architecture.layers else None


def _open_sharded(cell: Cell, folder: Path, gang: Gang) -> EditableModel:
    # DeepSpeed takes seconds to import, and changes torch in the process that does.
    from pipeline.run.sharded_model import ZeroSettings, open_sharded

    dtype = getattr(torch, cell.model.dtype) if cell.model.checkpoint is not None else None
    settings = ZeroSettings(offload="cpu" if gang.offload else "none")
    opened = open_sharded(
        folder,
        cell.settings.modules,
        dtype=dtype,
        settings=settings,
        first_layer=_read_from(cell),
        **cell.prompting,
    )
    heap.freeze()
    return opened


def held_shares(model: EditableModel, gang: Gang) -> list[float]:
    """Share of the sliced matrices that each rank holds; empty for a whole model."""
    if gang.sharding == "none":
        return []
    from pipeline.run.sharded_model import held_share

    return gang.all_gather(held_share(model.model))
