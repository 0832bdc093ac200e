"""The published tables and figures, read from ``layouts.yaml``; a new one is an entry there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import resources
from typing import Any

import yaml

from pipeline.paper.layout import Layout, Method, Metric, Section
from pipeline.paper.references import Source
from pipeline.results.tables import method_order

_FILE = yaml.safe_load((resources.files("pipeline.paper") / "layouts.yaml").read_text("utf-8"))


def _metric(label: str, values: Mapping[str, Any]) -> Metric:
    own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Metric(label=label, **own)


_METRICS = {label: _metric(label, values) for label, values in _FILE["metrics"].items()}


def _layout(name: str) -> Layout:
    values = dict(_FILE["layouts"][name])
    return Layout(
        name=name,
        title=values["title"],
        methods=tuple(sorted(map(_method, values["methods"]), key=_order)),
        sections=tuple(s for section in values["sections"] for s in _sections(**section)),
        protocols=values["protocols"],
        notes=tuple(values.get("notes", ())),
        paper_claims=tuple(values.get("paper_claims", ())),
    )


def _method(named: str | Mapping[str, Any]) -> Method:
    """A method by its name in the published tables, or spelled out."""
    if not isinstance(named, str):
        return Method(**named)
    known = _FILE["methods"][named]
    return Method(label=named, **(known if isinstance(known, dict) else {"editor": known}))


def _order(method: Method) -> tuple[Any, ...]:
    """Methods stand in the order of all tables."""
    return method_order(method.editor, method.variant)


def _sections(
    metrics: list[str],
    each: Mapping[str, list[Any]] | None = None,
    source: Mapping[str, str] | None = None,
    **shared: Any,
) -> Iterator[Section]:
    """A section for every combination of what `each` lists."""
    loops = each or {}
    for chosen in itertools.product(*loops.values()):
        values = shared | dict(zip(loops, chosen, strict=True))
        thousands = (values.get("edits_at") or 0) // 1000
        setting = values.pop("reference_setting", "").format(thousands=thousands)
        n_batches, batch_size = map(int, values.pop("stream").split("x"))
        yield Section(
            models=tuple(values.pop("models", None) or [values.pop("model")]),
            datasets=tuple(values.pop("datasets", None) or [values.pop("dataset")]),
            stream=(n_batches, batch_size),
            metrics=tuple(_METRICS[label] for label in metrics),
            source=None if source is None else Source(**source),
            reference_setting=setting,
            **values,
        )


LAYOUTS: Mapping[str, Callable[[], Layout]] = {
    name: partial(_layout, name) for name in _FILE["layouts"]
}
