"""Key covariance as a stage: shards add up, interruptions leave no trace, strangers are refused."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import is_tensor
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.inputs.corpus import open_corpus
from pipeline.plan.cell_keys import corpus_hash_of, covariance_key_of, model_hash_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.run.cache import Cache
from pipeline.run.reporting import Stage, silent
from pipeline.run.resume import write_tensors
from pipeline.run.shared_covariance import export_covariance, import_covariance
from pipeline.run.stages import covariance
from pipeline.run.stages.edit import edit_stream
from pipeline.run.stages.prepare import open_model
from pipeline.run.tasks import tasks_of
from rledit.locate.covariance import CovarianceError, CovarianceFingerprint, KeyCovariance
from rledit.locate.output_gradients import gradients_of
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
EDITOR = "editors=[{editor: memit}]"


def cell_with(modules: str) -> Cell:
    editor = f"editors=[{{editor: memit, settings: {{modules: ['{modules}']}}}}]"
    return cells_of(load_grid(GRID, [editor, "statistics={documents: 300}"]))[0]


def cell(**entry: object) -> Cell:
    settings = ", ".join(f"{k}: {v}" for k, v in {"documents": 300, **entry}.items())
    return cells_of(load_grid(GRID, [EDITOR, f"statistics={{{settings}}}"]))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_model(cell(), Cache(tmp_path_factory.mktemp("models")))


def loaded(chosen: Cell, folder: Path, cache: Path) -> dict[str, KeyCovariance]:
    modules = open_model(chosen, folder).modules
    return covariance.load_covariance(chosen, Cache(cache), modules)


def collected(chosen: Cell, folder: Path, cache: Path) -> dict[str, torch.Tensor]:
    for shard in range(chosen.statistics.shards):
        covariance.collect(chosen, shard, folder, Cache(cache), silent)
    found = loaded(chosen, folder, cache)
    return {name: moment.mean() for name, moment in found.items()}


def test_two_workers_add_up_to_one(folder: Path, tmp_path: Path) -> None:
    one = collected(cell(dtype="float64"), folder, tmp_path)
    two = collected(cell(dtype="float64", shards=2), folder, tmp_path)
    assert one.keys() == two.keys() == {f"model.layers.{i}.mlp.down_proj" for i in range(2)}
    for name in one:
        assert (one[name] - two[name]).norm() <= 1e-10 * one[name].norm()
        assert one[name].norm() > 0


def test_sums_lie_where_the_model_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every layer's rows travel from a GPU to the host to be added up there."""
    devices: list[torch.device | None] = []

    def made(
        identity: CovarianceFingerprint, width: int, device: torch.device | None = None
    ) -> KeyCovariance:
        devices.append(device)
        return KeyCovariance(identity, width)

    monkeypatch.setattr(covariance, "KeyCovariance", made)
    covariance.collect(cell(documents=20), 0, folder, Cache(tmp_path), silent)
    assert devices == [open_model(cell(), folder).device] * 2


def crisp(documents: int) -> Cell:
    changes = [
        "editors=[{editor: crispedit, settings: {recompute_at: 1.0e-6}}]",
        f"statistics={{documents: {documents}, shards: 2}}",
    ]
    return cells_of(load_grid(GRID, changes))[0]


CRISP = crisp(300)


def test_covariances_of_output_gradients_lie_beside_those_of_keys(
    folder: Path, tmp_path: Path
) -> None:
    """Two workers' add up to one's, and MEMIT's sums of the same linears serve both editors."""
    here = collected(cell(shards=2), folder, tmp_path)
    assert covariance_key_of(CRISP) == covariance_key_of(cell(shards=2))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("statistics/*/*.safetensors")}
    both = collected(CRISP, folder, tmp_path)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert both.keys() == {*here, *map(gradients_of, here)}
    assert all(torch.equal(both[name], value) for name, value in here.items())
    one = collected(replace(CRISP, statistics=cell().statistics), folder, tmp_path / "one")
    opened = open_model(CRISP, folder)
    for name in here:
        found = both[gradients_of(name)]
        assert found.shape == (opened.shape(name)[1],) * 2 and float(found.trace()) > 0
        torch.testing.assert_close(found, one[gradients_of(name)], rtol=1e-4, atol=1e-9)
    spent = covariance.statistics_seconds(CRISP, Cache(tmp_path), list(here))
    assert spent > covariance.statistics_seconds(cell(shards=2), Cache(tmp_path), list(here)) > 0


def test_the_sums_of_keys_alone_are_a_task_of_their_own(tmp_path: Path) -> None:
    """Else the editor that needs gradients too would find a task done that has not made them."""
    cells = [cell(shards=2), CRISP]
    tasks = [task for task in tasks_of(cells).values() if task.kind == "statistics"]
    assert len(tasks) == 4 and len({task.key for task in tasks}) == 4


