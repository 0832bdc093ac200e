"""Grids: what they accept, and that a refusal names the place and what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.overrides import override
from pipeline.config.parse import load_grid, parse_grid
from pipeline.config.yaml_location import Located
from pipeline.errors import ConfigError
from pipeline.plan import cell_keys
from pipeline.plan.cell_keys import identity_of, key_of, train_key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.results.lake.key_versions import changed_fields

GRID = """\
name: tiny
models:
  - name: m
    world_model: llama
datasets:
  - name: world
editors:
  - editor: none
  - editor: rledit
    variant: small
    settings: {rank: 4, meta_lr: 1e-5}
streams:
  - {n_batches: 2, batch_size: 5}
"""
SMALL = "batch_size: 5, proxy: {{n_batches: {}, batch_size: 2}}"


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(GRID)
    return path


def with_line(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def cell(path: Path, *overrides: str) -> Cell:
    """The one rledit cell of the grid."""
    return next(c for c in cells_of(load_grid(path, overrides)) if c.editor.editor == "rledit")


def test_a_grid_is_the_product_of_its_lists(grid_file: Path) -> None:
    cells = cells_of(load_grid(grid_file, ["seeds=[0, 1, 2]"]))
    assert len(cells) == 6
    assert len({key_of(c) for c in cells}) == 6


def test_yaml_floats_without_a_point_are_numbers(grid_file: Path) -> None:
    assert cell(grid_file).settings.meta_lr == 1e-5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "name: tiny",
            "nmae: tiny",
            r"tiny.yaml:1 \(nmae\): unknown key 'nmae'; did you mean 'name'",
        ),
        (
            "editor: rledit",
            "editor: rlediit",
            r"tiny.yaml:9 .*unknown editor.*did you mean 'rledit'",
        ),
        ("rank: 4", "rnk: 4", r"tiny.yaml:11 \(editors.1.settings.rnk\).*did you mean 'rank'"),
        ("rank: 4", "rank: four", r"tiny.yaml:11 \(editors.1.settings.rank\): .*integer"),
        ("world_model: llama", "world_model: lama", r"tiny.yaml:4 .*did you mean 'llama'"),
        (
            "n_batches: 2",
            "n_batches: 0",
            r"tiny.yaml:13 \(streams.0.n_batches\): expected at least 1, found 0",
        ),
        (
            "batch_size: 5",
            "batch_size: 5, proxy: {n_batches: 0, batch_size: 1}",
            r"streams.0.proxy.n_batches\): expected at least 1, found 0",
        ),
        (
            "batch_size: 5",
            "batch_size: 5, proxy: {n_batch: 1}",
            r"tiny.yaml:13 .*proxy.n_batch",
        ),
        ("variant: small", "editor_variant: a", r"tiny.yaml:10 .*unknown key"),
        ("name: world", "name: world\n    world: {sed: 1}", r"world.sed\).*did you mean 'seed'"),
    ],
)
def test_what_is_unknown_is_named_with_its_place(
    grid_file: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_grid(with_line(grid_file, old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: tiny", "name: tiny\nname: other", "tiny.yaml:2: the key 'name' is given twice, "
         "first in line 1; leave one of the two out"),
        ("rank: 4", "rank: 4, rank: 5", "tiny.yaml:11: the key 'rank' .* first in line 11"),
        ("streams:", "streams: []\nstreams:", "tiny.yaml:13: the key 'streams' .* in line 12"),
    ],
)  # fmt: skip
def test_a_key_that_is_given_twice_is_refused(
    grid_file: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_grid(with_line(grid_file, old, new))


def test_an_unknown_protocol_is_named(grid_file: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'exact_match'"):
        load_grid(grid_file, ["protocols=[exact_mtch]"])


def test_two_entries_of_one_editor_need_variants(grid_file: Path) -> None:
    with pytest.raises(ConfigError, match="occurs twice"):
        load_grid(with_line(grid_file, "editor: none", "editor: rledit\n    variant: small"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds=[0, 1, 0]", r"\(seeds.2\): 0 occurs twice; leave one of the two out"),
        ("protocols=[exact_match, exact_match]", r"\(protocols.1\): 'exact_match' occurs twice"),
        ("measurements=[ability, downstream]", r"\(measurements.1\): 'downstream' occurs twice"),
        (
            "datasets.world.protocols=[token_accuracy, token_accuracy]",
            r"\(datasets.0.protocols.1\): 'token_accuracy' occurs twice",
        ),
    ],
)
def test_nothing_is_run_or_scored_twice(grid_file: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_grid(grid_file, [setting])


def test_a_missing_file_names_those_that_are_there(grid_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"no grid file at .*other.yaml; .* has tiny.yaml"):
        load_grid(grid_file.with_name("other.yaml"))


@pytest.mark.parametrize("entry", ["editors.rledit", "editors.small", "editors.1"])
def test_set_finds_entries_by_name_variant_or_number(grid_file: Path, entry: str) -> None:
    assert cell(grid_file, f"{entry}.settings.rank=9").settings.rank == 9


def test_a_set_changes_the_entry_that_it_names_and_none_that_has_its_settings_by_an_alias(
    grid_file: Path,
) -> None:
    path = with_line(
        grid_file,
        "    settings: {rank: 4, meta_lr: 1e-5}\n",
        "    settings: &shared {rank: 4, meta_lr: 1e-5}\n"
        "  - {editor: malmen, settings: *shared}\n"
        "  - {editor: rledit, variant: deep, settings: {<<: *shared, depth: 2}}\n",
    )
    entries = load_grid(path, ["editors.small.settings.rank=9"]).editors
    assert [e.settings.get("rank") for e in entries] == [None, 9, 4, 4]


def test_a_set_that_may_mean_several_entries_says_how_to_name_one(grid_file: Path) -> None:
    path = with_line(
        grid_file,
        "  - editor: none\n",
        "  - editor: none\n"
        "  - {editor: untrained, variant: small}\n"
        "  - {editor: untrained}\n"
        "  - {editor: rledit, variant: deep}\n",
    )
    for name, words in {
        "small": "2 entries go by 'small'; name one of them as untrained/small, rledit/small, or",
        "rledit": "2 entries go by 'rledit'; name one of them as rledit/deep, rledit/small, or by "
        "its number, 3, 4",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load_grid(path, [f"editors.{name}.settings.z_clip=3"])
    for name, place in {"rledit/small": 4, "deep": 3, "untrained": 2, "untrained/small": 1}.items():
        found = load_grid(path, [f"editors.{name}.settings.z_clip=3"]).editors
        assert [i for i, entry in enumerate(found) if "z_clip" in entry.settings] == [place]


def test_a_set_may_name_what_has_dots_in_its_name() -> None:
    data: dict[str, Any] = {
        "models": [{"name": "Mistral-7B-v0.3"}, {"preset": "qwen2.5-7b"}],
        "editors": [{"editor": "ft", "variant": "0.0003"}, {"editor": "ft"}],
        "covariance": {"imported": {"Mistral-7B-v0.3": {"layers.4.mlp.down_proj": "a", "x": "b"}}},
    }
    for text in (
        "models.Mistral-7B-v0.3.checkpoint=/x",
        "models.Mistral-7B-v0.3.target_modules=[down:4]",
        "models.qwen2.5-7b.dtype=float32",
        "editors.0.0003.settings.steps=5",
        "editors.ft/0.0003.settings.rank=6",
        "editors.1.settings.steps=7",
        "covariance.imported.Mistral-7B-v0.3.layers.4.mlp.down_proj=c",
    ):
        assert override(data, text) == []
    assert override(data, "models.Mistral-7B-v0.3.modules=[down:5]") == [
        "'modules' is now 'target_modules' (--set)"
    ]
    with pytest.raises(ConfigError, match=r"no such entry; did you mean 'Mistral-7B-v0.3'"):
        override(data, "models.Mistral-7B-v0.4.checkpoint=/x")
    assert data == {
        "models": [
            {"name": "Mistral-7B-v0.3", "checkpoint": "/x", "target_modules": ["down:5"]},
            {"preset": "qwen2.5-7b", "dtype": "float32"},
        ],
        "editors": [
            {"editor": "ft", "variant": "0.0003", "settings": {"steps": 5, "rank": 6}},
            {"editor": "ft", "settings": {"steps": 7}},
        ],
        "covariance": {"imported": {"Mistral-7B-v0.3": {"layers.4.mlp.down_proj": "c", "x": "b"}}},
    }


@pytest.mark.parametrize("text", ["rank", "editors.rledti.settings.rank=1", "name.x=1"])
def test_a_set_that_fits_nothing_is_refused(grid_file: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_grid(grid_file, [text])


@pytest.mark.parametrize(
    "change",
    [
        "editors.rledit.settings.rank=5",
        "threads=2",
        "seeds=[1]",
        "protocols=[exact_match]",
        "datasets.world.world={seed: 1}",
        "datasets.world.split=validation",
        "models.m.overrides={steps: 700}",
        "checkpoints=2",
    ],
)
def test_whatever_changes_numbers_changes_the_key(grid_file: Path, change: str) -> None:
    before, after = cell(grid_file), cell(grid_file, change)
    assert key_of(before) != key_of(after)
    assert changed_fields(identity_of(before), identity_of(after))


def test_defaults_spelled_out_do_not_change_the_key(grid_file: Path) -> None:
    assert key_of(cell(grid_file)) == key_of(cell(grid_file, "editors.rledit.settings.depth=10"))


def test_networks_are_shared_unless_the_stream_matters(grid_file: Path) -> None:
    longer = "streams=[{n_batches: 4, batch_size: 5}]"
    fixed = "editors.rledit.settings.trajectory_batches=2"
    assert train_key_of(cell(grid_file)) != train_key_of(cell(grid_file, longer))
    assert train_key_of(cell(grid_file, fixed)) == train_key_of(cell(grid_file, fixed, longer))


@pytest.mark.parametrize("change", ["z_clip=2", "window_share=0.5"])
def test_networks_of_another_training_are_not_found_in_a_cache(
    grid_file: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are those trained anew of whose training nothing has changed."""
    keys = []
    for version in (2, 3):
        monkeypatch.setattr(cell_keys, "_TRAINING_VERSION", version)
        changed = cell(grid_file, f"editors.rledit.settings.{change}")
        keys.append((train_key_of(cell(grid_file)), train_key_of(changed)))
    (plain, before), (still_plain, after) = keys
    assert plain == still_plain and before != after


