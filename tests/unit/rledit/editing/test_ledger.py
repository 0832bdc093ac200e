"""The ledger is whole whatever happens to those who write it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rledit.editing import Delta, Host, Ledger, LedgerError, ModelRecord, Session, Supplies
from rledit.editing.files import PARTIAL
from rledit.shift import LowRankShift
from tests.unit.helpers.small_editing import STEP, equal, learnt, rows, weights_of
from tests.unit.helpers.turns import marked

ULTRA: dict[str, Any] = {"editor": "ultraedit", "settings": STEP, "floor": 0, "passes": 2}
MODEL = ModelRecord(fingerprint="f" * 64, reference="somewhere", dtype="float32")


def delta(seed: int) -> Delta:
    torch.manual_seed(seed)
    return Delta({"m": (LowRankShift(torch.randn(2, 8), torch.randn(2, 4)),)})


def record(number: int) -> dict[str, Any]:
    """A batch of ten facts."""
    prompts = [f"p{number}.{i}" for i in range(10)]
    return {"facts": [{"prompt": p, "target": "t", "result": {"took": True}} for p in prompts]}


def opened(folder: Path, name: str = "out") -> Session:
    host = Host(*learnt())
    place = folder / name
    kept = Ledger(place) if Ledger.is_at(place) else Ledger.create(place, host.record("here"))
    return Session(host, kept, Supplies(host, folder / "supplies"))


def test_it_goes_on_where_it_was_and_replays_elsewhere(tmp_path: Path) -> None:
    session = opened(tmp_path)
    session.edit(rows(4), **ULTRA)
    again = opened(tmp_path)
    assert equal(weights_of(session.host.model), weights_of(again.host.model))
    again.edit(rows(4, 4), **ULTRA)
    session = opened(tmp_path, "together")
    session.edit(rows(4), **ULTRA)
    session.edit(rows(4, 4), **ULTRA)
    assert equal(weights_of(session.host.model), weights_of(again.host.model))
    shutil.copytree(tmp_path / "out", tmp_path / "elsewhere" / "copied")
    moved = opened(tmp_path / "elsewhere", "copied")
    assert equal(weights_of(moved.host.model), weights_of(again.host.model))
    (first, second) = moved.ledger.batches
    assert first.record["method"]["editor"] == "ultraedit" and second.number == 2
    assert first.facts[0]["result"]["after"] and first.record["scores"]["efficacy"] is not None


def test_another_model_is_refused(tmp_path: Path) -> None:
    session = opened(tmp_path)
    session.edit(rows(4), **ULTRA)
    model, tokenizer = learnt()
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight[0, 0] += 1e-3
    with pytest.raises(LedgerError, match="belongs to another model .here.*new ledger"):
        Session(Host(model, tokenizer), Ledger(tmp_path / "out"))
    with pytest.raises(LedgerError, match="belongs to another model"):
        Session(Host(*learnt(torch.bfloat16)), Ledger(tmp_path / "out"))


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "out", MODEL)
    with ledger.writing():
        refused = pytest.raises(LedgerError, match="written by another process")
        with refused, Ledger(tmp_path / "out").writing():
            pass
    other = Ledger(tmp_path / "out")
    with ledger.writing():
        ledger.append(record(1), delta(1))
    with other.writing():  # opened before the first batch was there
        assert other.append(record(2), delta(2)).number == 2
    assert [b.number for b in Ledger(tmp_path / "out").batches] == [1, 2]


@pytest.mark.parametrize("what", ["0001-*.safetensors", "0001-*.json", "../ledger.jso[n]"])
@pytest.mark.parametrize("how", ["cut", "gone", "changed"])
def test_a_damaged_file_is_named(what: str, how: str, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "out", MODEL)
    ledger.append(record(1), delta(1))
    (path,) = (ledger.folder / "batches").glob(what)
    if how == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if how == "cut" else content[:-9] + b"x" * 9)
    with pytest.raises(LedgerError, match=path.name):
        Ledger(tmp_path / "out").deltas()


def test_no_room_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.create(tmp_path / "out", MODEL)
    ledger.append(record(1), delta(1))
    files = sorted(p for p in (tmp_path / "out").rglob("*"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="no room"):
        ledger.append(record(2), delta(2))
    monkeypatch.undo()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ledger.append(record(2), delta(2))
    monkeypatch.undo()
    assert sorted(p for p in (tmp_path / "out").rglob("*")) == files
    assert [b.number for b in Ledger(tmp_path / "out").batches] == [1]


def test_a_folder_with_something_in_it_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LedgerError, match="'notes.txt' and no ledger"):
        Ledger.create(tmp_path, MODEL)
    with pytest.raises(LedgerError, match="is a file"):
        Ledger.create(tmp_path / "notes.txt", MODEL)
    with pytest.raises(LedgerError, match="is no ledger.*rledit edit MODEL FACTS -o"):
        Ledger(tmp_path)


_WRITER = """
import os, signal, sys
from pathlib import Path
from rledit.editing import Ledger
from tests.unit.rledit.editing.test_ledger import MODEL, delta, record

