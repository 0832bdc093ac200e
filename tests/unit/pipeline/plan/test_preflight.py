"""Edits from files in a grid: read, drawn and checked before anything expensive starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config.grid import Grid
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.inputs.content_hashes import checkpoint_fingerprint
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.checks import skip_reason
from pipeline.plan.grid_plan import make_plan
from pipeline.plan.preflight import checked, preflight
from pipeline.plan.row_faults import train_faults
from pipeline.results.lake.lake import Lake
from pipeline.run.cache import Cache
from pipeline.run.driver import run_plan
from pipeline.run.reporting import silent
from pipeline.run.run_file import read_runs
from pipeline.run.stages.edit import edit_stream
from pipeline.run.stages.prepare import prepare_model
from pipeline.storage.object_store import Storage
from pipeline.storage.run_paths import RunPaths
from rledit.datasets import DatasetError, RowErrors
from rledit.instructions import TASKS
from rledit.world import WORLD_MODELS, World, WorldConfig, world_encoder
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
WORLD = "{n_subjects: 60}"
Rows = list[dict[str, Any]]


@pytest.fixture
def rows() -> Rows:
    """Edits of the tiny grid's world, in the schema of MALMEN's ZsRE files."""
    world = World(WorldConfig(n_subjects=60))
    return [
        {
            "src": edit.prompt,
            "ans": edit.target,
            "rephrase": edit.rephrases[0],
            "loc": edit.locality[0].prompt.removesuffix("?").rstrip(),
            "loc_ans": edit.locality[0].answer,
        }
        for edit in world.draw("evaluation", 30, seed=0)
    ]


def cell(tmp_path: Path, rows: Rows, *more: str) -> Cell:
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps(rows))
    stream = "streams=[{n_batches: 2, batch_size: 2}]"
    files = f"datasets.world.files={{evaluation: {path}}}"
    editors = "editors=[{editor: ultraedit, settings: {step: 0.001}}]"
    return cells_of(load_grid(GRID, [files, stream, editors, *more]))[0]


def test_a_file_of_edits_runs_like_the_world(tmp_path: Path, rows: Rows) -> None:
    chosen = cell(tmp_path, rows)
    preflight([chosen])
    folder = prepared_model(chosen, Cache(tmp_path))
    scored = edit_stream(chosen, folder, Cache(tmp_path), None, silent)
    assert len(scored.edits) == 2 * (2 + 4)  # two protocols, two checkpoints
    prompts = {row["src"] for row in rows}
    drawn = chosen.source().draw("evaluation", 4, seed=0)
    assert {edit.prompt for edit in drawn} <= prompts


def test_the_file_is_part_of_the_identity(tmp_path: Path, rows: Rows) -> None:
    before = cell(tmp_path, rows)
    key = key_of(before)
    other = tmp_path / "other"
    other.mkdir()
    assert key_of(cell(other, rows)) == key
    third = tmp_path / "third"
    third.mkdir()
    assert key_of(cell(third, rows[:-1])) != key


def test_an_answer_the_tokenizer_does_not_know_names_its_row(tmp_path: Path, rows: Rows) -> None:
    for row in rows:
        row["ans"] = "Xyzzyx"
    with pytest.raises(ConfigError, match=r"zsre.json:\d+.*no token for a part of the answer"):
        preflight([cell(tmp_path, rows)])


def test_a_prompt_with_no_room_names_its_row(tmp_path: Path, rows: Rows) -> None:
    for row in rows:
        row["rephrase"] = row["rephrase"] + " of" * 70
    with pytest.raises(ConfigError, match=r"zsre.json:\d+.*exceed the model's 64 positions"):
        preflight([cell(tmp_path, rows)])


def test_a_blank_target_is_skipped_and_refused_with_strict(tmp_path: Path, rows: Rows) -> None:
    rows[3]["ans"] = "  "
    chosen = cell(tmp_path, rows)
    assert sum(chosen.source().sizes().values()) == len(rows) - 1
    with pytest.raises(DatasetError, match="zsre.json"):
        cell(tmp_path, rows, "datasets.world.strict=true").source()


@pytest.mark.parametrize(
    ("editor", "learns"),
    [
        ("{editor: malmen, settings: {train_steps: 1}}", True),
        ("{editor: mend, settings: {train_steps: 1}}", True),
        ("{editor: rledit, settings: {train_steps: 1}}", True),
        ("{editor: stableedit}", True),
        ("{editor: malmen, settings: {train_steps: 0}}", False),
        ("{editor: ultraedit, settings: {step: 0.001}}", False),
    ],
)
def test_training_data_keeps_the_token_contract(
    tmp_path: Path, rows: Rows, editor: str, learns: bool
) -> None:
    """A bad target anywhere in the train pool is found before the training that may draw it."""
    rows[-1]["ans"] = "Xyzzyx"
    pools = {"evaluation": rows[:6], "validation": rows[6:10], "train": rows[10:]}
    for split, own in pools.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(own))
    files = {split: str(tmp_path / f"{split}.json") for split in pools}
    sets = [f"datasets.world.files={json.dumps(files)}", f"editors=[{editor}]"]
    chosen = cell(tmp_path, rows, *sets)
    if not learns:
        assert preflight([chosen]) == {}
        return
    message = (
        rf"/{chosen.label}/.*: 1 of the 20 edits of the train pool, which {chosen.label} learns "
        r"from, cannot be used:\n  train.json:20: .*no token for a part of the answ"
    )
    with pytest.raises(ConfigError, match=message):
        preflight([chosen])


@pytest.mark.parametrize("held_out", [False, True])
def test_training_data_has_room_for_the_longest_instruction_that_it_is_asked_with(
    tmp_path: Path, rows: Rows, held_out: bool
) -> None:
    """Whatever the stream is asked with."""
    encoder = world_encoder(World(WorldConfig(n_subjects=60)), WORLD_MODELS["llama"])
    tokens = [
        len(encoder.tokenizer(one.around(""))["input_ids"]) for one in TASKS["facts"].trained_on
    ]
    assert tokens[0] < max(tokens)

    def padded(row: dict[str, Any], size: int) -> dict[str, Any]:
        """The row with a prompt that is of this length with the answer, asked bare."""
        prompt = row["src"]
        while len(encoder.sample(prompt, row["ans"]).input_ids) < size:
            prompt = f"of {prompt}"
        return row | {"src": prompt}

    room = 64 + 1 - max(tokens)  # BOS is in both
    rows[10:12] = [padded(rows[10], room), padded(rows[11], room + 1)]
    pools = {"evaluation": rows[:6], "validation": rows[6:10], "train": rows[10:]}
    for split, own in pools.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(own))
    files = {split: str(tmp_path / f"{split}.json") for split in pools}
    number = 10 if held_out else 1
    editor = f"{{editor: instructedit, settings: {{train_steps: 1, instruction: {number}}}}}"
    chosen = cell(tmp_path, rows, f"datasets.world.files={json.dumps(files)}",
                  f"editors=[{editor}]")  # fmt: skip
    message = r"1 of the 20 edits of the train pool.*\n  train.json:2: .*exceed the model's 64 pos"
    with pytest.raises(ConfigError, match=message):
        preflight([chosen])


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("kind", ["rephrases", "locality"])
def test_training_in_variants_looks_at_every_prompt(
    tmp_path: Path, rows: Rows, kind: str, augment: bool
) -> None:
    """A rephrase or locality prompt that is not the first one is trained on in some variants."""
    own = [
        {
            "prompt": row["src"],
            "target": row["ans"],
            "rephrases": [row["rephrase"]] * 2,
            "locality": [{"prompt": row["loc"], "answer": row["loc_ans"]}] * 2,
        }
        for row in rows
    ]
    long = " of" * 70
    own[-1][kind] = [
        own[-1][kind][0],
        rows[-1]["rephrase"] + long
        if kind == "rephrases"
        else {"prompt": rows[-1]["loc"] + long, "answer": rows[-1]["loc_ans"]},
    ]
    pools = {"evaluation": own[:6], "validation": own[6:10], "train": own[10:]}
    for split, part in pools.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(part))
    files = {split: str(tmp_path / f"{split}.json") for split in pools}
    settings = f"{{initial_step: 0.001, patience: 0, augment: {augment}}}"
    editor = f"editors=[{{editor: rledit, settings: {settings}}}]"
    chosen = cell(tmp_path, rows, f"datasets.world.files={json.dumps(files)}", editor)
    if not augment:
        assert preflight([chosen]) == {}
        return
    with pytest.raises(
        ConfigError, match=r"1 of the 20 edits of the train pool.*\n  train.json:20"
    ):
        preflight([chosen])


def test_a_rephrase_that_no_variant_asks_is_no_fault(tmp_path: Path, rows: Rows) -> None:
    chosen = cell(tmp_path, rows)
    (edit,) = chosen.source().draw("evaluation", 1, seed=0)
    long = edit.rephrases[0] + " of" * 70
    edit = replace(edit, subject=edit.prompt, rephrases=(edit.prompt, long))
    encoder = world_encoder(chosen.world(), chosen.model_spec, chosen.dataset.answer_space)
    assert not train_faults(encoder, [edit], augment=True).rows
    assert train_faults(encoder, [replace(edit, subject=None)], augment=True).rows


def test_edits_that_a_step_is_calibrated_on_keep_the_token_contract(
    tmp_path: Path, rows: Rows
) -> None:
    rows[8]["ans"] = "Xyzzyx"
    pools = {"evaluation": rows[:6], "validation": rows[6:10]}
    for split, part in pools.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(part))
    files = {split: str(tmp_path / f"{split}.json") for split in pools}
    sets = [f"datasets.world.files={json.dumps(files)}", "editors=[{editor: ultraedit}]"]
    chosen = cell(tmp_path, rows, *sets)
    message = (
        "1 of the 4 edits of the batch that the step of ultraedit is calibrated on, cannot be "
        r"used:\n  validation.json:3: .*no token for a part of the answ"
    )
    with pytest.raises(ConfigError, match=message):
        preflight([chosen])


def test_every_variant_of_an_editor_has_its_value_vectors_looked_at(
    tmp_path: Path, rows: Rows
) -> None:
    last = "target_modules: ['down:1']"
    editors = (
        f"editors=[{{editor: memit, variant: a, settings: {{fact_token: last, {last}}}}}, "
        f"{{editor: memit, variant: b, settings: {{fact_token: subject_last, {last}}}}}]"
    )
    cells = cells_of(load_grid(GRID, ["streams=[{n_batches: 2, batch_size: 2}]", editors]))
    for order in (cells, cells[::-1]):
        with pytest.raises(ConfigError, match="memit/b writes facts at the subject's last token"):
            preflight(order)


@pytest.mark.parametrize("patience", [0, 2])
def test_edits_that_validate_a_training_keep_the_token_contract(
    tmp_path: Path, rows: Rows, patience: int
) -> None:
    rows[7]["ans"] = "Xyzzyx"
    pools = {"evaluation": rows[:6], "validation": rows[6:10], "train": rows[10:]}
    for split, own in pools.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(own))
    files = {split: str(tmp_path / f"{split}.json") for split in pools}
    validation = f"patience: {patience}, validation_batches: 2" if patience else "patience: 0"
    settings = f"{{initial_step: 0.001, {validation}}}"
    editor = f"editors=[{{editor: rledit, settings: {settings}}}]"
    chosen = cell(tmp_path, rows, f"datasets.world.files={json.dumps(files)}", editor)
    if not patience:
        assert preflight([chosen]) == {}
        return
    message = (
        r"1 of the 4 edits of the validation pool, which decides when the training of rledit ends, "
        r"cannot be used:\n  validation.json:2: .*no token for a part of the answ"
    )
    with pytest.raises(ConfigError, match=message):
        preflight([chosen])


def grid_of(tmp_path: Path, rows: Rows, editors: str, *more: str) -> Grid:
    """A grid that edits all rows, in the order of the file."""
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    train = [{**row, "src": f"{row['src']} (train)"} for row in rows[:4]]
    (tmp_path / "train.json").write_text(json.dumps([{**r, "ans": rows[0]["ans"]} for r in train]))
    files = {"evaluation": str(tmp_path / "mine.json"), "train": str(tmp_path / "train.json")}
    entry = f"datasets=[{{name: mine, files: {json.dumps(files)}, order: file, world: {WORLD}}}]"
    stream = f"streams=[{{n_batches: 2, batch_size: {len(rows) // 2}}}]"
    return load_grid(GRID, [entry, stream, f"editors=[{editors}]", *more])


@pytest.fixture
def subjects(rows: Rows) -> Rows:
    """Twelve edits with their subjects."""
    world = World(WorldConfig(n_subjects=60)).draw("evaluation", 12, seed=0)
    return [{**row, "subject": e.subject} for row, e in zip(rows, world, strict=False)]


ROME = '{editor: rome, settings: {modules: ["down:0"]}}'
THREE = f"{{editor: none}}, {{editor: ultraedit, settings: {{step: 0.001}}}}, {ROME}"


def test_all_rows_are_named_and_only_the_cells_that_need_them_stop(
    tmp_path: Path, subjects: Rows
) -> None:
    subjects[1]["subject"] = "Nobody"
    subjects[5]["subject"] = subjects[5]["subject"].upper()
    subjects[9]["subject"] = None
    grid = grid_of(tmp_path, subjects, THREE)
    plan, lines = checked(make_plan(grid, Lake(str(tmp_path / "lake"))))
    rome = plan.cells[-1]
    assert [plan.reason(cell) is None for cell in plan.cells] == [True, True, False]
    assert lines[0] == (f"skipped: {rome.path}: 3 of the 12 edits of the stream cannot be used:")
    found = [line.split(":")[:2] for line in lines[1:]]
    assert found == [["  mine.json", "2"], ["  mine.json", "6"], ["  mine.json", "10"]]
    assert "the subject 'Nobody' does not occur in the prompt" in lines[1]
    assert "the edit has no subject" in lines[3]
    assert skip_reason(rome) is None  # most rows have one


def test_cells_that_are_refused_are_recorded_with_the_rows_and_counted(
    tmp_path: Path, subjects: Rows
) -> None:
    subjects[0]["subject"] = "Nobody"
    memit = "{editor: memit, settings: {target_modules: ['down:0']}}"
    grid = grid_of(tmp_path, subjects, f"{ROME}, {memit}")
    places = RunPaths.under(tmp_path)
    plan = make_plan(grid, Lake(places.lake))
    with pytest.raises(ConfigError) as caught:  # with none that can run, nothing does
        checked(plan)
    assert str(caught.value).startswith(
        f"{plan.cells[0].path} and 1 more cell of rome, memit: 1 of the 12 edits of the stream "
        "cannot be used:\n  mine.json:1: the subject 'Nobody' does not occur"
    )
    refused = {key: str(why) for key, why in preflight(plan.missing, others=True).items()}
    plan = replace(plan, refused=refused)
    assert run_plan(grid, plan, places, Console(quiet=True)) == 2
    records = Lake(places.lake).manifest()
    assert {record.status for record in records} == {"skipped"}
    (run,) = read_runs(Storage(places.lake), grid.name)
    assert (run.how, run.cells, run.skipped) == ("failed", 2, 2)
    reason = "1 of the 12 edits of the stream cannot be used: mine.json:1: the subject 'Nobody'"
    assert all(str(record.reason).startswith(reason) for record in records)


def test_everything_that_is_wrong_with_rows_is_named_in_one_go(
    tmp_path: Path, subjects: Rows
) -> None:
    """Prompts, answers, rephrases, probes and questions, of one row and of many."""
    subjects[0] |= {"ans": "Xyzzyx", "loc": subjects[0]["loc"] + " of" * 70}
    subjects[2]["loc_ans"] = "Qwrtz"
    question = {"prompt": subjects[3]["src"], "ground_truth": "Vbnmq"}
    subjects[3]["portability"] = {"Reasoning": [question]}
    grid = grid_of(tmp_path, subjects, THREE, "measurements=[portability]")
    with pytest.raises(ConfigError) as caught:
        checked(make_plan(grid, Lake(str(tmp_path / "lake"))))
    head, *lines = str(caught.value).split("\n")
    assert "and 2 more cells of none, ultraedit, rome: 3 of the 12 edits of the stream" in head
    assert [line.split(":")[1] for line in lines] == ["1", "3", "4"]
    for text in ("'Xyzzyx'", "exceed the model's 64 positions"):
        assert text in lines[0]
    assert "'Qwrtz'" in lines[1] and "'Vbnmq'" in lines[2]


def test_the_first_ten_rows_are_shown_and_the_others_counted(
    tmp_path: Path, subjects: Rows
) -> None:
    for row in subjects:
        row["subject"] = "Nobody"
    grid = grid_of(tmp_path, subjects, THREE)
    _, lines = checked(make_plan(grid, Lake(str(tmp_path / "lake"))))
    assert len(lines) == 12 and lines[-1] == "  ... and 2 more rows"


def test_a_bad_row_counts_where_it_is_drawn(tmp_path: Path, subjects: Rows) -> None:
    subjects[11]["subject"] = "Nobody"
    short = "streams=[{n_batches: 1, batch_size: 6}, {n_batches: 2, batch_size: 6}]"
    grid = grid_of(tmp_path, subjects, ROME, short)
    plan, lines = checked(make_plan(grid, Lake(str(tmp_path / "lake"))))
    assert [cell.stream.n_batches for cell in plan.cells if plan.reason(cell)] == [2]
    assert len(lines) == 2


def test_rows_that_cannot_be_mapped_are_named_of_all_files_and_datasets(
    tmp_path: Path, rows: Rows
) -> None:
    entries = []
    for name in ("one", "two"):
        files = {}
        for split in ("train", "evaluation"):
            path = tmp_path / f"{name}-{split}.json"
            path.write_text(json.dumps([*rows[:5], {**rows[5], "ans": 7}]))
            files[split] = str(path)
        entries.append(f"{{name: {name}, files: {json.dumps(files)}, world: {WORLD}}}")
    with pytest.raises(RowErrors) as caught:
        make_plan(load_grid(GRID, [f"datasets=[{', '.join(entries)}]"]), Lake(str(tmp_path)))
    assert len(caught.value.errors) == 4
    for name in ("one-train", "one-evaluation", "two-train", "two-evaluation"):
        assert f"{name}.json, row 6: `ans` is a number, not text: 7" in str(caught.value)


def test_training_rows_without_probes_are_named_where_others_have_them(
    tmp_path: Path, subjects: Rows
) -> None:
    subjects[1]["rephrase"] = subjects[2]["loc"] = None
    editor = "{editor: rledit, settings: {rank: 8, n_blocks: 1, train_steps: 1}}"
    grid = grid_of(tmp_path, subjects, editor)
    (cell,) = cells_of(grid)
    assert skip_reason(cell) == (
        "rledit learns from a locality prompt of every training edit, and 1 of 4 in the train pool "
        "of mine (all 4 edits of train.json) have none (train.json:3); from a rephrase of every "
        "training edit, and 1 of 4 in the train pool of mine (all 4 edits of train.json) have none "
        "(train.json:2); give the dataset a train file whose "
        "edits have one, or leave the editor out"
    )


def test_a_row_that_fits_no_schema_stops_the_plan(tmp_path: Path, rows: Rows) -> None:
    del rows[5]["ans"]
    chosen = load_grid(GRID, [f"datasets.world.files={{evaluation: {tmp_path / 'zsre.json'}}}"])
    (tmp_path / "zsre.json").write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match="ans"):
        make_plan(chosen, Lake(str(tmp_path / "lake")))


def test_a_checkpoint_is_a_folder_or_a_pinned_revision(tmp_path: Path, rows: Rows) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert checkpoint_fingerprint(f"owner/name@{commit}") == f"owner/name@{commit}"
    with pytest.raises(ConfigError, match="with its revision"):
        checkpoint_fingerprint("owner/name")
    with pytest.raises(ConfigError, match="no config.json"):
        checkpoint_fingerprint(str(tmp_path))
    folder = prepared_model(cell(tmp_path, rows), Cache(tmp_path))
    loaded = cell(tmp_path, rows, f"models.llama-tiny.checkpoint={folder}")
    assert prepare_model(loaded, Cache(tmp_path), silent) == folder
    preflight([loaded])
    assert edit_stream(loaded, folder, Cache(tmp_path), None, silent).edits
