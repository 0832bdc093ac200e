"""docs/datasets.md against the registry: every schema with its keys and protocols."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rledit.datasets import FORMATS

PAGE = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text()
ROWS = {
    cells[0].strip("` "): cells
    for line in PAGE.partition("## Schemas")[2].partition("\n## ")[0].splitlines()
    if line.startswith("| `") and (cells := [cell.strip() for cell in line.strip("|").split("|")])
}


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_schema_has_its_row_in_the_order_in_which_they_are_tried() -> None:
    assert list(ROWS) == list(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_has_the_keys_and_protocols_of_its_schema(name: str) -> None:
    form, (_, _, needs, becomes, scored) = FORMATS[name], ROWS[name]
    if needs != "as `akew`":
        marks = [mark.partition(".")[2] for mark in form.marks]
        assert named(needs) == [*form.required, *marks]
    protocols, _, measurements = scored.partition(";")
    assert named(protocols) == list(form.protocols)
    assert named(measurements) == list(form.measurements)
    assert becomes
