"""Facts about chemical elements, from the wheel of mendeleev."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from zipfile import ZipFile

from rledit.facts.table import RealFact

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


def elements(wheel: ZipFile) -> Iterator[RealFact]:
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
