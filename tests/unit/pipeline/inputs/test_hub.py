"""Fetching from a hub: only what is loaded, and nothing of a repository that cannot be."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.parse import load_grid
from pipeline.inputs.checkpoints import (
    CheckpointError,
    fetch_description,
    fetch_whole,
    hub_reachable,
    weight_files,
)
from pipeline.inputs.model_loading import load_model
from pipeline.inputs.pickled_weights import pickled_files
from pipeline.plan.architecture import architecture_of
from pipeline.plan.cell_data import read_metadata
from pipeline.plan.cell_keys import identity_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.estimate.needs import model_needs
from pipeline.plan.preflight import preflight
from pipeline.run.cache import Cache
from pipeline.run.reporting import silent
from pipeline.run.stages.prepare import prepare_model
from tests.unit.pipeline.inputs.test_checkpoints import GRID, untrained  # noqa: F401
from tests.unit.pipeline.inputs.test_pickled_weights import in_pickles

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = f"owner/name@{COMMIT}"


class Repository(BaseHTTPRequestHandler):
    """A hub with one repository, a folder of this machine."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path == f"/api/models/owner/name/tree/{COMMIT}":
            content = json.dumps(
                [
                    {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                    for p in sorted(self.folder.iterdir())
                ]
            ).encode()
            return self._send(content, body)
        match = re.fullmatch(rf"/owner/name/resolve/{COMMIT}/(.+)", path)
        if match is None or not (self.folder / match[1]).is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if body:
            self.asked.append(match[1])
        self._send((self.folder / match[1]).read_bytes(), body)

    def _send(self, content: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(
    untrained: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[type[Repository]]:
    class Mine(Repository):
        folder = Path(shutil.copytree(untrained, tmp_path / "repository"))
        asked: list[str] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_reachable.cache_clear()
    yield Mine
    server.shutdown()
    server.server_close()
    hub_reachable.cache_clear()


def cell(checkpoint: str) -> Cell:
    editors = "editors=[{editor: ultraedit, settings: {step: 0.001}}]"
    return cells_of(load_grid(GRID, [editors, f"models.llama-tiny.checkpoint={checkpoint}"]))[0]


def test_a_second_copy_of_the_weights_is_left_on_the_hub(hub: type[Repository]) -> None:
    shards = {path.name for path in weight_files(hub.folder)}
    (hub.folder / "consolidated.safetensors").write_bytes(b"the same again")
    assert {path.name for path in weight_files(hub.folder)} == shards
    preflight([cell(NAME)])
    assert not [name for name in hub.asked if name.endswith(".safetensors")]
    folder = fetch_whole(NAME)
    fetched = [name for name in hub.asked if name.endswith(".safetensors")]
    assert sorted(fetched) == sorted(shards) and len(shards) > 1
    # What is here is not asked for again, and the plan knows that it is whole.
    assert fetch_whole(NAME) == folder and sorted(fetched) == sorted(shards)
    (need,) = model_needs(cell(NAME), architecture_of(cell(NAME)))
    assert "weights are here" in need.text and not need.download_gb


def test_one_file_is_taken_before_an_index(hub: type[Repository]) -> None:
    """As transformers does."""
    first, *others = weight_files(hub.folder)
    for path in others:
        path.unlink()
    first.rename(hub.folder / "model.safetensors")
    assert [path.name for path in weight_files(hub.folder)] == ["model.safetensors"]
    assert [path.name for path in weight_files(fetch_whole(NAME))] == ["model.safetensors"]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_repository_of_pickles_alone_is_fetched_and_converted(
    hub: type[Repository], tmp_path: Path, shards: int
) -> None:
    tensors = in_pickles(hub.folder, shards)
    pickles = {path.name for path in pickled_files(hub.folder)}
    (hub.folder / "flax_model.msgpack").write_bytes(b"the same again")
    size = sum((hub.folder / name).stat().st_size for name in pickles)
    chosen = cell(NAME)
    preflight([chosen])
    assert not pickles & set(hub.asked)
    (need,) = model_needs(chosen, architecture_of(chosen))
    assert need.download_gb == size / 1e9
    assert "; pickled (pytorch_model" in need.text and "converted to safetensors" in need.text
    folder = prepare_model(chosen, Cache(tmp_path / "cache"), silent)
    assert {name for name in hub.asked if "model" in name and ".json" not in name} == pickles
    assert folder.parent == tmp_path / "cache" / "converted"
    model = load_model(folder, torch.float32)
    assert all(torch.equal(model.get_parameter(name), tensors[name]) for name in tensors)
    assert set(read_metadata(chosen)["weights"]["pickled"]) == pickles
    (need,) = model_needs(chosen, architecture_of(chosen))
    assert "weights are here" in need.text and not need.download_gb


def test_another_layout_and_no_weights_are_refused(hub: type[Repository]) -> None:
    for path in hub.folder.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="has no weights as"):
        fetch_whole(NAME)
    (hub.folder / "consolidated.safetensors").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="consolidated.safetensors and neither"):
        weight_files(hub.folder)


def test_the_family_of_a_hubs_model_is_its_own(hub: type[Repository]) -> None:
    """No preset says what it is: its configuration does."""
    assert identity_of(cell(NAME))["model"]["prompt"] == {"template": "bare", "bos": True}
    assert identity_of(cell(NAME))["model"]["checkpoint"] == NAME
    assert fetch_description(NAME).name == COMMIT
