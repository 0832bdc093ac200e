"""The registry of editors. A new method is one file and one line here."""

from __future__ import annotations

import difflib

from rledit.editors.base import Editor, TrainableEditor
from rledit.editors.finetuning import FineTuning
from rledit.editors.malmen import MALMEN
from rledit.editors.mend import MEND
from rledit.editors.none import Unedited
from rledit.editors.rledit import RLEdit
from rledit.editors.ultraedit import UltraEdit
from rledit.editors.untrained import Untrained

EDITORS: dict[str, type[Editor]] = {
    "none": Unedited,
    "untrained": Untrained,
    "ultraedit": UltraEdit,
    "ft": FineTuning,
    "mend": MEND,
    "malmen": MALMEN,
    "rledit": RLEdit,
}


def editor_class(name: str) -> type[Editor]:
    """The editor of that name.

    Raises:
        ValueError: No such editor; names the nearest.
    """
    if name not in EDITORS:
        near = difflib.get_close_matches(name, EDITORS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"editor {name!r} is not known{hint} Known: {', '.join(EDITORS)}")
    return EDITORS[name]


__all__ = ["EDITORS", "Editor", "TrainableEditor", "editor_class"]
