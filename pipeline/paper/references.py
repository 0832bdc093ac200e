"""Published figures, shipped as data in ``values.csv``, with their source and reliability.

A row gives paper, table, model, dataset, method, setting, metric, value and spread as published.
``primary`` was read in the paper's own table, ``secondary`` is quoted by another source;
``contested`` says why a figure is not to be judged by.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

ARXIV: Mapping[str, str] = {
    "RLEdit": "2502.05759",
    "AlphaEdit": "2410.02355",
    "LocFT-BF": "2509.22072",
    "UltraEdit": "2505.14679",
    "HiEdit": "2604.11214",
    "MEMIT": "2210.07229",
    "ENCORE": "2502.01636",
}
# Independently reproduced elsewhere, so held to a tighter tolerance (method, model, setting).
_CALIBRATION = frozenset(
    {
        ("AlphaEdit", "Llama-3-8B", "CounterFact", "20x100"),
        ("AlphaEdit", "Llama-3-8B", "ZsRE", "20x100"),
        ("AlphaEdit", "GPT-J-6B", "CounterFact", "20x100"),
        ("AlphaEdit", "GPT-J-6B", "ZsRE", "20x100"),
        ("RLEdit", "Llama-3-8B", "ZsRE", "400x20"),
    }
)
SCORE_METRICS = frozenset({"Eff", "Gen", "Spe"})


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a layout's references stand: a paper and one of its tables."""

    paper: str
    table: str

    @property
    def label(self) -> str:
        """How captions name it."""
        arxiv = ARXIV.get(self.paper)
        return f"{self.paper}, {self.table}" + (f" (arXiv {arxiv})" if arxiv else "")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One published figure.

    Attributes:
        setting: The stream ``n×m`` as `values.csv` writes it, without its explanation.
        std: Published spread; None where none was given.
        confidence: ``primary`` or ``secondary``.
        contested: Why it is not judged by; "" where it is.
    """

    source: Source
    model: str
    dataset: str
    method: str
    setting: str
    metric: str
    value: float
    std: float | None
    confidence: str
    contested: str

    @property
    def calibration(self) -> bool:
        """Whether others reproduced it, so that a tighter tolerance is fair."""
        place = (self.method, self.model, self.dataset, self.setting)
        return place in _CALIBRATION and self.metric in SCORE_METRICS


ReferencePlace = tuple[Source, str, str, str, str, str]


@lru_cache(maxsize=1)
def references() -> dict[ReferencePlace, Reference]:
    """All published figures by source, model, dataset, method, setting and metric."""
    found: dict[ReferencePlace, Reference] = {}
    for row in rows():
        value = _number(row["value"])
        if value is None:
            continue  # the paper prints a dash, or names the layers of its table 3
        source = Source(paper=row["paper"], table=row["table"])
        setting = short_setting(row["setting"])
        place = (source, row["model"], row["dataset"], row["method"], setting, row["metric"])
        found[place] = Reference(
            source=source,
            model=row["model"],
            dataset=row["dataset"],
            method=row["method"],
            setting=setting,
            metric=row["metric"],
            value=value,
            std=_number(row["std"]),
            confidence=row["confidence"],
            contested=row["contested"],
        )
    return found


@lru_cache(maxsize=1)
def rows() -> tuple[dict[str, str], ...]:
    """The rows of ``values.csv``, as text."""
    path = resources.files("pipeline.paper") / "values.csv"
    return tuple(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


@lru_cache(maxsize=1)
def published() -> dict[str, Any]:
    """What counts as the published weights and data files, from ``published.json``.

    ``weights`` names the preset of each model; ``evaluation_files`` lists accepted SHA-256 hashes
    of each dataset's evaluation file. An empty list means that none is known: figures on that
    data are shown and not judged.
    """
    path = resources.files("pipeline.paper") / "published.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def short_setting(setting: str) -> str:
    """``400x20 (400 batches x 20 = 8000 edits)`` → ``400x20``; others as they are."""
    match = re.match(r"(\d+x\d+)\b", setting)
    return match[1] if match else setting
