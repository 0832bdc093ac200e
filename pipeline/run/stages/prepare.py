"""Make the model of a cell, and open it for editing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.cells import Cell
from pipeline.run.report import Report
from pipeline.yaml_location import ConfigError
from rledit.model import EditableModel
from rledit.world import build_world_model


def prepare_model(cell: Cell, cache: Path, report: Report) -> Path:
    """The folder of the cell's model; trained on the spot when the cache does not have it."""
    if cell.model.checkpoint is not None:
        return checkpoint_folder(cell.model.checkpoint)

    def progress(step: int, steps: int, _: dict[str, float]) -> None:
        report("prepare", step, steps)

    return build_world_model(cell.world(), cell.model_spec, cache / "models", progress)


def open_model(cell: Cell, folder: Path) -> EditableModel:
    """Load the model and mark the cell's edited linears."""
    torch.set_num_threads(cell.threads)
    torch.manual_seed(cell.seed)
    dtype = cell.model.dtype if cell.model.checkpoint is not None else "auto"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if torch.cuda.is_available():
        model = model.to("cuda")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return EditableModel(model, tokenizer, cell.settings.modules)


def checkpoint_folder(checkpoint: str) -> Path:
    """A checkpoint's local folder, fetched from the hub at its revision where it is not one.

    Raises:
        ConfigError: The hub does not hand it out; says what to check.
    """
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = checkpoint.partition("@")
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"checkpoint {checkpoint!r} cannot be fetched ({type(error).__name__}); check the "
            "name, the revision, and for a gated model that HF_TOKEN is set and access granted"
        ) from None
