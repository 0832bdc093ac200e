"""Checkpoints that cannot be used: one message with the remedy, before any weight is read."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.parse import load_grid
from pipeline.config.presets import PRESETS
from pipeline.errors import ConfigError
from pipeline.inputs.checkpoints import (
    CheckpointError,
    check_weights,
    fetch_description,
    hub_reachable,
    weight_files,
)
from pipeline.inputs.content_hashes import checkpoint_fingerprint
from pipeline.plan.cell_keys import (
    address_of,
    covariance_key_of,
    identity_of,
    key_of,
    model_hash_of,
)
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.grid_plan import make_plan
from pipeline.plan.preflight import checkpoint_encoder, preflight
from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from rledit.world import WORLD_MODELS, World, WorldConfig
from rledit.world.presets import model_config
from rledit.world.words import save_tokenizer, word_tokenizer, world_words

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1000\n"


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of the tiny model, in several files, with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    tokenizer = word_tokenizer(world_words(World(WorldConfig(n_subjects=60))), add_bos=True)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = model_config(
        WORLD_MODELS["tiny"], vocab_size=len(tokenizer), max_length=64, special=special
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, max_shard_size="20KB")
    save_tokenizer(tokenizer, folder, "llama")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


@pytest.fixture
def folder(untrained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained, tmp_path / "model"))


def cell(checkpoint: str | Path, *more: str) -> Cell:
    editors = "editors=[{editor: ultraedit, settings: {step: 0.001}}]"
    path = f"models.llama-tiny.checkpoint={checkpoint}"
    return cells_of(load_grid(GRID, [editors, path, *more]))[0]


def test_a_whole_checkpoint_passes(folder: Path) -> None:
    preflight([cell(folder)])
    assert len(check_weights(folder)) > 5 and len(weight_files(folder)) > 1


def test_a_tokenizer_without_a_pad_token_passes(folder: Path) -> None:
    """Padding is masked and no token of the tokenizer's, so none is needed."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    preflight([cell(folder)])


