"""Which published key covariance, or projections, a cell uses instead of summing a corpus."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.errors import ConfigError
from pipeline.plan.architecture import architecture_of
from pipeline.plan.cells import Cell
from pipeline.plan.spec import once
from rledit.editors import editor_class
from rledit.locate.output_gradients import covariances_of, linear_of

IMPORTED = "imported:"
"""Goes before the hash of a file where the hash of a corpus stands otherwise."""
_HASH = re.compile(r"[0-9a-f]{64}(#\d+)?")


@once
def imported_of(cell: Cell) -> dict[str, str]:
    """Linear → hash of the file that its key covariance is from; empty where a corpus is summed.

    Raises:
        ConfigError: Some of the cell's linears have one and some have none.
    """
    # An editor that edits by projections needs no covariance.
    return {} if projections_of(cell) else _named(cell, cell.statistics.imported, "imported")


@once
def projections_of(cell: Cell) -> dict[str, str]:
    """Linear → hash of the file, and place in it, that its projection is from; empty without.

    Raises:
        ConfigError: Some of the cell's linears have one and some have none.
    """
    if not editor_class(cell.editor.editor).takes_projections:
        return {}
    return _named(cell, cell.statistics.projections, "projections")


def sums_corpus(cell: Cell) -> bool:
    """Whether the cell needs key covariance of a corpus."""
    return "statistics" in cell.needs and not imported_of(cell) and not projections_of(cell)


def reads_corpus(cell: Cell) -> bool:
    """Whether anything of the cell reads the corpus, be it to take covariance anew on the way."""
    return sums_corpus(cell) or "texts" in cell.needs


def _named(cell: Cell, every: Mapping[str, Mapping[str, str]], key: str) -> dict[str, str]:
    given = every.get(cell.model.name, {})
    if "statistics" not in cell.needs or not given:
        return {}
    for name, file in given.items():
        if not _HASH.fullmatch(file):
            raise ConfigError(
                f"covariance.{key}.{cell.model.name}.{name}: expected the hash that `rledit "
                f"statistics import` prints (64 hexadecimal digits), found {file!r}"
            )
    architecture = architecture_of(cell)
    try:
        architecture.target_modules(tuple(dict.fromkeys(map(linear_of, given))))
    except ValueError as error:
        raise ConfigError(f"covariance.{key}.{cell.model.name}: {error}") from None
    needs = cell.needs if key == "imported" else ()
    targets = covariances_of(architecture.target_modules(cell.settings.modules), needs)
    lacking = [name for name in targets if name not in given]
    if len(lacking) == len(targets):
        return {}
    if lacking:
        raise ConfigError(
            f"covariance.{key}.{cell.model.name} has no {', '.join(lacking)}, which {cell.label} "
            "edits beside others that it has; import these too, or name none of its linears, so "
            "that they are summed over covariance.corpus"
        )
    return {name: given[name] for name in targets}
