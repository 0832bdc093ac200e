"""Evaluation data of the measurements: running text, reference texts, downstream items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.config.grid import HARNESS, EvalDataEntry
from pipeline.config.stored_words import documented, documented_value
from pipeline.errors import ConfigError
from pipeline.inputs.corpus import file_version, open_corpus, warn_if_short
from rledit.datasets import open_rows
from rledit.datasets.downstream import find_schema, map_downstream
from rledit.datasets.errors import RowError
from rledit.datasets.fields import Fields, Place
from rledit.measurements.downstream import TASKS, items_of
from rledit.measurements.registry import EvalData
from rledit.world import World


def load_eval_data(entry: EvalDataEntry, names: Sequence[str], world: World | None) -> EvalData:
    """Read what the measurements need.

    Args:
        entry: Where it lies.
        names: The measurements.
        world: The synthetic world of the cell's model, if it has one.

    Raises:
        ConfigError: Something is missing; says which setting gives it.
        DatasetError: A file of items cannot be read.
    """
    return EvalData(
        text=_text(entry, world) if "perplexity" in names else (),
        references=_references(entry, world) if "consistency" in names else {},
        ability=_downstream(entry, world) if "ability" in names else {},
        n_prompts=entry.prompts,
    )


def eval_data_files(entry: EvalDataEntry, names: Sequence[str]) -> list[str]:
    """The files among what `load_eval_data` reads, as the entry names them."""
    named = {"perplexity": entry.text, "consistency": entry.references}
    found = [path for name, path in named.items() if name in names and path is not None]
    if "ability" in names and entry.ability is not None:
        found += [str(path) for path in _downstream_files(entry.ability).values()]
    return found


def eval_data_hash(entry: EvalDataEntry, names: Sequence[str], world: World | None) -> str:
    """Hash of everything the measurements look at."""
    eval_data = load_eval_data(entry, names, world)
    content = {
        "text": list(eval_data.text),
        "references": {k: list(v) for k, v in eval_data.references.items()},
        "ability": {
            task: [[i.prompt, i.answers, i.right] for i in items]
            for task, items in eval_data.ability.items()
        },
        "prompts": eval_data.n_prompts,
        **({"harness_limit": entry.harness_limit} if HARNESS in names else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _text(entry: EvalDataEntry, world: World | None) -> tuple[str, ...]:
    if entry.text is None:
        return _taught(world, "text", "perplexity").unedited_texts[: entry.documents]
    return _read_text(entry.text, entry.documents, file_version(entry.text))


@lru_cache(maxsize=2)
def _read_text(location: str, documents: int, _: tuple[int, int] | None) -> tuple[str, ...]:
    found = open_corpus(location, documents, None, "eval_data.text").documents
    warn_if_short("eval_data.text", location, len(found), documents)
    return found


def _references(entry: EvalDataEntry, world: World | None) -> Mapping[str, Sequence[str]]:
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
                f"eval_data.references: {error}; expected objects with relation_id, target_id and "
                "samples, a list of objects with text"
            ) from None
    return texts


def _downstream(entry: EvalDataEntry, world: World | None) -> dict[str, Any]:
    if entry.ability is None:
        rows: Mapping[str, Any] = _taught(world, "ability", "ability").downstream_items
    else:
        files = _downstream_files(entry.ability)
        rows = {name: _items(path, file_version(path)) for name, path in files.items()}
    return {name: items_of(task, rows[name]) for name, task in TASKS.items()}


def _downstream_files(folder: str) -> dict[str, Path]:
    return {name: Path(folder, f"{task.file}.jsonl") for name, task in TASKS.items()}


@lru_cache(maxsize=12)
def _items(path: Path, _: tuple[int, int] | None) -> list[dict[str, Any]]:
    file = open_rows(path)
    schema = find_schema(file.rows[0][1])
    if schema is None or path.stem not in schema.tasks:
        raise ConfigError(
            f"eval_data.downstream: {path}: the first row has not the keys of a {path.stem} item; "
            f"`rledit data check {path}` says what it is"
        )
    map_downstream(file, schema)
    return [row for _, row in file.rows]


def _taught(world: World | None, setting: str, measurement: str) -> World:
    """The world, if its models were taught more than facts."""
    said, needed = documented_value(measurement), f"eval_data.{documented(setting)}"
    if world is None:
        raise ConfigError(f"measurement {said!r} of a checkpoint needs {needed}, a path")
    if not world.config.lessons:
        raise ConfigError(
            f"measurement {said!r}: the models of this world were taught facts only; set "
            f"datasets.NAME.world.auxiliary=true, or give {needed}"
        )
    return world