def test_an_objective_that_scores_padding_needs_a_pad_token(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    editors = "editors=[{editor: ft, settings: {objective: OBJECTIVE}}]"
    padded, target = (editors.replace("OBJECTIVE", o) for o in ("prompt_end", "target"))
    preflight([cell(folder, padded)])
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    checkpoint_encoder.cache_clear()
    preflight([cell(folder, target)])
    with pytest.raises(ConfigError, match=r"tiny/.*/ft/.*no padding token; name one.*or take obj"):
        preflight([cell(folder, padded)])
    # Another variant of an editor that was checked already is checked as well.
    other = cell(folder, padded.replace("ft,", "ft, variant: b,"))
    refused = preflight([cell(folder, target), other])
    assert list(refused) == [key_of(other)] and "no padding token" in str(refused[key_of(other)])


def test_models_that_differ_in_weights_alone_are_two(folder: Path, tmp_path: Path) -> None:
    """Equal names, shapes and sizes, and times besides."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (tmp_path / "corpus.txt").write_text("some text")
    statistics = f"statistics={{corpus: {tmp_path / 'corpus.txt'}}}"
    one, same = cell(folder, statistics), cell(other, statistics)
    assert (key_of(one), model_hash_of(one)) == (key_of(same), model_hash_of(same))
    path = weight_files(other)[-1]
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)
    two = cell(other, statistics)
    for hash_of in (key_of, model_hash_of, covariance_key_of):
        assert hash_of(one) != hash_of(two)


def test_other_files_of_a_folder_are_none_of_its_identity(folder: Path) -> None:
    before = checkpoint_fingerprint(str(folder))
    (folder / "README.md").write_text("words")
    (folder / "consolidated.safetensors").write_bytes(b"the weights in another layout")
    assert checkpoint_fingerprint(str(folder)) == before
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert checkpoint_fingerprint(str(folder)) != before


def test_a_folder_that_may_not_be_written_has_an_identity(folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    fingerprint = checkpoint_fingerprint(str(folder))
    folder.chmod(0o555)
    try:
        assert checkpoint_fingerprint(str(folder)) == fingerprint
    finally:
        folder.chmod(0o755)
    assert {path.name for path in folder.iterdir()} == before


def test_the_identity_names_the_bos_of_the_checkpoints_own_tokenizer(folder: Path) -> None:
    """Whatever preset lends it settings: the tokenizer of the preset here writes none."""
    assert not PRESETS["qwen2.5-7b"].bos
    lent = cell(folder, "models.llama-tiny.preset=qwen2.5-7b", "scale=full")
    for chosen in (cell(folder), lent):
        assert identity_of(chosen)["model"]["prompt"] == {"template": "bare", "bos": True}


def _cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def _drop_from_shard(folder: Path) -> None:
    path = weight_files(folder)[0]
    save_file({"nothing": torch.zeros(1)}, path)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (
        lambda f: _cut(weight_files(f)[0], 0.9),
        r"bytes long, and its header promises.*fetch the checkpoint again",
    ),
    "cut in its header": (
        lambda f: _cut(weight_files(f)[0], 0.0001),
        r"(only \d+ bytes long|cut short inside its header).*again",
    ),
    "missing": (lambda f: weight_files(f)[0].unlink(), "index names this file, and it is not"),
    "git-lfs pointer": (lambda f: weight_files(f)[0].write_text(LFS), "git-lfs pointer.*git lfs"),
    "not safetensors": (
        lambda f: weight_files(f)[0].write_bytes(b"<html>not found</html>" * 9),
        "no safetensors file",
    ),
    "another file's tensors": (_drop_from_shard, "tensors missing"),
    "config is a pointer": (lambda f: (f / "config.json").write_text(LFS), "git-lfs pointer"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_download_is_named_with_its_remedy(folder: Path, broken: str) -> None:
    do, message = BROKEN[broken]
    do(folder)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        preflight([cell(folder)])


def test_the_plan_does_not_hash_what_is_broken(folder: Path, tmp_path: Path) -> None:
    weight_files(folder)[0].write_text(LFS)
    grid = load_grid(GRID, [f"models.llama-tiny.checkpoint={folder}"])
    with pytest.raises(CheckpointError, match="git-lfs pointer"):
        make_plan(grid, Lake(str(tmp_path / "lake")))


def test_no_weights_and_weights_in_another_layout(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no weights.*enough for rledit plan"):
        preflight([cell(folder)])
    (folder / "consolidated.00.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="consolidated.00.pth and neither model.safetensors"):
        preflight([cell(folder)])


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("mixtral", "cannot be edited: it is a mixture of experts .in 2 of 2 layers.*dense model"),
        ("t5", "cannot be edited: it is an encoder-decoder model.*take a decoder-only model"),
        ("mamba", "cannot be edited: it is a state-space, recurrent or hybrid model"),
        ("qwen9", "model_type 'qwen9', which the installed transformers does not know"),
        (None, "config.json names no model_type.*the model was published with"),
    ],
)
def test_a_family_that_cannot_be_edited(folder: Path, family: str | None, message: str) -> None:
    """By the architecture's own reason: nobody typed a family, so no spelling is guessed."""
    config = json.loads((folder / "config.json").read_text()) | {"model_type": family}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as refused:
        preflight([cell(folder)])
    assert "did you mean" not in str(refused.value)
    assert str(refused.value).count("gemma2, gemma3_text") <= 1


def test_a_model_without_layers_cannot_be_edited(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be edited: its config.json gives it no"):
        preflight([cell(folder)])


@pytest.mark.parametrize(
    ("editor", "message"),
    [
        ("{editor: ultraedit, settings: {modules: ['down:7']}}", "does not exist in this llama"),
        ("{editor: ultraedit, settings: {modules: ['fc_out:1']}}", "has no 'fc_out'.*gate, up"),
        ("{editor: ultraedit, settings: {modules: [model.norm]}}", "not an nn.Linear"),
        (
            "{editor: memit, settings: {modules: ['gate:1']}}",
            "edits the linear layers that write into",
        ),
        ("{editor: rome, settings: {modules: ['down:0-1']}}", "edits exactly one linear"),
    ],
)
def test_modules_are_looked_for_without_weights(folder: Path, editor: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"tiny/llama-tiny.*{message}"):
        preflight([cell(folder, f"editors=[{editor}]")])


def test_weights_of_another_model_than_the_configuration(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not of one model"):
        preflight([cell(folder)])


def test_a_target_that_comes_to_no_tokens_names_its_row(folder: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    pattern = {"Regex": "[\u200b-\u200f]"}
    tokenizer["normalizer"] = {"type": "Replace", "pattern": pattern, "content": ""}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    world = World(WorldConfig(n_subjects=60))
    rows = [
        {"src": e.prompt, "ans": "\u200b", "rephrase": e.rephrases[0],
         "loc": e.locality[0].prompt, "loc_ans": e.locality[0].answer}
        for e in world.draw("evaluation", 12, seed=0)
    ]  # fmt: skip
    (tmp_path / "zsre.json").write_text(json.dumps(rows))
    files = f"datasets.world.files={{evaluation: {tmp_path / 'zsre.json'}}}"
    with pytest.raises(ConfigError, match=r"zsre.json:\d+.*has no tokens"):
        preflight([cell(folder, files, "streams=[{n_batches: 1, batch_size: 2}]")])


class Hub(BaseHTTPRequestHandler):
    """A hub that refuses: the repository's name says why."""

    def do_GET(self) -> None:
        name = self.path
        code, error = (403, "GatedRepo") if "gated" in name else (404, "RepoNotFound")
        if "revision" in name and "known" in name:
            code, error = 404, "RevisionNotFound"
        self.send_response(code)
        self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub_reachable.cache_clear()
    yield
    server.shutdown()
    server.server_close()
    hub_reachable.cache_clear()


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("owner/gated@0123abc", "gated and HF_TOKEN is not set: accept its terms at"),
        ("owner/known@0123abc", "no revision '0123abc'"),
        ("owner/nosuch@0123abc", "no such repository: check owner and name"),
    ],
)
def test_what_the_hub_refuses(hub: None, checkpoint: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        fetch_description(checkpoint)


def test_a_hub_out_of_reach_says_how_to_bring_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub_reachable.cache_clear()
    commit = "0123456789abcdef0123456789abcdef01234567"
    with pytest.raises(CheckpointError, match=rf"hf download owner/name --revision {commit}"):
        preflight([cell(f"owner/name@{commit}")])
    hub_reachable.cache_clear()


def test_a_loaded_model_is_no_model_of_the_world(folder: Path, tmp_path: Path) -> None:
    """Its cells say `full`, those of an earlier version too."""
    loaded = cell(folder)
    assert address_of(loaded).scale == "full"
    lake = Lake(str(tmp_path / "lake"))
    earlier = replace(address_of(loaded), scale="world")
    lake.record_failure(earlier, "x", identity=identity_of(loaded), code_version="0")
    assert [r.address for r in lake.manifest()] == [address_of(loaded)]
    assert [row["scale"] for row in runs(lake, loaded.grid)] == ["full"]
    trained = cells_of(load_grid(GRID))[0]
    assert address_of(trained).scale == "world"
