"""Files of edits wherever they lie: stores, Parquet, a hub; and what is wrong with broken ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.parse import load_grid
from pipeline.inputs.edit_files import open_data, read_data
from pipeline.plan.cells import cells_of
from pipeline.storage.object_store import Storage
from rledit.datasets import FORMATS, DataFileError, read_edits
from rledit.world import World, WorldConfig, render_schema

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = [name for name, form in FORMATS.items() if form.detected]


def parquet(path: Path, rows: list[Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def check(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "check", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


@pytest.mark.parametrize("name", NAMES)
def test_parquet_gives_the_edits_that_json_gives(name: str, tmp_path: Path) -> None:
    example = dict(FORMATS[name].example)
    rows = [{k: v for k, v in example.items() if v != {}}] * 2
    (tmp_path / "a.json").write_text(json.dumps(rows))
    path = parquet(tmp_path / "a.parquet", rows)
    report = read_data(str(path))
    expected = read_edits(tmp_path / "a.json")
    assert report.format == name and report.n_rows == 2
    assert report.data_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(e.prompt, e.target, e.locality) for e in report.edits] == [
        (e.prompt, e.target, e.locality) for e in expected.edits
    ]


def test_a_store_gives_what_a_local_file_gives(tmp_path: Path) -> None:
    content = json.dumps([FORMATS["fever"].example]).encode()
    digest = hashlib.sha256(content).hexdigest()
    store = Storage("memory://edits")
    store.write_bytes("fever.json", content)
    location = "memory://edits/fever.json"
    (tmp_path / "fever.json").write_bytes(content)
    assert read_data(location).data_hash == read_edits(tmp_path / "fever.json").data_hash
    assert open_data(f"{location}#sha256={digest}").data_hash == digest
    with pytest.raises(DataFileError, match=f"has the sha256 {digest}, not the pinned"):
        open_data(f"{location}#sha256={'0' * 64}")
    with pytest.raises(DataFileError, match="does not exist. Check the URI"):
        open_data("memory://edits/absent.json")
    with pytest.raises(DataFileError, match="cannot be read"):
        open_data("nonsense://edits/absent.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.json", b'[{"prompt": "x", "ans": "y"}, {"prompt": ', "truncated: it ends inside row 2"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": ', "truncated: it ends inside row 2"),
        ("a.json", b'[{"prompt": "caf\xe9"}]', "not UTF-8 at byte"),
        ("a.json", b"", "is empty"),
        ("a.json", b"[]", "holds no rows"),
        ("a.parquet", b"PAR1 and then nothing of use PAR1", "corrupt or truncated Parquet"),
        ("a.parquet", b"PAR1", "corrupt or truncated Parquet"),
        ("a.parquet", b"\x00\x01", "is named .parquet and is no Parquet file"),
        ("a.json", b"<!DOCTYPE html><html>", "HTML page"),
        ("a.json", b'[{"a": 1}]', "fits no schema"),
    ],
)
def test_a_broken_file_is_one_message_with_the_remedy(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    code, text = check(str(tmp_path / name))
    assert code == 1 and message in text and name in text
    assert text.count("ERROR") == 1 and "Traceback" not in text


def test_a_shard_cut_short_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "whole.parquet", [dict(FORMATS["fever"].example)] * 50)
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataFileError, match="corrupt or truncated Parquet.*Download the shard"):
        open_data(str(tmp_path / "cut.parquet"))


@pytest.mark.parametrize(
    "location",
    [
        "hf://datasets/owner/name/file.json",
        "hf://owner/name@main/file.json",
        "hf://datasets/name@main/file.json",
    ],
)
def test_a_hub_file_needs_a_pinned_revision(location: str) -> None:
    with pytest.raises(DataFileError, match="owner/name@revision/file"):
        open_data(location)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "is gated. Accept its terms on the hub and set HF_TOKEN"),
        ("RevisionNotFoundError", "has no revision '0123456789abcdef"),
        ("RepositoryNotFoundError", "does not exist, or is private"),
        ("RemoteEntryNotFoundError", "has no file 'train.json'"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    error: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_: Any, **__: Any) -> str:
        kind = getattr(errors, error)
        # Made without the answer of the hub that its constructor takes apart.
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(DataFileError) as caught:
        open_data(f"hf://datasets/owner/name@{COMMIT}/train.json")
    assert message in str(caught.value)


def test_a_hub_that_does_not_answer_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataFileError, match="Check the network"):
        open_data(f"hf://datasets/nobody/nothing@{COMMIT}/train.json")


def test_a_grid_takes_parquet_and_stores(tmp_path: Path) -> None:
    files = render_schema(World(WorldConfig(n_subjects=60)), "zsre", tmp_path)
    train = parquet(tmp_path / "train.parquet", json.loads(files["train"].read_text()))
    Storage("memory://zsre").write_bytes("evaluation.json", files["evaluation"].read_bytes())
    locations = {"train": str(train), "evaluation": "memory://zsre/evaluation.json"}
    grid = load_grid(GRID, [f"datasets.0.files={json.dumps(locations)}"])
    source: Any = cells_of(grid)[0].source()
    assert source.sizes()["evaluation"] == len(json.loads(files["evaluation"].read_text()))
    assert set(source.file_hashes) == {"train", "evaluation"}


def test_check_finds_parquet_in_folders_and_strict_refuses_traps(tmp_path: Path) -> None:
    row = dict(FORMATS["fever"].example)
    parquet(tmp_path / "fever.parquet", [row, {**row, "prompt": "B.", "alt": row["ans"]}])
    code, text = check(str(tmp_path))
    assert code == 0 and "fever.parquet" in text and "target_equals_old 1" in text
    code, text = check(str(tmp_path), "--strict")
    assert code == 1 and "strict:" in text


@pytest.mark.parametrize("read", ["foreign_rows", "read_shard"])
def test_arrows_threads_hold_nothing_of_pythons(
    read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that let go of Python's bytes while the interpreter ends aborted the process.

    A bytearray tells whether anybody holds its memory: it cannot grow then.
    """
    from pipeline.results.lake import parquet as shards
    from pipeline.results.lake.lake import Lake
    from pipeline.storage import parquet as users
    from tests.unit.helpers.lake_fixtures import cell

    if read == "read_shard":
        lake = Lake(str(tmp_path))
        lake.commit(cell())
        (path,) = (tmp_path / "cells").rglob("*.parquet")
    else:
        path = parquet(tmp_path / "x.parquet", [{"a": 1}, {"a": 2}])
    content = bytearray(path.read_bytes())
    seen = []

    def looking(opened: Any) -> Any:
        def instead(source: Any, *given: Any, **named: Any) -> Any:
            content.extend(b"x")  # BufferError while Arrow holds it
            seen.append(source.size())
            return opened(source, *given, **named)

        return instead

    monkeypatch.setattr(pq, "ParquetFile", looking(pq.ParquetFile))
    monkeypatch.setattr(pq, "read_table", looking(pq.read_table))
    given: Any = content
    if read == "foreign_rows":
        assert users.foreign_rows(given) == [{"a": 1}, {"a": 2}]
    else:
        assert shards.read_shard(given, "cells", "here")["status"] == ["done"]
    assert seen and seen[0] == len(content) - len(seen)


def test_a_table_of_ones_own_facts_is_a_data_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    lines = [f'"The ferry {i}, sails from",Oban,ferry {i},,old {i}' for i in range(30)]
    path.write_text(
        "\n".join(["prompt,target,subject,rephrases,old_target", *lines, "The sea,salt,,a|b,"])
    )
    code, output = check(path)
    assert code == 0 and "facts: facts of one's own" in output and "31 edits of 31" in output
    (cell,) = cells_of(
        load_grid(
            GRID,
            [
                f"datasets=[{{name: mine, files: {{all: {path}}}}}]",
                "editors=[{editor: ultraedit, settings: {step: 1.0e-2}}]",
                "streams=[{n_batches: 2, batch_size: 2}]",
            ],
        )
    )
    edits = cell.source().draw("evaluation", 4, seed=0)
    known = {edit.prompt: edit for edit in read_data(str(path)).edits}
    assert all(known[e.prompt].target == e.target for e in edits) and len(known) == 31
    first, last = known["The ferry 0, sails from"], known["The sea"]
    assert (first.subject, first.old_target, first.source) == ("ferry 0", "old 0", "mine.csv:2")
    assert last.rephrases == ("a", "b") and last.subject is None
