"""Reasons why a figure of ours is not comparable with the published one; none where it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from pipeline.config.presets import PRESETS
from pipeline.inputs.content_hashes import plain
from pipeline.paper.layout import Stream
from pipeline.paper.measured import CellRows, TablePlace
from pipeline.paper.reference_grids import published_cells
from pipeline.paper.references import published
from pipeline.plan.cells import Cell

_UNKNOWN = "absent"
_PROXIES = {"proxy": "proxy", "world": "world model"}


def departures(place: TablePlace, dataset: str, used: str, wanted: str) -> list[str]:
    """What was otherwise at a place than in the published run, in words.

    Args:
        used: Protocol that the figure was scored by; "" for a figure that is no score.
        wanted: Protocol of the published one.
    """
    found: list[str] = []
    for cell in place.done:
        found += [_PROXIES[cell.scale]] if cell.scale != "full" else _departures(cell, dataset)
    if place.done and place.stream != place.asked:
        found.append(f"stream {stream_name(place.stream)} instead of {stream_name(place.asked)}")
    if used and used != wanted:
        found.append(f"protocol {used} instead of {wanted}")
    return list(dict.fromkeys(found))


def stream_name(stream: Stream) -> str:
    """``n×m``."""
    return f"{stream[0]}×{stream[1]}"


def _departures(cell: CellRows, dataset: str) -> Iterator[str]:
    """How a cell at full scale departs from that of the reference grid."""
    part = (cell.model, cell.dataset, cell.editor, cell.variant)
    expected = published_cells(cell.grid).get(part)
    if expected is None:
        yield f"{cell.label} on {cell.model} and {cell.dataset} is not in the reference grid"
        return
    yield from _other_weights(cell)
    yield from _other_files(cell, dataset, expected)
    if cell.template != "bare":
        yield f"prompts in a {cell.template} template instead of none"
    # Another seed is another sample, no other setting.
    settings = plain(asdict(replace(expected, seed=cell.seed).settings))
    yield from _differences(cell.identity.get("settings", {}), settings, "setting ")
    data = cell.identity.get("dataset", {})
    used = {name: data.get(name) for name in ("split", "order")}
    used |= {"probes": cell.identity.get("probes"), "dtype": cell.identity["model"].get("dtype")}
    wanted = {name: getattr(expected.dataset, name) for name in ("split", "order")}
    wanted |= {"probes": expected.probes, "dtype": expected.model.dtype}
    used["scored_edits"], wanted["scored_edits"] = (
        one or "all" for one in (cell.identity.get("scored_edits"), expected.scored_edits)
    )
    yield from _differences(used, wanted)
    if "statistics" in expected.needs:
        yield from _other_covariance(cell.identity.get("statistics", {}), expected)


def _differences(
    used: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    for name in sorted({*used, *wanted}):
        ours, theirs = used.get(name, _UNKNOWN), wanted.get(name, _UNKNOWN)
        if ours != theirs:
            yield f"{prefix}{name} {ours} instead of {theirs}"


def _other_weights(cell: CellRows) -> Iterator[str]:
    preset = published()["weights"].get(cell.model)
    checkpoint = cell.identity["model"].get("checkpoint")
    if preset is None or checkpoint != PRESETS[preset].checkpoint:
        yield f"other weights: {checkpoint or 'not a checkpoint'}"


def _other_files(cell: CellRows, dataset: str, expected: Cell) -> Iterator[str]:
    """The evaluation file; for methods that learn from the training file, that as well."""
    files = cell.resolved.get("data_files", {})
    yield from _unlisted(
        files.get("evaluation"),
        published()["evaluation_files"].get(dataset, []),
        unknown=f"no hash of the published {dataset} file is known",
        other="other data",
    )
    if expected.trains or "training_data" in expected.needs:
        yield from _unlisted(
            files.get("train", files.get("all")),
            published()["train_files"].get(dataset, []),
            unknown=f"no hash of the published {dataset} training file is known",
            other="other training data",
        )


def _other_covariance(used: Mapping[str, Any], expected: Cell) -> Iterator[str]:
    if files := used.get("imported") or used.get("projections"):
        hashes = ", ".join(dict.fromkeys(str(known)[:12] for known in files.values()))
        yield f"imported key covariance or projections, of which no hash is published: {hashes}"
        return
    yield from _unlisted(
        used.get("corpus_hash"),
        published()["corpora"],
        unknown="no hash of the published corpus of key covariance is known",
        other="key covariance of another corpus",
    )
    wanted = {"dtype of key covariance": expected.statistics.dtype}
    yield from _differences({"dtype of key covariance": used.get("dtype")}, wanted)


def _unlisted(used: object, known: list[str], *, unknown: str, other: str) -> Iterator[str]:
    if not known:
        yield unknown
    elif used not in known:
        yield f"{other}: {str(used)[:12]}"
