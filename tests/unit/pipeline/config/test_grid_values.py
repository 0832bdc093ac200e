"""Numbers, lists and datasets of a grid: what does not work is refused with place and remedy."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.grid import (
    CovarianceEntry,
    DatasetEntry,
    EditorEntry,
    EvalDataEntry,
    Grid,
    ModelEntry,
    StreamEntry,
)
from pipeline.config.parse import load_grid
from pipeline.config.ranges import AT_LEAST_ONE
from pipeline.config.resources import ResourcesEntry
from pipeline.errors import ConfigError
from pipeline.plan.cells import cells_of
from rledit.editors import EDITORS
from rledit.stream import checkpoints
from rledit.world import WorldConfig, WorldModelSpec

GRID = """\
name: small
models: [{name: m, world_model: tiny}]
datasets: [{name: world, world: {n_subjects: 60}}]
editors: [{editor: none}]
streams: [{n_batches: 2, batch_size: 2}]
"""
GROUPS: dict[str, type] = {
    "": Grid,
    "statistics.": CovarianceEntry,
    "material.": EvalDataEntry,
    "resources.": ResourcesEntry,
    "streams.0.": StreamEntry,
    "models.m.": ModelEntry,
    "models.m.overrides.": WorldModelSpec,
    "datasets.world.": DatasetEntry,
    "datasets.world.world.": WorldConfig,
    "editors.0.": EditorEntry,
} | {f"editors.{name}.settings.": cls.Config for name, cls in EDITORS.items()}


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(GRID)
    return path


def numeric(kinds: tuple[str, ...]) -> list[str]:
    """Paths of the keys whose type begins so; a key of several editors once."""
    found: dict[tuple[str, str, str], str] = {}
    for prefix, cls in GROUPS.items():
        group = "editors" if prefix.startswith("editors") else prefix  # many share a key
        for f in fields(cls):
            if str(f.type).startswith(kinds) and "Literal" not in str(f.type):
                found.setdefault((group, f.name, str(f.type)), prefix + f.name)
    return list(found.values())


def refusal(grid_file: Path, key: str, value: str) -> str | None:
    """The message, None where the value is taken; anything but a message is a failure."""
    editor = key.split(".")[1] if ".settings." in key else None
    sets = [f"{key}={value}"]
    if editor is not None:
        sets = [f"editors=[{{editor: {editor}, variant: '{editor}'}}]", *sets]
    try:
        for cell in cells_of(load_grid(grid_file, sets)):
            assert cell.settings is not None
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("value", ["-1", ".nan", ".inf", "-.inf", "true"])
def test_no_number_of_a_grid_is_negative_boundless_or_a_truth_value(
    grid_file: Path, value: str
) -> None:
    keys = numeric(("int", "float"))
    assert len(keys) > 60
    taken = [key for key in keys if refusal(grid_file, key, value) is None]
    assert taken == []


def test_what_is_counted_is_at_least_one_and_whole(grid_file: Path) -> None:
    whole = [key for key in numeric(("int",)) if key.rpartition(".")[2] in AT_LEAST_ONE]
    assert {"threads", "checkpoints", "streams.0.n_batches", "resources.ranks",
            "editors.mend.settings.rank"} <= set(whole)  # fmt: skip
    for key in whole:
        assert refusal(grid_file, key, "0") is not None, key
        assert refusal(grid_file, key, "1.5") is not None, key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("threads=0", "small.yaml (threads): expected at least 1, found 0"),
        ("threads=-2", "small.yaml (threads): expected at least 1, found -2"),
        ("threads=5000", "small.yaml (threads): expected at most 1024, found 5000"),
        (
            "models.m.overrides.layers=100000",
            "(models.0.overrides.layers): expected at most 1000, ",
        ),
        ("models.m.overrides.init_std=1.5", "overrides.init_std): expected at most 1, found 1.5"),
        ("models.m.overrides.chat=true", "overrides.chat): the model's `prompt_style` says it"),
        (
            "datasets=[{name: z, files: edits.json}]",
            "(datasets.0.files): expected a mapping, found edits.json; in braces it is one: "
            "files: {KEY: edits.json}",
        ),
        ("checkpoints=0", "small.yaml (checkpoints): expected at least 1, found 0"),
        ("checkpoints=true", "small.yaml (checkpoints): expected a number, found true"),
        ("seeds=[0, -1]", "small.yaml (seeds.1): expected 0 or more, found -1"),
        ("material.prompts=0", "small.yaml (eval_data.prompts): expected at least 1, found 0"),
        (
            "streams=[{n_batches: 0, batch_size: -1}]",
            "small.yaml:5 (streams.0.n_batches): expected at least 1, found 0\n"
            "small.yaml:5 (streams.0.batch_size): expected at least 1, found -1",
        ),
        (
            "editors=[{editor: ft, settings: {lr: .nan}}]",
            "small.yaml:4 (editors.0.settings.lr): expected a finite number, found nan",
        ),
        (
            "editors=[{editor: rect, settings: {keep: 0}}]",
            "small.yaml:4 (editors.0.settings.keep): expected a number above 0, found 0",
        ),
        (
            "seeds=3",
            "small.yaml (seeds): expected a list, found 3; in square brackets it is one: "
            "seeds: [3]",
        ),
        (
            "protocols=exact_match",
            "small.yaml (protocols): expected a list, found exact_match; in square brackets it is "
            "one: protocols: [exact_match]",
        ),
        ("models.m.modules=down:0", "modules: [down:0]"),
        ("measurements=perplexity", "measurements: [perplexity]"),
        ("editors=[{editor: ft, settings: {modules: down:0}}]", "modules: [down:0]"),
        ("seeds={a: 1}", "small.yaml (seeds): expected a list, found a mapping"),
        ("editors=rledit", "the grid needs a list of editors, not str 'rledit'; write each entry"),
        ("name=a/../../b", "'a/../../b' cannot be the name of a grid's report: expected at most"),
        (f"name={'и' * 34}", f"'{'и' * 34}' cannot be the name of a grid's report"),
        ("name=''", "small.yaml:1 (name): '' cannot be the name of a grid's report"),
        (f"name={'g' * 201}", "expected at most 200 bytes"),
        ("models.m.name=''", "(models.0.name): model='' cannot be a folder of the lake"),
        (f"models.m.name={'ü' * 34}", f"(models.0.name): model='{'ü' * 34}' is too long for a fol"),
        ("datasets.0.name=''", "(datasets.0.name): dataset='' cannot be a folder of the lake"),
        ("seeds=[", "--set seeds=[: '[' is not valid YAML"),
    ],
)
def test_the_message_says_what_was_expected(grid_file: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_grid(grid_file, [change])
    assert message in str(caught.value).replace(str(grid_file), "small.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: expected a mapping of settings, key: value"),
        (b"# nothing yet\n", "is empty"),
        (b"- a\n- b\n", "expected a mapping of settings, key: value, found a list"),
        (b"rledit\n", "expected a mapping of settings, key: value, found a single value"),
        (b"name: caf\xe9\n", "is not UTF-8 at its byte 9: expected the YAML file of a grid"),
    ],
)
def test_a_file_that_is_no_grid(grid_file: Path, content: bytes, message: str) -> None:
    grid_file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_grid(grid_file)
    assert message in str(caught.value) and "<class" not in str(caught.value)


def test_a_dataset_without_files_is_not_made_up(grid_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_grid(grid_file, ["datasets=[{name: zsre}]"])
    assert str(caught.value) == (
        f"{grid_file}:3 (datasets.0): dataset 'zsre' has no files. Give them, e.g. files: "
        "{evaluation: zsre-edit.json, train: zsre-train.json}, or take the shipped facts with "
        "real_facts: true; the embedded synthetic world is taken under this name only if you ask "
        "for it with world: {}"
    )
    for entry in ("{name: mine, schema: zsre}", "{name: world, schema: fever}"):
        with pytest.raises(ConfigError, match=r"has no files.*proxy models with --scale proxy"):
            load_grid(grid_file, [f"datasets=[{entry}]"])


@pytest.mark.parametrize(
    "sets",
    [
        ["datasets=[{name: world}]"],
        ["datasets=[{split: validation}]"],
        ["datasets=[{name: zsre, world: {}}]"],
        ["datasets=[{name: zsre, schema: zsre, world: {n_subjects: 60}}]"],
        ["datasets=[{name: zsre, schema: zsre}]", "scale=standin"],
        ["datasets=[{name: zsre, files: {evaluation: a.json}}]"],
    ],
)
def test_the_world_is_there_for_whoever_asks_for_it(grid_file: Path, sets: list[str]) -> None:
    assert load_grid(grid_file, sets).datasets


def test_at_full_scale_a_published_dataset_needs_its_files(grid_file: Path) -> None:
    preset = ["models=[{name: m, preset: llama-3-8b}]", "datasets=[{name: Z, schema: zsre}]"]
    with pytest.raises(ConfigError, match="dataset 'Z' of schema 'zsre' has no files"):
        load_grid(grid_file, [*preset, "scale=full"])
    assert load_grid(grid_file, [*preset, "scale=full"], "standin").scale == "standin"


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("down:7", "model m, layers 0 to 1: edited module 'model.layers.7.mlp.down_proj' does not"),
        ("dwn:all", "model m, layers 0 to 1: edited module 'dwn:all': family 'llama' has no 'dwn'"),
        ("lm_head.nothing", "edited module 'lm_head.nothing' does not exist"),
    ],
)
def test_plan_names_the_editors_of_modules_that_do_not_exist(
    grid_file: Path, tmp_path: Path, modules: str, message: str
) -> None:
    sets = [
        "editors=[{editor: none}, {editor: ft}, {editor: memit}]",
        f"models.m.modules=[{modules}]",
    ]
    options = [word for text in sets for word in ("--set", text)]
    found: Any = CliRunner().invoke(
        app, ["plan", str(grid_file), *options, "--results", str(tmp_path / "r")]
    )
    assert isinstance(found.exception, ConfigError), found.exception
    (line,) = str(found.exception).splitlines()
    assert message in line and line.endswith("(edited by ft, memit)")


def test_more_checkpoints_than_batches_are_one_after_each() -> None:
    assert checkpoints(3, 10**12) == checkpoints(3, 3) == (1, 2, 3)


def test_names_of_keys_with_a_range_exist() -> None:
    known = {f.name for cls in GROUPS.values() for f in fields(cls)}
    assert known >= AT_LEAST_ONE
