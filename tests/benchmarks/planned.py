"""Memory that `rledit plan` has for the cell whose steps are measured."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rledit.tokenization import EditBatch
from tests.benchmarks.contenders import StepSettings

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def planned_gb(
    model: Any, settings: StepSettings, batches: Sequence[EditBatch], device: torch.device
) -> float | None:
    """The peak that a plan states for training RLEdit by these steps, in GB.

    Args:
        model: The language model, of which the plan sees the configuration alone.
        settings: What is edited and how.
        batches: Their prompts' mean length is the plan's.
        device: Decides on the token budget.

    Returns:
        None where the pipeline's packages are not installed.
    """
    try:
        from pipeline.config.parse import load_grid
        from pipeline.plan.cells import cells_of
        from pipeline.plan.estimate.memory import Placement, gpu, memory_of
        from pipeline.plan.estimate.workload import workload_of
    except ImportError:
        return None
    with tempfile.TemporaryDirectory(prefix="rledit-planned-") as folder:
        model.config.save_pretrained(Path(folder) / "model")
        path = Path(folder) / "grid.yaml"
        path.write_text(json.dumps(_grid(Path(folder), model, settings, batches)))
        (cell,) = cells_of(load_grid(path))
        work = workload_of(cell, readable=False)
    samples = [sample for batch in batches for sample in batch.edit.samples]
    work = replace(
        work,
        tokens=sum(len(sample) for sample in samples) / len(samples),
        answer_tokens=sum(len(sample.answer_ids) for sample in samples) / len(samples),
    )
    place = replace(gpu(), token_budget=settings.execution.tokens(device))
    return memory_of(work, Placement(device=place)).gigabytes


def _grid(
    folder: Path, model: Any, settings: StepSettings, batches: Sequence[EditBatch]
) -> dict[str, Any]:
    """A grid of one cell, as YAML has it; its rows are never read."""
    return {
        "name": "planned",
        "scale": "full",
        "unedited": False,
        "models": [
            {
                "name": "model",
                "checkpoint": str(folder / "model"),
                "dtype": _DTYPES[model.dtype],
            }
        ],
        "datasets": [
            {
                "name": "rows",
                "schema": "zsre",
                "files": {"train": str(folder / "no"), "evaluation": str(folder / "none")},
            }
        ],
        "editors": [
            {
                "editor": "rledit",
                "settings": {
                    "target_modules": list(settings.modules),
                    "rank": settings.rank,
                    "depth": settings.depth,
                },
            }
        ],
        "streams": [{"n_batches": len(batches), "batch_size": len(batches[0].edit.samples)}],
        "resources": {"gpus": 1},
    }
