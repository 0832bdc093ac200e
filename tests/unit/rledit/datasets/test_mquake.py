"""MQuAKE-Remastered's flat rows are read as MQuAKE's nested ones are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rledit.datasets import FORMATS, Place, RowError, detect_format
from rledit.records import Edit

EXAMPLE = FORMATS["mquake_remastered"].example
PLACE = Place(file="dir/file.json", row=17)


def read(name: str, row: dict[str, Any]) -> list[Edit]:
    form = FORMATS[name]
    return form.read(form.open_row(row, PLACE), PLACE)


def test_mquake_remastered_is_flat_and_reads_the_same() -> None:
    row = dict(EXAMPLE)
    (edit,) = read("mquake_remastered", row)
    assert (edit.target, edit.old_target, edit.relation) == ("Esbjerg", "Oban", "P1")
    (question,) = edit.consequences
    assert question.answers == ("Denmark", "Kingdom of Denmark")
    (premise,) = question.premises  # the hop that is left alone, named by the flat triples
    assert (premise.subject, premise.relation, premise.edited) == ("Esbjerg", "P17", False)
    (hop,) = row["requested_rewrite"]
    nested = {key: value for key, value in hop.items() if not key.startswith("target_")}
    nested |= {name: {"str": hop[f"{name}_str"]} for name in ("target_new", "target_true")}
    triples = ("new_triples", "new_triples_labeled")
    original = {key: value for key, value in row.items() if key not in triples}
    original |= {"requested_rewrite": [nested], "orig": {key: row[key] for key in triples}}
    assert detect_format(original).name == "mquake"
    (same,) = read("mquake", original)
    assert replace(same, edit_id=edit.edit_id) == edit


def test_mquake_remastered_names_the_key_it_lacks() -> None:
    (hop,) = EXAMPLE["requested_rewrite"]
    broken = {key: value for key, value in hop.items() if key != "target_new_str"}
    with pytest.raises(RowError, match=r"lacks the key `requested_rewrite\[0\]\.target_new`"):
        read("mquake_remastered", {**EXAMPLE, "requested_rewrite": [broken]})
