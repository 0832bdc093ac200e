"""The files that cells read: which are here, which are not, and which the hub has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.cells import Cell
from pipeline.checkpoints import hub_reachable
from pipeline.estimate.device import GB
from pipeline.estimate.need import Need
from pipeline.material import material_files
from pipeline.pinned import HubFile, parse_hub_file

_PIN = "#sha256="


def absent_files(cells: Iterable[Cell]) -> list[str]:
    """Local files that the cells read and that are not there."""
    return [name for name in _named(cells) if _is_absent(name)]


def unfetched_files(cells: Iterable[Cell]) -> list[str]:
    """Files of the hub that the cells read and that this machine has no copy of."""
    hub = ((name, _hub_file(name)) for name in _named(cells))
    return [name for name, file in hub if file is not None and _copy(file) is None]


def unknowable(cell: Cell, away: Sequence[str]) -> bool:
    """Whether a cell reads a file that is not here, so that its identity cannot be told."""
    return any(name in away for _, name in _files(cell))


def file_needs(cells: Iterable[Cell]) -> list[Need]:
    """What is not there, what will be fetched from the hub, and what has been."""
    needs = []
    for name, kind in _named(cells).items():
        if _is_absent(name):
            text = f"{kind}: {name} is not there; put it there, or name another place with --set"
            needs.append(Need(text=text, missing=True))
        elif (file := _hub_file(name)) is not None:
            needs.append(_hub_need(kind, name, file))
    return needs


def _hub_need(kind: str, name: str, file: HubFile) -> Need:
    copy = _copy(file)
    if copy is not None:
        return Need(text=f"{kind}: {name} is here ({_gb(copy.stat().st_size)})")
    size = _size_on_hub(file)
    known = "of a size that the hub does not tell" if size is None else _gb(size)
    return Need(
        text=f"{kind}: fetch {name}, {known}; until it is here its cells count as missing (hf "
        f"download {file.repository} {file.file} --repo-type dataset --revision {file.revision})",
        download_gb=None if size is None else size / GB,
    )


def _named(cells: Iterable[Cell]) -> dict[str, str]:
    """Every file once, with what it is for."""
    return {name: kind for cell in cells for kind, name in _files(cell)}


def _files(cell: Cell) -> Iterator[tuple[str, str]]:
    """Files of edits, a corpus, and what the measurements look at, each with what it is for."""
    for name in cell.dataset.files.values():
        yield "data", name
    if "statistics" in cell.needs and cell.statistics.corpus is not None:
        yield "statistics corpus", cell.statistics.corpus
    for name in material_files(cell.material, cell.measurements):
        yield "material", name


def _is_absent(location: str) -> bool:
    """Whether a path leads nowhere. What lies in a store is told by opening it."""
    path, _, _ = location.partition(_PIN)
    return "://" not in path and not Path(path).is_file()


def _hub_file(location: str) -> HubFile | None:
    """None for what is no file of the hub, or not written as one: opening it says what is wrong."""
    try:
        return parse_hub_file(location.partition(_PIN)[0])
    except ValueError:
        return None


def _copy(file: HubFile) -> Path | None:
    """The copy in this machine's cache. The hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        file.repository, file.file, revision=file.revision, repo_type="dataset"
    )
    return Path(found) if isinstance(found, str) else None


def _size_on_hub(file: HubFile) -> int | None:
    """Bytes; None where the hub does not answer, or not to us: fetching it then says why."""
    if not hub_reachable():
        return None
    from huggingface_hub import HfApi, errors

    try:
        (found,) = HfApi().get_paths_info(
            file.repository, file.file, revision=file.revision, repo_type="dataset"
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError):
        return None
    size = getattr(found, "size", None)
    return None if size is None else int(size)


def _gb(size: int) -> str:
    return f"{size / GB:.2g} GB"
