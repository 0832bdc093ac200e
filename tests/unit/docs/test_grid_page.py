"""docs/grid.md: the committed page is what the code says, and what it says can be loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from pipeline.config.grid import Grid
from pipeline.config.parse import load_grid
from pipeline.config.stored_words import documented
from pipeline.errors import ConfigError
from rledit.editors import EDITORS
from tests.unit.docs.grid_page import GROUPS, INTRODUCTION, PAGE, meanings, page, rows

TEXT = PAGE.read_text()


def test_the_page_is_what_the_code_says() -> None:
    assert page() == TEXT, "run `make docs`"


@pytest.mark.parametrize("cls", [cls for _, cls, _ in GROUPS], ids=lambda cls: cls.__name__)
def test_every_key_of_every_group_is_on_the_page(cls: type) -> None:
    lines = TEXT.splitlines()
    assert all(row in lines for row in rows(cls).values())
    assert set(rows(cls)) == {documented(field.name) for field in fields(cls)}


@pytest.mark.parametrize("name", EDITORS)
def test_every_setting_of_an_editor_has_a_meaning(name: str) -> None:
    assert all(meanings(EDITORS[name].Config)[f.name] for f in fields(EDITORS[name].Config))
    assert f"\n### {name}\n" in TEXT


def test_links_inside_the_page_lead_somewhere() -> None:
    made = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", TEXT, re.M)}  # fmt: skip
    links = set(re.findall(r"\]\(#([^)]+)\)", TEXT))
    assert links and links <= made


def test_a_key_without_a_meaning_is_noticed() -> None:
    @dataclass
    class Undocumented:
        """A group.

        Attributes:
            known: Said.
        """

        known: int = 1
        forgotten: int = 2

    with pytest.raises(ValueError, match=r"Undocumented\.forgotten is not in any"):
        rows(Undocumented)


def test_the_small_grid_of_the_page_loads(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", INTRODUCTION, re.S)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert isinstance(load_grid(path), Grid)
    path.write_text(text + "sedes: [1]\n")
    with pytest.raises(ConfigError, match=r"mine.yaml:6 .*unknown key 'sedes'.*seeds"):
        load_grid(path)


def test_the_ranges_of_the_page_are_those_of_the_parser(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", INTRODUCTION, re.S)
    assert (
        "| `checkpoints` | integer ≥ 1 |" in TEXT and "| `threads` | integer ≥ 1, ≤ 1,024 |" in TEXT
    )
    path = tmp_path / "mine.yaml"
    for line in ("checkpoints: 0", "threads: 1025"):
        path.write_text(f"{text}{line}\n")
        with pytest.raises(ConfigError, match=line.split(":")[0]):
            load_grid(path)
        low, high = line.split(": ")
        path.write_text(f"{text}{low}: {1 if high == '0' else 1024}\n")
        load_grid(path)
