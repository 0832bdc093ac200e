"""What a plan says of a dataset's order and protocols, and files in lists from grid to worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.build import build
from pipeline.config.parse import load_grid
from pipeline.config.yaml_location import Located
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import identity_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.estimate.needs import _files as needed_files
from pipeline.plan.grid_plan import pool_lines
from pipeline.run.tasks import _located
from rledit.datasets import FORMATS, DatasetError, RowErrors
from rledit.measurements.registry import MEASUREMENTS
from rledit.protocols import PROTOCOLS

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
ROWS = {name: dict(form.example) for name, form in FORMATS.items()}


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rows))
    return str(path)


def cells(files: Any, *more: str, order: str = "shuffled") -> list[Cell]:
    data = f"datasets=[{{name: d, order: {order}, files: {json.dumps({'evaluation': files})}}}]"
    asked = [data, "editors=[{editor: none}]", "streams=[{n_batches: 1, batch_size: 1}]"]
    return cells_of(load_grid(GRID, [*asked, *more]))


def said(files: Any, *more: str, order: str = "shuffled") -> list[str]:
    starts = ("  order", "  protocols", "  portability", "  wild", "  generation", "  exact")
    return [x for x in pool_lines(cells(files, *more, order=order)) if x.startswith(starts)]


def test_every_format_says_by_what_it_is_scored() -> None:
    for form in FORMATS.values():
        assert set(form.protocols) <= set(PROTOCOLS) and set(form.measurements) <= set(MEASUREMENTS)
        assert form.protocols or form.name == "facts"  # one's own are scored by what one asks


def test_another_protocol_than_the_data_asks_for_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "unke", [ROWS["unke"]] * 3)
    assert said(path, "protocols=[wild, generation]") == [
        "  protocols: unke is scored by token_accuracy, exact_match, and here by wild, generation "
        "alone",
        "  portability: not asked for; 3 of 3 edits have questions that follow from them "
        "(sub_question), which measurements: [portability] asks",
        "  wild: 3 of 3 targets go on behind a full stop, a line break or 50 tokens, where an "
        "answer ends, and cannot be met; score them by token_accuracy, and by the questions that "
        "follow from them, if there are some",
    ]
    fitting = "protocols=[token_accuracy, wild]", "measurements=[portability]"
    assert [line.split(":")[0] for line in said(path, *fitting)] == ["  wild"]
    assert said(path, *fitting, "wild.full_stop=false") == []
    assert said(path, "protocols=[exact_match]", "measurements=[portability]") == []


def test_a_target_longer_than_what_is_written_is_said(tmp_path: Path) -> None:
    row = {**ROWS["zsre_malmen"], "ans": "word " * 31}
    path = write(tmp_path, "zsre", [row, ROWS["zsre_malmen"]])
    (line,) = said(path, "protocols=[token_accuracy, generation_contains]")
    assert line.startswith("  generation_contains: 1 of 2 targets go on behind a line break or 30")


def test_the_order_of_streams_is_said_where_the_data_has_one(tmp_path: Path) -> None:
    rows = [{**ROWS["facts"], "prompt": f"Ferry {i} sails from", "subject": None} for i in range(3)]
    plain = write(tmp_path, "plain", rows)
    timed = write(tmp_path, "timed", [{**row, "time": 3 - i} for i, row in enumerate(rows)])
    ask = "protocols=[token_accuracy]"
    assert said(plain, ask) == []
    assert said(plain, ask, order="file") == ["  order: as the file has it"]
    assert said(timed, ask) == [
        "  order: shuffled, though the edits have time steps (3 time steps: 1, 2, 3); order: time "
        "takes them in that order"
    ]
    assert said(timed, ask, order="time") == [
        "  order: time, 3 time steps: 1, 2, 3; a shorter stream has the first of them"
    ]
    with pytest.raises(DatasetError, match="order: time, and 3 of the 3 edits .* no time step"):
        cells(plain, ask, order="time")[0].source()


def test_the_synthetic_world_is_never_taken_for_ordered(tmp_path: Path) -> None:
    for order in ("time", "file"):
        with pytest.raises(ConfigError, match=f"order: {order} is one of files, and dataset world"):
            load_grid(GRID, [f"datasets=[{{name: world, order: {order}}}]"])
    rows = [{**ROWS["wikibigedit"], "time": 1}]
    files = json.dumps({"evaluation": write(tmp_path, "wiki", rows)})
    data = f"datasets=[{{name: d, schema: wikibigedit, order: time, files: {files}}}]"
    asked = [data, "models=[{preset: smollm2-135m}]", "editors=[{editor: none}]"]
    for scale in ("proxy", "world"):
        (dataset,) = load_grid(GRID, asked, scale=scale).datasets
        assert (dataset.order, dataset.files) == ("shuffled", {})
    assert load_grid(GRID, asked, scale="full").datasets[0].order == "time"


def test_the_order_is_part_of_a_cells_key_and_older_keys_stay(tmp_path: Path) -> None:
    rows = [{**ROWS["facts"], "prompt": f"Ferry {i} sails from", "time": i} for i in range(3)]
    path = write(tmp_path, "timed", rows)
    keys = {key_of(cells(path, order=order)[0]) for order in ("shuffled", "file", "time")}
    assert len(keys) == 3
    (one,), (several,) = cells(path), cells([path])
    assert key_of(one) == key_of(several)  # a list of one file is that file
    assert identity_of(one)["dataset"]["order"] == "shuffled"


def test_files_in_a_list_go_wherever_a_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**ROWS["facts"], "prompt": f"Ferry {i} sails from"} for i in range(4)]
    names = [Path(write(tmp_path, f"f{i}", rows[2 * i : 2 * i + 2])).name for i in range(2)]
    monkeypatch.chdir(tmp_path)
    (cell,) = cells(names, order="file")
    assert cell.source().sizes()["evaluation"] == 4
    assert [name for kind, name in needed_files(cell) if kind == "data"] == names
    located = _located(cell)
    assert located.dataset.files == {"evaluation": tuple(str(tmp_path / n) for n in names)}
    assert key_of(located) == key_of(cell)
    # As a spec beside the lake has it: JSON, read back.
    from dataclasses import asdict

    kept = json.loads(json.dumps(asdict(cell)))
    assert key_of(build(Cell, kept, (), Located.of_data(kept, "cell"))) == key_of(cell)
    lines = pool_lines([cell])
    assert "  evaluation: all 4 edits of f0.json and 1 more file" in lines


def test_files_of_a_list_are_checked_like_others(tmp_path: Path) -> None:
    good, bad = ({"prompt": "Ferry sails from", "target": "Oban"}, {"prompt": "Ferry sails from"})
    paths = [write(tmp_path, name, [good, bad]) for name in "ab"]
    with pytest.raises(RowErrors) as caught:
        cells(paths)[0].source()
    assert [error.file for error in caught.value.errors] == paths
    for wrong, message in (
        ({"a": 1}, "Input should be"),
        ([], "is an empty list; name a file"),
        (["a.json", "a.json"], "names a.json twice"),
    ):
        with pytest.raises(ConfigError, match=rf"files\.evaluation\)?: .*{message}"):
            cells(wrong)