def test_an_editor_that_takes_covariances_anew_gets_the_texts_of_all_shards(
    folder: Path, tmp_path: Path
) -> None:
    chosen = crisp(40)  # each of them is run again whenever a covariance is taken anew
    for shard in range(2):
        covariance.collect(chosen, shard, folder, Cache(tmp_path), silent)
    rows = edit_stream(chosen, folder, Cache(tmp_path), None, silent)
    anew = [row["value"] for row in rows.steps if row["metric"] == "recomputed"]
    assert anew and min(anew) >= 1
    opened = open_model(chosen, folder)
    texts = covariance.texts_of(chosen, opened)
    assert len(texts) == 40 and set(map(tuple, texts)) == {
        tuple(ids) for shard in range(2) for ids in covariance.shard_of(chosen, opened, shard)
    }


def test_an_interrupted_sum_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covariance, "SAVE_EVERY_SECONDS", 0.0)

    def stop(stage: Stage, done: int, total: int) -> None:
        if done >= 2 * covariance.DOCUMENTS_PER_PASS:
            raise InterruptedError

    straight = collected(cell(), folder, tmp_path / "a")
    with pytest.raises(InterruptedError):
        covariance.collect(cell(), 0, folder, Cache(tmp_path / "b"), stop)
    (pointer,) = tmp_path.glob("b/statistics/*/*.progress/latest.json")
    state = json.loads(pointer.read_text())
    assert state["facts"]["seconds"] > 0
    state["facts"]["seconds"] += 1000
    pointer.write_text(json.dumps(state))
    resumed = collected(cell(), folder, tmp_path / "b")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert not list(tmp_path.glob("b/statistics/*/*.progress"))
    spent = covariance.statistics_seconds(cell(), Cache(tmp_path / "b"), list(straight))
    assert spent > 1000, "the seconds of the first attempt count"


def test_a_file_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    chosen = cell()
    covariance.collect(chosen, 0, folder, Cache(tmp_path), silent)
    path = next((tmp_path / covariance.covariance_folder(chosen)).glob("*.safetensors"))
    module = path.name.split(".shard")[0]
    identity = covariance.covariance_fingerprints(chosen, [module])[module]
    strange = {
        "model_hash": "llama-0000",
        "module": identity.module,
        "corpus_hash": identity.corpus_hash,
        "dtype": identity.dtype,
        "count": "1",
    }
    write_tensors(path, load_file(path), strange)
    with pytest.raises(CovarianceError, match=f"llama-0000.*{model_hash_of(chosen)}"):
        loaded(chosen, folder, tmp_path)


def test_each_linear_is_summed_once_whichever_cells_need_it(folder: Path, tmp_path: Path) -> None:
    both = collected(cell(), folder, tmp_path / "a")
    first = cell_with("down:0")
    assert covariance_key_of(first) == covariance_key_of(cell())
    collected(first, folder, tmp_path / "b")
    (kept,) = tmp_path.glob("b/statistics/*/*.safetensors")
    written = kept.stat().st_mtime_ns
    found = collected(cell(), folder, tmp_path / "b")
    assert kept.stat().st_mtime_ns == written
    for name, value in both.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.long
def test_only_one_matrix_per_linear_is_alive_while_summing(folder: Path, tmp_path: Path) -> None:
    """Counted between passes, and while rows are added: no copy of a sum is ever made."""
    width = cell().model_spec.intermediate
    alive: list[int] = []

    def count(stage: Stage, done: int, total: int) -> None:
        gc.collect()
        if done > 0:
            found = [t for t in gc.get_objects() if is_tensor(t) and t.shape == (width,) * 2]
            alive.append(len({t.data_ptr() for t in found}))

    # What was there before is neither searched nor collected each time: it is a million objects.
    gc.freeze()
    try:
        covariance.collect(cell(), 0, folder, Cache(tmp_path), count)
    finally:
        gc.unfreeze()
    assert alive and set(alive) == {2}


def test_summing_rows_makes_no_second_matrix() -> None:
    """The peak of one update, by the allocator: the rows' own size, not the matrix's."""
    identity = covariance.covariance_fingerprints(cell(), ["m"])["m"]
    moment = KeyCovariance(identity, 512)
    rows = torch.randn(8, 512)
    with torch.profiler.profile(profile_memory=True) as profile:
        moment.update(rows)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < moment.total.nbytes / 2


