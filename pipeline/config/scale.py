"""Scales of a grid: published models, proxy models on a synthetic world, or the plain world."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from pipeline.config.grid import CovarianceEntry, DatasetEntry, Grid, ModelEntry, Scale, StreamEntry
from pipeline.config.presets import PRESETS
from pipeline.config.presets.proxy import model_settings, world_settings
from pipeline.config.stored_words import SCALES, documented_value, stored_value, warn_of
from pipeline.errors import ConfigError
from rledit.names import nearest
from rledit.world import BOS_FAMILIES, SCHEMAS

# A proxy model knows nothing but its world: so much of the world's text is all there is to see.
PROXY_DOCUMENTS = 2000
PROXY_PROMPTS = 5  # behind which 100 tokens are written, at every checkpoint


def scaled(grid: Grid, scale: str | None = None, limit: int | None = None) -> Grid:
    """The grid with its streams small or cut, and its presets made real.

    Args:
        grid: As its file has it.
        scale: `full`: the presets' checkpoints and the datasets' files; `proxy`: models of the
            same architectures on the synthetic world written in the datasets' schemas; `world`: the
            same models on the plain world; both on the proxy streams. None: the grid's own.
        limit: Batches per stream; None: as the grid has them.

    Raises:
        ConfigError: No such scale, a scale for which the models name no preset, or a limit below
            one.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: a stream has at least one batch")
    if scale is not None:
        scale = known_scale(scale)
    chosen: Scale = grid.scale if scale is None else scale  # type: ignore[assignment]
    bare = [model.name for model in grid.models if model.preset is None]
    if scale is not None and scale != grid.scale and bare:
        raise ConfigError(
            f"--scale {documented_value(scale)}: model {bare[0]!r} of grid {grid.name!r} names no "
            f"preset, so there is nothing to choose between; valid presets: {', '.join(PRESETS)}"
        )
    streams = tuple(dict.fromkeys(_cut(stream, limit) for stream in _streams(grid, chosen)))
    grid = replace(grid, scale=chosen, streams=streams, standins=())
    if chosen == "full" or len(bare) == len(grid.models):
        return replace(grid, models=tuple(_published(model) for model in grid.models))
    longest = max(stream.n_batches * stream.batch_size for stream in streams)
    lessons = bool(grid.measurements)
    datasets = tuple(_embedded(entry, chosen, longest, lessons) for entry in grid.datasets)
    return replace(
        grid,
        datasets=datasets,
        models=tuple(_proxy(model, datasets[0]) for model in grid.models),
        statistics=_small(grid.statistics),
        # The synthetic world brings its own.
        material=replace(
            grid.material,
            text=None,
            references=None,
            ability=None,
            prompts=min(grid.material.prompts, PROXY_PROMPTS),
        ),
    )


def known_scale(given: str) -> str:
    """A scale of the command line, in the word that is stored; warns of an old word.

    Raises:
        ConfigError: There is no such scale.
    """
    if given in SCALES:
        warn_of([f"--scale {given} is now --scale {SCALES[given]}"])
    found = stored_value(given, SCALES)
    if found not in get_args(Scale):
        known = [documented_value(name) for name in get_args(Scale)]
        raise ConfigError(f"--scale {given}: unknown scale{nearest(given, known)}")
    return found


def _streams(grid: Grid, scale: Scale) -> tuple[StreamEntry, ...]:
    """The grid's streams, or what takes their places at this scale."""
    if scale == "full" or not grid.standins:
        return grid.streams
    return tuple(small or own for own, small in zip(grid.streams, grid.standins, strict=True))


def _cut(stream: StreamEntry, limit: int | None) -> StreamEntry:
    return stream if limit is None else replace(stream, n_batches=min(stream.n_batches, limit))


def _published(model: ModelEntry) -> ModelEntry:
    """The model with its preset's weights, unless the grid names other ones."""
    if model.preset is None or model.checkpoint is not None:
        return model
    return replace(model, checkpoint=PRESETS[model.preset].checkpoint)


def _proxy(model: ModelEntry, dataset: DatasetEntry) -> ModelEntry:
    if model.preset is None:
        return model
    preset = PRESETS[model.preset]
    family = preset.family
    settings = model_settings(family, dataset.world) | model.overrides
    proxy = replace(model, checkpoint=None, dtype="float32", world_model=family, overrides=settings)
    # A family's tokenizers mostly agree on BOS, and its proxies follow them.
    unusual = model.bos is None and preset.bos != (family in BOS_FAMILIES)
    return replace(proxy, bos=preset.bos) if unusual else proxy


def _embedded(entry: DatasetEntry, scale: str, longest: int, lessons: bool) -> DatasetEntry:
    """The dataset as the synthetic world: written in its schema, or plain."""
    if entry.schema is None:
        return entry
    claims = scale == "standin" and SCHEMAS[entry.schema].claims
    world = world_settings(longest, claims) | ({"lessons": True} if lessons else {}) | entry.world
    schema = entry.schema if scale == "standin" else None
    # The world has no time steps: what is drawn from it must not be taken for ordered by them.
    order = "shuffled" if entry.order == "time" else entry.order
    return replace(
        entry, schema=schema, files={}, shares={}, format="auto", world=world, order=order
    )


def _small(statistics: CovarianceEntry) -> CovarianceEntry:
    documents = min(statistics.documents, PROXY_DOCUMENTS)
    # What is published is of the published models.
    return replace(statistics, corpus=None, documents=documents, imported={}, projections={})
