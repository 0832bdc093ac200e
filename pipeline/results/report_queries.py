"""SQL that a report hands to its reader, to be asked of the lake as it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.results.figures import framed, longest_stream
from pipeline.results.protocol_captions import shown_protocol
from pipeline.results.query import quoted
from pipeline.results.tables import UNEDITED

Row = Mapping[str, Any]

_SHORT = {
    "efficacy": "eff",
    "generalization": "gen",
    "specificity": "spe",
    "specificity_self": "spe_self",
}


def questions(grid: str, rows: Sequence[Row], preferred: Mapping[str, str]) -> list[str]:
    """SQL that answers with the figures of the tables, and where one of them comes from.

    The first asks by one protocol after one stream, the second gives all protocols and streams.

    Args:
        rows: Final rows of `runs`.
        preferred: dataset → protocol to ask by, where there are scores by it.
    """
    place = "scale, model, dataset, prompt, editor, variant, n_batches, batch_size"
    means = ", ".join(f"avg({name}) AS {short}" for name, short in _SHORT.items())
    found = [
        f"SELECT protocol, {place}, {means} FROM runs WHERE grid = {quoted(grid)} AND final "
        "GROUP BY ALL ORDER BY ALL"
    ]
    own = [row for row in rows if row["protocol"] is not None]
    edited = [row for row in own if row["editor"] != UNEDITED] or own
    if not edited:
        return found
    longest = longest_stream(framed(edited))
    cell = next(r for r in edited if (r["n_batches"], r["batch_size"]) == longest)
    protocol = shown_protocol([r for r in own if r["cell"] == cell["cell"]], preferred)
    where = f"cell = {quoted(cell['cell'])}"
    last = f"checkpoint = {cell['n_edits']} AND protocol = {quoted(str(protocol))}"
    n_batches, batch_size = longest
    said = f"protocol = {quoted(str(protocol))} AND n_batches = {n_batches}"
    short = [name for name in _SHORT if name != "specificity_self"]
    table = ", ".join(f"round(avg({name}), 1) AS {_SHORT[name]}" for name in short)
    mean = f"round(avg(({' + '.join(short)}) / {len(short)}), 1) AS mean"
    return [
        f"SELECT model, dataset, editor, variant, {table}, {mean} FROM runs WHERE grid = "
        f"{quoted(grid)} AND final AND {said} AND batch_size = {batch_size} GROUP BY ALL ORDER BY "
        "model, dataset, mean DESC",
        *found,
        f"SELECT edit_id, efficacy FROM edits WHERE {where} AND {last} AND NOT superseded "
        "ORDER BY efficacy, edit_id",
        f"SELECT metric, step, value FROM curves WHERE {where} ORDER BY metric, step",
    ]
