"""Cells share a prefix store and what the unedited model says, and their rows do not tell."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipeline.config.parse import load_grid
from pipeline.plan import prefixes as choices
from pipeline.plan.cell_keys import train_key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.estimate import estimate
from pipeline.plan.estimate.cached import Cached
from pipeline.plan.prefixes import store_choice, training_store_choice
from pipeline.run import lease
from pipeline.run.cache import Cache
from pipeline.run.reporting import Stage, silent
from pipeline.run.stages import edit, prefixes, prepare, train, unedited
from pipeline.run.stages.prepare import open_model
from rledit import prefix_sharing
from rledit.model import EditableModel
from rledit.prefix_passes import PrefixPasses
from rledit.prefix_store import PrefixStore
from rledit.protocols import reading
from rledit.tokenization import Sample
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
UPPER = "models.llama-tiny.target_modules=[down:1]"


class Interrupted(Exception):
    """Stands for a killed process."""


def cell(editor: str, *overrides: str) -> Cell:
    grid = load_grid(GRID, (UPPER, *overrides))
    return next(c for c in cells_of(grid) if c.editor.editor == editor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_model(cell("ultraedit"), Cache(tmp_path_factory.mktemp("models")))


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the tiny model's prefixes are worth keeping; each is recorded by itself."""
    monkeypatch.setattr(choices, "LEAST_OPERATIONS", 0)
    monkeypatch.setattr(PrefixPasses, "same_bits", lambda *_: ())


