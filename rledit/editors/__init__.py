"""The registry of editors, by the names that grids use. A new method is one file and one line here.

An editor that is not part of this package is named by where it lies: ``my_package.mine:MyEditor``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping

from rledit.editors.base import Editor, TrainableEditor, TrainingData
from rledit.names import UnknownNameError, look_up


class _Editors(MutableMapping[str, type[Editor]]):
    """The editors by name, each imported when it is first asked for.

    Args:
        places: Name → module of this package and class.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._entries: dict[str, str | type[Editor]] = {**places}

    def __getitem__(self, name: str) -> type[Editor]:
        found = self._entries[name]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            cls: type[Editor] = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
            self._entries[name] = found = cls
        return found

    def __setitem__(self, name: str, editor: type[Editor]) -> None:
        self._entries[name] = editor

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


_PLACES = {
    "none": "none:Unedited",
    "untrained": "untrained:Untrained",
    "ultraedit": "ultraedit:UltraEdit",
    "stableedit": "stableedit:StableEdit",
    "ft": "finetuning:FineTuning",
    "ft_l": "finetuning:FTL",
    "ft_m": "finetuning:FTM",
    "locft": "locft:LocFT",
    "crispedit": "crispedit:CrispEdit",
    "rome": "rome:ROME",
    "memit": "memit:MEMIT",
    "prune": "prune:PRUNE",
    "rect": "rect:RECT",
    "alphaedit": "alphaedit:AlphaEdit",
    "nas": "nas:NAS",
    "encore": "encore:ENCORE",
    "lyaplock": "lyaplock:LyapLock",
    "betaedit": "betaedit:BetaEdit",
    "deltaedit": "deltaedit:DeltaEdit",
    "grace": "grace:GRACE",
    "wise": "wise:WISE",
    "memoir": "memoir:MEMOIR",
    "mend": "mend:MEND",
    "malmen": "malmen:MALMEN",
    "mend_star": "retrained:MENDStar",
    "malmen_star": "retrained:MALMENStar",
    "mend_rledit": "trajectory_relatives:MENDRLEdit",
    "malmen_rledit": "trajectory_relatives:MALMENRLEdit",
    "dafnet": "dafnet:DAFNet",
    "instructedit": "instructedit:InstructEdit",
    "hiedit": "hiedit:HiEdit",
    "rledit": "rledit:RLEdit",
}
"""Name → module of this package and class."""

EDITORS: MutableMapping[str, type[Editor]] = _Editors(_PLACES)


def __getattr__(name: str) -> type[Editor]:
    """An editor's class by its own name, as in `from rledit.editors import RLEdit`."""
    for editor, place in _PLACES.items():
        if place.endswith(f":{name}"):
            return EDITORS[editor]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# What an editor's class had before under other names; it would not be called by these.
_RENAMED = {
    "load_statistics": "load_covariance",
    "linears": "target_modules",
    "obstacle_of": "skip_reason_of",
}


def _has(editor: type[Editor], attribute: str) -> bool:
    """Whether a class defines it itself, or has it from anything but `Editor`."""
    return any(attribute in vars(cls) for cls in editor.__mro__ if cls not in Editor.__mro__)


def editor_class(name: str) -> type[Editor]:
    """The editor of that name, or the class at ``module:Class``.

    Raises:
        UnknownNameError: No such editor; names the nearest, or what is wrong with the class.
    """
    if ":" not in name:
        return look_up(EDITORS, name, "editor")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownNameError(
            f"editor {name!r}: {error}; expected module:Class of an importable module"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Editor)):
        raise UnknownNameError(f"editor {name!r} is no subclass of rledit.editors.Editor")
    renamed = [
        f"{old}, now called {new}"
        for old, new in _RENAMED.items()
        if _has(found, old) and not _has(found, new)
    ]
    if renamed:
        raise UnknownNameError(
            f"editor {name!r} is written for an older version of this project: it defines "
            f"{'; '.join(renamed)}. Rename that in the class"
        )
    known = EDITORS.get(getattr(found, "name", ""))
    if known is not None and known is not found:
        raise UnknownNameError(
            f"editor {name!r}: its name {found.name!r} belongs to another editor"
        )
    return found


__all__ = ["EDITORS", "Editor", "TrainableEditor", "TrainingData", "editor_class"]