def test_a_checkpoint_goes_by_its_content_not_by_its_folder(folder: Path, tmp_path: Path) -> None:
    def at(place: Path) -> Cell:
        return cells_of(load_grid(GRID, [EDITOR, f"models.0.checkpoint={place}"]))[0]

    copied = shutil.copytree(folder, tmp_path / "mine" / folder.name)
    elsewhere = shutil.copytree(folder, tmp_path / "other-name")
    assert model_hash_of(at(copied)) == model_hash_of(at(elsewhere))
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert model_hash_of(at(copied)) != model_hash_of(at(elsewhere))


def test_shared_moments_are_taken_or_refused_naming_both(folder: Path, tmp_path: Path) -> None:
    mine, theirs = Cache(tmp_path / "mine"), Cache(tmp_path / "theirs")
    here = collected(cell(shards=2), folder, mine.folder)
    with pytest.raises(ConfigError, match="run the grid first"):
        export_covariance([cell(shards=2)], theirs, tmp_path / "shared")
    files = export_covariance([cell(shards=2)], mine, tmp_path / "shared")
    assert [path.stem for path in files] == sorted(here)

    def refuse(stage: Stage, done: int, total: int) -> None:
        raise AssertionError("the corpus was read again")

    # The number of shards is how a moment was summed, not what it is of.
    assert import_covariance([cell()], theirs, tmp_path / "shared") == sorted(here)
    covariance.collect(cell(), 0, folder, theirs, refuse)
    for name, moment in loaded(cell(), folder, theirs.folder).items():
        assert torch.equal(moment.mean(), here[name])

    other = cell(documents=200)
    with pytest.raises(CovarianceError, match=f"{corpus_hash_of(cell())}.*{corpus_hash_of(other)}"):
        import_covariance([other], theirs, tmp_path / "shared")
    with pytest.raises(CovarianceError, match="'float32'.*'float64'"):
        import_covariance([cell(dtype="float64")], theirs, tmp_path / "shared")
    files[0].write_bytes(b"nothing")
    with pytest.raises(CovarianceError, match=files[0].name):
        import_covariance([cell()], theirs, tmp_path / "shared")


def test_moments_are_shared_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    def run(command: str, results: Path) -> Result:
        asked = ["covariance", command, str(GRID), str(tmp_path / "shared")]
        settings = ["--set", EDITOR, "--set", "statistics={documents: 300}"]
        return CliRunner().invoke(app, [*asked, *settings, "--results", str(results)])

    assert isinstance(run("export", tmp_path / "mine").exception, ConfigError)
    collected(cell(), folder, tmp_path / "mine" / "cache")
    written = run("export", tmp_path / "mine").stdout.splitlines()
    assert sorted(Path(line) for line in written) == sorted(tmp_path.glob("shared/*/*.safetensors"))
    assert "2 key covariance taken" in run("import", tmp_path / "theirs").stdout
    assert loaded(cell(), folder, tmp_path / "theirs" / "cache").keys() == set(
        open_model(cell(), folder).modules
    )


def test_editors_that_need_the_same_moments_share_them() -> None:
    grid = load_grid(
        GRID,
        [
            "editors=[{editor: memit}, {editor: memit, variant: b, settings: {value_lr: 0.2}}]",
            "statistics={shards: 2, documents: 300}",
        ],
    )
    tasks = tasks_of(cells_of(grid)).values()
    assert sum(t.kind == "statistics" for t in tasks) == 2
    assert all(len(t.needs) == 3 for t in tasks if t.kind == "edit")


def test_the_results_say_how_much_text_the_moments_are_of(folder: Path, tmp_path: Path) -> None:
    """A corpus that ends early is in them, not only in a warning of the day."""
    corpus = tmp_path / "corpus.txt"
    texts = open_corpus(None, 40, cell().world()).documents
    corpus.write_text("\n".join(texts))
    chosen = cell(corpus=corpus, documents=100)
    covariance.collect(chosen, 0, folder, Cache(tmp_path), silent)
    model = open_model(chosen, folder)
    tokens = sum(len(model.encoder.text_ids(text)) for text in texts)
    moments = covariance.load_covariance(chosen, Cache(tmp_path), model.modules)
    found = {"corpus": str(corpus), "documents": 40, "asked_for": 100, "tokens": tokens}
    assert covariance.covariance_metadata(chosen, moments) == found
    rows = edit_stream(chosen, folder, Cache(tmp_path), None, silent)
    assert rows.facts["statistics"] == found


def test_a_corpus_file_names_its_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a"}\n\n{"txt": "b"}\n')
    assert open_corpus(str(path), 1, None).documents == ("a",)
    with pytest.raises(ConfigError, match=r"c.jsonl, row 3: has the keys txt; expected a JSON ob"):
        open_corpus(str(path), 5, None)
    with pytest.raises(ConfigError, match="without a synthetic world"):
        open_corpus(None, 5, None)
    with pytest.raises(ConfigError, match="pinned revision"):
        open_corpus("hf://datasets/owner/name/file.txt", 5, None)
