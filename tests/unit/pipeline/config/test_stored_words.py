"""Words of grids: documented ones, old ones with a warning, stored ones in every cell."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.config.parse import load_grid, parse_grid
from pipeline.config.yaml_location import Located
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import identity_of
from pipeline.plan.cells import cells_of
from pipeline.run.tuning import load_search
from pipeline.submit.submission import as_json

NEW = """\
name: words
scale: proxy
models:
  - {name: m, preset: llama-3-8b, target_modules: ["down:1"], prompt_style: plain}
datasets:
  - {name: zsre, schema: zsre, world: {auxiliary: true}}
editors:
  - {editor: none}
  - editor: memit
    settings: {target_modules: ["down:2"]}
streams:
  - {n_batches: 20, batch_size: 9, proxy: {n_batches: 3, batch_size: 4}}
measurements: [downstream, downstream_harness, fluency]
eval_data: {downstream: items, prompts: 4}
covariance: {documents: 7}
"""
OLD_WORDS = {
    "target_modules": "modules", "auxiliary": "lessons", "downstream:": "ability:",
    "downstream_harness": "ability_harness", "[downstream,": "[ability,", "eval_data": "material",
    "covariance": "statistics", "scale: proxy": "scale: standin", "proxy:": "standin:",
    "prompt_style: plain": "prompt_style: bare",
}  # fmt: skip
OLD = NEW
for new, old in OLD_WORDS.items():
    OLD = OLD.replace(new, old)


def written(folder: Path, text: str) -> Path:
    path = folder / "words.yaml"
    path.write_text(text)
    return path


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_new_words_are_the_same_cells_as_old_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = load_grid(written(tmp_path, NEW))
    assert warnings_of(caplog) == []
    old = load_grid(written(tmp_path, OLD))
    assert new == old
    assert [identity_of(c) for c in cells_of(new)] == [identity_of(c) for c in cells_of(old)]


def test_one_line_names_every_old_word_with_its_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_grid(written(tmp_path, OLD))
    (line,) = warnings_of(caplog)
    assert "'statistics' is now 'covariance' (line 15)" in line
    for old, new in [
        ("material", "eval_data"), ("ability", "downstream"), ("standin", "proxy"),
        ("ability_harness", "downstream_harness"), ("modules", "target_modules"),
        ("lessons", "auxiliary"), ("bare", "plain"),
    ]:  # fmt: skip
        assert f"{old!r} is now {new!r}" in line


def test_what_is_stored_keeps_its_words(tmp_path: Path) -> None:
    grid = load_grid(written(tmp_path, NEW))
    stored = json.dumps([as_json(grid), *(identity_of(c) for c in cells_of(grid))])
    for word in ("target_modules", "auxiliary", "eval_data", '"covariance"', '"proxy"', '"plain"'):
        assert word not in stored
    assert grid.editors[1].settings == {"modules": ["down:2"]}
    assert asdict(grid)["statistics"]["documents"] == 7
    assert grid.measurements == ("ability", "ability_harness", "fluency")


def test_a_stored_grid_is_read_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A submission carries the stored words; so do those that an older version has sent."""
    grid = load_grid(written(tmp_path, NEW))
    assert parse_grid(Located.of_data(as_json(grid), "submission words")) == grid
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("line", "more", "names"),
    [
        ("covariance: {documents: 7}", "statistics: {documents: 8}", ("covariance", "statistics")),
        ("eval_data: {downstream: items, prompts: 4}",
         "eval_data: {downstream: items, ability: other}", ("downstream", "ability")),
        ("  - {editor: none}", "  - {editor: ft, settings: {modules: [], target_modules: []}}",
         ("target_modules", "modules")),
        ("streams:", "streams:\n  - {n_batches: 2, batch_size: 2, proxy: {}, standin: {}}",
         ("proxy", "standin")),
    ],
)  # fmt: skip
def test_both_words_for_one_thing_are_refused(
    tmp_path: Path, line: str, more: str, names: tuple[str, str]
) -> None:
    text = NEW.replace(line, more if "streams" in line else f"{more}\n{line}")
    if "eval_data" in line:
        text = NEW.replace(line, more)
    new, old = names
    with pytest.raises(ConfigError, match=rf"words\.yaml:\d+ .*'{new}' and '{old}', its old name"):
        load_grid(written(tmp_path, text))


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ("covariance.documents=9", "statistics.documents=9"),
        ("eval_data.downstream=x", "material.ability=x"),
        ("models.m.target_modules=[down:0]", "models.m.modules=[down:0]"),
        ("editors.memit.settings.target_modules=[down:0]",
         "editors.memit.settings.modules=[down:0]"),
        ("streams.0.proxy.n_batches=5", "streams.0.standin.n_batches=5"),
        ("measurements=[downstream]", "measurements=[ability]"),
        ("datasets.zsre.world.auxiliary=false", "datasets.zsre.world.lessons=false"),
        ("scale=proxy", "scale=standin"),
    ],
)  # fmt: skip
def test_set_takes_both_words_whatever_the_file_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, new: str, old: str
) -> None:
    path = written(tmp_path, NEW)
    found = load_grid(path, [new])
    assert warnings_of(caplog) == []
    assert found == load_grid(path, [old])
    (line,) = warnings_of(caplog)
    assert "is now" in line
    assert found == load_grid(written(tmp_path, OLD), [new])


def test_a_scale_of_the_command_line_has_both_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, NEW.replace("scale: proxy\n", ""))
    new = load_grid(path, scale="proxy")
    assert warnings_of(caplog) == [] and new.scale == "standin"
    assert load_grid(path, scale="standin") == new
    assert "--scale standin is now --scale proxy" in warnings_of(caplog)[0]
    with pytest.raises(ConfigError, match=r"--scale prox: unknown scale.*'proxy'"):
        load_grid(path, scale="prox")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("documents: 7", "documents: many", r"words\.yaml:15 \(covariance\.documents\)"),
        ("documents: 7", "document: 7", r"\(covariance\.document\): unknown key 'document'.*"),
        ("scale: proxy", "scale: small", r"'world', 'proxy' or 'full'"),
        ("prompt_style: plain", "prompt_style: fancy", r"'plain' or 'chat'"),
        ("prompts: 4", "downstreem: x", r"did you mean 'downstream'"),
        ("[downstream,", "[downstreem,", r"unknown measurement 'downstreem'.*'downstream'"),
        ('modules: ["down:1"]', "modules: down", r"models\.0\.target_modules\): expected a list"),
    ],
)  # fmt: skip
def test_errors_speak_the_new_words(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in NEW
    with pytest.raises(ConfigError, match=message):
        load_grid(written(tmp_path, NEW.replace(old, new)))


def test_a_search_takes_the_new_words_and_records_the_stored_ones(tmp_path: Path) -> None:
    search = load_search(
        written(
            tmp_path,
            "name: s\nmodels: [{name: m, world_model: tiny}]\n"
            "datasets: [{name: world, split: validation}]\n"
            "streams: [{n_batches: 1, batch_size: 2}]\n"
            'editors: [{editor: ft, candidates: [{target_modules: ["down:0"]}]}]\n',
        )
    )
    assert search.trials == {"ft": ({"modules": ["down:0"]},)}


@pytest.mark.parametrize("path", sorted(Path("jobs/grids").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_grids_have_no_old_words(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_search(path) if path.stem.endswith(".search") else load_grid(path)
    assert warnings_of(caplog) == []
