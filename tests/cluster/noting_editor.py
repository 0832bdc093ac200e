"""An editor that edits nothing, and notes each model that it is the first to be given.

It is named in a grid as ``tests.cluster.noting_editor:NotingEditor``.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rledit.editors.base import Editor
from rledit.model import EditableModel
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class NotingConfig:
    """Settings of the noting editor.

    Attributes:
        folder: Where a file is left for every model that was loaded anew, named by the process.
        modules: Nothing is edited.
    """

    folder: str = ""
    modules: tuple[str, ...] = ()


class NotingEditor(Editor):
    """Leaves the model as it is, but for a mark by which it knows it again."""

    name = "noting"
    Config = NotingConfig

    def __init__(self, model: EditableModel, config: Any) -> None:
        super().__init__(model, config)
        if not hasattr(model.model, "noted"):
            model.model.noted = True  # type: ignore[assignment]
            (Path(config.folder) / f"{os.getpid()}-{uuid.uuid4().hex}").touch()

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Do nothing."""
        return {}
