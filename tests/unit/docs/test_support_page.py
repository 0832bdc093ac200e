"""docs/support.md: the committed page is what the registries say, and refuses what they do not."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from pipeline.config.presets import PRESETS
from rledit.datasets import FORMATS
from rledit.editors import EDITORS
from rledit.editors.base import Editor
from rledit.families import FAMILIES
from rledit.protocols import PROTOCOLS
from tests.unit.docs import support_page
from tests.unit.docs.method_checks import MissingFactsError, checks, recorded
from tests.unit.docs.support_page import PAGE, needs, page

TEXT = PAGE.read_text()


def test_the_page_is_what_the_registries_say() -> None:
    assert page() == TEXT, "run `make docs`"


@pytest.mark.parametrize(
    "registry",
    [EDITORS, FORMATS, PROTOCOLS, PRESETS, FAMILIES],
    ids=lambda found: next(iter(found)),
)
def test_every_entry_is_on_the_page(registry: dict[str, Any]) -> None:
    assert [name for name in registry if f"| `{name}` |" not in TEXT] == []


def test_tables_can_be_read_at_120_columns() -> None:
    assert [line for line in TEXT.splitlines() if len(line) > 120] == []


class Nameless(Editor):
    """An editor that does not say what it is checked against; it inherits another's answer."""

    name = "nameless"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "'nameless' does not say what it is checked against; give its class `checked"),
        ({}, "does not say what it is checked against"),
        ({"reference": "test_nobody_wrote"}, r"\(reference\) by test_nobody_wrote, and tests/un"),
        ({"properties": "test_encore_stops_early_and_remembers_keys"},
         "but test_locate_editors.py does not name 'nameless' or Nameless"),
    ],
)  # fmt: skip
def test_a_method_whose_facts_are_missing_or_wrong_is_named(
    given: dict[str, str] | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Base(Nameless):
        checked: ClassVar[Any] = {"reference": "test_memit_solves_the_published_system"}

    found: type[Editor] = type("Nameless", (Base,), {} if given is None else {"checked": given})
    with pytest.raises(MissingFactsError, match=message):
        checks("nameless", found)
    monkeypatch.setitem(EDITORS, "nameless", found)
    monkeypatch.setattr(support_page, "takes_own_facts", lambda name: False)
    with pytest.raises(MissingFactsError, match=message):
        list(support_page.methods())


def test_numbers_of_releases_are_those_that_the_golden_tests_judge() -> None:
    """By the files that are in the repository; the others are judged where they are given."""
    here = {name for name, words in recorded().items() if words == "release"}
    assert here == {"rledit", "malmen", "mend", "ultraedit", "memit", "rome", "alphaedit", "ft"}
    assert recorded()["prune"] == recorded()["rect"] == "release°"


def test_a_need_without_words_is_said_by_its_name() -> None:
    class Needy(Nameless):
        needs: ClassVar[Any] = frozenset({"subject", "a_crystal_ball"})

    assert needs(Needy) == "subject, a crystal ball"


@pytest.mark.parametrize(
    "name", [name for name, form in FORMATS.items() if "portability" in form.measurements]
)
def test_a_sample_row_brings_the_portability_that_its_schema_measures(name: str) -> None:
    assert support_page.gives(support_page.example(FORMATS[name]))["portability"]


def test_what_the_last_edit_of_a_row_alone_has_is_brought_by_the_row() -> None:
    first, last = support_page.example(FORMATS["mquake"])
    assert not first.consequences and last.consequences
    assert support_page.gives([first, last])["portability"]
    assert not support_page.gives([first])["portability"]


def test_a_published_setting_is_told_from_our_own() -> None:
    assert support_page.origin("llama-3-8b", "rledit") != "own"
    assert support_page.origin("llama-3.1-8b", "rledit") == "own"
    assert support_page.origin("phi-4", "ultraedit") == support_page.origin("gpt-j-6b", "ultraedit")
    assert support_page.origin("phi-4", "stableedit") == "own"
