"""Published statistics that cells name: which there are, and which no cache has yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.plan.cache_names import imported_file
from pipeline.plan.cell_keys import model_hash_of
from pipeline.plan.cells import Cell
from pipeline.plan.imported import imported_of, projections_of
from pipeline.storage.object_store import Storage


@dataclass(frozen=True, kw_only=True)
class NamedImport:
    """A published file that a grid names for a linear.

    Attributes:
        model: The model's name in the grid.
        checkpoint: Where the model lies.
        dtype: Its precision.
        kind: `key covariance`, or `projection`.
        linear: The linear.
        file_hash: What the grid calls the file.
        name: What it is called in a cache.
    """

    model: str
    checkpoint: str
    dtype: str
    kind: str
    linear: str
    file_hash: str
    name: str

    @property
    def text(self) -> str:
        """What it is, in words."""
        return f"{self.model}: {self.kind} of {self.linear}, imported file {self.file_hash[:12]}…"

    @property
    def remedy(self) -> str:
        """How it gets into a cache."""
        return (
            f"verify it with: rledit statistics import FILE --model {self.checkpoint} --dtype "
            f"{self.dtype} --module {self.linear}"
        )


def named_imports(cells: Iterable[Cell]) -> list[NamedImport]:
    """The published files that some cells name, each once."""
    found: dict[NamedImport, None] = {}
    for cell in cells:
        named = {"key covariance": imported_of(cell), "projection": projections_of(cell)}
        for kind, files in named.items():
            for linear, file_hash in files.items():
                entry = NamedImport(
                    model=cell.model.name,
                    checkpoint=cell.model.checkpoint or cell.model.name,
                    dtype=cell.model.dtype,
                    kind=kind,
                    linear=linear,
                    file_hash=file_hash,
                    name=imported_file(model_hash_of(cell), linear, file_hash),
                )
                found[entry] = None
    return list(found)


def absent_imports(cells: Iterable[Cell], cache: str | None) -> list[NamedImport]:
    """Those that a cache does not have; all where there is no cache."""
    named = named_imports(cells)
    if not named or cache is None:
        return named
    storage = Storage(cache)
    return [entry for entry in named if not storage.exists(entry.name)]