@pytest.fixture(autouse=True)
def loaded_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for processes here, and transformers replaces its own methods in a load."""
    lock, load = threading.Lock(), prepare.load_model

    def in_turn(*args: Any) -> Any:
        with lock:
            return load(*args)

    monkeypatch.setattr(prepare, "load_model", in_turn)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Prompts that are run through the layers below the first edited one."""
    prompts: list[bytes] = []
    whole = PrefixPasses._record

    def record(self: PrefixPasses, ids: Tensor) -> tuple[Tensor, Tensor]:
        prompts.extend(row.numpy().tobytes() for row in ids)
        return whole(self, ids)

    monkeypatch.setattr(PrefixPasses, "_record", record)
    yield prompts


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many prompts are read at a time."""
    counts: list[int] = []
    whole = reading._run

    def run(model: Any, samples: Any, own: Any, rivals: Any) -> Any:
        counts.append(len(samples))
        return whole(model, samples, own, rivals)

    monkeypatch.setattr(reading, "_run", run)
    yield counts


def stream(chosen: Cell, folder: Path, cache: Path, report: Any = silent) -> edit.StreamRows:
    network = None
    if chosen.trains:
        path = train.train(chosen, folder, Cache(cache), silent)
        assert path is not None
        network = train.load_trained(path)
    return edit.edit_stream(chosen, folder, Cache(cache), network, report)


def without_times(rows: edit.StreamRows) -> dict[str, Any]:
    found = {k: v for k, v in asdict(rows).items() if not k.endswith("_seconds")}
    found["steps"] = [r for r in found["steps"] if not r["metric"].endswith("_seconds")]
    return found


@pytest.mark.parametrize("editor", [pytest.param("ultraedit", marks=pytest.mark.long), "rledit"])
def test_a_second_cell_runs_nothing_below_and_asks_the_unedited_model_nothing(
    editor: str, folder: Path, tmp_path: Path, recorded: list[bytes], readings: list[int]
) -> None:
    chosen = cell(editor)
    expected = without_times(stream(chosen, folder, tmp_path / "own"))
    assert expected["facts"]["prefix_store"] == {"layer": 1}
    n_read, first = len(readings), "malmen" if editor == "ultraedit" else "ultraedit"
    stream(cell(first), folder, tmp_path / "shared")  # the same stream, another editor
    if chosen.trains:
        train.train(chosen, folder, Cache(tmp_path / "shared"), silent)
    recorded.clear()
    readings.clear()
    assert without_times(stream(chosen, folder, tmp_path / "shared")) == expected
    assert len(set(recorded)) == len(recorded) == 1  # what tells whose store it is
    # Before it: all of the stream, unedited. What is left are the three checkpoints.
    assert len(readings) == 3 < n_read


def test_rows_are_equal_whatever_of_the_cache_is_lost(folder: Path, tmp_path: Path) -> None:
    chosen = cell("ultraedit", "protocols=[token_accuracy, exact_match, generation]")
    expected = without_times(stream(chosen, folder, tmp_path))
    (record,) = (tmp_path / "unedited").iterdir()
    for damage in ("cut", "of another stream", "gone"):
        text = record.read_text()
        if damage == "cut":
            record.write_text(text[: len(text) // 2])
        elif damage == "gone":
            record.unlink()
        else:
            record.write_text(text.replace('"seed": 0', '"seed": 1'))
        for file in sorted((tmp_path / "prefixes").rglob("*.safetensors"))[::2]:
            file.write_bytes(file.read_bytes()[:50])
        assert without_times(stream(chosen, folder, tmp_path)) == expected
    assert without_times(stream(chosen, folder, tmp_path)) == expected


def test_a_stream_goes_on_with_a_store_that_another_has_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit, "SAVE_EVERY_SECONDS", 0.0)
    chosen = cell("ultraedit")
    expected = without_times(stream(chosen, folder, tmp_path / "straight"))

    def stop(stage: Stage, done: int, _: int, detail: str = "") -> None:
        if stage == "edit" and done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        stream(chosen, folder, tmp_path / "broken", stop)
    for file in (tmp_path / "broken" / "prefixes").rglob("*.safetensors"):
        file.unlink()
    stream(cell("malmen"), folder, tmp_path / "broken")
    assert without_times(stream(chosen, folder, tmp_path / "broken")) == expected


def test_filling_is_shown_and_kept_when_it_is_ended(
    folder: Path, tmp_path: Path, recorded: list[bytes]
) -> None:
    chosen = cell("ultraedit")
    shown: list[tuple[int, int]] = []

    def stop(stage: Stage, done: int, total: int, detail: str = "") -> None:
        if stage == "prefixes":
            shown.append((done, total))
            if done >= 12:
                raise Interrupted

    with pytest.raises(Interrupted):
        stream(chosen, folder, tmp_path, stop)
    assert shown[0] == (0, shown[0][1]) and shown == sorted(shown)
    model = open_model(chosen, folder)
    store = prefixes.open_store(chosen, model, Cache(tmp_path))
    assert store is not None
    there = len(store.prefixes)
    assert 0 < there < shown[0][1]
    recorded.clear()
    found: list[tuple[int, int]] = []

    def go_on(stage: Stage, done: int, total: int, detail: str = "") -> None:
        if stage == "prefixes":
            found.append((done, total))

    stream(chosen, folder, tmp_path, go_on)
    assert found[0] == (there, shown[0][1])
    assert len(set(recorded)) == 1 + shown[0][1] - there


def test_two_cells_at_once_run_no_prompt_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: list[bytes]
) -> None:
    monkeypatch.setattr(prefix_sharing, "POLL_SECONDS", 0.01)
    chosen = cell("ultraedit")
    models = [open_model(chosen, folder) for _ in range(2)]
    stores = [prefixes.open_store(chosen, model, Cache(tmp_path)) for model in models]
    edits = chosen.source().draw("evaluation", chosen.n_edits, seed=0)
    samples = [s for s in models[0].encoder.batch(edits, 4).edit.samples]
    samples += models[0].encoder.batch(edits, 4).unrelated.samples
    recorded.clear()

    def fill(i: int) -> None:
        store = stores[i]
        assert store is not None
        prefixes.fill_store(store, models[i], silent, samples)

    threads = [threading.Thread(target=fill, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(recorded) == sorted({s.key for s in samples})
    for store in stores:
        assert store is not None
        store.prefixes.refresh()
        assert store.prefixes.missing(samples) == []
    assert list((tmp_path / "leases").glob("*.json")) == []


def test_of_two_cells_at_once_one_asks_the_unedited_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readings: list[int]
) -> None:
    monkeypatch.setattr(unedited, "POLL_SECONDS", 0.01)
    other = "[{editor: untrained, settings: {initial_step: 0.01}}]"
    both = [cell("ultraedit"), cell("untrained", f"editors={other}")]
    expected = [without_times(stream(c, folder, tmp_path / c.editor_name)) for c in both]
    alone = len(readings)
    readings.clear()
    meet, found = threading.Barrier(len(both)), {}

    def run(chosen: Cell) -> None:
        meet.wait(60)
        found[chosen.editor_name] = without_times(stream(chosen, folder, tmp_path / "shared"))

    threads = [threading.Thread(target=run, args=(chosen,)) for chosen in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [found[c.editor_name] for c in both] == expected
    # The stream before its first edit is read by one of them.
    assert len(readings) == alone - 1
    assert list((tmp_path / "shared" / "leases").glob("*.json")) == []


def test_who_breaks_off_while_asking_leaves_it_to_the_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = cell("ultraedit")

    def broken(*_: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(edit, "_before_editing", broken)
        with pytest.raises(Interrupted):
            stream(chosen, folder, tmp_path)
    assert list((tmp_path / "leases").glob("*.json")) == []
    stream(chosen, folder, tmp_path)
    assert len(list((tmp_path / "unedited").iterdir())) == 1


def test_a_plan_finds_what_the_unedited_model_has_said_of_a_stream(
    folder: Path, tmp_path: Path
) -> None:
    chosen, other = cell("ultraedit"), cell("ultraedit", "seeds=[1]")

    def scoring(planned: Cell) -> float:
        (found,) = estimate([planned], [], cache=str(tmp_path)).cells
        return found.seconds.score

    fresh = scoring(chosen)
    stream(chosen, folder, tmp_path)
    assert [Cached(str(tmp_path)).has_unedited(c) for c in (chosen, other)] == [True, False]
    assert scoring(chosen) < fresh


def test_prompts_of_edits_that_are_not_scored_are_filled_in_ahead(
    folder: Path, tmp_path: Path, recorded: list[bytes]
) -> None:
    counts: list[int] = []
    shown: list[tuple[int, int]] = []

    def note(stage: Stage, done: int, total: int, detail: str = "") -> None:
        if stage == "prefixes":
            shown.append((done, total))
        else:
            counts.append(len(recorded))

    chosen = cell("ultraedit", "scored_edits=4")
    assert len(chosen.scored_places) == 4 < chosen.n_edits
    stream(chosen, folder, tmp_path, note)
    assert shown[-1] == (8, 8)
    assert len(counts) == 6 and len(set(counts)) == 1  # batch after batch, nothing is run below


def test_the_unedited_row_reads_the_stream_once(
    folder: Path, tmp_path: Path, readings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = reading._run

    def slowly(*asked: Any) -> Any:
        time.sleep(0.5)
        return counted(*asked)

    monkeypatch.setattr(reading, "_run", slowly)
    chosen = cell("none", "editors=[{editor: none}]")
    rows = stream(chosen, folder, tmp_path)
    assert rows.score_seconds > 0.5  # what it took to read is the row's
    assert len({row["checkpoint"] for row in rows.scores}) == 4
    assert len(readings) == 1


def test_the_unedited_row_finds_what_an_editor_has_asked_of_a_preset(
    tmp_path: Path, readings: list[int], recorded: list[bytes]
) -> None:
    """It is read from the layer that the model's preset has editors edit first."""
    preset = "scale=proxy", "models=[{name: small, preset: smollm2-135m}]"
    editors = "editors=[{editor: none}, {editor: ultraedit, settings: {step: 1.0e-3}}]"
    grid = load_grid(GRID, (*preset, editors))
    none, other = (c for c in cells_of(grid))
    model = prepared_model(none, Cache(tmp_path / "models"))
    alone = without_times(stream(none, model, tmp_path / "alone"))
    first = without_times(stream(other, model, tmp_path / "shared"))
    readings.clear()
    recorded.clear()
    found = without_times(stream(none, model, tmp_path / "shared"))
    assert readings == [] and len(recorded) == 1  # what tells whose store it is
    assert found == alone
    before = [row for row in first["scores"] if row["checkpoint"] == 0]
    assert [row for row in found["scores"] if row["checkpoint"] == 0] == before


