"""The unedited model as an editor, so that every table has its row to compare with."""

from __future__ import annotations

from dataclasses import dataclass

from rledit.editors.base import Editor
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class UneditedConfig:
    """The unedited model has no settings but an empty list of modules.

    Attributes:
        modules: Taken as every editor takes it; nothing is edited.
    """

    modules: tuple[str, ...] = ()


class Unedited(Editor):
    """Leaves the model as it is."""

    name = "none"
    checked = {"properties": "test_the_unedited_row_changes_nothing"}
    Config = UneditedConfig
    prefix_safe = True
    work_kind = "none"

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Do nothing."""
        return {}
