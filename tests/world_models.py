"""Models of the synthetic world, trained once for all tests of a session.

One takes a second or two; a session asks for the same few, a hundred times.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

REPORTS = "progress-of-training.json"


def quick_world_models(patch: pytest.MonkeyPatch, kept: Path) -> None:
    """Let a world's model be trained once, and be copied where it is asked for again.

    Args:
        patch: Undone after the session.
        kept: Where trained models are kept, for all processes of the session.
    """
    if "rledit.world.model" in sys.modules:
        from rledit.world import model

        patch.setattr(model, "_build", _remembered(model._build, model.world_model_key, kept))


def _remembered(build: Any, key: Any, kept: Path) -> Any:
    """What trains a model into a folder, with a memory; progress is reported as it was."""

    @functools.wraps(build)
    def make(world: Any, spec: Any, folder: Path, progress: Any) -> None:
        there = kept / key(world, spec)
        if not there.exists():
            building = kept / f".{uuid.uuid4().hex}"
            building.mkdir(parents=True)
            reports: list[tuple[Any, ...]] = []
            build(world, spec, building, lambda *report: reports.append(report))
            (building / REPORTS).write_text(json.dumps(reports))
            try:
                os.replace(building, there)
            except OSError:  # another process was first
                shutil.rmtree(building)
        for report in json.loads((there / REPORTS).read_text()) if progress else ():
            progress(*report)
        shutil.copytree(
            there,
            folder,
            dirs_exist_ok=True,
            ignore=lambda *_: [REPORTS],
            copy_function=shutil.copy,
        )

    return make
