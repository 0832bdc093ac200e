"""Errors that a user can mend have one base class, and commands show them as one message."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import pipeline
import rledit
from pipeline.cli import app
from pipeline.cli.errors import errors_as_help
from pipeline.errors import ConfigError
from pipeline.inputs.checkpoint_files import CheckpointError
from pipeline.run.signals import Terminated
from pipeline.run.weight_files import CheckpointFiles
from pipeline.storage.object_store import Storage, StorageError
from rledit.datasets import DatasetError, RowErrors
from rledit.editors import editor_class
from rledit.errors import UserError
from rledit.finite import NonFiniteError
from rledit.tokenization import TokenizationError

NO_ERRORS_OF_USERS = {
    "Interrupted": "Ctrl-C: commands end with 130 and say what is kept",
    "LeaseLost": "a worker stops because another one has its task; no command shows it",
    "StreamBroken": "carries an error and the rows before it from a stream to the lake",
    "Terminated": "SIGTERM: nothing was wrong",
    "_Passing": "a request to a judge that is made again, until it becomes a JudgeError",
    "_Refused": "a job server's answer, which its client turns into a SubmitError",
    "_StopRequested": "a signal on its way out of a running cell",
}


def _exception_classes() -> dict[str, tuple[str, ...]]:
    """Every class of both packages that is an exception, with the names of its bases.

    The sources are read and not imported: that would take DeepSpeed, Ray and MLflow.
    """
    bases: dict[str, tuple[str, ...]] = {}
    for package in (rledit, pipeline):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    names = tuple(ast.unparse(base).split(".")[-1] for base in node.bases)
                    assert bases.get(node.name, names) == names or not _raises(names), node.name
                    bases.setdefault(node.name, names)
    found: set[str] = set()
    while more := {n for n, b in bases.items() if _raises(b) or found & {*b}} - found:
        found |= more
    return {name: bases[name] for name in found}


def _raises(bases: tuple[str, ...]) -> bool:
    built_in = (getattr(builtins, name, None) for name in bases)
    return any(isinstance(b, type) and issubclass(b, BaseException) for b in built_in) or any(
        name.endswith(("Error", "Exception")) for name in bases
    )


def test_every_exception_is_an_error_of_the_user_or_listed_with_its_reason() -> None:
    classes = _exception_classes()
    below = {"UserError"}
    while more := {name for name, bases in classes.items() if below & {*bases}} - below:
        below |= more
    assert {"ConfigError", "CheckpointError", "RowErrors", "StorageError", "LakeError"} <= below
    assert {*classes} - below == {*NO_ERRORS_OF_USERS}


@pytest.mark.parametrize("kind", [ConfigError, DatasetError, NonFiniteError, TokenizationError])
def test_errors_of_users_are_value_errors_still(kind: type[Exception]) -> None:
    assert issubclass(kind, UserError) and issubclass(kind, ValueError)
    assert issubclass(RowErrors, kind) == (kind is DatasetError)


class OfAnExtension(UserError, FileNotFoundError):
    """An error that somebody's own editor raises."""


@pytest.mark.parametrize(
    "error",
    [
        OfAnExtension("no table of synonyms at syn.tsv; download it"),
        NonFiniteError("layer 3 gives NaN; load the model in float32"),
        Terminated("the process was told to end"),
    ],
)
def test_an_error_of_the_user_is_one_message(error: Exception) -> None:
    told = CliRunner().invoke(_raising(error), [])
    assert (told.exit_code, told.output) == (2, f"error: {error}\n")


def test_anything_else_is_a_bug_and_keeps_its_trace_whatever_its_name() -> None:
    bug = type("ConfigError", (ValueError,), {})("index out of step")
    told = CliRunner().invoke(_raising(bug), [])
    assert told.exception is bug and told.output == ""


def _raising(error: BaseException) -> Any:
    def main() -> None:
        with errors_as_help():
            raise error

    shell = typer.Typer(pretty_exceptions_enable=False)
    shell.command()(main)
    return shell


@pytest.mark.parametrize(
    ("lake", "said"),
    [
        ("nowhere://bucket/lake", "nowhere://bucket/lake: cannot open this location"),
        ("file://lake/of/mine", "three slashes, as in file:///lake/of/mine"),
    ],
)
def test_a_location_that_cannot_be_opened_is_an_error_of_the_user(lake: str, said: str) -> None:
    done = CliRunner().invoke(app, ["table", "demo", "--lake", lake])
    assert isinstance(done.exception, StorageError) and said in str(done.exception)


def test_names_of_editors_locations_and_checkpoints_are_for_the_user_to_mend(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"unknown editor 'rledti'; did you mean 'rledit'"):
        editor_class("rledti")
    with pytest.raises(UserError, match="expected module:Class of an importable module"):
        editor_class("no.such.module:Mine")
    with pytest.raises(UserError, match="is not a name inside a location"):
        Storage(str(tmp_path)).read_bytes("../outside")
    with pytest.raises(CheckpointError, match="save it with save_pretrained"):
        CheckpointFiles(tmp_path)
