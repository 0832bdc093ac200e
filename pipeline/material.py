"""What the measurements beside the protocols look at: texts, reference texts, ability items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.corpus import file_version, open_corpus, warn_if_short
from pipeline.yaml_location import ConfigError
from rledit.ability import TASKS, items_of
from rledit.datasets import open_rows
from rledit.datasets.ability import find_schema, map_ability
from rledit.datasets.errors import RowError
from rledit.datasets.fields import Fields, Place
from rledit.measurements import MEASUREMENTS, Material
from rledit.names import nearest
from rledit.world import World

HARNESS = "ability_harness"
NAMES = (*MEASUREMENTS, HARNESS)


@dataclass(frozen=True, kw_only=True)
class MaterialEntry:
    """What the measurements look at; what is not given is the embedded world's own.

    Attributes:
        text: Running text for perplexity: a .txt, .jsonl or Parquet file, or a hub dataset's file,
            as for `statistics.corpus`.
        documents: Documents taken from the start of it; all where it has fewer, with a warning.
        references: Reference texts for consistency: a JSON file in the schema of CounterFact's
            attribute snippets, a list of ``{relation_id, target_id, samples: [{text}]}``.
        ability: Folder of the ability items: sst2, mmlu, mrpc, cola, rte and nli as .jsonl.
        prompts: Prompts of the stream behind which texts are written.
        harness_limit: Items per task that lm-evaluation-harness is given.
    """

    text: str | None = None
    documents: int = 100
    references: str | None = None
    ability: str | None = None
    prompts: int = 50
    harness_limit: int = 100


def check_measurements(names: Sequence[str]) -> str | None:
    """What is wrong with a grid's measurements; None where nothing is."""
    for name in names:
        if name not in NAMES:
            return f"unknown measurement {name!r}{nearest(name, NAMES)}"
    return None


def load_material(entry: MaterialEntry, names: Sequence[str], world: World | None) -> Material:
    """Read what the measurements need.

    Args:
        entry: Where it lies.
        names: The measurements.
        world: The embedded world of the cell's model, if it has one.

    Raises:
        ConfigError: Something is missing; says which setting gives it.
        DatasetError: A file of items cannot be read.
    """
    return Material(
        text=_text(entry, world) if "perplexity" in names else (),
        references=_references(entry, world) if "consistency" in names else {},
        ability=_ability(entry, world) if "ability" in names else {},
        n_prompts=entry.prompts,
    )


def material_files(entry: MaterialEntry, names: Sequence[str]) -> list[str]:
    """The files among what `load_material` reads, as the entry names them."""
    named = {"perplexity": entry.text, "consistency": entry.references}
    found = [path for name, path in named.items() if name in names and path is not None]
    if "ability" in names and entry.ability is not None:
        found += [str(path) for path in _ability_files(entry.ability).values()]
    return found


def material_hash(entry: MaterialEntry, names: Sequence[str], world: World | None) -> str:
    """Hash of everything the measurements look at."""
    material = load_material(entry, names, world)
    content = {
        "text": list(material.text),
        "references": {k: list(v) for k, v in material.references.items()},
        "ability": {
            task: [[i.prompt, i.answers, i.right] for i in items]
            for task, items in material.ability.items()
        },
        "prompts": material.n_prompts,
        **({"harness_limit": entry.harness_limit} if HARNESS in names else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _text(entry: MaterialEntry, world: World | None) -> tuple[str, ...]:
    if entry.text is None:
        return _taught(world, "text", "perplexity").unedited_texts[: entry.documents]
    return _read_text(entry.text, entry.documents, file_version(entry.text))


@lru_cache(maxsize=2)
def _read_text(location: str, documents: int, _: tuple[int, int] | None) -> tuple[str, ...]:
    found = open_corpus(location, documents, None, "material.text").documents
    warn_if_short("material.text", location, len(found), documents)
    return found


def _references(entry: MaterialEntry, world: World | None) -> Mapping[str, Sequence[str]]:
    if entry.references is None:
        return _taught(world, "references", "consistency").references
    return _read_references(entry.references, file_version(entry.references))


@lru_cache(maxsize=2)
def _read_references(path: str, _: tuple[int, int] | None) -> dict[str, tuple[str, ...]]:
    texts: dict[str, tuple[str, ...]] = {}
    for number, row in open_rows(path).rows:
        try:
            fields = Fields(row, Place(file=path, row=number))
            key = f"{fields.text('relation_id')}/{fields.text('target_id')}"
            texts[key] = tuple(sample.answer("text") for sample in fields.children("samples"))
        except RowError as error:
            raise ConfigError(
                f"material.references: {error}; expected objects with relation_id, target_id and "
                "samples, a list of objects with text"
            ) from None
    return texts


def _ability(entry: MaterialEntry, world: World | None) -> dict[str, Any]:
    if entry.ability is None:
        rows: Mapping[str, Any] = _taught(world, "ability", "ability").ability_items
    else:
        files = _ability_files(entry.ability)
        rows = {name: _items(path, file_version(path)) for name, path in files.items()}
    return {name: items_of(task, rows[name]) for name, task in TASKS.items()}


def _ability_files(folder: str) -> dict[str, Path]:
    return {name: Path(folder, f"{task.file}.jsonl") for name, task in TASKS.items()}


@lru_cache(maxsize=12)
def _items(path: Path, _: tuple[int, int] | None) -> list[dict[str, Any]]:
    file = open_rows(path)
    schema = find_schema(file.rows[0][1])
    if schema is None or path.stem not in schema.tasks:
        raise ConfigError(
            f"material.ability: {path}: the first row has not the keys of a {path.stem} item; "
            f"`rledit data check {path}` says what it is"
        )
    map_ability(file, schema)
    return [row for _, row in file.rows]


def _taught(world: World | None, setting: str, measurement: str) -> World:
    """The world, if its models were taught more than facts."""
    if world is None:
        raise ConfigError(
            f"measurement {measurement!r} of a checkpoint needs material.{setting}, a path"
        )
    if not world.config.lessons:
        raise ConfigError(
            f"measurement {measurement!r}: the models of this world were taught facts only; set "
            f"datasets.NAME.world.lessons=true, or give material.{setting}"
        )
    return world
