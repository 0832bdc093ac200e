"""The commands of `rledit edit`: a user's facts into a model, asked, taken back, taken away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.run import editing
from tests.unit.helpers.small_editing import equal, learnt, rows, weights_of

ULTRA = ["--editor", "ultraedit", "--set", "step=1e-3", "--set", "modules=[down:0-1]"]
FAST = [*ULTRA, "--floor", "0", "--passes", "4"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prepare(tmp_path, monkeypatch)
    return tmp_path


def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A folder with a model and two files of facts, in which commands are given from here on."""
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    model, tokenizer = learnt()
    model.save_pretrained(folder / "model")  # type: ignore[operator]
    tokenizer.save_pretrained(folder / "model")
    for name, facts in (("first", rows(4)), ("more", rows(4, 4))):
        lines = [f"{row['prompt']},{row['target']},{row['subject']}" for row in facts]
        (folder / f"{name}.csv").write_text("\n".join(["prompt,target,subject", *lines]) + "\n")
    patch.chdir(folder)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def said(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exception is not None and result.exit_code != 0
    return str(result.exception)


def test_from_facts_to_an_edited_model_and_back(place: Path) -> None:
    out = said("edit", "model", "first.csv", "-o", "out", "--prompt-style", "plain", *FAST)
    assert out.count("✓ The ferry") == 4 and "before 'Maribel'   after 'Oban" in out
    assert "edited   4 of 4 facts" in out and "kept " in out and "perplexity" in out
    assert "(4 facts had none: made from templates)" in out
    asked = said("ask", "out", rows(1)[0]["prompt"], "--tokens", "4")
    lines = asked.splitlines()
    before, after = (line for line in lines if line.startswith(("  unedited", "  edited")))
    assert "Maribel" in before and "Oban" in after
    unedited, edited = (
        tuple(float(part.split()[0]) for part in line.split("log-probability ")[1].split(", "))
        for line in lines
        if "log-probability" in line
    )
    assert unedited[0] > unedited[1] and edited[1] > edited[0]
    more = said("edit", "out", "more.csv", *FAST)
    assert "batch 2" in more and "earlier " in more and "of 4 facts of earlier batches" in more
    listed = said("ledger", "out", "--facts")
    assert "batch 1  4 of 4 facts, ultraedit, dense" in listed
    assert "2 of 2 batches in force" in listed
    assert "✓ The ferry Maribel 0 sails from Oban" in listed
    undone = said("undo", "out", "1")
    assert "taken back: batch 1, 4 facts" in undone and "'Maribel" in undone
    assert "1 of 2 batches in force" in said("ledger", "out")
    said("undo", "out", "2")
    asked = said("ask", "out", rows(1)[0]["prompt"])
    assert asked.count("Maribel") >= 2 and "Oban" not in asked


def test_every_form_is_taken_away(place: Path) -> None:
    said("edit", "model", "first.csv", "-o", "out", *FAST, "--export", "checkpoint")
    model: Any = AutoModelForCausalLM.from_pretrained(place / "out" / "checkpoint")
    assert not equal(weights_of(learnt()[0]), weights_of(model))
    out = said("edit", "out", "--export", "lora", "--rank", "1", "--to", "adapter")
    assert "adapter  rank 1" in out and "of the change left out" in out and "known facts" in out
    out = said("export", "out", "whole-adapter", "--form", "lora")
    assert "exact (needed is rank" in out and "MB" in out
    said("export", "out", "change", "--delta")
    assert sorted(p.name for p in (place / "change").iterdir()) == ["delta.safetensors"]
    assert "2 of" not in said("ledger", "out")


def test_a_ledger_whose_model_has_moved_or_is_another(place: Path) -> None:
    said("edit", "model", "first.csv", "-o", "out", *FAST)
    (place / "model").rename(place / "moved")
    assert "say where it is: --model" in refused("ask", "out", "The ferry")
    assert "The ferry" in said("ask", "out", "The ferry", "--model", "moved")
    model, tokenizer = learnt()
    with torch.no_grad():
        model.get_submodule("lm_head").weight[0, 0] += 1.0
    model.save_pretrained(place / "model")  # type: ignore[operator]
    tokenizer.save_pretrained(place / "model")
    assert "belongs to another model" in refused("edit", "out", "more.csv", *FAST)


def test_bad_rows_stop_all_or_are_left_out(place: Path) -> None:
    with (place / "first.csv").open("a") as file:
        file.write("The ferry Largs 7 sails from,,\nThe ferry Oban 9 sails from,Tiree,Nobody\n")
    message = refused("edit", "model", "first.csv", "-o", "out", *FAST)
    assert "2 of 6 rows of first.csv cannot be edited" in message
    assert "row 6: " in message and "row 7: the subject 'Nobody'" in message
    assert not (place / "out").exists(), "a ledger begins with its first batch"
    out = said("edit", "model", "first.csv", "-o", "out", *FAST, "--skip-bad-rows")
    assert "left out 2 rows" in out and "edited   4 of 4" in out


def test_what_did_not_take_is_said_and_ends_with_1(place: Path) -> None:
    weak = ["--editor", "ultraedit", "--set", "step=1e-9", "--set", "modules=[down:0]"]
    result = call("edit", "model", "first.csv", "-o", "out", *weak, "--passes", "1")
    assert result.exit_code == 1
    assert "did not take: 'Oban' is not what it says" in result.output
    assert "4 did not take" in result.output and "✗ The ferry" in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["edit", "model", "-o", "out"], "give a file of facts, or --export"),
        (["edit", "model", "first.csv"], "model is no ledger; .*-o OUT"),
        (["edit", "nowhere", "first.csv", "-o", "out"], "nowhere"),
        (["edit", "model", "none.csv", "-o", "out"], "none.csv"),
        (["edit", "model", "first.csv", "-o", "out", "--editor", "rledit"], "add --train"),
        (["edit", "model", "first.csv", "-o", "out", "--editor", "none"], "edits nothing"),
        (["edit", "model", "first.csv", "-o", "out", "--set", "step"], "NAME=VALUE"),
        (["edit", "model", "first.csv", "-o", "out", *ULTRA, "--set", "x=1"], "no setting 'x'"),
        (["edit", "model", "first.csv", "-o", "out", "--set", "x=1"], "a setting 'x': .* ft has"),
        (
            ["edit", "model", "first.csv", "-o", "out", *ULTRA, "--set", "modules=[down:99]"],
            r"editor 'ultraedit': edited module '.*99.*' does not exist",
        ),
        (["edit", "smollm2-135", "first.csv", "-o", "out"], "did you mean smollm2-135m"),
        (["edit", "model", "first.csv", "-o", "first.csv"], "first.csv is a file"),
        (["edit", "model", "first.csv", "-o", "model"], "model holds '.*' and no ledger"),
        (["edit", "model", "first.csv", "-o", "out", "--editor", "memitt"], "memit"),
        (["edit", "model", "first.csv", "-o", "out", "--format", "zsree"], "zsre"),
        (
            ["edit", "model", "short.csv", "-o", "out"],
            "it has `prompt`, `answer`",
        ),
        (["ask", "out", "Who?", " "], "a prompt is empty"),
        (["edit", "model", "first.csv", "-o", "out", "--dtype", "int8"], "--dtype int8"),
        (
            ["edit", "model", "first.csv", "-o", "out", "--prompt-style", "poem"],
            "--prompt-style poem: expected plain or chat",
        ),
        (["ledger", "model"], "is no ledger"),
        (["undo", "model", "1"], "is no ledger"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], expected: str, place: Path) -> None:
    (place / "short.csv").write_text("prompt,answer\nWho?,Me\n")
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(refused(*arguments))
    assert not (place / "out").exists()


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, and a ledger `out` of four facts."""
    folder = tmp_path_factory.mktemp("edited")
    with pytest.MonkeyPatch.context() as patch:
        prepare(folder, patch)
        said("edit", "model", "first.csv", "-o", "out", *FAST)
        yield folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["edit", "out", "more.csv", "--prompt-style", "plain"], "--prompt-style: the ledger says"),
        (["edit", "out", "more.csv", "--dtype", "bfloat16"], "--dtype: the ledger says"),
        (["edit", "model", "more.csv", "-o", "out", "--prompt-style", "chat"], "prompted as plain"),
        (["edit", "model", "more.csv", "-o", "out", "--dtype", "bfloat16"], "a model in float32"),
        (["undo", "out", "7"], "has no batch 7"),
        (["edit", "out", "more.csv", "--to", "x", "--rank", "2"], "--rank, --to: .*add --export"),
        (["edit", "out", "more.csv", "--export", "delta", "--rank", "2"], "--rank: only an adap"),
        (["edit", "model", "more.csv", "-o", "out", "--model", "x"], "--model: no ledger is op"),
        (
            ["edit", "out", "--export", "delta", *FAST, "--train", "--train-on", "x"],
            "--editor, --set, --train, --train-on, --passes, --floor: no facts are edited",
        ),
        (
            ["edit", "out", "--export", "lora", "--batch-size", "2", "--format", "zsre"],
            "--batch-size, --format: no facts are edited",
        ),
        (
            ["export", "out", "new", "--lake", "a", "--cache", "b", "--results", "c"],
            "--results, --lake, --cache: a ledger has",
        ),
        (["export", "out", "new", "--delta", "--form", "lora"], "--form: --delta says the form"),
        (["export", "out", "new", "--rank", "2"], "--rank: only an adapter has a rank"),
        (
            ["export", "out", "model", "--form", "lora"],
            "and is not empty: 'model'",
        ),
    ],
)
def test_what_does_not_go_with_a_ledger_is_refused_before_any_work(
    arguments: list[str], expected: str, edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(editing, "open_host", opened)
    before = (edited / "out" / "ledger.json").read_bytes()
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(refused(*arguments))
    assert (edited / "out" / "ledger.json").read_bytes() == before