def test_a_field_that_only_one_identity_has_is_a_change() -> None:
    assert changed_fields({"a": 1}, {"a": 1, "b": None}) == ["b: absent → None"]
    assert changed_fields({"m": {"a": [1]}}, {"m": {"a": [2]}}) == ["m.a: [1] → [2]"]


def test_a_streams_stand_in_takes_its_place_below_full_scale_and_is_no_part_of_a_cell(
    grid_file: Path,
) -> None:
    with_line(grid_file, "batch_size: 5", SMALL.format(3))
    with_line(grid_file, "world_model: llama", "preset: llama-3-8b-instruct")
    with_line(grid_file, "name: tiny", "name: tiny\nscale: full")
    full, small = (load_grid(grid_file, (), scale) for scale in (None, "standin"))
    assert [(s.n_batches, s.batch_size) for s in full.streams] == [(2, 5)]
    assert [(s.n_batches, s.batch_size) for s in small.streams] == [(3, 2)]
    assert [(s.n_batches, s.batch_size) for s in load_grid(grid_file, (), "world").streams] == [
        (3, 2)
    ]
    assert load_grid(grid_file, (), "standin", 2).streams[0].n_batches == 2
    cells = cells_of(small)
    assert all(identity_of(c)["stream"] == {"n_batches": 3, "batch_size": 2} for c in cells)
    # Whoever gives streams of their own gets these, at every scale.
    own = load_grid(grid_file, ["streams=[{n_batches: 1, batch_size: 4}]"], "standin")
    assert [(s.n_batches, s.batch_size) for s in own.streams] == [(1, 4)]