place, first, last, calls = Path(sys.argv[1]), *map(int, sys.argv[2:5])
killing, counted = sys.argv[5], 0
real = getattr(os, killing)

def counting(*arguments):
    global counted
    counted += 1
    if counted == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

ledger = Ledger(place)
setattr(os, killing, counting)
for number in range(first, last + 1):
    with ledger.writing():
        if number % 4 == 0 and number // 2 in [b.number for b in ledger.in_force]:
            ledger.rewrite([number // 2], {})
        ledger.append(record(number), delta(number))
"""


@pytest.mark.parametrize("where", marked(["fsync", "replace"], (), ("fsync",)))
def test_a_thousand_edits_in_a_hundred_sessions_and_kills_in_the_middle_of_a_write(
    where: str, tmp_path: Path
) -> None:
    place = tmp_path / "out"
    Ledger.create(place, MODEL)

    def run(first: int, last: int, calls: int) -> int:
        numbers = map(str, (first, last, calls))
        command = [sys.executable, "-c", _WRITER, str(place), *numbers, where]
        return subprocess.run(command, env=os.environ | {"PYTHONPATH": "."}).returncode

    for calls in (2, 5, 9):
        begun = len(Ledger(place).batches) + 1
        assert run(begun, begun + 4, calls) == -signal.SIGKILL
        ledger = Ledger(place)  # whole, whatever was being written
        done = len(ledger.batches)
        assert done < begun + 4
        assert all(torch.equal(ledger.delta(b).matrix("m"), delta(b.number).matrix("m"))
                   for b in ledger.batches)  # fmt: skip
    for _ in range(100 - len(Ledger(place).batches)):
        ledger = Ledger(place)
        with ledger.writing():
            number = len(ledger.batches) + 1
            ledger.append(record(number), delta(number))
    ledger = Ledger(place)
    assert [b.number for b in ledger.batches] == list(range(1, 101))
    for batch in ledger.batches:
        assert batch.facts == record(batch.number)["facts"]
        assert torch.equal(ledger.delta(batch).matrix("m"), delta(batch.number).matrix("m"))
    named = {f"{b.file}{end}" for b in ledger.batches for end in (".json", ".safetensors")}
    assert {p.name for p in (place / "batches").iterdir()} == named
    assert not [p for p in place.rglob("*") if p.name.startswith(PARTIAL)]


def test_a_batch_that_is_not_in_the_manifest_was_never_made(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "out", MODEL)
    ledger.append(record(1), delta(1))
    manifest = (ledger.folder / "ledger.json").read_bytes()
    ledger.append(record(2), delta(2))
    (ledger.folder / "ledger.json").write_bytes(manifest)  # as if killed before it was replaced
    (ledger.folder / "batches" / f"{PARTIAL}x").write_text("half")
    again = Ledger(tmp_path / "out")
    assert [b.number for b in again.batches] == [1]
    with again.writing():
        assert len(list((ledger.folder / "batches").iterdir())) == 2
        assert again.append(record(2), delta(5)).number == 2


def test_the_manifest_can_be_read_by_people(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "out", MODEL)
    batch = ledger.append(record(1), delta(1))
    manifest = json.loads((ledger.folder / "ledger.json").read_text())
    assert manifest["model"]["reference"] == "somewhere"
    assert manifest["batches"][0]["number"] == 1 and manifest["batches"][0]["undone"] is None
    kept = json.loads((ledger.folder / "batches" / f"{batch.file}.json").read_text())
    assert kept == record(1)
