"""Steps on `auto`: how they are found, shared, recorded; and cells whose edits change nothing."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cell_data import calibration_pool
from pipeline.plan.cell_keys import calibration_key_of, identity_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.checks import check_cell, skip_reason
from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from pipeline.results.rendering import render_table
from pipeline.results.report import write_report
from pipeline.results.tables import build_table
from pipeline.results.tracking.tracker import Tracker
from pipeline.results.without_effect import remark_of, warning_of
from pipeline.run.cache import Cache
from pipeline.run.reporting import silent
from pipeline.run.tasks import perform, tasks_of
from pipeline.storage.run_paths import RunPaths
from rledit.calibration import CalibrationError, Candidate, calibrate, choose
from rledit.editors import EDITORS
from rledit.editors.moment_editor import Shape
from rledit.editors.ultraedit import UltraEdit
from rledit.model import EditableModel
from rledit.protocols import protocol
from rledit.records import Edit
from rledit.scoring import Scorer
from rledit.shift import Solution
from rledit.step_size import SettingError
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[2] / "cluster" / "tiny.yaml"
DEFAULTS = "[{editor: none}, {editor: rledit}, {editor: mend}]"


def cells(*overrides: str) -> list[Cell]:
    return cells_of(load_grid(GRID, overrides))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the tiny model of the world."""
    path = tmp_path_factory.mktemp("cache")
    prepared_model(cells()[0], Cache(path))
    return path


@pytest.fixture
def model(cache: Path) -> EditableModel:
    folder = prepared_model(cells()[0], Cache(cache))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return EditableModel(AutoModelForCausalLM.from_pretrained(folder), tokenizer, ["down:all"])


@pytest.fixture
def edits() -> list[Edit]:
    return cells()[0].source().draw("validation", 10, seed=0)


def run(chosen: list[Cell], cache: Path, root: Path) -> Lake:
    """Do all tasks of some cells in this process."""
    place = RunPaths(lake=f"{root}/lake", cache=str(cache), tracking="")
    for task in tasks_of(chosen).values():
        perform(task, place, silent)
    return Lake(place.lake)


def efficacies(lake: Lake, grid: str = "tiny") -> dict[str, float]:
    rows = runs(lake, grid)
    return {r["editor"]: r["efficacy"] for r in rows if r["protocol"] == "token_accuracy"}


# In the library


@pytest.mark.parametrize(
    ("name", "z_clip"),
    [
        # By turns without and with a bound; the rest is long.
        pytest.param(name, z_clip, marks=() if i % 2 == j else pytest.mark.long)
        for i, name in enumerate(["ultraedit", "untrained", "rledit", "mend"])
        for j, z_clip in enumerate([0.0, 0.5])
    ],
)
def test_a_candidate_scores_what_editing_with_its_step_scores(
    name: str, z_clip: float, model: EditableModel, edits: list[Edit]
) -> None:
    cls = EDITORS[name]
    before = model.weights.state_dict()
    config = cls.Config(modules=model.modules, z_clip=z_clip)
    found = calibrate(model, name, config, edits)
    assert all(model.weights.read(k).equal(v) for k, v in before.items())
    assert found.record() == calibrate(model, cls, config, edits).record()
    at = next(c for c in found.candidates if c.step == found.step)
    scorer = Scorer(model, edits, [protocol("token_accuracy")])
    editor = cls(model, found.config)
    editor.edit(editor.encode(edits))
    scores = scorer.score(len(edits))
    for score in ("efficacy", "generalization", "specificity_self"):
        mean = sum(getattr(s, score) for s in scores) / len(scores)
        assert getattr(at, score) == pytest.approx(mean), score
    assert at.mean > found.unedited.mean


def test_the_record_holds_every_candidate_and_the_choice(
    model: EditableModel, edits: list[Edit]
) -> None:
    found = calibrate(model, "untrained", EDITORS["untrained"].Config(modules=("down:all",)), edits)
    record = found.record()
    steps = [c["step"] for c in record["candidates"]]
    assert steps == sorted(steps) and 11 <= len(steps) <= 20
    assert record["step"] in steps and record["setting"] == "initial_step"
    assert {"efficacy", "generalization", "specificity_self", "mean"} <= set(record["unedited"])
    assert (record["edits"], record["protocol"]) == (10, "token_accuracy")


