"""Lifelong model editing: editors, hypernetworks, protocols and measurements on torch models.

>>> from rledit import edit
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rledit.editing.api import edit

__all__ = ["edit"]


def __getattr__(name: str) -> Any:
    # Loading torch takes seconds, and most of what is below this package needs no editing.
    if name == "edit":
        from rledit.editing.api import edit

        return edit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
