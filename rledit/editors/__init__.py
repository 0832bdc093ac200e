"""The registry of editors, by the names that grids use. A new method is one file and one line here.

An editor that is not part of this package is named by where it lies: ``my_package.mine:MyEditor``.
"""

from __future__ import annotations

import importlib

from rledit.editors.alphaedit import AlphaEdit
from rledit.editors.base import Editor, TrainableEditor, TrainingData
from rledit.editors.betaedit import BetaEdit
from rledit.editors.crispedit import CrispEdit
from rledit.editors.dafnet import DAFNet
from rledit.editors.deltaedit import DeltaEdit
from rledit.editors.encore import ENCORE
from rledit.editors.finetuning import FTL, FTM, FineTuning
from rledit.editors.grace import GRACE
from rledit.editors.hiedit import HiEdit
from rledit.editors.instructedit import InstructEdit
from rledit.editors.locft import LocFT
from rledit.editors.lyaplock import LyapLock
from rledit.editors.malmen import MALMEN
from rledit.editors.memit import MEMIT
from rledit.editors.memoir import MEMOIR
from rledit.editors.mend import MEND
from rledit.editors.nas import NAS
from rledit.editors.none import Unedited
from rledit.editors.prune import PRUNE
from rledit.editors.rect import RECT
from rledit.editors.retrained import MALMENStar, MENDStar
from rledit.editors.rledit import RLEdit
from rledit.editors.rome import ROME
from rledit.editors.stableedit import StableEdit
from rledit.editors.trajectory_relatives import MALMENRLEdit, MENDRLEdit
from rledit.editors.ultraedit import UltraEdit
from rledit.editors.untrained import Untrained
from rledit.editors.wise import WISE
from rledit.names import UnknownNameError, look_up

EDITORS: dict[str, type[Editor]] = {
    "none": Unedited,
    "untrained": Untrained,
    "ultraedit": UltraEdit,
    "stableedit": StableEdit,
    "ft": FineTuning,
    "ft_l": FTL,
    "ft_m": FTM,
    "locft": LocFT,
    "crispedit": CrispEdit,
    "rome": ROME,
    "memit": MEMIT,
    "prune": PRUNE,
    "rect": RECT,
    "alphaedit": AlphaEdit,
    "nas": NAS,
    "encore": ENCORE,
    "lyaplock": LyapLock,
    "betaedit": BetaEdit,
    "deltaedit": DeltaEdit,
    "grace": GRACE,
    "wise": WISE,
    "memoir": MEMOIR,
    "mend": MEND,
    "malmen": MALMEN,
    "mend_star": MENDStar,
    "malmen_star": MALMENStar,
    "mend_rledit": MENDRLEdit,
    "malmen_rledit": MALMENRLEdit,
    "dafnet": DAFNet,
    "instructedit": InstructEdit,
    "hiedit": HiEdit,
    "rledit": RLEdit,
}


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
