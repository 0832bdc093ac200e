"""Facts for a report's reader: what the grid asked, on what it was run, with which settings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.results.lake.records import (
    SHUFFLED,
    CellRecord,
    imported_words,
    order_of,
    prompt_of,
)
from pipeline.results.model_names import model_name
from pipeline.results.tables import editor_label, stream_label


def asked(records: Sequence[CellRecord], protocols: Sequence[str]) -> str:
    """What the grid asks, as a sentence or two."""
    addresses = [record.address for record in records]
    methods = list(dict.fromkeys((a.editor, a.variant) for a in addresses))
    models = sorted({model_name(a.model, a.scale) for a in addresses})
    datasets = sorted({a.dataset for a in addresses})
    streams = sorted({(a.n_batches, a.batch_size) for a in addresses}, key=lambda s: s[0] * s[1])
    edits = ", ".join(f"{n * m:,} edits in {n:,} batches of {m:,}" for n, m in streams)
    seeds = sorted({a.seed for a in addresses})
    count = f"{len(methods)} method{'s' * (len(methods) > 1)}"
    said = f"What do {count} make of {', '.join(models)} when {edits}, drawn from "
    said += f"{', '.join(datasets)}, are written into it one batch after another without a reset?"
    by = f" Scored by {' and '.join(protocols)}" if protocols else ""
    return f"{said}{by}; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}."


def header(records: Sequence[CellRecord], protocols: Sequence[str]) -> list[tuple[str, str]]:
    """What a number must not be read without: protocol, scale, code and data."""
    metadata = dict(provenance(records))
    # Here the name is enough; which weights it stands for is said at the end of the report.
    models = {model_name(record.address.model, record.address.scale) for record in records}
    metadata["model"] = ", ".join(sorted(models))
    names = (
        "prompts",
        "scale",
        "model",
        "data",
        "streams",
        "order of edits",
        "seeds",
        "code version",
    )
    found = [("protocol", ", ".join(protocols))] if protocols else []
    return found + [(name, short_hashes(metadata[name])) for name in names if name in metadata]


def short_hashes(text: str) -> str:
    """Twelve digits tell two files apart; the whole hash stands at the end of the report."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", text)


def provenance(records: Sequence[CellRecord]) -> list[tuple[str, str]]:
    """What was run, as (name, distinct values)."""

    def distinct(values: Iterable[Any]) -> str:
        return ", ".join(sorted({str(value) for value in values if value not in (None, "")}))

    done = [record for record in records if record.done]
    values = [record.values for record in done]
    moments = [v[name] for v in values for name in ("started_at", "finished_at") if v[name]]
    seconds = sum(
        v[name] or 0 for v in values for name in ("train_seconds", "edit_seconds", "score_seconds")
    )
    streams = {(r.address.n_batches, r.address.batch_size) for r in records}
    metadata = [
        ("code version", distinct(v["code_version"] for v in values)),
        ("data", distinct(f"{r.address.dataset} {r.values['data_hash']}" for r in done)),
        ("model", distinct(f"{r.address.model} {r.values['model_hash'] or ''}" for r in done)),
        ("imported statistics", distinct(imported_words(r.values["identity"]) for r in records)),
        ("prompts", distinct(prompt_of(r.values["identity"]) for r in records)),
        ("scale", distinct(r.address.scale for r in records)),
        ("streams", ", ".join(stream_label(s) for s in sorted(streams))),
        ("order of edits", _orders(records)),
        ("seeds", ", ".join(map(str, sorted({r.address.seed for r in records})))),
        ("threads × ranks", distinct(f"{v['threads']}×{v['ranks']}" for v in values)),
        ("contradicting edits", distinct(v["n_contradicting"] for v in values)),
        ("peak memory (GB)", f"{max(_known(values, 'peak_memory_gb'), default=0):.2f}"),
        ("training + editing + scoring", f"{seconds:.0f} s over {len(done)} cells"),
        ("versions", distinct(_pairs(v["versions"]) for v in values)),
    ]
    if moments:
        metadata.append(
            ("run (UTC)", f"{min(moments):%Y-%m-%d %H:%M} to {max(moments):%Y-%m-%d %H:%M}")
        )
    return [(name, value) for name, value in metadata if value]


def _orders(records: Sequence[CellRecord]) -> str:
    """In which order streams have their edits; "" where all are drawn by lot."""
    found = {(r.address.dataset, order_of(r.values["identity"])) for r in records if r.done}
    if all(order == SHUFFLED for _, order in found):
        return ""
    return ", ".join(f"{dataset}: {order}" for dataset, order in sorted(found))


def _known(values: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [v[name] for v in values if v[name] is not None]


def _pairs(versions: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in sorted(versions.items()))


def settings_of(records: Sequence[CellRecord]) -> list[tuple[str, str, str]]:
    """(editor, cell, resolved settings as JSON) of one cell per editor, on its longest stream."""
    chosen: dict[tuple[str, ...], CellRecord] = {}
    for record in sorted(records, key=_size, reverse=True):
        a = record.address
        chosen.setdefault((editor_label(a.editor, a.variant), a.model, a.dataset), record)
    return [
        (
            f"{editor} on {model}, {dataset}",
            record.address.cell_key,
            json.dumps(record.values["resolved"], indent=1, sort_keys=True, ensure_ascii=False),
        )
        for (editor, model, dataset), record in sorted(chosen.items())
    ]


def _size(record: CellRecord) -> tuple[int, int]:
    return (record.address.n_batches * record.address.batch_size, -record.address.seed)
