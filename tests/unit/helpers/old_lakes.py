"""Lakes as key version 1 left them: identities with labels, keys made from these, no addresses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.inputs.content_hashes import fingerprint
from pipeline.plan.cell_keys import address_of, identity_of
from pipeline.plan.cells import Cell
from pipeline.results.lake.key_versions import with_labels
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellResult
from tests.unit.helpers.lake_fixtures import cell as finished


def old_identity(cell: Cell) -> dict[str, object]:
    """A cell's identity as version 1 wrote it, labels among what it says."""
    return with_labels(
        identity_of(cell),
        grid=cell.grid,
        model=cell.model.name,
        dataset=cell.dataset.name,
        variant=cell.editor.variant,
        scale=cell.scale,
    )


def result_of(cell: Cell, noise: int = 0) -> CellResult:
    """A finished cell at a cell's address; its numbers are drawn."""
    drawn = finished(
        editor=cell.editor_name,
        n_batches=cell.stream.n_batches,
        batch_size=cell.stream.batch_size,
        seed=cell.seed,
        noise=noise,
    )
    return replace(drawn, address=address_of(cell), identity=identity_of(cell))


def old_lake(folder: Path, *cells: tuple[Cell, int]) -> Lake:
    """A lake of version 1 with cells, each with the noise of its numbers."""
    lake = Lake(str(folder))
    for cell, noise in cells:
        result, identity = result_of(cell, noise), old_identity(cell)
        address = replace(result.address, cell_key=fingerprint(identity))
        lake.commit(replace(result, address=address, identity=identity, key_version=1))
    for name in lake.storage.list("homes"):
        lake.storage.delete(name)
    return lake