@pytest.mark.parametrize(
    ("editor", "message"),
    [
        (
            "{editor: ultraedit, settings: {reference: official}}",
            r"grid.yaml:\d+ \(editors.1.settings\): a batch of 3 edits has no complete loss group "
            r"of 10, .* use batches of at least 10 edits, a smaller loss_group, or reference: pap",
        ),
        (
            "{editor: ultraedit, settings: {reference: converged}}",
            r"\(editors.1.settings.reference\): Input should be 'official' or 'paper'",
        ),
        (
            "{editor: rledit, settings: {reference: offical}}",
            r"\(editors.1.settings.reference\): Input should be 'official', 'paper' or 'converged'",
        ),
    ],
)
def test_a_recipe_that_cannot_be_had_is_answered_with_its_place(
    editor: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "name: g\nmodels: [{name: m, modules: ['down:all']}]\ndatasets: [{name: world}]\n"
        f"editors:\n  - {{editor: none}}\n  - {editor}\n"
        "streams: [{n_batches: 2, batch_size: 3}]\n"
    )
    with pytest.raises(ConfigError, match=message):
        load_grid(path)


def test_settings_that_stand_in_no_file_are_named_without_a_line() -> None:
    located = Located.of_data({"step": "much"}, "editor mine")
    assert located.place(("step",)) == "editor mine (step)" and located.place(()) == "editor mine"
    misspelt = Located(GRID, "x").data | {"scael": "full"}
    with pytest.raises(ConfigError, match=r"^cell 1a2b \(scael\): unknown key 'scael'"):
        parse_grid(Located.of_data(misspelt, "cell 1a2b"))
