"""Make the model of a cell, and open it for editing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.cells import Cell
from pipeline.run.report import Report
from rledit.model import EditableModel
from rledit.world import World, build_world_model


def prepare_model(cell: Cell, cache: Path, report: Report) -> Path:
    """The folder of the cell's model; trained on the spot when the cache does not have it."""
    world = cell.source()
    if not isinstance(world, World):
        raise TypeError(f"{cell.path}: a world model needs the embedded world as its data")

    def progress(step: int, steps: int, _: dict[str, float]) -> None:
        report("prepare", step, steps)

    return build_world_model(world, cell.model_spec, cache / "models", progress)


def open_model(cell: Cell, folder: Path) -> EditableModel:
    """Load the model and mark the cell's edited linears."""
    torch.set_num_threads(cell.threads)
    torch.manual_seed(cell.seed)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return EditableModel(model, tokenizer, cell.settings.modules)
