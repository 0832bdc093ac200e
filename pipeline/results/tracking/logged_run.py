"""Content of a cell's tracked run: tags, parameters, metrics, and a hash of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pipeline.results.lake.records import SCORES, CellAddress, CellResult, prompt_of, remark_in
from pipeline.results.tracking.answers_table import answers_table, rows_of
from pipeline.storage.redaction import redact, redact_settings

ADDRESS_TAGS = ("cell", "editor", "variant", "model", "dataset", "scale")
TAGS = ("grid", *ADDRESS_TAGS, "status", "data_hash", "code_version", "prompt")
STREAM = ("seed", "batch_size", "n_batches")
COSTS = ("train_seconds", "edit_ms", "peak_memory_gb", "n_edits")
LEARNING = ("train_", "validation_")
"""Beginnings of the metrics of a learning curve, whose step is the training step."""
_LONGEST_VALUE = 5900  # characters; MLflow cuts parameters at 6,000


def address_tags(address: CellAddress) -> dict[str, str]:
    """The tags by which a cell's run at an address is found."""
    named = {**asdict(address), "cell": address.cell_key}
    return {name: str(named[name] or "") for name in ADDRESS_TAGS}


class Logged:
    """What a cell's run contains, and a digest of it that does not depend on the order of rows."""

    def __init__(self, result: CellResult) -> None:
        address = asdict(result.address)
        named = {**address, "cell": address["cell_key"], "status": result.status}
        named |= {"data_hash": result.data_hash, "code_version": result.code_version}
        named |= {"prompt": prompt_of(result.identity)}
        self.tags = {"kind": "cell"} | {name: str(named[name] or "") for name in TAGS}
        protocols = {str(row["protocol"]) for row in rows_of(result.scores)}
        self.tags["protocols"] = ",".join(sorted(protocols))
        # Runs without a remark are as they were before there was one, their digests too.
        if remark := remark_in(result.resolved):
            self.tags["remark"] = remark
        if result.reason:
            self.tags["reason"] = _cut(redact(result.reason))
        settings = flatten(redact_settings(result.resolved))
        settings |= {name: str(address[name]) for name in STREAM}
        self.params = {metric_name(key): _cut(value) for key, value in settings.items()}
        self.metrics = sorted(_metrics(result))
        content: list[Any] = [self.tags, self.params, self.metrics]
        if answers := answers_table(result):
            content.append(answers)
        text = json.dumps(content, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()


def _metrics(result: CellResult) -> Iterator[tuple[str, float, int]]:
    """Yields (name, value, step); an undefined score is absent."""
    for row in rows_of(result.scores):
        for score in SCORES:
            value = row.get(score)
            if value is not None and math.isfinite(value):
                yield (
                    metric_name(f"{score}_{row['protocol']}"),
                    float(value),
                    int(row["checkpoint"]),
                )
    for row in rows_of(result.steps):
        name, value = str(row["metric"]), row["value"]
        if name.startswith(LEARNING) and value is not None and math.isfinite(value):
            yield metric_name(name), float(value), int(row["step"])
    for name in COSTS:
        value = getattr(result, name)
        if value is not None:
            yield name, float(value), int(result.n_edits or 0)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b.c` → text; lists and None as JSON."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return flat


def metric_name(text: str) -> str:
    """MLflow allows letters, digits and `_-. /` in names."""
    return re.sub(r"[^A-Za-z0-9_\-. /]", "_", text)[:250]


def _cut(value: str) -> str:
    return value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}…"
