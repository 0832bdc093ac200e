"""Content of a cell's tracked run: tags, parameters, metrics, and a hash of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
_FORM = 3  # of a run; runs of another form are logged anew
_TENTHS = 10
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
        self.protocols = {str(row["protocol"]) for row in rows_of(result.scores)}
        self.tags["protocols"] = ",".join(sorted(self.protocols))
        # Runs without a remark are as they were before there was one, their digests too.
        if remark := remark_in(result.resolved):
            self.tags["remark"] = remark
        if result.reason:
            self.tags["reason"] = _cut(redact(result.reason))
        settings = flatten(redact_settings(result.resolved))
        settings |= {name: str(address[name]) for name in STREAM}
        self.params = {metric_name(key): _cut(value) for key, value in settings.items()}
        self.metrics = _numbers_at_zero(sorted({*_metrics(result), *_retention(result)}))
        content: list[Any] = [_FORM, self.tags, self.params, self.metrics]
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
            yield name, float(value), 0


def _retention(result: CellResult) -> Iterator[tuple[str, float, int]]:
    """Yields mean efficacy at the end by how many edits came since, in tenths of the stream.

    Edits that a later one rewrites are left out, as in the report's figure of that name.
    """
    rows = rows_of(result.edits)
    last = max((row["checkpoint"] for row in rows), default=0)
    batch = result.address.batch_size
    width = batch * math.ceil(result.address.n_batches / _TENTHS)
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        value = row["efficacy"]
        if last and row["checkpoint"] == last and not row["superseded"] and value is not None:
            since = max(0, last - (row["batch_index"] + 1) * batch) // width * width
            found.setdefault((row["protocol"], since), []).append(value)
    for (protocol, since), values in found.items():
        yield metric_name(f"retention_{protocol}"), sum(values) / len(values), since


def _numbers_at_zero(
    metrics: Sequence[tuple[str, float, int]],
) -> list[tuple[str, float, int]]:
    """Metrics with one value at step 0: MLflow makes bars of those, and no line with one point."""
    values = Counter(name for name, *_ in metrics)
    return [(name, v, step if values[name] > 1 else 0) for name, v, step in metrics]


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
