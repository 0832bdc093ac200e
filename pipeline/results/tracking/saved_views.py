"""Views of an experiment that MLflow's menu *Views* offers, in the form of MLflow 3.17."""

from __future__ import annotations

import json
from typing import Any

from pipeline.results.lake.records import SCORES

_TAG = "mlflow.sharedViewState."
_TABLE = "rleditscores"
_CHARTS = "rleditcompare"
TABLE = f"&viewStateShareKey={_TABLE}"
"""The end of an experiment's address that opens its runs with their scores."""
COMPARISON = f"&viewStateShareKey={_CHARTS}&compareRunsMode=CHART"
"""The end of an experiment's address that opens the comparison of its editors."""
_SINCE = 1767225600000  # a fixed moment in ms: the same view is written by every run
_SHOWN = SCORES[:3]
_COSTS = ("edit_ms", "train_seconds", "peak_memory_gb")


def view_tags(protocol: str) -> dict[str, str]:
    """Tags of an experiment for its views, which show the scores by one protocol."""
    scores = [f"{name}_{protocol}" for name in _SHOWN]
    common = {
        "orderByKey": f"metrics.`{scores[0]}`",
        "orderByAsc": False,
        "selectedColumns": [f"metrics.`{name}`" for name in (*scores, "edit_ms")],
    }
    table = {"searchFilter": "tags.kind = 'cell'", "runsHiddenMode": "SHOW_ALL", **common}
    charts = {
        "searchFilter": "tags.kind = 'cell' and tags.status = 'done'",
        "runsHiddenMode": "FIRST_20_RUNS",
        **common,
        **_charts(protocol),
    }
    return {
        _TAG + _TABLE: _view("Scores", table),
        _TAG + _CHARTS: _view("Compare editors", charts),
    }


def _view(name: str, state: dict[str, Any]) -> str:
    moments = {"createdAt": _SINCE, "updatedAt": _SINCE}
    return json.dumps({"name": name, **moments, "state": json.dumps(state)})


def _charts(protocol: str) -> dict[str, Any]:
    """Bars of scores and costs, efficacy against specificity, and retention along the stream."""

    def chart(kind: str, name: str, section: str, **more: Any) -> dict[str, Any]:
        common = {"type": kind, "uuid": name, "metricSectionId": section, "deleted": False}
        return {**common, "isGenerated": False, "runsCountToCompare": 20, **more}

    def bar(key: str, section: str) -> dict[str, Any]:
        return chart("BAR", f"bar-{key}", section, metricKey=key)

    def line(key: str) -> dict[str, Any]:
        return chart(
            "LINE", f"line-{key}", "stream", metricKey=key, selectedMetricKeys=[key],
            xAxisKey="step", lineSmoothness=0, useGlobalLineSmoothing=False,
        )  # fmt: skip

    def axis(name: str) -> dict[str, str]:
        return {"key": f"{name}_{protocol}", "type": "METRIC"}

    charts = [
        *(bar(f"{name}_{protocol}", "scores") for name in _SHOWN),
        chart("SCATTER", "trade", "scores", xaxis=axis("specificity"), yaxis=axis("efficacy")),
        *(bar(name, "costs") for name in _COSTS),
        line(f"retention_{protocol}"),
        *(line(f"{name}_{protocol}") for name in _SHOWN),
    ]
    sections = [
        {"uuid": name, "name": title, "display": True, "isReordered": True}
        for name, title in (
            ("scores", f"Scores at the end ({protocol})"),
            ("costs", "Costs"),
            ("stream", "Retention, and along the stream"),
        )
    ]
    return {
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        # MLflow would smooth lines: what they pass through are scores.
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0},
    }