def test_a_preset_of_a_larger_model_does_not_keep_an_unedited_row_from_being_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the checkpoint has fewer layers, and all editors name modules of their own."""
    monkeypatch.setattr(Cell, "read_modules", ("down:20-28",))
    none = cell("none", "editors=[{editor: none}]")
    assert store_choice(none).reason == "nothing is edited"
    assert prepare._read_from(none) is None
    estimate([none], [])
    with pytest.raises(ValueError, match="20"):
        store_choice(cell("ultraedit"))


def test_two_trainings_at_once_run_no_prompt_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: list[bytes]
) -> None:
    monkeypatch.setattr(prefix_sharing, "POLL_SECONDS", 0.01)
    both = [cell("malmen"), cell("rledit")]
    meet = threading.Barrier(len(both))

    def run(chosen: Cell) -> None:
        meet.wait(60)
        train.train(chosen, folder, Cache(tmp_path), silent)

    threads = [threading.Thread(target=run, args=(chosen,)) for chosen in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(list((tmp_path / "trained").glob("*.safetensors"))) == 2
    twice = [prompt for prompt, n in Counter(recorded).items() if n > 1]
    assert len(twice) <= 1  # what tells whose store it is


@pytest.fixture
def lacking(folder: Path, tmp_path: Path) -> tuple[prefixes.CellStore, EditableModel, list[Sample]]:
    """An empty store, its model, and the prompts of a stream."""
    chosen = cell("ultraedit")
    model = open_model(chosen, folder)
    store = prefixes.open_store(chosen, model, Cache(tmp_path))
    assert store is not None
    edits = chosen.source().draw("evaluation", chosen.n_edits, seed=0)
    return store, model, list(model.encoder.batch(edits, 4).edit.samples)


def test_what_others_write_meanwhile_is_counted(
    lacking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "LOOK_SECONDS", -1.0)
    store, model, samples = lacking
    unique = list({s.key: s for s in samples}.values())
    shortest = min(map(len, unique))
    by_another = [s for s in unique if len(s) > shortest]
    first = len(unique) - len(by_another)
    assert first < len(by_another)
    told: list[int] = []

    def report(stage: str, done: int, total: int, *_: object) -> None:
        told.append(done)
        if len(told) == 2:  # the shortest are this one's, and none is recorded yet
            other = PrefixStore(store.prefixes.folder, store.prefixes.identity, 1 << 30)
            for sample in by_another:
                hidden, attention = model.prefix_cache._record(sample.input_ids[None])
                other.put(sample, (hidden[0], attention[0]))
            other.flush()

    prefixes.fill_store(store, model, report, samples)
    assert told[:2] == [0, 0] and told[2] == 1 + len(by_another)
    assert told == sorted(told) and told[-1] == len(unique)


def test_what_a_lost_node_was_recording_is_recorded_by_who_waits(
    lacking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_sharing, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(lease, "EXPIRES_SECONDS", 0.3)
    store, model, samples = lacking
    storage = Cache(tmp_path).storage
    for length in {len(s) for s in samples}:
        left = lease.Lease(storage, f"{store.name}/{length}".replace("/", "-"), "")
        left._claim["place"] = "a node that is no more"
        assert storage.create_bytes(left._name, left._content())
    began = time.monotonic()
    prefixes.fill_store(store, model, silent, samples)
    assert store.prefixes.missing(samples) == []
    assert time.monotonic() - began > 0.3


def test_who_cannot_ask_for_a_lease_records_alone(
    lacking: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(_: lease.Lease) -> bool:
        raise ConnectionError("no route to the bucket")

    store, model, samples = lacking
    monkeypatch.setattr(lease.Lease, "attempt", unreachable)
    prefixes.fill_store(store, model, silent, samples)
    assert store.prefixes.missing(samples) == []
    assert "without asking who else does: no route to the bucket" in caplog.text


def test_filling_ends_where_the_store_is_full(lacking: Any, recorded: list[bytes]) -> None:
    """Others have used up what room there was at the start."""
    store, model, samples = lacking

    def used_up(stage: Stage, done: int, total: int, detail: str = "") -> None:
        if done:
            store.prefixes._full = True

    prefixes.fill_store(store, model, used_up, samples)
    assert 0 < len(recorded) < len(samples)


@pytest.mark.long
def test_a_full_disk_leaves_the_rows_as_they_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = cell("ultraedit")
    expected = without_times(stream(chosen, folder, tmp_path / "roomy"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert without_times(stream(chosen, folder, tmp_path / "full")) == expected


def test_without_a_store_rows_differ_by_round_off_alone(folder: Path, tmp_path: Path) -> None:
    kept, plain = cell("ultraedit"), cell("ultraedit", "resources={prefix_store_gb: 0}")
    assert store_choice(plain).reason == "prefix_store_gb is 0"
    one = stream(kept, folder, tmp_path / "kept")
    other = stream(plain, folder, tmp_path / "plain")
    assert "prefix_store" not in other.facts
    assert not (tmp_path / "plain" / "prefixes").exists()
    for a, b in zip(one.scores, other.scores, strict=True):
        assert a["efficacy"] == pytest.approx(b["efficacy"], abs=5)
    norms = [
        torch.tensor([r["value"] for r in rows.steps if r["metric"] == "weight_change_norm"])
        for rows in (one, other)
    ]
    torch.testing.assert_close(*norms, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ("models.llama-tiny.target_modules=[down:0]",),
            "the first edited layer is 0 of 2, and at least",
        ),
        (("resources={gpus: 1}",), "a GPU runs the layers below about as fast as it is sent"),
        (("resources={ranks: 2}",), "only cells of one rank keep prefixes"),
        (("resources={prefix_store_gb: 0.00001}",), "edits that are scored take about"),
    ],
)
def test_where_it_does_not_pay_none_is_made(overrides: tuple[str, ...], reason: str) -> None:
    assert reason in (store_choice(cell("ultraedit", *overrides)).reason or "made")


def test_small_models_and_rows_without_a_preset_keep_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert store_choice(cell("none")).reason == "nothing is edited"
    assert store_choice(cell("ultraedit")).made
    monkeypatch.undo()
    assert "take about a second" in (store_choice(cell("ultraedit")).reason or "made")


@pytest.mark.long
def test_networks_of_one_key_are_one_whoever_asks_for_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short stream makes no store and a long one does; their network is trained with one."""
    short, long = cell("malmen"), cell("malmen", "streams=[{n_batches: 6, batch_size: 4}]")
    narrow = cell("malmen", "resources={prefix_store_gb: 0.00001}")
    architecture = choices.architecture_of(short)
    both = [choices.KINDS * n * choices.TOKENS * 2.0 for n in (12, 24)]
    least = sum(both) / 2 * architecture.layer_parameters  # of one frozen layer
    monkeypatch.setattr(choices, "LEAST_OPERATIONS", least)
    assert [store_choice(c).made for c in (short, long)] == [False, True]
    monkeypatch.setattr(choices, "LEAST_OPERATIONS", 0)
    found = []
    for i, chosen in enumerate((short, long, narrow)):
        assert training_store_choice(chosen).made
        path = train.train(chosen, folder, Cache(tmp_path / str(i)), silent)
        assert path is not None
        found.append(safetensors.torch.load_file(path))
    assert len({train_key_of(c) for c in (short, long, narrow)}) == 1
    for other in found[1:]:
        assert all(other[name].equal(value) for name, value in found[0].items())


def test_a_training_keeps_what_its_own_work_is_worth() -> None:
    settings = "editors.malmen.settings"
    less, more = (cell("malmen", f"{settings}.train_steps={n}") for n in (1, 40))
    never = cell("malmen", "resources={prefix_store_gb: 0}")
    with pytest.MonkeyPatch.context() as patch:
        tokens = choices.KINDS * 4 * 2 * 20 * choices.TOKENS  # of 20 steps of two batches of four
        layer = choices.architecture_of(less).layer_parameters
        patch.setattr(choices, "LEAST_OPERATIONS", 2.0 * tokens * layer)
        assert [training_store_choice(c).made for c in (less, more)] == [False, True]
    assert training_store_choice(never).reason == "prefix_store_gb is 0"
    assert train_key_of(never) != train_key_of(cell("malmen"))