def candidates(*means: float) -> list[Candidate]:
    return [
        Candidate(step=10.0**i, efficacy=m, generalization=m, specificity_self=m, nll=1.0,
                  weight_change=0.0)
        for i, m in enumerate(means)
    ]  # fmt: skip


def test_the_choice_is_the_smallest_step_with_half_of_the_largest_gain() -> None:
    unedited, *tried = candidates(40.0, 45.0, 69.0, 70.0, 100.0, 20.0)
    assert choose(unedited, tried) == 1e3
    assert choose(unedited, candidates(40.0, 30.0)) is None


class Scaled(UltraEdit):
    """UltraEdit whose shifts are another size."""

    name = "scaled"
    factor = 1.0

    def solve(self, shape: Shape, keys: Tensor, z: Tensor) -> Solution:
        found = super().solve(shape, keys, z)
        return replace(found, right=found.right * self.factor)


@pytest.mark.parametrize("factor", [1e-4, 1e6])
def test_a_best_step_at_the_end_of_the_grid_extends_it(
    factor: float, model: EditableModel, edits: list[Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = UltraEdit.Config(modules=("down:all",))
    usual = calibrate(model, UltraEdit, config, edits)
    monkeypatch.setattr(Scaled, "factor", factor)
    found = calibrate(model, Scaled, config, edits)
    assert found.step == pytest.approx(usual.step / factor)


def test_an_editor_that_changes_nothing_is_told_so(
    model: EditableModel, edits: list[Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scaled, "factor", 0.0)
    with pytest.raises(CalibrationError, match=r"'scaled': no step from 1e-07 to 50000 changes"):
        calibrate(model, Scaled, UltraEdit.Config(modules=("down:all",)), edits)


@pytest.mark.parametrize("name", ["ultraedit", "stableedit", "untrained", "rledit", "mend_star"])
def test_an_editor_whose_step_is_not_known_says_how_it_becomes_so(
    name: str, model: EditableModel
) -> None:
    with pytest.raises(SettingError, match=r"auto is not calibrated.*rledit\.calibration\.calib"):
        EDITORS[name](model, EDITORS[name].Config(modules=model.modules))


def test_only_auto_is_calibrated(model: EditableModel, edits: list[Edit]) -> None:
    with pytest.raises(CalibrationError, match="no step that could be calibrated"):
        calibrate(model, "ft", EDITORS["ft"].Config(modules=("down:1",)), edits)
    with pytest.raises(CalibrationError, match=r"has step 0\.5: only auto"):
        calibrate(model, "ultraedit", UltraEdit.Config(modules=("down:1",), step=0.5), edits)


# In a grid


@pytest.mark.parametrize("value", ["0", "-1.0e-3", ".nan", ".inf", "often"])
@pytest.mark.parametrize(("editor", "setting"), [("ultraedit", "step"), ("rledit", "initial_step")])
def test_a_step_that_is_none_is_refused_at_its_place(
    editor: str, setting: str, value: str, tmp_path: Path
) -> None:
    path = tmp_path / "grid.yaml"
    data = yaml.safe_load(GRID.read_text())
    data["editors"] = [{"editor": editor, "settings": {setting: yaml.safe_load(value)}}]
    path.write_text(yaml.safe_dump(data))
    line = next(i for i, t in enumerate(path.read_text().splitlines(), 1) if f"{setting}:" in t)
    with pytest.raises(
        ConfigError, match=rf"grid\.yaml:{line} \(editors\.0\.settings\.{setting}\)"
    ):
        load_grid(path)


def test_a_library_configuration_refuses_them_too() -> None:
    for value in (0, -1, float("nan"), float("inf"), True, "often"):
        with pytest.raises(SettingError, match="finite number above 0"):
            UltraEdit.Config(modules=("down:1",), step=value)  # type: ignore[arg-type]


def test_a_checkpoint_without_modules_is_edited_in_its_upper_layers(cache: Path) -> None:
    folder = prepared_model(cells()[0], Cache(cache))
    chosen = cells(f"models=[{{name: mine, checkpoint: {folder}}}]")[1]
    assert chosen.settings.modules == ("down:upper",)
    assert cells("models=[{name: tiny, world_model: tiny}]")[1].settings.modules == ("down:all",)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    two_layers = EditableModel(
        AutoModelForCausalLM.from_pretrained(folder), tokenizer, chosen.settings.modules
    )
    assert two_layers.modules == ("model.layers.0.mlp.down_proj",)


AUTO = "editors=[{editor: rledit}, {editor: malmen}, {editor: mend}, {editor: ultraedit}]"


def test_cells_that_need_the_same_step_share_a_task() -> None:
    streams = "streams=[{n_batches: 1, batch_size: 10}, {n_batches: 2, batch_size: 10}]"
    found = [t for t in tasks_of(cells(AUTO, streams, "seeds=[0, 1]")).values()]
    kinds = [t.kind for t in found]
    # RLEdit's and MALMEN's networks start alike; MEND's update and UltraEdit's are others.
    assert kinds.count("calibrate") == 3
    assert kinds.count("edit") == 16
    keys = [t.key for t in found]
    for task in found:
        assert all(keys.index(need) < keys.index(task.key) for need in task.needs)
        calibrated = any(need.startswith("calibrate:") for need in task.needs)
        assert calibrated == (task.kind in ("train", "edit"))


def test_what_determines_the_step_tells_calibrations_apart() -> None:
    def key(*overrides: str) -> str:
        return calibration_key_of(
            next(c for c in cells(AUTO, *overrides) if c.editor.editor == "rledit")
        )

    batch = "streams=[{n_batches: 1, batch_size: %d}]"
    first = key(batch % 12)
    assert key(batch % 12, "seeds=[4]", "name=other", "editors.rledit.settings.rank=3") == first
    for change in (
        batch % 11,
        "editors.rledit.settings.loss_group=3",
        "editors.rledit.settings.z_clip=2",
        "editors.rledit.settings.modules=['down:0']",
        "datasets.0.world.n_subjects=61",
        "datasets.0.answer_space=never",
        "models.0.overrides.seed=1",
    ):
        others = (batch % 12,) if not change.startswith("streams") else ()
        assert key(*others, *_settled(change)) != first, change


def test_a_seed_tells_calibrations_apart_where_what_is_untrained_depends_on_it() -> None:
    """HiEdit's gate picks modules as it is drawn; other networks do nothing before training."""

    def keys(editor: str) -> set[str]:
        seeds = ("", ", seed: 0", ", seed: 1", ", seed: 2")
        changes = [f"editors=[{{editor: {editor}, settings: {{rank: 4{s}}}}}]" for s in seeds]
        return {calibration_key_of(cells(change)[0]) for change in changes}

    assert len(keys("hiedit")) == 3
    assert len(keys("rledit")) == 1


def test_a_warm_up_draws_batches_of_the_streams_size_so_steps_of_other_sizes_are_others() -> None:
    def key(editor: str, size: int) -> str:
        streams = f"streams=[{{n_batches: 3, batch_size: {size}}}]"
        return calibration_key_of(cells(f"editors=[{{editor: {editor}}}]", streams)[0])

    warmed = "stableedit, settings: {warmup_batches: 3}"
    assert key("ultraedit", 2) == key("ultraedit", 5)  # tried on as many edits, and nothing else
    assert key(warmed, 2) != key(warmed, 5)
    bare = "stableedit, settings: {warmup_batches: 0}"
    assert key(bare, 2) == key(bare, 5)
    assert not cells(f"editors=[{{editor: {bare}}}]")[0].learns


def _settled(change: str) -> tuple[str, ...]:
    """An override of a setting, where the entry has no settings yet."""
    return ("editors.rledit.settings={}", change) if change.startswith("editors") else (change,)


def test_a_cells_identity_has_auto_and_what_determines_the_step() -> None:
    chosen = cells(AUTO)[0]
    assert identity_of(chosen)["settings"]["initial_step"] == "auto"
    assert identity_of(chosen)["calibration"]["edits"] == 10
    given = cells()[3]
    assert "calibration" not in identity_of(given)  # as before there was any


def fact_file(folder: Path, name: str, n: int) -> Path:
    """A file of ZsRE's flat schema."""
    path = folder / name
    made = [
        {"subject": f"S{i} {name}", "src": f"Where is S{i} {name}?", "pred": "here", "alt": "there",
         "rephrase": f"In which place is S{i} {name}?", "answers": ["here"], "loc": f"who is {i}",
         "loc_ans": "nobody", "cond": ""}
        for i in range(n)
    ]  # fmt: skip
    path.write_text(json.dumps(made))
    return path


def test_a_dataset_without_a_batch_to_calibrate_on_is_told_what_to_give(tmp_path: Path) -> None:
    data = f"datasets=[{{name: d, files: {{evaluation: {fact_file(tmp_path, 'e.json', 20)}}}}}]"
    editors = "editors=[{editor: none}, {editor: ultraedit}]"
    chosen = cells(editors, data, "streams=[{n_batches: 1, batch_size: 12}]")[-1]
    assert skip_reason(chosen) is not None
    assert "they have 0 edits at most, too few for batches of 12" in skip_reason(chosen)
    assert "give files.validation" in skip_reason(chosen)


def test_a_dataset_without_a_validation_pool_calibrates_on_its_train_pool(tmp_path: Path) -> None:
    """Never on what is scored."""
    train, evaluation = (fact_file(tmp_path, name, 20) for name in ("t.json", "e.json"))
    files = f"train: {train}, evaluation: {evaluation}"
    chosen = cells(AUTO, f"datasets=[{{name: d, files: {{{files}}}}}]")[0]
    check_cell(chosen)
    assert calibration_pool(chosen) == "train"
    assert identity_of(chosen)["calibration"]["pool"] == "train"
    assert "pool" not in identity_of(cells(AUTO)[0])["calibration"]


@pytest.fixture(scope="module")
def lake(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Hypernetworks without any setting, and an editor whose step is far too small."""
    more = f"{DEFAULTS[:-1]}, {{editor: ultraedit, settings: {{step: 1.0e-8}}}}]"
    stream = "streams=[{n_batches: 2, batch_size: 10}]"
    return run(cells(f"editors={more}", stream), cache, tmp_path_factory.mktemp("lake"))


@pytest.mark.long
def test_hypernetworks_without_any_setting_edit(lake: Lake) -> None:
    found = efficacies(lake)
    assert found["rledit"] >= found["none"] + 20
    assert found["mend"] >= found["none"] + 20


def test_the_outcome_is_in_the_results(lake: Lake, cache: Path) -> None:
    (record,) = [r for r in lake.manifest() if r.address.editor == "rledit"]
    found = record.values["resolved"]["calibration"]
    assert record.values["resolved"]["settings"]["initial_step"] == "auto"
    assert found["setting"] == "initial_step" and found["pool"] == "validation"
    assert found["step"] in [c["step"] for c in found["candidates"]]
    assert len(list((cache / "calibrated").glob("*.json"))) >= 2
    for other in lake.manifest():
        calibrated = other.address.editor in ("rledit", "mend")
        assert ("calibration" in other.values["resolved"]) == calibrated


@pytest.mark.long
def test_a_cell_without_effect_is_marked_wherever_it_is_shown(lake: Lake, tmp_path: Path) -> None:
    remark = "no effect: step 1e-08"
    marked = {r["editor"] for r in runs(lake, "tiny") if r["remark"] == remark}
    assert marked == {"ultraedit"}
    assert not any(r["remark"] for r in runs(lake, "tiny") if r["editor"] != "ultraedit")
    for fmt, mark in (("md", " ‡"), ("html", " ‡"), ("latex", r"\ddag{}")):
        lines = render_table(build_table(runs(lake, "tiny")), fmt).splitlines()
        assert any("ultraedit" in line and mark in line for line in lines), fmt
        assert any(remark in line and mark.strip() in line for line in lines), fmt
    table = render_table(build_table(runs(lake, "tiny")), "md")
    assert f"‡ {remark}: ultraedit 2×10 on llama-tiny, world." in table
    assert f",{remark}" in render_table(build_table(runs(lake, "tiny")), "csv")
    page = Path(write_report(lake, "tiny", tmp_path / "tiny.html")).read_text()
    assert "Cells whose edits had no effect" in page and f"<td>{remark}</td>" in page
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(uri, "tiny")
    tracker.rebuild(lake)
    tracked = tracker._search("tags.editor = 'ultraedit'")
    assert {run.data.tags["remark"] for run in tracked} == {remark}
    assert "set it to auto" in warning_of(remark)


def test_the_warning_of_a_calibrated_step_does_not_advise_to_calibrate_it() -> None:
    record = {
        "edits": 10,
        "pool": "train",
        "setting": "initial_step",
        "unedited": {"efficacy": 93.57},
    }
    said = warning_of("no effect: step 0.0001", record)
    assert "auto" not in said and "give initial_step a larger number" in said
    assert "10 edits of the train pool, of which the unedited model knows 93.6 %" in said
    told = warning_of("no effect: step 0.0001", record | {"warning": "no step from 1 to 2 gains"})
    assert "no step from 1 to 2 gains; where the model knows the edits already" in told


def rows(before: float, after: float, change: float) -> tuple[list[Any], list[Any]]:
    scores = [
        {"checkpoint": at, "final": at > 0, "protocol": "exact_match", "efficacy": value,
         "specificity_self": 100.0}
        for at, value in ((0, before), (20, after))
    ]  # fmt: skip
    steps = [
        {"step": at, "metric": metric, "value": value}
        for at, part in ((10, 0.5), (20, 1.0))
        for metric, value in (("weight_change_norm", part * change), ("weight_norm", 1.0))
    ]
    return scores, steps


def test_no_effect_needs_answers_and_weights_that_stayed() -> None:
    stayed = rows(5.0, 5.0, 1e-4)
    assert remark_of("ultraedit", {"step": 1e-6}, *stayed) == "no effect: step 1e-06"
    assert remark_of("memit", {}, *stayed) == "no effect"
    assert remark_of("none", {}, *stayed) == ""
    assert remark_of("ultraedit", {"step": 1e-6}, *rows(5.0, 25.0, 1e-4)) == ""
    assert remark_of("ultraedit", {"step": 1e-6}, *rows(5.0, 5.0, 0.5)) == ""
    assert remark_of("ultraedit", {"step": 1e-6}, stayed[0], []) == ""


SMOLLM2 = os.environ.get("RLEDIT_SMOLLM2")
DATA = os.environ.get("RLEDIT_DATA")


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2, reason="RLEDIT_SMOLLM2 names no folder of SmolLM2-135M")
@pytest.mark.skipif(not DATA, reason="RLEDIT_DATA names no folder of published rows")
def test_hypernetworks_without_any_setting_edit_a_real_model(tmp_path: Path) -> None:
    path = tmp_path / "real.yaml"
    file = next(Path(str(DATA)).glob("zsre/*train*.json"))
    path.write_text(
        f"""
name: real
models: [{{name: SmolLM2, checkpoint: {SMOLLM2}}}]
datasets: [{{name: ZsRE, files: {{all: {file}}}}}]
editors: {DEFAULTS}
streams: [{{n_batches: 2, batch_size: 10}}]
"""
    )
    found = efficacies(run(cells_of(load_grid(path)), tmp_path, tmp_path), "real")
    assert found["rledit"] >= found["none"] + 20
    assert found["mend"] >= found["none"] + 20
